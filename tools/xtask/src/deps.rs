//! `cargo xtask deps`: what the project needs of Debian and of crates.io, each with its reason, installed where missing.

use std::fs;
use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::Workspace;
use crate::program::{Program, is_root};

/// Install the Debian packages and the tools that building, running and testing need.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Also what `cargo xtask guest --kernel source` needs.
    #[arg(long)]
    kernel_source: bool,
}

/// Installs what is missing.
///
/// # Errors
/// Something is missing, and can't be installed.
pub fn run(args: Args) -> Result<ExitCode> {
    let mut purposes = vec![Purpose::Build, Purpose::Run, Purpose::Test];
    if args.kernel_source {
        purposes.push(Purpose::KernelSource);
    }
    packages(&purposes)?;
    tools(&Workspace::here(), DAEMONS)?;
    Ok(ExitCode::SUCCESS)
}

/// What a package is needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Compiling the workspace and the guest image.
    Build,
    /// Starting containers.
    Run,
    /// The end-to-end tests and benchmarks.
    Test,
    /// Compiling the guest's own kernel.
    KernelSource,
}

/// Debian's packages: what for, name, why.
const PACKAGES: &[(Purpose, &str, &str)] = &[
    (
        Purpose::Build,
        "build-essential",
        "the linker, and C parts of crates",
    ),
    (Purpose::Build, "pkg-config", "finds C libraries for crates"),
    (
        Purpose::Build,
        "libseccomp-dev",
        "system call filters: agent (static), virtiofsd",
    ),
    (
        Purpose::Build,
        "libcap-ng-dev",
        "virtiofsd drops its capabilities with it",
    ),
    (
        Purpose::Build,
        "kmod",
        "depmod: the module dependencies of a kernel package",
    ),
    (
        Purpose::Build,
        "iptables",
        "sent to a guest whose packet filter is asked for",
    ),
    (Purpose::Run, "qemu-system-x86", "the virtual machine monitor"),
    (Purpose::Run, "containerd", "calls our shim; `ctr`"),
    (
        Purpose::Run,
        "iproute2",
        "sets up a network for a container by hand",
    ),
    (
        Purpose::Run,
        "busybox-static",
        "the content of the image that is made on the spot",
    ),
    (
        Purpose::Test,
        "containernetworking-plugins",
        "make the network of pods",
    ),
    (
        Purpose::Test,
        "protobuf-compiler",
        "compiles the CRI's protocol for its client",
    ),
    (Purpose::Test, "runc", "what we are compared with"),
    (Purpose::Test, "podman", "calls our OCI runtime"),
    (Purpose::Test, "conmon", "does so for podman and CRI-O"),
    (
        Purpose::Test,
        "catatonit",
        "what the first container of podman's pods runs",
    ),
    (Purpose::Test, "docker.io", "calls our OCI runtime as well"),
    (Purpose::Test, "netavark", "makes podman's networks"),
    (
        Purpose::Test,
        "aardvark-dns",
        "answers for the names of containers in them",
    ),
    (
        Purpose::Test,
        "debootstrap",
        "makes a root file system with real programs",
    ),
    (Purpose::Test, "e2fsprogs", "makes ext4 on disks"),
    (Purpose::Test, "xfsprogs", "makes XFS on disks"),
    (Purpose::Test, "erofs-utils", "makes EROFS on disks"),
    (Purpose::Test, "openssl", "makes keys for TLS in copies"),
    (Purpose::KernelSource, "bc", "kernel build: time constants"),
    (
        Purpose::KernelSource,
        "bison",
        "kernel build: parses its configuration",
    ),
    (
        Purpose::KernelSource,
        "flex",
        "kernel build: parses its configuration",
    ),
    (Purpose::KernelSource, "libelf-dev", "kernel build: objtool"),
    (Purpose::KernelSource, "xz-utils", "unpacks the source"),
];

/// A program that Debian 12 does not have, built with cargo.
#[derive(Debug, Clone, Copy)]
pub struct Tool {
    name: &'static str,
    version: &'static str,
    why: &'static str,
}

impl Tool {
    /// Checks licences and advisories of dependencies.
    pub const CARGO_DENY: Self = Self {
        name: "cargo-deny",
        version: "0.20.2",
        why: "checks licences and advisories of dependencies",
    };
}

/// What serves a VM's devices beside the VMM.
pub const DAEMONS: &[Tool] = &[
    Tool {
        name: "virtiofsd",
        version: "1.14.0",
        why: "shares root file systems with guests",
    },
    Tool {
        name: "vhost-device-vsock",
        version: "0.3.0",
        why: "vsock where the kernel has no vhost-vsock",
    },
];

/// Installs the packages for these purposes that are missing. Does nothing, and takes no time, when none is.
///
/// # Errors
/// Some are missing and this is not root, or apt-get failed.
pub fn packages(purposes: &[Purpose]) -> Result<()> {
    let wanted: Vec<_> = PACKAGES
        .iter()
        .filter(|(purpose, ..)| purposes.contains(purpose))
        .collect();
    let query = Program::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status} ${Package}\n"])
        .args(wanted.iter().map(|(_, name, _)| name))
        .output()
        // Without dpkg nothing is known to be there.
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let missing = missing(&wanted, query.as_deref().unwrap_or_default());
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(_, name, _)| *name).collect();
    eprintln!("Debian packages that are missing:");
    for (_, name, why) in &missing {
        eprintln!("  {name:18} {why}");
    }
    if query.is_err() {
        bail!(
            "this is no Debian system: install what corresponds to {}",
            names.join(" ")
        );
    }
    if !is_root() {
        bail!(
            "as root: apt-get install --no-install-recommends {}",
            names.join(" ")
        );
    }
    apt_get(["update"])?;
    apt_get(
        ["install", "--yes", "--no-install-recommends"]
            .into_iter()
            .chain(names),
    )
}

type Package = (Purpose, &'static str, &'static str);

/// The packages that are not among the installed ones of dpkg's answer.
fn missing<'a>(wanted: &[&'a Package], answer: &str) -> Vec<&'a Package> {
    let installed: Vec<&str> = answer
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect();
    wanted
        .iter()
        .filter(|(_, name, _)| !installed.contains(name))
        .copied()
        .collect()
}

/// Runs apt-get, which asks nothing.
///
/// # Errors
/// It failed.
pub fn apt_get<'a>(args: impl IntoIterator<Item = &'a str>) -> Result<()> {
    Program::new("apt-get")
        .args(["--quiet"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .run()
}

/// Builds the tools that are not below `target/tools` in the version that we want.
///
/// # Errors
/// One can't be built.
pub fn tools(workspace: &Workspace, tools: &[Tool]) -> Result<()> {
    let root = workspace.tools();
    // Cargo's own record of what it installed there; absent at first.
    let record = fs::read_to_string(root.join(".crates.toml")).unwrap_or_default();
    for Tool { name, version, why } in tools {
        let recorded = record.contains(&format!("\"{name} {version} "));
        if recorded && root.join("bin").join(name).is_file() {
            continue;
        }
        eprintln!("building {name} {version} ({why}); this takes a minute or more");
        Program::cargo()
            .args(["install", "--locked", "--version", version, "--root"])
            .args([root.as_os_str(), name.as_ref()])
            .run()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_installed_is_missing() {
        let wanted = [
            &(Purpose::Test, "runc", "what we are compared with"),
            &(Purpose::Test, "debootstrap", "makes a root file system"),
        ];
        let names = |answer| {
            missing(&wanted, answer)
                .iter()
                .map(|(_, name, _)| *name)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(""), ["runc", "debootstrap"]);
        assert_eq!(
            names("installed runc\nnot-installed debootstrap\n"),
            ["debootstrap"]
        );
        assert_eq!(names("config-files runc\ninstalled debootstrap\n"), ["runc"]);
        assert_eq!(names("installed debootstrap\ninstalled runc\n"), [""; 0]);
    }

    #[test]
    fn a_package_is_listed_once() {
        let mut names: Vec<_> = PACKAGES.iter().map(|(_, name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), PACKAGES.len());
    }
}

//! What the tests and `cargo xtask run` are made of: where each part is, and what to do where it is not.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::program;

/// The variable whose comma list names the tests and parts to do without.
pub const SKIP: &str = "KATA_TEST_SKIP";

/// Where everything is built.
#[derive(Debug, Clone)]
pub struct Target(PathBuf);

impl Target {
    /// That of the workspace this was built from.
    pub fn here() -> Self {
        // Two levels above this crate.
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap_or(Path::new("."));
        Self(match env::var_os("CARGO_TARGET_DIR") {
            Some(directory) => root.join(directory),
            None => root.join("target"),
        })
    }

    /// The directory of the programs that users run: those of a release, or what `KATA_TEST_PROGRAMS` names.
    pub fn programs(&self) -> PathBuf {
        env::var_os("KATA_TEST_PROGRAMS").map_or_else(|| self.0.join("release"), PathBuf::from)
    }

    /// The guest's kernel.
    pub fn kernel(&self) -> PathBuf {
        self.0.join("guest/vmlinux")
    }

    /// The guest's initramfs.
    pub fn initrd(&self) -> PathBuf {
        self.0.join("guest/initrd.img")
    }

    /// A program that `cargo xtask deps` has built.
    pub fn tool(&self, name: &str) -> PathBuf {
        self.0.join("tools/bin").join(name)
    }

    /// A program that runs in any container: a static one.
    pub fn alone(&self, name: &str) -> PathBuf {
        self.0.join("x86_64-unknown-linux-gnu/guest").join(name)
    }

    /// What is kept from one run to the next because it takes long to make.
    pub fn cache(&self) -> PathBuf {
        self.0.join("e2e")
    }
}

/// Something that a test needs and that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Part {
    /// containerd and `ctr`.
    Containerd,
    /// The runtime that we are compared with.
    Runc,
    /// busybox, linked statically.
    Busybox,
    /// What makes the network of pods.
    CniPlugins,
    /// What makes a root file system of Debian's packages.
    Debootstrap,
    /// podman and conmon, and what the first container of its pods runs.
    Podman,
    /// Docker's daemon and client.
    Docker,
    /// What makes podman's networks, and answers for the names in them.
    Netavark,
    /// Our shim.
    Shim,
    /// Our OCI runtime, and what stands for its processes.
    OciRuntime,
    /// The guest's kernel and initramfs.
    GuestImage,
    /// The virtual machine monitor.
    Qemu,
    /// Shares directories with the guest.
    Virtiofsd,
    /// Carries vsock where the kernel has none.
    VhostDeviceVsock,
    /// The kernel's own vsock for guests.
    VhostVsock,
    /// The kernel's, and what makes a file system on them.
    LoopDevices,
    /// What makes XFS.
    Xfsprogs,
    /// What makes EROFS.
    ErofsUtils,
}

impl Part {
    /// Its name, and what to do where it is missing.
    fn described(self) -> (&'static str, &'static str) {
        match self {
            Self::Containerd => ("containerd", "apt-get install containerd"),
            Self::Runc => ("runc", "apt-get install runc"),
            Self::Busybox => ("busybox", "apt-get install busybox-static"),
            Self::CniPlugins => ("cni-plugins", "apt-get install containernetworking-plugins"),
            Self::Debootstrap => ("debootstrap", "apt-get install debootstrap"),
            Self::Shim => ("shim", "cargo build --release --package shim"),
            Self::Podman => ("podman", "apt-get install podman conmon catatonit"),
            Self::Docker => ("docker", "apt-get install docker.io"),
            Self::Netavark => ("netavark", "apt-get install netavark aardvark-dns"),
            Self::OciRuntime => ("kata-runtime", "cargo build --release --package kata-runtime"),
            Self::GuestImage => ("guest-image", "cargo xtask guest"),
            Self::Qemu => ("qemu", "apt-get install qemu-system-x86"),
            Self::Virtiofsd => ("virtiofsd", "cargo xtask deps"),
            Self::VhostDeviceVsock => ("vhost-device-vsock", "cargo xtask deps"),
            Self::VhostVsock => ("vhost-vsock", "modprobe vhost_vsock"),
            Self::LoopDevices => ("loop-devices", "modprobe loop; apt-get install e2fsprogs"),
            Self::Xfsprogs => ("xfsprogs", "apt-get install xfsprogs"),
            Self::ErofsUtils => ("erofs-utils", "apt-get install erofs-utils"),
        }
    }

    /// Where it should be.
    fn places(self, target: &Target) -> Vec<PathBuf> {
        match self {
            Self::Containerd => vec!["containerd".into(), "ctr".into()],
            Self::Runc => vec!["runc".into(), "containerd-shim-runc-v2".into()],
            Self::Busybox => vec!["busybox".into()],
            Self::CniPlugins => ["bridge", "host-local", "loopback", "portmap"]
                .map(|plugin| Path::new("/usr/lib/cni").join(plugin))
                .into(),
            Self::Debootstrap => vec!["debootstrap".into()],
            Self::Shim => vec![target.programs().join("containerd-shim-kata-v2")],
            Self::Podman => vec!["podman".into(), "conmon".into(), "catatonit".into()],
            Self::Docker => vec!["dockerd".into(), "docker".into()],
            Self::Netavark => ["netavark", "aardvark-dns"]
                .map(|program| Path::new("/usr/lib/podman").join(program))
                .into(),
            Self::OciRuntime => ["kata-runtime", "kata-standin"]
                .map(|program| target.programs().join(program))
                .into(),
            Self::GuestImage => vec![target.kernel(), target.initrd()],
            Self::Qemu => vec!["qemu-system-x86_64".into()],
            Self::Virtiofsd => vec![target.tool("virtiofsd")],
            Self::VhostDeviceVsock => vec![target.tool("vhost-device-vsock")],
            Self::VhostVsock => vec!["/dev/vhost-vsock".into()],
            Self::LoopDevices => vec!["/dev/loop-control".into(), "losetup".into(), "mkfs.ext4".into()],
            Self::Xfsprogs => vec!["mkfs.xfs".into()],
            Self::ErofsUtils => vec!["mkfs.erofs".into()],
        }
    }

    /// Whether a test is to do without it.
    pub fn is_skipped(self) -> bool {
        is_skipped(self.described().0)
    }

    /// Checks that it is there.
    ///
    /// # Errors
    /// It is not; the error names it and the remedy.
    pub fn check(self, target: &Target) -> Result<()> {
        let (name, remedy) = self.described();
        for place in self.places(target) {
            if !program::exists(&place) && !place.exists() {
                bail!(
                    "this needs {name}, and there is no {}: run `{remedy}`, or name {name} in {SKIP} to go without",
                    place.display()
                );
            }
        }
        Ok(())
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.described().0)
    }
}

/// Whether the list of what to do without has this name.
pub fn is_skipped(name: &str) -> bool {
    env::var(SKIP).is_ok_and(|list| list.split(',').any(|entry| entry.trim() == name))
}

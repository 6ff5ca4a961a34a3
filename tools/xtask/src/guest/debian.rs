//! Kernels and their sources from Debian's packages, unpacked below `target` so that the host's own boot is left alone.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::kernel::Kernel;
use crate::Workspace;
use crate::deps::apt_get;
use crate::program::{Program, is_root};

/// Debian's kernel for virtual machines. A package without content, which depends on the current release.
const CLOUD_KERNEL: &str = "linux-image-cloud-amd64";

/// The cloud kernel: unpacked by us before, else installed, else downloaded now.
///
/// # Errors
/// It can't be downloaded.
pub fn cloud_kernel(workspace: &Workspace) -> Result<Kernel> {
    let packages = packages(workspace);
    for root in [packages.join(CLOUD_KERNEL), "/".into()] {
        if let Some(kernel) = newest_below(&root)? {
            return Ok(kernel);
        }
    }
    update_if_root()?;
    let package = current_package()?;
    let root = packages.join(CLOUD_KERNEL);
    unpack(&package, &root, |root| {
        let Some(kernel) = kernels_below(root)?.pop() else {
            bail!("the package {package} has no cloud kernel");
        };
        // A package's list of dependencies is made when it is installed.
        Program::new("depmod")
            .args(["-b".as_ref(), root.as_os_str(), kernel.as_ref()])
            .run()
    })?;
    newest_below(&root)?.with_context(|| format!("{} has no complete kernel", root.display()))
}

/// The content of a package: unpacked by us before, else downloaded now.
///
/// # Errors
/// It can't be downloaded.
pub fn content(workspace: &Workspace, package: &str) -> Result<PathBuf> {
    let root = packages(workspace).join(package);
    if !root.exists() {
        update_if_root()?;
        unpack(package, &root, |_| Ok(()))?;
    }
    Ok(root)
}

fn packages(workspace: &Workspace) -> PathBuf {
    workspace.guest().join("packages")
}

/// The newest cloud kernel below `root` that is there with its modules.
fn newest_below(root: &Path) -> Result<Option<Kernel>> {
    let kernels = kernels_below(root)?.into_iter().rev().map(|release| Kernel {
        image: root.join(format!("boot/vmlinuz-{release}")),
        modules: Some(root.join("lib/modules").join(release)),
    });
    let is_complete = |kernel: &Kernel| {
        let index = kernel.modules.as_ref().map(|modules| modules.join("modules.dep"));
        index.is_some_and(|index| index.is_file())
    };
    Ok(kernels.into_iter().find(is_complete))
}

/// Releases of the cloud kernels below `root`, oldest first.
fn kernels_below(root: &Path) -> Result<Vec<String>> {
    let directory = root.join("boot");
    let Ok(files) = fs::read_dir(&directory) else {
        return Ok(Vec::new());
    };
    let mut releases = Vec::new();
    for file in files {
        let name = file
            .with_context(|| format!("read {}", directory.display()))?
            .file_name();
        let release = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-"));
        if let Some(release) = release.filter(|release| release.ends_with("-cloud-amd64")) {
            releases.push(release.to_owned());
        }
    }
    releases.sort_by_key(|release| numbers(release));
    Ok(releases)
}

/// The numbers in a release, by which releases are ordered.
fn numbers(release: &str) -> Vec<u64> {
    release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok())
        .collect()
}

/// The package with the current cloud kernel.
fn current_package() -> Result<String> {
    let answer = Program::new("apt-cache").args(["depends", CLOUD_KERNEL]).read()?;
    let package = answer
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"));
    package
        .map(str::to_owned)
        .with_context(|| format!("apt knows no {CLOUD_KERNEL}; name a kernel: make guest KERNEL=<path>"))
}

/// Package lists may be absent or older than the packages they name.
fn update_if_root() -> Result<()> {
    if is_root() { apt_get(["update"]) } else { Ok(()) }
}

/// Downloads a package, and unpacks it to `root`, which appears only when it is complete.
fn unpack(package: &str, root: &Path, finish: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    eprintln!("guest: downloading {package}");
    let partial = root.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    fs::create_dir_all(&partial)?;
    Program::new("apt-get")
        // Its own user may not write here.
        .args(["--quiet", "-o", "APT::Sandbox::User=root", "download", package])
        .dir(&partial)
        .run()?;
    let archives: Vec<_> = fs::read_dir(&partial)?.collect::<Result<_, _>>()?;
    for archive in archives {
        Program::new("dpkg-deb")
            .args([
                "--extract".as_ref(),
                archive.path().as_os_str(),
                partial.as_os_str(),
            ])
            .run()?;
        fs::remove_file(archive.path())?;
    }
    finish(&partial)?;
    fs::rename(&partial, root).with_context(|| format!("move to {}", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_complete_kernel_is_taken() {
        let root = tempfile::tempdir().unwrap();
        let touch = |path: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        assert!(newest_below(root.path()).unwrap().is_none());
        for release in ["6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64", "6.1.0-11-amd64"] {
            touch(&format!("boot/vmlinuz-{release}"));
            touch(&format!("lib/modules/{release}/modules.dep"));
        }
        // Its modules are gone.
        touch("boot/vmlinuz-6.1.0-12-cloud-amd64");
        let kernel = newest_below(root.path()).unwrap().unwrap();
        assert_eq!(
            kernel.image,
            root.path().join("boot/vmlinuz-6.1.0-10-cloud-amd64")
        );
        assert_eq!(
            kernel.modules.unwrap(),
            root.path().join("lib/modules/6.1.0-10-cloud-amd64")
        );
    }
}

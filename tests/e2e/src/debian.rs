//! An image of Debian, made by debootstrap from the machine's own package sources: real programs, not busybox's.
//!
//! It takes most of a minute, so it is kept below `target`.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};

use crate::image;
use crate::parts::Target;
use crate::program::{Program, search_path};

/// Its name in containerd.
pub const NAME: &str = "e2e.test/debian:12";

const SUITE: &str = "bookworm";

/// Besides the minimum.
const PACKAGES: &str = "python3";

/// For packages to be fetched, unpacked and configured.
const LIMIT: Duration = Duration::from_secs(900);

/// What nobody runs, and is half of the size.
const LEFT_OUT: &[&str] = &[
    "./dev/*",
    "./usr/share/doc/*",
    "./usr/share/locale/*",
    "./usr/share/man/*",
    "./var/cache/apt/*",
    "./var/lib/apt/lists/*",
];

/// The image's file, made if it is not there.
///
/// # Errors
/// debootstrap fails.
pub fn image(target: &Target) -> Result<PathBuf> {
    let directory = target.cache();
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let image = directory.join(format!("debian-{SUITE}-{PACKAGES}.tar"));
    // Two suites may run at once.
    let lock = File::create(directory.join("debian.lock")).context("create a lock")?;
    flock(&lock, FlockOperation::LockExclusive).context("lock the image of Debian")?;
    if image.exists() {
        return Ok(image);
    }
    eprintln!("making {} with debootstrap; this takes a minute", image.display());
    let place = tempfile::tempdir_in(&directory).context("create a directory for debootstrap")?;
    let root = place.path().join("root");
    let mirror = mirror()?;
    Program::new("debootstrap")
        .env("PATH", search_path())
        .args(["--variant=minbase", &format!("--include={PACKAGES}"), SUITE])
        .args([root.as_os_str(), mirror.as_ref()])
        .within(LIMIT)
        .read()?;
    let layer = place.path().join("layer.tar");
    Program::new("tar")
        .args(["--create", "--numeric-owner", "--sort=name", "--file"])
        .args([layer.as_os_str(), "--directory".as_ref(), root.as_os_str()])
        .args(LEFT_OUT.iter().map(|pattern| format!("--exclude={pattern}")))
        .args(["."])
        .within(LIMIT)
        .read()?;
    let layer = fs::read(&layer).context("read Debian's files")?;
    let fresh = place.path().join("image.tar");
    image::write(&layer, NAME, &fresh)?;
    fs::rename(&fresh, &image).with_context(|| format!("create {}", image.display()))?;
    Ok(image)
}

/// Where this machine takes Debian's packages from.
fn mirror() -> Result<String> {
    let sources = Program::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(CODENAME) $(COMPONENT) $(SITE)",
            "Created-By: Packages",
        ])
        .read()?;
    sources
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{SUITE} main ")))
        .map(str::to_owned)
        .with_context(|| format!("no source of packages of Debian {SUITE} is configured:\n{sources}"))
}

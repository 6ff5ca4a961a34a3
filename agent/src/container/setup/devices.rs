//! The container's /dev: device nodes, and the links that the OCI runtime specification asks for.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::mounts;
use super::resolve::{self, Missing};
use crate::container::error::{Error, Result, Step};
use crate::container::plan::Device;

const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    // The one of the container's own devpts.
    ("pts/ptmx", "ptmx"),
];

/// Makes a device; where making nodes is forbidden (a user namespace), the agent's own is bound there.
pub(super) fn create(root: BorrowedFd<'_>, device: &Device) -> Result<()> {
    let step = || format!("make the device {}", device.path.display());
    let (Some(parent), Some(name)) = (device.path.parent(), device.path.file_name()) else {
        return Err(Error::spec("linux.devices", "names the root"));
    };
    let parent = resolve::open_or_create(root, parent, Missing::Directory).step(step)?;
    match rustix::fs::mknodat(
        &parent,
        name,
        device.kind,
        Mode::from_raw_mode(device.mode),
        device.number,
    ) {
        Ok(()) => {
            if (device.uid, device.gid) != (0, 0) {
                rustix::fs::chownat(
                    &parent,
                    name,
                    Some(Uid::from_raw(device.uid)),
                    Some(Gid::from_raw(device.gid)),
                    AtFlags::SYMLINK_NOFOLLOW,
                )
                .step(step)?;
            }
            Ok(())
        }
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).step(step)?;
            if FileType::from_raw_mode(there.st_mode) == device.kind && there.st_rdev == device.number {
                return Ok(());
            }
            Err(Errno::EXIST).step(step)
        }
        Err(Errno::PERM) => {
            let tree = mounts::bind(&device.path, false).step(step)?;
            let place = resolve::open_or_create(root, &device.path, Missing::File).step(step)?;
            mounts::attach(tree.as_fd(), place.as_fd()).step(step)
        }
        Err(error) => Err(error).step(step),
    }
}

/// Makes the links of /dev. What the image has there stays, except a `ptmx`, which would be another devpts's.
pub(super) fn link(root: BorrowedFd<'_>) -> Result<()> {
    let dev = resolve::open_or_create(root, Path::new("/dev"), Missing::Directory).step(|| "find /dev")?;
    for (target, name) in LINKS {
        let mut made = rustix::fs::symlinkat(target, &dev, name);
        if made == Err(Errno::EXIST) && name == "ptmx" {
            made = rustix::fs::unlinkat(&dev, name, AtFlags::empty())
                .and_then(|()| rustix::fs::symlinkat(target, &dev, name));
        }
        match made {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).step(|| format!("make the link /dev/{name}")),
        }
    }
    Ok(())
}

/// The agent's /dev/null, checked to be the real one.
pub(super) fn null() -> Result<std::os::fd::OwnedFd> {
    let step = || "open /dev/null";
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    let stat = rustix::fs::fstat(&null).step(step)?;
    let real = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if real {
        Ok(null)
    } else {
        Err(Errno::NODEV).step(step)
    }
}

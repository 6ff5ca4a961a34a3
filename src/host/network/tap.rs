//! Taps: the frames of a network device at a descriptor, one for each queue. They are gone when the last descriptor is.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, open};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use super::sys::{self, TapFlags};

const TUN: &str = "/dev/net/tun";

/// Makes a tap of this name in the network namespace of the calling thread.
///
/// # Errors
/// The kernel's: EBUSY when the name is taken, ENOENT or ENODEV without the driver.
pub(super) fn make(name: &str, queues: u32) -> io::Result<Vec<OwnedFd>> {
    let flags = TapFlags {
        multi_queue: queues > 1,
        new: true,
    };
    let mut taps = vec![open_queue(name, flags)?];
    for _ in 1..queues {
        taps.push(open_queue(name, TapFlags { new: false, ..flags })?);
    }
    Ok(taps)
}

/// Opens a tap that exists.
///
/// # Errors
/// The kernel's: EBUSY when it has a user.
pub(super) fn open_existing(name: &str, queues: u32, multi_queue: bool) -> io::Result<Vec<OwnedFd>> {
    let queues = if multi_queue { queues } else { 1 };
    let flags = TapFlags {
        multi_queue,
        new: false,
    };
    (0..queues).map(|_| open_queue(name, flags)).collect()
}

fn open_queue(name: &str, flags: TapFlags) -> io::Result<OwnedFd> {
    let tap = open(
        TUN,
        OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(|cause| io::Error::new(io::Error::from(cause).kind(), format!("{TUN}: {cause}")))?;
    sys::become_tap(&tap, name, flags)?;
    Ok(tap)
}

/// Opens the queues of a macvtap of the calling thread's network namespace. Its device node is not looked for in `/dev`: there
/// it has the number of its link for a name, which another namespace's may have as well.
///
/// # Errors
/// The kernel's. The thread's mounts are its own, and of no use for anything else, from then on.
pub(super) fn open_macvtap(name: &str, index: u32, queues: u32) -> io::Result<Vec<OwnedFd>> {
    const SYSFS: &str = "/sys";
    sys::unshare_mounts()?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // What it shows is the network namespace of the thread that mounts it.
    let safe = MountFlags::NOSUID | MountFlags::NOEXEC;
    mount("sysfs", SYSFS, "sysfs", safe | MountFlags::NODEV, None)?;
    let numbers = std::fs::read_to_string(format!("{SYSFS}/class/net/{name}/tap{index}/dev"))?;
    let (major, minor) = numbers
        .trim()
        .split_once(':')
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::Error::other(format!("{numbers:?} are not a device's numbers")))?;
    mount("tmpfs", SYSFS, "tmpfs", safe, None)?;
    let node = Path::new(SYSFS).join("tap");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &node, FileType::CharacterDevice, mode, makedev(major, minor))?;
    let flags = TapFlags {
        multi_queue: queues > 1,
        new: false,
    };
    let open_queue = || {
        let file = File::options().read(true).write(true).open(&node)?;
        sys::become_tap(&file, name, flags)?;
        Ok(file.into())
    };
    (0..queues).map(|_| open_queue()).collect()
}

//! What no library wraps: setting the attributes of a mount, which file a loop device has; and what one cannot wrap safely: watching
//! a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Attributes to set and to clear (`MOUNT_ATTR_*`), and the propagation to have (`MS_PRIVATE` …; 0: as it is), of the mount
/// at `mount`, and with `recursive` of all below it.
pub(super) fn set_attributes(
    mount: impl AsFd,
    recursive: bool,
    attributes: &libc::mount_attr,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is a string with its zero byte, the attributes are a structure of the size that is named; the kernel
    // reads both and keeps neither.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The numbers of the file that a loop device has, as `fstat` shows them: those of its file system, and its own there.
pub(super) fn loop_file(device: impl AsFd) -> io::Result<(u64, u64)> {
    /// LOOP_GET_STATUS64 of linux/loop.h.
    const GET_STATUS: libc::Ioctl = 0x4c05;
    /// The beginning of its `struct loop_info64`, and room for the rest.
    #[repr(C)]
    struct Status {
        device: u64,
        inode: u64,
        rest: [u64; 27],
    }
    let mut status = Status {
        device: 0,
        inode: 0,
        rest: [0; 27],
    };
    // SAFETY: the kernel writes a `struct loop_info64`, of 232 bytes, which is what is there for it.
    let result = unsafe { libc::ioctl(device.as_fd().as_raw_fd(), GET_STATUS, &raw mut status) };
    match result {
        0.. => Ok((status.device, status.inode)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Registers a descriptor with the runtime, to be told when it can be read.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped, which is when the `AsyncFd` drops it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

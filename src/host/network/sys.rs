//! What no library wraps: making a descriptor a tap's; and what one cannot wrap safely: a thread with mounts of its own.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// How a descriptor becomes a tap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TapFlags {
    /// The tap has several queues.
    pub(super) multi_queue: bool,
    /// There must be none of that name.
    pub(super) new: bool,
}

/// Makes a descriptor of `/dev/net/tun` a queue of the tap of this name, whose frames come with virtio's header.
///
/// # Errors
/// The kernel's: EBUSY, EINVAL (also for a name that is too long), EPERM.
pub(super) fn become_tap(tun: impl AsFd, name: &str, flags: TapFlags) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut bits = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags.multi_queue {
        bits |= libc::IFF_MULTI_QUEUE;
    }
    if flags.new {
        bits |= libc::IFF_TUN_EXCL;
    }
    request.ifr_ifru.ifru_flags = bits as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq` with a terminated name, valid for the call; the kernel writes the
    // name that it chose into it.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the calling thread mounts of its own.
///
/// # Errors
/// The kernel's: EPERM.
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: takes no pointers. The thread no longer shares its working directory and root with the others of the process,
    // which breaks what relies on that; it is one that ends with the work it was made for.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

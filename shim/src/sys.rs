//! What cannot be said in safe Rust: registering a descriptor with the event loop, and which descriptors a
//! child inherits.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::fcntl_dupfd_cloexec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor for reading.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped, which is when the `AsyncFd` drops it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// The first descriptor behind those that a child is given.
const ABOVE: i32 = 6;

/// Makes `command`'s process have `fds` as its descriptors 3, 4 and 5, and none above. They are closed here with the
/// command.
///
/// # Errors
/// There is no descriptor left.
pub fn give(command: &mut Command, fds: [OwnedFd; 3]) -> io::Result<()> {
    // Out of the way first, so that none is overwritten before it is copied.
    let mut moved = Vec::with_capacity(fds.len());
    for (target, fd) in (3..).zip(fds) {
        moved.push((fcntl_dupfd_cloexec(&fd, ABOVE)?, target));
    }
    let copy = move || {
        for (fd, target) in &moved {
            // SAFETY: dup2 of an open descriptor, which the closure owns, touches no memory. What it replaces in the
            // child is a copy of ours that would be closed at exec.
            let copied = unsafe { libc::dup2(fd.as_raw_fd(), *target) };
            if copied < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        close_on_exec_from(6)
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(copy) };
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec: also those that whoever started us let leak.
///
/// # Errors
/// The kernel is too old.
pub fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: with this flag close_range closes nothing; it takes no pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

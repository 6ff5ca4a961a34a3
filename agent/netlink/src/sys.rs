//! The one socket option for which no safe binding is at hand.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks the kernel to explain its refusals in words (NETLINK_EXT_ACK, Linux 4.12).
///
/// # Errors
/// The kernel's.
pub fn explain(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the kernel reads one integer from a pointer to one, with its size.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_EXT_ACK,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

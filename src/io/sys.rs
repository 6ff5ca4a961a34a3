//! The one unsafe step on the way to a descriptor that can be waited for.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor, which must be non-blocking, with the event loop; gives it back if that is refused (EPERM for a
/// file that never makes anyone wait).
pub(super) fn register(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>, (OwnedFd, io::Error)> {
    // SAFETY: an `OwnedFd` answers the same open descriptor as long as it lives, and `AsyncFd` owns it from here on.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|refused| refused.into_parts())
}

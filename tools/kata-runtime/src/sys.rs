//! What cannot be said in safe Rust: which descriptors a child inherits.

use std::io;

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

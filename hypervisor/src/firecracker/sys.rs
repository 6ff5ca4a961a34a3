//! What no library wraps: a tap that outlives its descriptor, and its name.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The name of the tap behind a descriptor, in the tap's network namespace.
///
/// # Errors
/// The kernel's: EBADFD for what is no tap.
pub fn name(tap: BorrowedFd<'_>) -> io::Result<String> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF takes a pointer to an `ifreq`, valid for the call, and fills it in.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = request.ifr_name.map(i8::cast_unsigned);
    let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    name.to_str().map(str::to_owned).map_err(io::Error::other)
}

/// Makes the tap behind a descriptor stay when that is closed.
///
/// # Errors
/// The kernel's: EBADFD for what is no tap.
pub fn persist(tap: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes a number.
    let result = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST as _, 1 as libc::c_ulong) };
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

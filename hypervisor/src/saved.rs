//! What drivers have in common where VMs are saved and copied. Must not know a monitor.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, open};
use tokio::task::JoinHandle;

use crate::{Device, Error, ErrorKind, VmSpec, pages};

/// A machine that is saved by its monitor has only what that can save; the rest is plugged into its copies.
///
/// # Errors
/// It has something else.
pub fn check_saveable(spec: &VmSpec) -> Result<(), Error> {
    let other = |device: &&Device| !matches!(device, Device::Vsock(_));
    match spec.devices.iter().find(other) {
        None => Ok(()),
        Some(device) => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the device {:?} cannot be part of a saved VM: it is to be plugged into the copies",
                device.name()
            ),
        )),
    }
}

/// Checks that saved memory is that of such a VM.
///
/// # Errors
/// It has another size, or cannot be examined.
pub fn check_size(memory: &OwnedFd, spec: &VmSpec) -> Result<(), Error> {
    let there = pages::size(memory).map_err(failed("cannot examine the memory of a saved VM"))?;
    match there == spec.memory.size_mib << 20 {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "the saved memory has {there} bytes, and the VM is to have {} MiB",
                spec.memory.size_mib
            ),
        )),
    }
}

/// The error of a monitor that was to take a saved VM in. What it refuses is damaged; an end or silence says nothing of that.
pub fn unreadable(error: Error) -> Error {
    match error.kind {
        ErrorKind::Unavailable | ErrorKind::DeadlineExceeded => error,
        _ => Error {
            kind: ErrorKind::FailedPrecondition,
            context: format!("the state of a VM cannot be read: {}", error.context),
            source: error.source,
        },
    }
}

/// Opens a file that a monitor has written: no link that it has put there, nor anything that would have to be waited for.
///
/// # Errors
/// The kernel's.
pub fn written(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(open(path, flags, Mode::empty())?.into())
}

/// Waits for work on files that was begun aside; `what` is its error in our words.
///
/// # Errors
/// The work's.
pub async fn done<T>(work: JoinHandle<io::Result<T>>, what: &str) -> Result<T, Error> {
    work.await
        .unwrap_or_else(|lost| Err(io::Error::other(lost)))
        .map_err(failed(what))
}

/// What could not be done, with the kernel's words.
pub fn failed(what: &str) -> impl Fn(io::Error) -> Error + '_ {
    move |cause| Error::caused(ErrorKind::Internal, format!("{what}: {cause}"), cause)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_a_refusal_tells_of_damage() {
        for (kind, expected) in [
            (ErrorKind::Unavailable, ErrorKind::Unavailable),
            (ErrorKind::DeadlineExceeded, ErrorKind::DeadlineExceeded),
            (ErrorKind::Internal, ErrorKind::FailedPrecondition),
            (ErrorKind::InvalidArgument, ErrorKind::FailedPrecondition),
        ] {
            let error = unreadable(Error::new(kind, "words"));
            assert_eq!(error.kind, expected);
            assert_eq!(
                error.context.contains("cannot be read"),
                expected == ErrorKind::FailedPrecondition
            );
        }
    }

    #[test]
    fn a_link_is_nothing_that_a_monitor_has_written() {
        let directory = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| directory.path().join(name));
        std::fs::write(&file, "x").unwrap();
        symlink(&file, &link).unwrap();
        written(&file).unwrap();
        let error = written(&link).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }
}

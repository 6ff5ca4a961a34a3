//! A directory that several processes change, one after the other, and that any of them may make or take away.
//!
//! It must not know what is in it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, fstat};
use rustix::io::Errno;

use crate::aside::aside;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

/// The directory may be taken away while it is being locked. Somebody makes progress each time.
const ATTEMPTS: usize = 100;

/// The directory, which nobody else changes meanwhile.
pub(super) struct Lock(OwnedFd);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // To close it would not do: a child that is just being started has it too, until it executes its program.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Keeps everybody else from changing a directory, which is made if it is not there. Waits for them. `open` opens it, if it is there
/// and fit for use.
///
/// # Errors
/// It cannot be made; what `open` refuses; others have it for too long.
pub(super) async fn lock(
    dir: PathBuf,
    open: impl Fn(&Path) -> Result<Option<OwnedFd>> + Send + 'static,
) -> Result<Lock> {
    aside(deadlines::TEMPLATE_LOCK, move |site| {
        site.at(&dir)?;
        for _ in 0..ATTEMPTS {
            match DirBuilder::new().mode(0o700).recursive(true).create(&dir) {
                Ok(()) => {}
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {}
                Err(cause) => return Err(failed("make", &dir, cause)),
            }
            let Some(opened) = open(&dir)? else {
                continue;
            };
            // Not in the kernel: a program that gives up waits for this thread, and who has the lock may be a stopped process.
            loop {
                site.at(&dir)?;
                match flock(&opened, FlockOperation::NonBlockingLockExclusive) {
                    Ok(()) => break,
                    Err(Errno::WOULDBLOCK) => std::thread::sleep(deadlines::LOOK),
                    Err(cause) => return Err(failed("lock", &dir, cause.into())),
                }
            }
            let lock = Lock(opened);
            // Whoever had it may have taken the directory away.
            let locked = fstat(&lock).map_err(|cause| failed("examine", &dir, cause.into()))?;
            if fs::metadata(&dir)
                .is_ok_and(|there| (there.dev(), there.ino()) == (locked.st_dev, locked.st_ino))
            {
                return Ok(lock);
            }
        }
        let context = format!("{} is made and taken away again and again", dir.display());
        Err(Error::new(ErrorKind::Unavailable, context))
    })
    .await
}

fn failed(what: &str, dir: &Path, cause: io::Error) -> Error {
    let context = format!("cannot {what} {}: {cause}", dir.display());
    Error::caused(ErrorKind::Internal, context, cause)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, Mode, OFlags, openat};

    use super::*;

    fn open(dir: &Path) -> Result<Option<OwnedFd>> {
        Ok(openat(CWD, dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok())
    }

    #[tokio::test]
    async fn who_waited_has_the_directory_that_is_there_and_not_the_one_that_was_taken_away() {
        let above = tempfile::tempdir().unwrap();
        let dir = above.path().join("a/b");
        let first = lock(dir.clone(), open).await.unwrap();
        // It has looked, and found it locked, when it opens the directory for the first time.
        let (looks, mut looked) = tokio::sync::mpsc::unbounded_channel();
        let waiting = tokio::spawn(lock(dir.clone(), move |dir| {
            let opened = open(dir);
            looks.send(()).unwrap();
            opened
        }));
        looked.recv().await.unwrap();
        fs::remove_dir(&dir).unwrap();
        drop(first);
        let second = waiting.await.unwrap().unwrap();
        let there = fs::metadata(&dir).expect("it was made again");
        assert_eq!(there.ino(), fstat(&second).unwrap().st_ino);
        looked.recv().await.expect("it was opened once more");
    }
}

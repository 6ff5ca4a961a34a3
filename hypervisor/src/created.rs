//! Learns of files that are made in a directory. Must not know which one is waited for, nor why.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use crate::process;

/// A watch on a directory.
#[derive(Debug)]
pub struct Created(AsyncFd<OwnedFd>);

impl Created {
    /// Begins to watch. The directory is there. Must be called in a runtime.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn new(directory: &Path) -> io::Result<Self> {
        let created = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&created, directory, WatchFlags::CREATE | WatchFlags::ONLYDIR)?;
        Ok(Self(process::watch(created)?))
    }

    /// Waits until something was made since it was watched, or since this has answered last. What it is, is seen by looking.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut events = inotify::Reader::new(self.0.get_ref(), &mut buffer);
        loop {
            match events.next() {
                Ok(_) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

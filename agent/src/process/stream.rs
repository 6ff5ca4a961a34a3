//! One end of a pipe or terminal: output that is pulled, input that is pushed.
//!
//! What a process writes stays in the kernel's pipe or terminal buffer until somebody asks for it, so a reader that is
//! slow or absent costs no memory here: the process waits instead.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::reaper::Exited;
use crate::sys;

/// A descriptor of ours, non-blocking and known to the event loop. A terminal's is shared by its input and output.
#[derive(Debug, Clone)]
pub struct End(Arc<AsyncFd<OwnedFd>>);

impl End {
    /// Makes the descriptor non-blocking and registers it. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When it can't be registered.
    pub fn new(fd: OwnedFd, interest: Interest) -> Result<Self> {
        let register = || -> io::Result<_> {
            fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
            Ok(Arc::new(sys::register(fd, interest)?))
        };
        register().map(Self).map_err(Error::system("register a stream"))
    }

    /// The descriptor, for calls on the terminal itself.
    pub fn fd(&self) -> &OwnedFd {
        self.0.get_ref()
    }
}

/// Ends every read and write under way when its sender is dropped: the process has been forgotten.
pub type Forgotten = watch::Receiver<()>;

/// What a process writes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Output {
    end: End,
    forgotten: Forgotten,
}

impl Output {
    /// Wraps a readable end.
    pub fn new(end: End, forgotten: Forgotten) -> Self {
        Self { end, forgotten }
    }

    /// Waits for output and takes up to `max` bytes of it; empty: nobody can write any more.
    ///
    /// Takes nothing when it is cancelled.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn read(&self, max: usize) -> Result<Vec<u8>> {
        let mut forgotten = self.forgotten.clone();
        tokio::select! {
            biased;
            read = self.end.0.async_io(Interest::READABLE, |fd| take(fd, max)) => {
                read.map_err(Error::system("read output"))
            }
            _ = forgotten.changed() => Ok(Vec::new()),
        }
    }
}

fn take(fd: &OwnedFd, max: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(max);
    match rustix::io::read(fd, spare_capacity(&mut data)) {
        Ok(_) => Ok(data),
        // A terminal's master, when the last slave is closed.
        Err(rustix::io::Errno::IO) => Ok(Vec::new()),
        // A socket that was closed with something unread.
        Err(rustix::io::Errno::CONNRESET) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

/// What a process reads. Cheap to clone; the pipe ends when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Input {
    end: End,
    forgotten: Forgotten,
}

impl Input {
    /// Wraps a writable end.
    pub fn new(end: End, forgotten: Forgotten) -> Self {
        Self { end, forgotten }
    }

    /// Writes all of it, waiting for the process to read; false: nobody reads any more.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn write(&self, data: &[u8], mut exited: Exited) -> Result<bool> {
        let mut forgotten = self.forgotten.clone();
        tokio::select! {
            biased;
            written = self.write_all(data) => written.map_err(Error::system("write stdin")),
            _ = exited.wait_for(Option::is_some) => Ok(false),
            _ = forgotten.changed() => Ok(false),
        }
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<bool> {
        while !data.is_empty() {
            let put = |fd: &OwnedFd| rustix::io::write(fd, data).map_err(io::Error::from);
            match self.end.0.async_io(Interest::WRITABLE, put).await {
                Ok(written) => data = data.get(written..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Ok(false);
                }
                Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

//! Connects to a monitor that makes its own socket, as soon as it listens.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use tokio::net::UnixStream;
use tokio::time::sleep;

use crate::Created;

/// Between two attempts at a socket that is there and not listened on yet: the kernel tells nobody of a listen(2).
const INSTANT: Duration = Duration::from_millis(1);

/// A socket that is to be.
#[derive(Debug)]
pub struct Awaited {
    name: String,
    /// A path to the socket may be longer than a socket's address can be.
    directory: OwnedFd,
    created: Created,
}

impl Awaited {
    /// Begins to watch, before its maker is started. The directory is there.
    ///
    /// # Errors
    /// It cannot be watched.
    pub fn new(directory: &Path, name: &str) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            name: name.to_owned(),
            directory: open(directory, flags, Mode::empty())?,
            created: Created::new(directory)?,
        })
    }

    /// Waits until it is listened on, and connects.
    ///
    /// # Errors
    /// It cannot be connected to, for another reason than that nobody listens yet.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        let socket = format!("/proc/self/fd/{}/{}", self.directory.as_raw_fd(), self.name);
        loop {
            match UnixStream::connect(&socket).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::NotFound => self.created.changed().await?,
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => sleep(INSTANT).await,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::time::timeout;

    use super::*;
    use crate::deadlines::CONTROL_READY;

    #[tokio::test]
    async fn a_socket_is_awaited_among_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let awaited = Awaited::new(dir.path(), "x.sock").unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let early = timeout(Duration::from_millis(20), awaited.connect()).await;
        assert!(early.is_err(), "nobody listens yet");
        let path = dir.path().join("x.sock");
        let maker = tokio::task::spawn_blocking(|| UnixListener::bind(path).unwrap());
        timeout(CONTROL_READY, awaited.connect()).await.unwrap().unwrap();
        drop(maker.await.unwrap());
    }
}

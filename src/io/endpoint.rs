//! The host's ends of the standard streams: opened, read and written without holding anybody else up. What can be waited
//! for needs no thread; a file does, for the time of a write.
//!
//! Must not know of the guest.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fifo::{self, Keeper};
use super::{Input, Output, Stdio, sys};
use crate::aside::{Site, aside};
use crate::error::{Error, ErrorKind, Result};

/// The streams of one process, opened.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) terminal: bool,
    pub(crate) stdin: Option<Source>,
    pub(crate) stdout: Option<Sink>,
    pub(crate) stderr: Option<Sink>,
}

impl Opened {
    /// Opens what a request names. Never waits for the other side, and for a file system up to `limit`.
    pub(crate) async fn open(stdio: Stdio, limit: Duration) -> Result<Self> {
        if matches!(
            (&stdio.stdin, &stdio.stdout, &stdio.stderr),
            (Input::Null, Output::Null, Output::Null)
        ) {
            return Ok(Self {
                terminal: stdio.terminal,
                ..Self::default()
            });
        }
        let open = move |site: &Site| {
            Ok(Self {
                terminal: stdio.terminal,
                stdin: Source::open(stdio.stdin, site)?,
                stdout: Sink::open("stdout", stdio.stdout, site)?,
                // A terminal has one output.
                stderr: if stdio.terminal {
                    None
                } else {
                    Sink::open("stderr", stdio.stderr, site)?
                },
            })
        };
        aside(limit, open).await
    }

    /// What the agent is to connect.
    pub(crate) fn wanted(&self, size: Option<(u16, u16)>) -> agent_protocol::Stdio {
        agent_protocol::Stdio {
            terminal: self.terminal,
            stdin: self.stdin.is_some(),
            stdout: self.stdout.is_some(),
            stderr: self.stderr.is_some(),
            size: size
                .map(|(rows, columns)| agent_protocol::TerminalSize {
                    rows: rows.into(),
                    columns: columns.into(),
                    ..Default::default()
                })
                .into(),
            ..Default::default()
        }
    }
}

/// Where output goes.
#[derive(Debug)]
pub(crate) struct Sink {
    to: Descriptor,
    /// Of a named pipe.
    keeper: Option<Keeper>,
}

impl Sink {
    fn open(stream: &str, output: Output, site: &Site) -> Result<Option<Self>> {
        if let Output::Fifo(path) | Output::File(path) = &output {
            site.at(path)?;
        }
        let (name, opened) = match output {
            Output::Null => return Ok(None),
            Output::Fifo(path) => (
                path.display().to_string(),
                fifo::open_to_write(&path).map(|(fd, keeper)| (fd, Some(keeper))),
            ),
            Output::File(path) => (path.display().to_string(), open_file(&path).map(|fd| (fd, None))),
            Output::Descriptor(fd) => ("the descriptor".to_owned(), Ok((fd, None))),
        };
        opened
            .and_then(|(fd, keeper)| {
                let to = Descriptor::new(fd, Interest::WRITABLE)?;
                Ok(Some(Self { to, keeper }))
            })
            .map_err(|cause| cannot_open(stream, &name, cause))
    }

    /// One that cannot be waited for.
    #[cfg(test)]
    pub(super) fn plain(file: OwnedFd) -> Self {
        Self {
            to: Descriptor::Plain(Arc::new(file)),
            keeper: None,
        }
    }

    /// Closes it, once nothing is lost by that.
    pub(crate) async fn close(self) -> io::Result<()> {
        match self.keeper {
            Some(keeper) => keeper.settled(self.to.fd()).await,
            None => Ok(()),
        }
    }

    /// Writes all of it, waiting for the reader as long as it takes.
    pub(crate) async fn write_all(&self, data: Vec<u8>) -> io::Result<()> {
        if let Descriptor::Plain(file) = &self.to {
            // A file system may take its time, or be gone: then the process waits, as for a reader, but nobody else.
            let file = Arc::clone(file);
            let write = move || write_file(&file, &data);
            return tokio::task::spawn_blocking(write)
                .await
                .map_err(io::Error::other)?;
        }
        let mut data = data.as_slice();
        while !data.is_empty() {
            let written = self
                .to
                .io(Interest::WRITABLE, |fd| rustix::io::write(fd, data))
                .await?;
            data = data.get(written..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Where input comes from.
#[derive(Debug)]
pub(crate) struct Source {
    from: Descriptor,
    /// The other end of a named pipe.
    _open: Option<OwnedFd>,
}

impl Source {
    fn open(input: Input, site: &Site) -> Result<Option<Self>> {
        if let Input::Fifo(path) = &input {
            site.at(path)?;
        }
        let (name, opened) = match input {
            Input::Null => return Ok(None),
            Input::Fifo(path) => (
                path.display().to_string(),
                fifo::open_for_input(&path).map(|(fd, open)| (fd, Some(open))),
            ),
            Input::Descriptor(fd) => ("the descriptor".to_owned(), Ok((fd, None))),
        };
        opened
            .and_then(|(fd, _open)| {
                let from = Descriptor::new(fd, Interest::READABLE)?;
                Ok(Some(Self { from, _open }))
            })
            .map_err(|cause| cannot_open("stdin", &name, cause))
    }

    /// Waits for input and takes up to `max` bytes of it; empty: it has ended, which a named pipe never does by itself. Takes
    /// nothing when it is cancelled.
    pub(crate) async fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        self.from.io(Interest::READABLE, |fd| take(fd, max)).await
    }

    /// Takes what is there now; empty: nothing is.
    pub(crate) fn read_now(&self, max: usize) -> io::Result<Vec<u8>> {
        match take(self.from.fd(), max) {
            Err(Errno::AGAIN) => Ok(Vec::new()),
            taken => Ok(taken?),
        }
    }
}

fn take(fd: &OwnedFd, max: usize) -> rustix::io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(max);
    match rustix::io::read(fd, spare_capacity(&mut data)) {
        Ok(_) => {
            // Waits in memory until the process takes it.
            data.shrink_to_fit();
            Ok(data)
        }
        // A terminal's master, when the last slave is closed.
        Err(Errno::IO) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn write_file(file: &OwnedFd, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let written = rustix::io::write(file, data)?;
        data = data.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// An open descriptor: one that can be waited for, or a file that cannot, whatever it does.
#[derive(Debug)]
enum Descriptor {
    Polled(AsyncFd<OwnedFd>),
    Plain(Arc<OwnedFd>),
}

impl Descriptor {
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        match sys::register(fd, interest) {
            Ok(polled) => Ok(Self::Polled(polled)),
            // epoll's answer for a regular file and for /dev/null.
            Err((fd, cause)) if cause.raw_os_error() == Some(libc::EPERM) => Ok(Self::Plain(Arc::new(fd))),
            Err((_, cause)) => Err(cause),
        }
    }

    fn fd(&self) -> &OwnedFd {
        match self {
            Self::Polled(fd) => fd.get_ref(),
            Self::Plain(fd) => fd,
        }
    }

    async fn io<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(&OwnedFd) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Polled(fd) => {
                fd.async_io(interest, |fd| call(fd).map_err(io::Error::from))
                    .await
            }
            Self::Plain(fd) => {
                // A large file must not keep the thread to itself.
                tokio::task::consume_budget().await;
                Ok(call(fd)?)
            }
        }
    }
}

fn open_file(path: &Path) -> io::Result<OwnedFd> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)?;
    Ok(file.into())
}

fn cannot_open(stream: &str, name: &str, cause: io::Error) -> Error {
    let kind = match cause.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied => {
            ErrorKind::InvalidArgument
        }
        _ => ErrorKind::Internal,
    };
    Error::caused(kind, format!("cannot open {stream}: {name}"), cause)
}

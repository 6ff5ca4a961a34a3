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

use agent_protocol::FIRST_DESCRIPTOR;
use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::descriptor::{self, Way};
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
    /// Descriptors 3 and following.
    pub(crate) more: Vec<More>,
}

/// Both ends of a descriptor beyond the standard ones, those that there are.
#[derive(Debug)]
pub(crate) struct More {
    pub(crate) source: Option<Source>,
    pub(crate) sink: Option<Sink>,
}

impl Opened {
    /// Opens what a request names. Never waits for the other side, and for a file system up to `limit`.
    pub(crate) async fn open(stdio: Stdio, limit: Duration) -> Result<Self> {
        if matches!(
            (&stdio.stdin, &stdio.stdout, &stdio.stderr),
            (Input::Null, Output::Null, Output::Null)
        ) && stdio.descriptors.is_empty()
        {
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
                more: (FIRST_DESCRIPTOR..)
                    .zip(stdio.descriptors)
                    .map(|(number, fd)| More::open(number, fd))
                    .collect::<Result<_>>()?,
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
            descriptors: self
                .more
                .iter()
                .map(|more| agent_protocol::Descriptor {
                    readable: more.source.is_some(),
                    writable: more.sink.is_some(),
                    ..Default::default()
                })
                .collect(),
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

impl More {
    fn open(number: u32, fd: OwnedFd) -> Result<Self> {
        let way = descriptor::check(number, &fd)?;
        let open = |fd: OwnedFd, interest| Descriptor::new(fd, interest);
        let opened = || -> io::Result<Self> {
            let again = fd.try_clone()?;
            Ok(Self {
                source: match way.reads() {
                    true => Some(Source {
                        from: open(fd, Interest::READABLE)?,
                        _open: None,
                        ends_alone: way == Way::Both,
                    }),
                    false => None,
                },
                sink: match way.writes() {
                    true => Some(Sink {
                        to: open(again, Interest::WRITABLE)?,
                        keeper: None,
                        ends_alone: way == Way::Both,
                    }),
                    false => None,
                },
            })
        };
        opened().map_err(|cause| cannot_open("a descriptor", &number.to_string(), cause))
    }
}

/// Where output goes.
#[derive(Debug)]
pub(crate) struct Sink {
    to: Descriptor,
    /// Of a named pipe.
    keeper: Option<Keeper>,
    /// It is one direction of a socket.
    ends_alone: bool,
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
                Ok(Some(Self {
                    to,
                    keeper,
                    ends_alone: false,
                }))
            })
            .map_err(|cause| cannot_open(stream, &name, cause))
    }

    /// One that cannot be waited for.
    #[cfg(test)]
    pub(super) fn plain(file: OwnedFd) -> Self {
        Self {
            to: Descriptor::Plain(Arc::new(file)),
            keeper: None,
            ends_alone: false,
        }
    }

    /// Closes it, once nothing is lost by that.
    pub(crate) async fn close(self) -> io::Result<()> {
        if self.ends_alone {
            self.to.shut(Shutdown::Write);
        }
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
            let written = self.to.io(Interest::WRITABLE, |fd| self.to.put(fd, data)).await?;
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
    /// It is one direction of a socket.
    ends_alone: bool,
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
                Ok(Some(Self {
                    from,
                    _open,
                    ends_alone: false,
                }))
            })
            .map_err(|cause| cannot_open("stdin", &name, cause))
    }

    /// Waits for input and takes up to `max` bytes of it; empty: it has ended, which a named pipe never does by itself. Takes
    /// nothing when it is cancelled.
    pub(crate) async fn read(&self, max: usize) -> io::Result<Vec<u8>> {
        self.from
            .io(Interest::READABLE, |fd| self.from.take(fd, max))
            .await
    }

    /// Nobody will read it: who writes is told.
    pub(crate) fn refuse(self) {
        if self.ends_alone {
            self.from.shut(Shutdown::Read);
        }
    }

    /// Takes what is there now; empty: nothing is.
    pub(crate) fn read_now(&self, max: usize) -> io::Result<Vec<u8>> {
        match self.from.take(self.from.fd(), max) {
            Err(Errno::AGAIN) => Ok(Vec::new()),
            taken => Ok(taken?),
        }
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
    /// Not made non-blocking, as whoever else has it would find it so.
    Socket(AsyncFd<OwnedFd>),
    Plain(Arc<OwnedFd>),
}

impl Descriptor {
    fn new(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        if FileType::from_raw_mode(fstat(&fd)?.st_mode) == FileType::Socket {
            let registered = sys::register(fd, interest).map_err(|(_, cause)| cause)?;
            return Ok(Self::Socket(registered));
        }
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
            Self::Polled(fd) | Self::Socket(fd) => fd.get_ref(),
            Self::Plain(fd) => fd,
        }
    }

    /// Takes up to `max` bytes without waiting; empty: it has ended.
    fn take(&self, fd: &OwnedFd, max: usize) -> rustix::io::Result<Vec<u8>> {
        let mut data = Vec::with_capacity(max);
        let taken = match self {
            Self::Socket(_) => recv(fd, spare_capacity(&mut data), RecvFlags::DONTWAIT).map(drop),
            Self::Polled(_) | Self::Plain(_) => rustix::io::read(fd, spare_capacity(&mut data)).map(drop),
        };
        match taken {
            Ok(()) => {
                // Waits in memory until the process takes it.
                data.shrink_to_fit();
                Ok(data)
            }
            // A terminal's master, when the last slave is closed.
            Err(Errno::IO) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Puts there what it takes without waiting.
    fn put(&self, fd: &OwnedFd, data: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Socket(_) => send(fd, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Self::Polled(_) | Self::Plain(_) => rustix::io::write(fd, data),
        }
    }

    /// Ends one direction of a socket, for everybody who has it.
    fn shut(&self, how: Shutdown) {
        // The other side may have gone.
        let _ = shutdown(self.fd(), how);
    }

    async fn io<T>(
        &self,
        interest: Interest,
        mut call: impl FnMut(&OwnedFd) -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match self {
            Self::Polled(fd) | Self::Socket(fd) => {
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

//! Dials the host: the guest connects when it is ready, so that nobody has to poll for it.
//!
//! Must not know what is spoken on the connection, only the greeting that opens it.

mod serial;

use std::future::poll_fn;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_protocol::{GREETING, PORT};
use slog::{Logger, warn};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tokio_vsock::{VMADDR_CID_HOST, VsockAddr, VsockStream};

use crate::error::{Error, Result};

/// The channel to the host, as the kernel's command line or the arguments name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// AF_VSOCK to the host (CID 2), this port.
    Vsock(u32),
    /// The virtio-serial port with the agreed name.
    Serial,
    /// A unix socket: the agent is an ordinary process.
    Unix(PathBuf),
}

impl Channel {
    /// Reads `vsock`, `vsock:<port>`, `serial` or `unix:<path>`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let (kind, rest) = text
            .split_once(':')
            .map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("vsock", None) => Ok(Self::Vsock(PORT)),
            ("vsock", Some(port)) => match port.parse() {
                Ok(port) => Ok(Self::Vsock(port)),
                Err(_) => Err(Error::invalid("channel", format!("{port:?} is not a port"))),
            },
            ("serial", None) => Ok(Self::Serial),
            ("unix", Some(path)) if !path.is_empty() => Ok(Self::Unix(PathBuf::from(path))),
            _ => Err(Error::invalid(
                "channel",
                format!("{text:?} is none of vsock:<port>, serial, unix:<path>"),
            )),
        }
    }
}

impl Channel {
    /// Whether this failure says that there will never be a host at the other end. A vsock device may still be plugged.
    fn is_gone(&self, error: &io::Error) -> bool {
        match self {
            Self::Unix(_) | Self::Serial => error.kind() == io::ErrorKind::NotFound,
            Self::Vsock(_) => error.raw_os_error() == Some(libc::EAFNOSUPPORT),
        }
    }
}

/// Pauses between attempts: short at first, because a host that restarts is back soon.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Dials the host again and again.
#[derive(Debug)]
pub struct Dialler {
    channel: Channel,
    patience: Option<Duration>,
}

impl Dialler {
    /// A dialler that gives up when an attempt takes longer than `patience`, or never.
    pub fn new(channel: Channel, patience: Option<Duration>) -> Self {
        Self { channel, patience }
    }

    /// Connects and greets; a serial port does both when the connection is read. The receiver ends when the connection is closed on
    /// our side.
    ///
    /// # Errors
    /// Why the last attempt failed, when patience is at its end or the socket is gone for good.
    pub async fn dial(&self, log: &Logger) -> Result<(Connection, oneshot::Receiver<()>)> {
        let give_up = self.patience.map(|patience| Instant::now() + patience);
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.attempt().await {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            let next = Instant::now() + pause;
            if self.channel.is_gone(&error) || give_up.is_some_and(|end| end < next) {
                return Err(Error::System {
                    action: "connect to the host",
                    source: error,
                });
            }
            if pause == FIRST_PAUSE {
                warn!(log, "the host does not answer yet"; "cause" => %error);
            }
            sleep_until(next).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn attempt(&self) -> io::Result<(Connection, oneshot::Receiver<()>)> {
        let stream: Pin<Box<dyn Stream>> = match &self.channel {
            Channel::Vsock(port) => {
                Box::pin(VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, *port)).await?)
            }
            Channel::Serial => Box::pin(serial::find().await?),
            Channel::Unix(path) => Box::pin(UnixStream::connect(path).await?),
        };
        let (open, closed) = oneshot::channel();
        let mut connection = Connection {
            stream,
            ungreeted: GREETING,
            _open: open,
        };
        // A port is not open before it is used, see `serial`.
        if self.channel != Channel::Serial {
            poll_fn(|cx| connection.poll_greet(cx)).await?;
        }
        Ok((connection, closed))
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync {}
impl<T: AsyncRead + AsyncWrite + Send + Sync> Stream for T {}

/// A connection to the host. It greets when it is first read at the latest, which is before anything is answered on it.
pub struct Connection {
    stream: Pin<Box<dyn Stream>>,
    /// What is left of the greeting.
    ungreeted: &'static [u8],
    /// Dropped with the connection, which is how its end is noticed.
    _open: oneshot::Sender<()>,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Connection {
    fn poll_greet(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.ungreeted.is_empty() {
            let written = ready!(self.stream.as_mut().poll_write(cx, self.ungreeted))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.ungreeted = self.ungreeted.get(written..).unwrap_or_default();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_greet(cx))?;
        self.stream.as_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.stream.as_mut().poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.as_mut().poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[test]
    fn channels_are_named_as_the_protocol_says() {
        assert_eq!(Channel::parse("vsock").unwrap(), Channel::Vsock(PORT));
        assert_eq!(Channel::parse("vsock:77").unwrap(), Channel::Vsock(77));
        assert_eq!(Channel::parse("serial").unwrap(), Channel::Serial);
        assert_eq!(Channel::parse("unix:/a:b").unwrap(), Channel::Unix("/a:b".into()));
        for bad in [
            "",
            "vsock:",
            "vsock:-1",
            "vsock:99999999999",
            "serial:x",
            "unix",
            "unix:",
            "tcp:1",
        ] {
            assert!(Channel::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_host_that_comes_late_is_greeted_and_its_end_noticed() {
        let log = Logger::root(slog::Discard, slog::o!());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // A socket file without a listener refuses, which is what a restarting host looks like.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let dialler = Dialler::new(Channel::Unix(path.clone()), None);
        let host = async {
            tokio::time::sleep(FIRST_PAUSE * 2).await;
            // Renamed over the old one: a moment without a socket would mean that the host is gone for good.
            let fresh = dir.path().join("fresh");
            let listener = tokio::net::UnixListener::bind(&fresh).unwrap();
            std::fs::rename(&fresh, &path).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut greeting = [0; GREETING.len()];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(&greeting, GREETING);
        };
        let (dialled, ()) = tokio::join!(dialler.dial(&log), host);
        let (connection, mut closed) = dialled.unwrap();
        assert!(closed.try_recv().is_err());
        drop(connection);
        tokio::time::timeout(Duration::from_secs(5), &mut closed)
            .await
            .unwrap()
            .unwrap_err();
    }

    #[tokio::test]
    async fn patience_ends() {
        let log = Logger::root(slog::Discard, slog::o!());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let missing = Dialler::new(Channel::Unix(path.clone()), None).dial(&log).await;
        assert!(missing.is_err(), "a socket that is gone stays gone");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let refused = Dialler::new(Channel::Unix(path), Some(Duration::from_millis(30)))
            .dial(&log)
            .await;
        assert!(refused.is_err());
    }
}

//! Where the guest's agent dials in.
//!
//! Whatever the channel, the host has a listening socket *before* the VM starts and the guest connects when it is
//! ready: kernel vhost-vsock (AF_VSOCK), hybrid vsock (`<uds>_<port>`), virtio-serial (the VMM connects its chardev to
//! us at launch, and the guest's greeting comes when the agent opens the port), or a plain unix socket (fake driver).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::{GREETING, PORT};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::Instant;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener, VsockStream};

use crate::{Error, ErrorKind, TtrpcAgent};

/// A channel between host and guest, from the host's side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    /// Kernel vhost-vsock: listen on this host-wide port for the guest with this CID.
    Vsock {
        /// Host port, unique per sandbox.
        port: u32,
        /// The only peer that is accepted.
        cid: u32,
    },
    /// Hybrid vsock: the VMM (or its vsock daemon) connects to `<uds>_<PORT>` when the guest dials.
    HybridVsock {
        /// The base path given to the VMM.
        uds: PathBuf,
    },
    /// A stream unix socket at this path: virtio-serial chardev or an agent that runs as a process.
    Unix {
        /// Path of the socket.
        path: PathBuf,
    },
}

impl Channel {
    /// Path of the unix socket that is listened on, if it is one.
    pub fn socket_path(&self) -> Option<PathBuf> {
        match self {
            Self::Vsock { .. } => None,
            Self::HybridVsock { uds } => {
                let mut name = uds.as_os_str().to_owned();
                name.push(format!("_{PORT}"));
                Some(PathBuf::from(name))
            }
            Self::Unix { path } => Some(path.clone()),
        }
    }
}

enum Socket {
    Vsock { listener: VsockListener, cid: u32 },
    Unix { listener: UnixListener, path: PathBuf },
}

/// A bound channel that waits for the agent. The socket file is removed on drop.
pub struct Listener {
    socket: Socket,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix { path, .. } = &self.socket {
            // Gone already is fine: the run directory may have been removed first.
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    /// Binds the channel. A unix socket gets mode 0600.
    pub fn bind(channel: &Channel) -> Result<Self, Error> {
        let fail = |what: String| Error::new(ErrorKind::Unavailable, "listen", what);
        let socket = match channel {
            Channel::Vsock { port, cid } => Socket::Vsock {
                listener: VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, *port))
                    .map_err(|e| fail(format!("vsock port {port}: {e}")))?,
                cid: *cid,
            },
            Channel::HybridVsock { .. } | Channel::Unix { .. } => {
                let path = channel.socket_path().unwrap_or_default();
                let listener = bind_private(&path).map_err(|e| fail(format!("{}: {e}", path.display())))?;
                Socket::Unix { listener, path }
            }
        };
        Ok(Self { socket })
    }

    /// Waits for a peer that greets as an agent, until the deadline.
    ///
    /// A peer that does not greet correctly is dropped and the next one is awaited: it is the guest's right to fail,
    /// not to confuse us.
    pub async fn accept(&self, deadline: Duration) -> Result<TtrpcAgent, Error> {
        self.greeted(deadline).await.map(TtrpcAgent::new)
    }

    /// Waits for a peer that greets as an agent, and hangs up; returns when it, or the VMM in between, has hung up too. Who dials
    /// again is not served.
    pub async fn turn_away(&self, deadline: Duration) -> Result<(), Error> {
        let until = tokio::time::Instant::now() + deadline;
        let mut stream = self.greeted(deadline).await?;
        let farewell = async {
            stream.shutdown().await?;
            let mut ignored = [0; 64];
            while stream.read(&mut ignored).await? > 0 {}
            Ok(())
        };
        match tokio::time::timeout_at(until, farewell).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let error: std::io::Error = error;
                Err(Error::new(ErrorKind::Unavailable, "hang up", error.to_string()))
            }
            Err(_) => {
                let text = format!(
                    "the other end is still there after {:.1} s",
                    deadline.as_secs_f64()
                );
                Err(Error::new(ErrorKind::DeadlineExceeded, "hang up", text))
            }
        }
    }

    /// The same, as a connection for another process to have: [`TtrpcAgent::new`] makes an agent of it.
    ///
    /// # Errors
    /// As [`Listener::accept`]; [`ErrorKind::Unsupported`] where it is no unix socket.
    pub async fn accept_for_another(&self, deadline: Duration) -> Result<UnixStream, Error> {
        let none = "only a connection by a unix socket can be handed on";
        let stream = self.greeted(deadline).await?.into_unix();
        stream.ok_or_else(|| Error::new(ErrorKind::Unsupported, "accept", none))
    }

    /// The next connection on which an agent greets.
    async fn greeted(&self, deadline: Duration) -> Result<Box<dyn Stream>, Error> {
        let until = Instant::now() + deadline;
        let late = |_| {
            Error::new(
                ErrorKind::DeadlineExceeded,
                "accept",
                format!(
                    "the guest's agent did not answer within {:.1} s",
                    deadline.as_secs_f64()
                ),
            )
        };
        loop {
            let accepted = tokio::time::timeout_at(until, self.next()).await.map_err(late)?;
            let next = accepted.map_err(|e| Error::new(ErrorKind::Unavailable, "accept", e.to_string()))?;
            let Some(mut stream) = next else {
                continue;
            };
            let mut greeting = [0_u8; GREETING.len()];
            let read = tokio::time::timeout_at(until, stream.read_exact(&mut greeting)).await;
            if read.map_err(late)?.is_ok() && &greeting == GREETING {
                return Ok(stream);
            }
        }
    }

    /// The next connection; `None` from somebody who is not meant.
    async fn next(&self) -> std::io::Result<Option<Box<dyn Stream>>> {
        match &self.socket {
            Socket::Vsock { listener, cid } => {
                let (stream, peer) = listener.accept().await?;
                Ok((peer.cid() == *cid).then(|| Box::new(stream) as Box<dyn Stream>))
            }
            Socket::Unix { listener, .. } => {
                let (stream, _) = listener.accept().await?;
                Ok(Some(Box::new(stream)))
            }
        }
    }
}

/// A connection, whatever it is made of.
trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {
    /// The socket, if it is a unix one.
    fn into_unix(self: Box<Self>) -> Option<UnixStream>;
}

impl Stream for UnixStream {
    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        Some(*self)
    }
}

impl Stream for VsockStream {
    fn into_unix(self: Box<Self>) -> Option<UnixStream> {
        None
    }
}

fn bind_private(path: &Path) -> std::io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(dir: &tempfile::TempDir) -> Channel {
        Channel::Unix {
            path: dir.path().join("agent.sock"),
        }
    }

    #[tokio::test]
    async fn a_peer_that_greets_is_accepted_after_one_that_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let channel = channel(&dir);
        let path = channel.socket_path().unwrap();
        let listener = Listener::bind(&channel).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut liar = UnixStream::connect(&path).await.unwrap();
        liar.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let mut honest = UnixStream::connect(&path).await.unwrap();
        honest.write_all(GREETING).await.unwrap();
        listener.accept(Duration::from_secs(5)).await.unwrap();
        drop(listener);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_silent_peer_runs_into_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let channel = channel(&dir);
        let listener = Listener::bind(&channel).unwrap();
        let _silent = UnixStream::connect(channel.socket_path().unwrap()).await.unwrap();
        let error = listener.accept(Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_peer_that_is_turned_away_hangs_up() {
        let dir = tempfile::tempdir().unwrap();
        let channel = channel(&dir);
        let listener = Listener::bind(&channel).unwrap();
        let peer = async |stays: bool| {
            let mut stream = UnixStream::connect(channel.socket_path().unwrap()).await.unwrap();
            stream.write_all(GREETING).await.unwrap();
            let read = stream.read(&mut [0; 1]).await.unwrap();
            assert_eq!(read, 0, "nothing is said to it");
            if stays {
                std::future::pending::<()>().await;
            }
        };
        let (away, ()) = tokio::join!(listener.turn_away(Duration::from_secs(5)), peer(false));
        away.unwrap();
        let error = tokio::select! {
            away = listener.turn_away(Duration::from_millis(500)) => away.unwrap_err(),
            () = peer(true) => unreachable!(),
        };
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(error.to_string().contains("still there"), "{error}");
    }

    #[test]
    fn the_hybrid_socket_carries_the_port() {
        let channel = Channel::HybridVsock {
            uds: "/run/x/vsock".into(),
        };
        assert_eq!(channel.socket_path().unwrap(), PathBuf::from("/run/x/vsock_1024"));
    }
}

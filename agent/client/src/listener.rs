//! Where the guest's agent dials in.
//!
//! Whatever the channel, the host has a listening socket *before* the VM starts and the guest connects when it is
//! ready: kernel vhost-vsock (AF_VSOCK), hybrid vsock (`<uds>_<port>`), virtio-serial (the VMM connects its chardev to
//! us at launch, and the guest's greeting comes when the agent opens the port), or a plain unix socket (fake driver).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::{GREETING, PORT};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_vsock::{VMADDR_CID_ANY, VsockAddr, VsockListener};

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
        let until = Instant::now() + deadline;
        let late = || {
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
            match &self.socket {
                Socket::Vsock { listener, cid } => {
                    let (stream, peer) = tokio::time::timeout_at(until, listener.accept())
                        .await
                        .map_err(|_| late())?
                        .map_err(|e| Error::new(ErrorKind::Unavailable, "accept", e.to_string()))?;
                    if peer.cid() != *cid {
                        continue;
                    }
                    if let Some(agent) = greeted(stream, until).await.map_err(|()| late())? {
                        return Ok(agent);
                    }
                }
                Socket::Unix { listener, .. } => {
                    let (stream, _) = tokio::time::timeout_at(until, listener.accept())
                        .await
                        .map_err(|_| late())?
                        .map_err(|e| Error::new(ErrorKind::Unavailable, "accept", e.to_string()))?;
                    if let Some(agent) = greeted(stream, until).await.map_err(|()| late())? {
                        return Ok(agent);
                    }
                }
            }
        }
    }
}

/// `Ok(None)`: not an agent; `Err`: the deadline passed.
async fn greeted<S>(mut stream: S, until: Instant) -> Result<Option<TtrpcAgent>, ()>
where
    S: AsyncRead + tokio::io::AsyncWrite + Send + Sync + Unpin + 'static,
{
    let mut greeting = [0_u8; GREETING.len()];
    match tokio::time::timeout_at(until, stream.read_exact(&mut greeting)).await {
        Err(_) => Err(()),
        Ok(Ok(_)) if &greeting == GREETING => Ok(Some(TtrpcAgent::new(stream))),
        Ok(_) => Ok(None),
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
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

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

    #[test]
    fn the_hybrid_socket_carries_the_port() {
        let channel = Channel::HybridVsock {
            uds: "/run/x/vsock".into(),
        };
        assert_eq!(channel.socket_path().unwrap(), PathBuf::from("/run/x/vsock_1024"));
    }
}

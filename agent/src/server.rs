//! Serves the protocol on one dialled connection after the other.

use std::io;
use std::path::Path;

use futures::StreamExt as _;
use futures::stream;
use rustix::time::{ClockId, clock_gettime};
use slog::Logger;
use tokio::sync::{oneshot, watch};
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::container;
use crate::dial::{Connection, Dialler};
use crate::error::{Error, Result};
use crate::init::CGROUP_ROOT;
use crate::rpc;
use crate::sandbox::Handle;
use crate::sys;

/// A server that dials.
pub struct Serving {
    /// Serves in tasks of its own; kept because its end is theirs.
    _server: Server,
    connected: watch::Receiver<bool>,
    failed: oneshot::Receiver<Error>,
}

/// What the stream of connections remembers from one to the next.
struct Line {
    sandbox: Handle,
    dialler: Dialler,
    log: Logger,
    connected: watch::Sender<bool>,
    previous: Option<oneshot::Receiver<()>>,
    /// See [`Line::next`].
    is_prepared: bool,
    failed: Option<oneshot::Sender<Error>>,
}

impl Line {
    /// Waits for the end of the previous connection, then dials. `None`: there is nobody left to dial.
    async fn next(&mut self) -> Option<io::Result<Connection>> {
        if let Some(previous) = self.previous.take() {
            // Only its end is of interest, which is when the sender is dropped.
            let _ = previous.await;
            self.connected.send_replace(false);
            if self.sandbox.is_blank() && !std::mem::replace(&mut self.is_prepared, true) {
                // Who hangs up without a word is about to save this guest, and waits until it dials again: what all copies
                // would have to do is done once, and what is no use to them is not saved.
                let owns_kernel = std::process::id() == 1;
                container::prepare(owns_kernel.then_some(Path::new(CGROUP_ROOT)));
                // The first look at a clock finds out how to look at one.
                let _ = clock_gettime(ClockId::Boottime);
                if owns_kernel {
                    sys::zero_free_memory();
                }
            }
        }
        match self.dialler.dial(&self.log).await {
            Ok((connection, closed)) => {
                self.previous = Some(closed);
                self.connected.send_replace(true);
                Some(Ok(connection))
            }
            Err(error) => {
                self.failed.take().and_then(|failed| failed.send(error).err());
                None
            }
        }
    }
}

impl Serving {
    /// Starts to dial and to serve. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When ttrpc can't start.
    pub async fn start(sandbox: Handle, dialler: Dialler, log: Logger) -> Result<Self> {
        let (connection_state, connected) = watch::channel(false);
        let (failure, failed) = oneshot::channel();
        let line = Line {
            sandbox: sandbox.clone(),
            dialler,
            log,
            connected: connection_state,
            previous: None,
            is_prepared: false,
            failed: Some(failure),
        };
        let connections = stream::unfold(line, async |mut line| line.next().await.map(|next| (next, line)));
        let mut server = Server::new()
            .register_service(rpc::service(sandbox))
            .add_listener(Listener::new(connections.boxed()));
        server
            .start()
            .await
            .map_err(|e| Error::system("start the server")(io::Error::other(e)))?;
        Ok(Self {
            _server: server,
            connected,
            failed,
        })
    }

    /// Serves until there is nobody left to dial; says why.
    pub async fn failed(&mut self) -> Error {
        (&mut self.failed).await.unwrap_or(Error::ShuttingDown)
    }

    /// Waits until the host has hung up.
    pub async fn hung_up(&mut self) {
        // An error means that nobody dials any more.
        let _ = self.connected.wait_for(|connected| !connected).await;
    }
}

//! Connections to the pod's localhost on the host, carried into the guest and back: each by a task of its own, chunk by chunk,
//! so that whichever end is slow makes the other wait and costs no more than a chunk.
//!
//! Must not know how the connections come here. What the agent answers is checked: it comes from the guest.

use std::sync::Arc;
use std::time::Duration;

use agent_client::Agent;
use agent_protocol as p;
use rustix::net::sockopt::set_socket_linger;
use slog::{Logger, debug, warn};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream, tcp, unix};
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::deadlines;
use crate::error::{Error, ErrorKind};
use crate::io::CHUNK;

/// Connections carried at a time by one listener; the next ones wait until one ends.
const MOST: usize = 256;

/// Carries connections until it is dropped.
#[derive(Debug)]
pub(super) struct Forward(Vec<JoinHandle<()>>);

impl Forward {
    /// Carries whatever these listeners accept to the same port of the guest's localhost. `deadline` is for calls that do not wait
    /// for the workload.
    pub(super) fn start(
        listeners: Vec<TcpListener>,
        agent: &Arc<dyn Agent>,
        deadline: Duration,
        log: &Logger,
    ) -> Self {
        let carry = |listener| {
            let way = Way {
                agent: Arc::clone(agent),
                deadline,
                log: log.clone(),
            };
            tokio::spawn(serve(listener, way))
        };
        Self(listeners.into_iter().map(carry).collect())
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// The way into the guest.
#[derive(Clone)]
struct Way {
    agent: Arc<dyn Agent>,
    deadline: Duration,
    log: Logger,
}

/// One of the two ends is gone for good.
struct Broken;

async fn serve(listener: TcpListener, way: Way) {
    // Dropped with this task, and the connections with it.
    let mut carried = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if carried.len() < MOST => match accepted {
                Ok((stream, _)) => {
                    carried.spawn(carry(stream, way.clone()));
                }
                Err(error) => {
                    warn!(way.log, "a connection to the pod's localhost is not accepted"; "error" => %error);
                    sleep(deadlines::ACCEPT_PAUSE).await;
                }
            },
            Some(_) = carried.join_next() => {}
        }
    }
}

async fn carry(mut stream: TcpStream, way: Way) {
    let Ok(dialled) = stream.local_addr() else {
        return;
    };
    if !dialled.ip().is_loopback() {
        debug!(way.log, "a connection that is not to localhost is refused"; "to" => %dialled);
        return;
    }
    let request = p::OpenConnectionRequest {
        port: dialled.port().into(),
        ipv6_first: dialled.is_ipv6(),
        ..Default::default()
    };
    let carried = match way.agent.open_connection(request, Some(way.deadline)).await {
        Ok(opened) => {
            let (caller, to_caller) = stream.split();
            let carried = way.exchange(&caller, to_caller, opened.connection).await;
            way.close(opened.connection).await;
            carried
        }
        Err(error) => {
            debug!(way.log, "a connection cannot be carried into the guest"; "to" => %dialled, "error" => %error);
            Err(Broken)
        }
    };
    if carried.is_err() {
        // So that the caller is told that it did not end well. It fails only if the caller is gone.
        let _ = set_socket_linger(&stream, Some(Duration::ZERO));
    }
}

/// Carries one connection of a caller's to a port of the guest's localhost, until both ends have said all.
///
/// # Errors
/// Nobody listens there; the connection breaks.
pub(super) async fn port(
    mut stream: UnixStream,
    port: u16,
    agent: Arc<dyn Agent>,
    deadline: Duration,
    log: Logger,
) -> Result<(), Error> {
    let request = p::OpenConnectionRequest {
        port: port.into(),
        ..Default::default()
    };
    let way = Way { agent, deadline, log };
    let opening = way.clone();
    // On its own: what is opened when nobody waits for this any more is closed as well.
    let opened = tokio::spawn(async move {
        let opened = opening.agent.open_connection(request, Some(deadline)).await?;
        Ok::<_, Error>(Open {
            way: opening,
            connection: opened.connection,
            runtime: Handle::current(),
        })
    });
    let opened = opened
        .await
        .map_err(|cause| Error::caused(ErrorKind::Internal, "the connection was cut off", cause))??;
    let (caller, to_caller) = stream.split();
    way.exchange(&caller, to_caller, opened.connection)
        .await
        .map_err(|Broken| {
            Error::new(
                ErrorKind::Unavailable,
                format!("the connection to port {port} of the pod is broken"),
            )
        })
}

/// A connection in the guest, which is closed with this: now, or when nobody is there who would take it.
struct Open {
    way: Way,
    connection: u64,
    /// Of the opening: who drops this may be outside of any.
    runtime: Handle,
}

impl Drop for Open {
    fn drop(&mut self) {
        let (way, connection) = (self.way.clone(), self.connection);
        self.runtime.spawn(async move { way.close(connection).await });
    }
}

/// What a caller says.
trait Says: Sync {
    /// Waits until it says something.
    fn readable(&self) -> impl Future<Output = std::io::Result<()>> + Send;
    /// Takes what is there.
    fn take(&self, data: &mut Vec<u8>) -> std::io::Result<usize>;
}

impl Says for tcp::ReadHalf<'_> {
    async fn readable(&self) -> std::io::Result<()> {
        Self::readable(self).await
    }

    fn take(&self, data: &mut Vec<u8>) -> std::io::Result<usize> {
        self.try_read_buf(data)
    }
}

impl Says for unix::ReadHalf<'_> {
    async fn readable(&self) -> std::io::Result<()> {
        Self::readable(self).await
    }

    fn take(&self, data: &mut Vec<u8>) -> std::io::Result<usize> {
        self.try_read_buf(data)
    }
}

impl Way {
    /// Moves data both ways until both ends have said all.
    async fn exchange(
        &self,
        caller: &impl Says,
        mut to_caller: impl AsyncWrite + Unpin + Send,
        connection: u64,
    ) -> Result<(), Broken> {
        let inwards = self.inwards(caller, connection);
        let outwards = self.outwards(&mut to_caller, connection);
        tokio::try_join!(inwards, outwards).map(drop)
    }

    async fn inwards(&self, caller: &impl Says, connection: u64) -> Result<(), Broken> {
        loop {
            // Nothing is held while there is nothing to hold.
            caller.readable().await.map_err(|_| Broken)?;
            let mut data = Vec::with_capacity(CHUNK);
            match caller.take(&mut data) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                Err(_) => return Err(Broken),
            }
            let request = p::WriteConnectionRequest {
                connection,
                data,
                ..Default::default()
            };
            // Waits for the workload, so without a deadline; it ends with the connection.
            let written = self.agent.write_connection(request, None).await;
            if !written.map_err(|_| Broken)?.open {
                // What the program had said before it went may still be read.
                return Ok(());
            }
        }
        let finished = self
            .agent
            .finish_connection(numbered(connection), Some(self.deadline));
        finished.await.map(drop).map_err(|_| Broken)
    }

    async fn outwards(
        &self,
        caller: &mut (impl AsyncWrite + Unpin + Send),
        connection: u64,
    ) -> Result<(), Broken> {
        loop {
            let request = p::ReadConnectionRequest {
                connection,
                max: CHUNK as u32,
                ..Default::default()
            };
            let answer = self
                .agent
                .read_connection(request, None)
                .await
                .map_err(|_| Broken)?;
            if answer.data.len() > CHUNK {
                warn!(self.log, "the guest sent more than was asked for; the connection is closed";
                    "bytes" => answer.data.len());
                return Err(Broken);
            }
            // An answer without data is the end, whatever it says of itself.
            if answer.data.is_empty() {
                return caller.shutdown().await.map_err(|_| Broken);
            }
            caller.write_all(&answer.data).await.map_err(|_| Broken)?;
        }
    }

    async fn close(&self, connection: u64) {
        let closed = self
            .agent
            .close_connection(numbered(connection), Some(self.deadline))
            .await;
        if let Err(error) = closed {
            debug!(self.log, "a connection in the guest is not closed"; "error" => %error);
        }
    }
}

fn numbered(connection: u64) -> p::ConnectionRequest {
    p::ConnectionRequest {
        connection,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use agent_client::FakeAgent;
    use slog::{Discard, o};
    use tokio::time::timeout;

    use super::*;

    /// Longer than it takes on a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn a_connection_is_closed_with_its_handle_whoever_drops_that() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let agent = Arc::new(FakeAgent::new());
        let way = Way {
            agent: Arc::clone(&agent) as Arc<dyn Agent>,
            deadline: SOON,
            log: Logger::root(Discard, o!()),
        };
        let opened = runtime.block_on(async {
            Open {
                way,
                connection: 1,
                runtime: Handle::current(),
            }
        });
        drop(opened);
        let closed = async {
            while agent.calls() != ["close_connection"] {
                tokio::task::yield_now().await;
            }
        };
        runtime.block_on(async { timeout(SOON, closed).await }).unwrap();
    }
}

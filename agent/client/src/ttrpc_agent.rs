//! The agent over ttrpc.

use std::time::Duration;

use agent_protocol::service::AgentClient;
use tokio::io::{AsyncRead, AsyncWrite};
use ttrpc::asynchronous::{Client, transport::Socket};

/// An [`crate::Agent`] at the other end of a byte stream. Cheap to clone; calls run concurrently on one connection.
#[derive(Clone)]
pub struct TtrpcAgent {
    pub(crate) client: AgentClient,
}

impl std::fmt::Debug for TtrpcAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TtrpcAgent").finish_non_exhaustive()
    }
}

impl TtrpcAgent {
    /// Takes over a connection on which the greeting has been read already. Needs a Tokio runtime.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Sync + 'static) -> Self {
        Self {
            client: AgentClient::new(Client::new(Socket::new(stream))),
        }
    }
}

pub(crate) fn context(deadline: Option<Duration>) -> ttrpc::context::Context {
    // 0 means "no deadline" to ttrpc.
    let nanos = deadline.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX).max(1));
    ttrpc::context::with_timeout(nanos)
}

//! The agent over ttrpc.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::service::AgentClient;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use ttrpc::asynchronous::{Client, transport::Socket};

use crate::durations::{Books, Told};
use crate::frames::Checked;
use crate::{Error, ErrorKind};

/// An [`crate::Agent`] at the other end of a byte stream. Cheap to clone; calls run concurrently on one connection.
#[derive(Clone)]
pub struct TtrpcAgent {
    client: AgentClient,
    /// Dropped with the last handle, which ends the connection whatever calls are under way.
    open: Arc<watch::Sender<()>>,
    pub(crate) durations: Arc<Books>,
    /// Who is told of this handle's calls.
    pub(crate) told: Option<Told>,
}

impl std::fmt::Debug for TtrpcAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TtrpcAgent").finish_non_exhaustive()
    }
}

impl TtrpcAgent {
    /// Takes over a connection on which the greeting has been read already. Needs a Tokio runtime.
    pub fn new(stream: impl AsyncRead + AsyncWrite + Send + Sync + Unpin + 'static) -> Self {
        Self {
            client: AgentClient::new(Client::new(Socket::new(Checked::new(stream)))),
            open: Arc::default(),
            durations: Arc::default(),
            told: None,
        }
    }

    /// Makes a call that goes on by itself when nobody waits for it any more: ttrpc closes the connection when a request is
    /// cancelled, or late, while it is being written, and with it goes every container.
    pub(crate) fn call<T, F>(&self, make: impl FnOnce(AgentClient) -> F) -> JoinHandle<ttrpc::Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = ttrpc::Result<T>> + Send + 'static,
    {
        let call = make(self.client.clone());
        let mut open = self.open.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                answer = call => answer,
                _ = open.changed() => Err(ttrpc::Error::LocalClosed),
            }
        })
    }
}

/// No deadline: it is kept by [`answer`].
pub(crate) fn context() -> ttrpc::context::Context {
    ttrpc::context::with_timeout(0)
}

/// Waits for the answer of a call for at most `deadline`. The call goes on when nobody waits for it any more.
pub(crate) async fn answer<T>(
    name: &'static str,
    call: JoinHandle<ttrpc::Result<T>>,
    deadline: Option<Duration>,
) -> Result<T, Error> {
    let answered = match deadline {
        None => call.await,
        Some(deadline) => match tokio::time::timeout(deadline, call).await {
            Ok(answered) => answered,
            Err(_) => {
                let text = format!("no answer within {:.1} s", deadline.as_secs_f64());
                return Err(Error::new(ErrorKind::DeadlineExceeded, name, text));
            }
        },
    };
    match answered {
        Ok(answer) => answer.map_err(|error| Error::from_ttrpc(name, error)),
        // The program is ending.
        Err(_) => Err(Error::new(ErrorKind::Unavailable, name, "the call was given up")),
    }
}

#[cfg(test)]
mod tests {
    use agent_protocol as p;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::Agent;

    #[tokio::test]
    async fn the_connection_ends_with_its_last_handle_whatever_calls_are_under_way() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let agent = TtrpcAgent::new(ours);
        let call = agent.hello(p::HelloRequest::default(), None);
        assert!(
            tokio::time::timeout(Duration::from_millis(20), call)
                .await
                .is_err()
        );
        drop(agent);
        let ended = async {
            let mut rest = Vec::new();
            theirs.read_to_end(&mut rest).await.unwrap();
        };
        tokio::time::timeout(Duration::from_secs(20), ended)
            .await
            .unwrap();
    }

    #[tokio::test]
    async fn a_call_that_is_given_up_while_it_is_written_leaves_the_connection_whole() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let agent = TtrpcAgent::new(ours);
        let request = p::WriteStdinRequest {
            data: vec![7; 100 * 1024],
            ..Default::default()
        };
        let call = agent.write_stdin(request, None);
        let given_up = tokio::time::timeout(Duration::from_millis(50), call).await;
        assert!(given_up.is_err());
        let late = agent.hello(p::HelloRequest::default(), Some(Duration::from_millis(50)));
        assert_eq!(late.await.unwrap_err().kind, ErrorKind::DeadlineExceeded);
        for least in [100 * 1024, 1] {
            let mut header = [0; 10];
            theirs.read_exact(&mut header).await.unwrap();
            let length = u32::from_be_bytes(header[..4].try_into().unwrap()) as usize;
            assert!(length >= least, "{length}");
            theirs.read_exact(&mut vec![0; length]).await.unwrap();
        }
    }
}

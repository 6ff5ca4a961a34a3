//! Accepted connections, counted: the end of the last one shows that the last answer was written.
//!
//! It must not know what is said on them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

/// How many there are.
type Count = watch::Sender<usize>;

/// A connection that is counted as long as it lives.
pub struct Counted {
    stream: UnixStream,
    count: Count,
}

impl Counted {
    fn new(stream: UnixStream, count: Count) -> Self {
        count.send_modify(|count| *count += 1);
        Self { stream, count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.send_modify(|count| *count -= 1);
    }
}

/// The end of all connections.
pub struct Connections(Count);

impl Connections {
    /// Returns when there is none.
    pub async fn closed(&self) {
        // The sender is ours.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

/// Accepts on a listener, and counts what is accepted.
pub fn accept(listener: UnixListener) -> (impl Stream<Item = io::Result<Counted>> + Send, Connections) {
    let count = Count::new(0);
    let connections = Connections(count.clone());
    let accepted = futures::stream::unfold((listener, count), |(listener, count)| async move {
        let accepted = listener.accept().await;
        let connection = accepted.map(|(stream, _)| Counted::new(stream, count.clone()));
        Some((connection, (listener, count)))
    });
    (accepted, connections)
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

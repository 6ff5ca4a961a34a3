//! Accepted connections, counted: the end of the last one shows that the last answer was written.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

/// A connection that is counted as long as it lives.
pub struct Counted {
    stream: UnixStream,
    _alive: mpsc::Sender<()>,
}

/// Accepts on a listener, and says when there is no connection any more: the receiver then gets `None`.
pub fn accept(
    listener: UnixListener,
) -> (impl Stream<Item = io::Result<Counted>> + Send, mpsc::Receiver<()>) {
    let (alive, gone) = mpsc::channel(1);
    let accepted = futures::stream::unfold((listener, alive), |(listener, alive)| async move {
        let connection = listener.accept().await.map(|(stream, _)| Counted {
            stream,
            _alive: alive.clone(),
        });
        Some((connection, (listener, alive)))
    });
    (accepted, gone)
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

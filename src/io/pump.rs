//! Moves bytes between a process in the guest and the host's ends of its streams: one task per stream, one chunk and the next.
//!
//! Output is pulled, so that a reader that is slow or absent costs two chunks here and nothing in the guest, and blocks
//! nobody. A pump ends by itself at the end of its stream or of the connection; dropping its handle gives the rest up.
//! What the agent answers is checked: it comes from the guest.

use std::sync::Arc;
use std::time::Duration;

use agent_client::Agent;
use agent_protocol as p;
use slog::{Logger, debug, warn};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::{Sink, Source};
/// Bytes that one call moves, the only buffers of a stream: one that the reader takes, and the next; an idle stream has none. A
/// guest under TCG sends 128 KiB in little more time than 64. More would fill the socket between the vsock daemon and us.
pub(crate) const CHUNK: usize = 128 * 1024;
const _: () = assert!(CHUNK <= p::MAX_CHUNK);

/// Whose streams: the names of a process in the agent's calls, and the agent.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) agent: Arc<dyn Agent>,
    pub(crate) container: String,
    /// Empty for the container's init process.
    pub(crate) exec: String,
    /// For calls that do not wait for the workload.
    pub(crate) deadline: Duration,
    pub(crate) log: Logger,
}

impl Target {
    /// Names it in a call.
    pub(crate) fn process(&self) -> p::ProcessRequest {
        p::ProcessRequest {
            container_id: self.container.clone(),
            exec_id: self.exec.clone(),
            ..Default::default()
        }
    }
}

/// Which output of a process.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Name {
    /// A standard one.
    Standard(p::Stream),
    /// That of a descriptor beyond those.
    Descriptor(u32),
}

/// The pump of one output stream.
#[derive(Debug)]
pub(crate) struct Output {
    task: JoinHandle<()>,
    delivery: Delivery,
}

/// What is left of a stream. The sender goes when nothing is: everything that was written has been handed over to the
/// host's end, or nobody will do it any more.
pub(crate) type Delivery = watch::Receiver<()>;

impl Output {
    /// Begins to move a stream. `first` is called when the first output is there.
    pub(crate) fn start(
        target: Target,
        stream: Name,
        sink: Sink,
        first: impl FnOnce() + Send + 'static,
    ) -> Self {
        let (undelivered, delivery) = watch::channel(());
        Self {
            task: tokio::spawn(move_output(target, stream, sink, first, undelivered)),
            delivery,
        }
    }

    /// For waiting until everything is handed over; whether anybody has read it is another matter.
    pub(crate) fn delivery(&self) -> Delivery {
        self.delivery.clone()
    }

    /// Waits until all output is delivered. Cancel safe.
    pub(crate) async fn drained(&mut self) {
        // A pump is never cancelled while it is waited for, and does not panic.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn move_output(
    target: Target,
    stream: Name,
    sink: Sink,
    first: impl FnOnce(),
    undelivered: watch::Sender<()>,
) {
    let mut sink = Some(sink);
    let mut first = Some(first);
    let mut next = read(&target, stream).await;
    while let Some(data) = next {
        if let Some(first) = first.take() {
            first();
        }
        let Some(open) = &sink else {
            next = read(&target, stream).await;
            continue;
        };
        // The guest fetches the next one while the reader takes this one.
        let write = async {
            let written = open.write_all(data).await;
            if let (Err(_), Name::Descriptor(number)) = (&written, stream) {
                // Ends the read that is under way as well.
                give_up(&target, number).await;
            }
            written
        };
        let (written, following) = tokio::join!(write, read(&target, stream));
        if let Err(error) = written {
            match stream {
                // The process must not wait for a reader that is gone for good: the rest is read and thrown away.
                Name::Standard(_) => {
                    warn!(target.log, "output is lost"; "stream" => ?stream, "error" => %error);
                }
                Name::Descriptor(_) => {
                    debug!(target.log, "nobody reads it"; "stream" => ?stream, "error" => %error);
                }
            }
            sink = None;
        }
        next = following;
    }
    drop(undelivered);
    if let Some(sink) = sink
        && let Err(error) = sink.close().await
    {
        debug!(target.log, "output is closed before it is read"; "stream" => ?stream, "error" => %error);
    }
}

/// The next output; `None` at the end of the stream or of the connection.
async fn read(target: &Target, stream: Name) -> Option<Vec<u8>> {
    let request = p::ReadOutputRequest {
        max: CHUNK as u32,
        ..named(target, stream)
    };
    // Waits for the workload, so without a deadline; it ends with the connection.
    match target.agent.read_output(request, None).await {
        Ok(answer) if answer.data.len() > CHUNK => {
            warn!(target.log, "the guest sent more output than was asked for; the stream is closed";
                "stream" => ?stream, "bytes" => answer.data.len());
            None
        }
        // An answer without data is the end, whatever it says of itself: asking again could go on forever.
        Ok(answer) => Some(answer.data).filter(|data| !data.is_empty()),
        Err(error) => {
            debug!(target.log, "output ends"; "stream" => ?stream, "error" => %error);
            None
        }
    }
}

fn named(target: &Target, stream: Name) -> p::ReadOutputRequest {
    let mut request = p::ReadOutputRequest {
        container_id: target.container.clone(),
        exec_id: target.exec.clone(),
        ..Default::default()
    };
    match stream {
        Name::Standard(stream) => request.stream = stream.into(),
        Name::Descriptor(number) => request.descriptor = number,
    }
    request
}

/// Nobody reads what the process writes there: it finds that out.
async fn give_up(target: &Target, number: u32) {
    let request = p::ReadOutputRequest {
        close: true,
        ..named(target, Name::Descriptor(number))
    };
    if let Err(error) = target.agent.read_output(request, Some(target.deadline)).await {
        debug!(target.log, "a descriptor is not closed"; "descriptor" => number, "error" => %error);
    }
}

/// The pump of input: of the standard one, or of a descriptor's.
#[derive(Debug)]
pub(crate) struct Input {
    task: JoinHandle<()>,
    close: Option<oneshot::Sender<()>>,
}

impl Input {
    /// Begins to move input, to the descriptor of this number.
    pub(crate) fn start(target: Target, number: u32, source: Source) -> Self {
        let (close, closed) = oneshot::channel();
        Self {
            task: tokio::spawn(move_input(target, number, source, closed)),
            close: Some(close),
        }
    }

    /// Ends the process's input after what the client has written so far.
    pub(crate) fn close(&mut self) {
        if let Some(close) = self.close.take() {
            // The input has ended already.
            let _ = close.send(());
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn move_input(target: Target, number: u32, source: Source, mut closed: oneshot::Receiver<()>) {
    loop {
        let data = tokio::select! {
            biased;
            data = source.read(CHUNK) => data,
            _ = &mut closed => break,
        };
        match data {
            Ok(data) if data.is_empty() => break,
            Ok(data) => {
                if !write(&target, number, data).await {
                    source.refuse();
                    return;
                }
            }
            Err(error) => {
                warn!(target.log, "input ends"; "error" => %error);
                break;
            }
        }
    }
    // What the client had written before it asked for the end.
    while let Ok(data) = source.read_now(CHUNK)
        && !data.is_empty()
    {
        if !write(&target, number, data).await {
            source.refuse();
            return;
        }
    }
    let request = p::CloseStdinRequest {
        container_id: target.container.clone(),
        exec_id: target.exec.clone(),
        descriptor: number,
        ..Default::default()
    };
    if let Err(error) = target.agent.close_stdin(request, Some(target.deadline)).await {
        debug!(target.log, "input is not closed"; "error" => %error);
    }
}

/// Whether the process still reads.
async fn write(target: &Target, number: u32, data: Vec<u8>) -> bool {
    let request = p::WriteStdinRequest {
        container_id: target.container.clone(),
        exec_id: target.exec.clone(),
        data,
        descriptor: number,
        ..Default::default()
    };
    // Waits for the workload, so without a deadline.
    match target.agent.write_stdin(request, None).await {
        Ok(answer) => answer.open,
        Err(error) => {
            debug!(target.log, "input ends"; "error" => %error);
            false
        }
    }
}

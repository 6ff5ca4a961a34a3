//! The engine's end of a container's standard streams: output goes to its log and to whoever is attached, and input comes from
//! them. One task for each container; the bytes come and go through pipes, as from any other caller of the runtime.
//!
//! Somebody attached who does not read holds up nobody: what is kept for him is bounded, and he is cut off.

#[cfg(test)]
mod tests;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::pipe::{PipeFlags, pipe_with};
use slog::{Logger, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::lines::Lines;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Input, Opened, Output, Sink, Source, Stdio};

/// Bytes that are taken from a pipe at once: what it holds.
const CHUNK: usize = 64 * 1024;

/// Chunks that are kept for one who is attached. He is cut off when there are more.
const BEHIND: usize = 64;

/// Chunks of input that wait for the container.
const TYPED: usize = 4;

/// Most bytes of each output that [`collect`] keeps: what CRI-O does.
pub(super) const MOST_COLLECTED: usize = 16 << 20;

type Chunk = Arc<[u8]>;

/// The engine's end of a container's streams. Dropping it closes its input.
#[derive(Debug)]
pub(super) struct Streams {
    container: String,
    orders: mpsc::Sender<Order>,
    input: Arc<Mutex<Option<mpsc::Sender<Vec<u8>>>>>,
    is_once: bool,
    limit: Duration,
}

#[derive(Debug)]
enum Order {
    Attach(Viewer, oneshot::Sender<()>),
    Reopen(oneshot::Sender<Result<()>>),
    /// Its process has ended: what is left in the pipes is all.
    Finish,
}

/// How a container's streams are to be.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) container: String,
    pub(super) terminal: bool,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) log_path: Option<PathBuf>,
    /// For a file system to open a file.
    pub(super) limit: Duration,
    pub(super) log: Logger,
}

/// A pipe's ends: reading, writing.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    pipe_with(PipeFlags::CLOEXEC)
        .map_err(|cause| Error::caused(ErrorKind::Internal, "a pipe cannot be made", cause))
}

/// The reading end of an output, and what a process is given as that.
pub(super) async fn output(limit: Duration) -> Result<(Source, Output)> {
    let (read, write) = pipe()?;
    let opened = Opened::open(
        Stdio {
            stdin: Input::Descriptor(read),
            ..Stdio::default()
        },
        limit,
    );
    let source = opened.await?.stdin.ok_or_else(missing)?;
    Ok((source, Output::Descriptor(write)))
}

/// The writing end of an input, and what a process is given as that.
async fn input(limit: Duration) -> Result<(Sink, Input)> {
    let (read, write) = pipe()?;
    Ok((
        sink(Output::Descriptor(write), limit).await?,
        Input::Descriptor(read),
    ))
}

async fn sink(output: Output, limit: Duration) -> Result<Sink> {
    let opened = Opened::open(
        Stdio {
            stdout: output,
            ..Stdio::default()
        },
        limit,
    );
    opened.await?.stdout.ok_or_else(missing)
}

fn missing() -> Error {
    Error::new(ErrorKind::Internal, "a stream that was asked for is not opened")
}

impl Streams {
    /// Opens them, and what the container is given as its streams.
    ///
    /// # Errors
    /// The log cannot be opened.
    pub(super) async fn open(wish: Wish) -> Result<(Self, Stdio)> {
        let limit = wish.limit;
        let file = match &wish.log_path {
            Some(path) => Some(sink(Output::File(path.clone()), limit).await?),
            None => None,
        };
        let (stdout, to_stdout) = output(limit).await?;
        let (stderr, to_stderr) = match wish.terminal {
            true => (None, Output::Null),
            false => output(limit)
                .await
                .map(|(source, output)| (Some(source), output))?,
        };
        let mut typed = None;
        let from = match wish.stdin {
            true => {
                let (sink, from) = input(limit).await?;
                let (sender, queue) = mpsc::channel(TYPED);
                tokio::spawn(feed(sink, queue));
                typed = Some(sender);
                from
            }
            false => Input::Null,
        };
        let (orders, queue) = mpsc::channel(4);
        let scribe = Scribe {
            path: wish.log_path,
            file,
            is_failing: false,
            viewers: Vec::new(),
            limit,
            log: wish.log,
        };
        tokio::spawn(scribe.run([Some(stdout), stderr], queue));
        let streams = Self {
            container: wish.container,
            orders,
            input: Arc::new(Mutex::new(typed)),
            is_once: wish.stdin_once,
            limit,
        };
        let stdio = Stdio {
            terminal: wish.terminal,
            stdin: from,
            stdout: to_stdout,
            stderr: to_stderr,
            ..Stdio::default()
        };
        Ok((streams, stdio))
    }

    /// Has what these streams lead to see the output from now on, and type input, until it is dropped.
    pub(super) async fn attach(&self, streams: Stdio) -> Result<Attached> {
        let opened = Opened::open(streams, self.limit).await?;
        let (viewer, show) = Viewer::new(opened.stdout, opened.stderr);
        let (reply, heard) = oneshot::channel();
        self.heeded(async {
            self.order(Order::Attach(viewer, reply)).await?;
            heard.await.map_err(|_| self.ended())
        })
        .await?;
        let typing = opened.stdin.map(|source| self.typing(source));
        Ok(Attached {
            tasks: [Some(tokio::spawn(show)), typing],
        })
    }

    fn typing(&self, source: Source) -> JoinHandle<Result<()>> {
        let (input, is_once) = (Arc::clone(&self.input), self.is_once);
        tokio::spawn(async move {
            // There is none, or no more: nobody takes what is typed.
            while input_of(&input).is_some() {
                let data = match source.read(CHUNK).await {
                    Ok(data) if !data.is_empty() => data,
                    Ok(_) | Err(_) => break,
                };
                // Anew each time: who waits for his next word keeps the input open for nobody.
                let sender = input_of(&input).clone();
                let Some(sender) = sender else { break };
                if sender.send(data).await.is_err() {
                    break;
                }
            }
            if is_once {
                drop(input_of(&input).take());
            }
            Ok(())
        })
    }

    /// Opens the log anew, where it has been moved away.
    pub(super) async fn reopen(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.heeded(async {
            self.order(Order::Reopen(reply)).await?;
            answer.await.map_err(|_| self.ended())?
        })
        .await
    }

    /// An order is heeded between two writings to the log.
    async fn heeded(&self, order: impl Future<Output = Result<()>>) -> Result<()> {
        timeout(self.limit, order).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "container {}: its log's file system does not answer",
                    self.container
                ),
            ))
        })
    }

    /// Its process has ended, and its output is in the pipes. Waits a while for it to be in the log.
    pub(super) async fn finish(&self) {
        drop(input_of(&self.input).take());
        let finishing = async {
            // It has finished already.
            let _ = self.orders.send(Order::Finish).await;
            self.orders.closed().await;
        };
        let _ = timeout(deadlines::DELIVERY, finishing).await;
    }

    async fn order(&self, order: Order) -> Result<()> {
        self.orders.send(order).await.map_err(|_| self.ended())
    }

    fn ended(&self) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!("container {} has ended", self.container),
        )
    }
}

type TypedInto = Option<mpsc::Sender<Vec<u8>>>;

fn input_of(input: &Mutex<TypedInto>) -> std::sync::MutexGuard<'_, TypedInto> {
    // Nothing panics while it holds it.
    input.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what is typed into the container's pipe, and closes that at the end.
async fn feed(sink: Sink, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(data) = queue.recv().await {
        if sink.write_all(data).await.is_err() {
            return;
        }
    }
}

/// Somebody who is attached. Dropping it detaches him.
#[derive(Debug)]
pub(super) struct Attached {
    /// What shows him output, and what takes his input.
    tasks: [Option<JoinHandle<Result<()>>>; 2],
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.tasks.iter().flatten().for_each(JoinHandle::abort);
    }
}

impl Attached {
    /// Waits until the container has no more output, or nobody takes it any more.
    ///
    /// # Errors
    /// He did not read and was cut off.
    pub(super) async fn ended(mut self) -> Result<()> {
        match &mut self.tasks[0] {
            Some(showing) => showing.await.unwrap_or(Ok(())),
            None => Ok(()),
        }
    }
}

/// The scribe's end of one who is attached.
#[derive(Debug)]
struct Viewer {
    outputs: [Option<mpsc::Sender<Chunk>>; 2],
    /// Sent: he is cut off. Dropped: there is no more.
    cut: Option<oneshot::Sender<()>>,
}

impl Viewer {
    fn new(stdout: Option<Sink>, stderr: Option<Sink>) -> (Self, impl Future<Output = Result<()>> + Send) {
        let (cut, is_cut) = oneshot::channel();
        let channel = |sink: Option<Sink>| match sink {
            Some(sink) => {
                let (sender, receiver) = mpsc::channel(BEHIND);
                (Some(sender), Some((sink, receiver)))
            }
            None => (None, None),
        };
        let (to_out, out) = channel(stdout);
        let (to_err, err) = channel(stderr);
        let viewer = Self {
            outputs: [to_out, to_err],
            cut: Some(cut),
        };
        (viewer, show(out, err, is_cut))
    }

    /// Gives him a chunk; whether he is to have more.
    fn give(&mut self, stream: usize, chunk: &Chunk) -> bool {
        let Some(output) = self.outputs.get_mut(stream) else {
            return true;
        };
        match output.as_ref().map(|sender| sender.try_send(Arc::clone(chunk))) {
            None | Some(Ok(())) => {}
            Some(Err(mpsc::error::TrySendError::Closed(_))) => *output = None,
            Some(Err(mpsc::error::TrySendError::Full(_))) => {
                if let Some(cut) = self.cut.take() {
                    let _ = cut.send(());
                }
                return false;
            }
        }
        // He may be there to type.
        self.cut.as_ref().is_some_and(|cut| !cut.is_closed())
    }
}

type Shown = Option<(Sink, mpsc::Receiver<Chunk>)>;

async fn show(stdout: Shown, stderr: Shown, cut: oneshot::Receiver<()>) -> Result<()> {
    let has_output = stdout.is_some() || stderr.is_some();
    let writing = async { tokio::join!(write(stdout), write(stderr)) };
    tokio::pin!(writing);
    tokio::select! {
        _ = &mut writing, if has_output => Ok(()),
        cut = cut => match cut {
            Ok(()) => Err(Error::new(
                ErrorKind::Unavailable,
                "whoever was attached did not read the output, and was detached",
            )),
            Err(_) => {
                writing.await;
                Ok(())
            }
        }
    }
}

/// Until there is no more, or nobody takes it.
async fn write(shown: Shown) {
    let Some((sink, mut chunks)) = shown else { return };
    while let Some(chunk) = chunks.recv().await {
        if sink.write_all(chunk.to_vec()).await.is_err() {
            return;
        }
    }
    // He has all of it, or is gone.
    let _ = sink.close().await;
}

/// The task.
struct Scribe {
    path: Option<PathBuf>,
    file: Option<Sink>,
    /// The last writing failed, which was told.
    is_failing: bool,
    viewers: Vec<Viewer>,
    limit: Duration,
    log: Logger,
}

impl Scribe {
    async fn run(mut self, mut sources: [Option<Source>; 2], mut orders: mpsc::Receiver<Order>) {
        let mut lines = [Lines::new("stdout"), Lines::new("stderr")];
        let mut is_finished = false;
        while !(is_finished && sources.iter().all(Option::is_none)) {
            let [stdout, stderr] = &sources;
            let (stream, data) = tokio::select! {
                data = next(stdout), if stdout.is_some() => (0, data),
                data = next(stderr), if stderr.is_some() => (1, data),
                order = orders.recv(), if !is_finished => {
                    match order {
                        Some(Order::Attach(viewer, reply)) => {
                            // Who has left meanwhile is found out by the next output.
                            self.viewers.push(viewer);
                            let _ = reply.send(());
                        }
                        Some(Order::Reopen(reply)) => drop(reply.send(self.reopen().await)),
                        Some(Order::Finish) | None => is_finished = true,
                    }
                    continue;
                }
            };
            let (Some(line), Some(source)) = (lines.get_mut(stream), sources.get_mut(stream)) else {
                break;
            };
            let mut text = Vec::new();
            match &data {
                Some(data) => line.add(data, SystemTime::now(), &mut text),
                None => {
                    *source = None;
                    line.end(SystemTime::now(), &mut text);
                }
            }
            if let Some(data) = data {
                let chunk = Chunk::from(data);
                self.viewers.retain_mut(|viewer| viewer.give(stream, &chunk));
            }
            self.write(text).await;
        }
    }

    async fn write(&mut self, text: Vec<u8>) {
        let Some(file) = self.file.as_ref().filter(|_| !text.is_empty()) else {
            return;
        };
        match file.write_all(text).await {
            Ok(()) => self.is_failing = false,
            Err(error) if !self.is_failing => {
                self.is_failing = true;
                warn!(self.log, "output is not logged"; "path" => ?self.path, "error" => %error);
            }
            Err(_) => {}
        }
    }

    async fn reopen(&mut self) -> Result<()> {
        let Some(path) = &self.path else {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                "the container has no log: it was created without",
            ));
        };
        // The old one is used on if there is no new one.
        self.file = Some(sink(Output::File(path.clone()), self.limit).await?);
        Ok(())
    }
}

/// What a stream says next; `None`: nothing more.
async fn next(source: &Option<Source>) -> Option<Vec<u8>> {
    let data = source.as_ref()?.read(CHUNK).await.ok()?;
    Some(data).filter(|data| !data.is_empty())
}

/// What a stream says, until its end or `enough`: as much as is kept of it, and whether that is all.
pub(super) async fn collect(source: Source, mut enough: watch::Receiver<bool>) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let mut is_all = true;
    let source = Some(source);
    loop {
        let data = tokio::select! {
            biased;
            data = next(&source) => data,
            _ = enough.wait_for(|enough| *enough) => {
                is_all = false;
                None
            }
        };
        let Some(data) = data else { break };
        let room = MOST_COLLECTED.saturating_sub(all.len());
        is_all &= data.len() <= room;
        all.extend_from_slice(data.get(..room.min(data.len())).unwrap_or_default());
    }
    (all, is_all)
}

//! A console: a program of the host's that runs in the guest itself, and its streams over an administrator's connection.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use agent_client::Agent;
use agent_protocol as p;
use configuration::AgentConfig;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::ReadHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::frames::{self, Frame};
use crate::aside::aside;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::io::CHUNK;

/// Signals, as Linux numbers them.
const SIGHUP: u32 = 1;
const SIGKILL: u32 = 9;

/// What is to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Arguments; the first is the name that the program is called by. None: a shell.
    pub args: Vec<String>,
    /// Environment, as `NAME=value`.
    pub env: Vec<String>,
    /// It gets a terminal.
    pub terminal: bool,
    /// Rows and columns of the terminal.
    pub size: Option<(u16, u16)>,
}

/// A console that runs.
pub(super) struct Console {
    agent: Arc<dyn Agent>,
    id: String,
    terminal: bool,
}

/// Runs what a request orders, if the configuration allows it.
///
/// # Errors
/// [`ErrorKind::FailedPrecondition`] if it does not; the agent's.
pub(super) async fn open(agent: Arc<dyn Agent>, config: &AgentConfig, body: &[u8]) -> Result<Console> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    if !config.debug_console_enabled {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            "the debug console is not enabled for this sandbox: set debug_console_enabled = true in [agent.kata], and \
             create the sandbox again",
        ));
    }
    let mut order: Order = serde_json::from_slice(body)
        .map_err(|cause| Error::caused(ErrorKind::InvalidArgument, "the order is not understood", cause))?;
    if order.args.is_empty() {
        order.args = vec!["sh".to_owned()];
    }
    let path = config.debug_console_program.clone();
    let program = aside(config.request_timeout, move |site| {
        site.at(&path)?;
        read(&path)
    })
    .await?;
    let id = format!("console-{}", NEXT.fetch_add(1, Ordering::Relaxed));
    let size = order.size.map(|(rows, columns)| p::TerminalSize {
        rows: rows.into(),
        columns: columns.into(),
        ..Default::default()
    });
    let request = p::OpenConsoleRequest {
        exec_id: id.clone(),
        program,
        args: order.args,
        env: order.env,
        stdio: Some(p::Stdio {
            terminal: order.terminal,
            stdin: true,
            stdout: true,
            stderr: !order.terminal,
            size: size.into(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let console = Console {
        agent,
        id,
        terminal: order.terminal,
    };
    let limit = Some(config.request_timeout);
    if let Err(error) = console.agent.open_console(request, limit).await {
        if error.kind == agent_client::ErrorKind::DeadlineExceeded {
            // It may run all the same.
            let _ = console.end().await;
        }
        return Err(error.into());
    }
    Ok(console)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let unusable = |cause: Box<dyn std::error::Error + Send + Sync>| {
        let text = format!(
            "the console's program {} cannot be sent: install busybox-static, or set debug_console_program",
            path.display()
        );
        Error::caused(ErrorKind::FailedPrecondition, text, cause)
    };
    let file = fs::File::open(path).map_err(|cause| unusable(cause.into()))?;
    let most = u64::try_from(p::MAX_CONSOLE).unwrap_or(u64::MAX);
    let mut program = Vec::new();
    let length = file.take(most + 1).read_to_end(&mut program);
    match length {
        Err(cause) => Err(unusable(cause.into())),
        Ok(length) if length > p::MAX_CONSOLE => Err(unusable(
            format!("it has more than {} bytes", p::MAX_CONSOLE).into(),
        )),
        Ok(_) => Ok(program),
    }
}

impl Console {
    /// Its name in the guest.
    pub(super) fn name(&self) -> &str {
        &self.id
    }

    fn named(&self) -> p::ProcessRequest {
        p::ProcessRequest {
            exec_id: self.id.clone(),
            ..Default::default()
        }
    }

    /// Carries its streams until it has ended, or the other end hangs up.
    ///
    /// # Errors
    /// The agent's, or the other end's. It is ended all the same.
    pub(super) async fn carry(self, stream: &mut UnixStream) -> Result<()> {
        let (mut from, mut to) = stream.split();
        let (frames, mut queue) = mpsc::channel::<Frame>(1);
        let mut pulls = JoinSet::new();
        pulls.spawn(self.pull(p::Stream::STDOUT, Frame::Data, frames.clone()));
        if !self.terminal {
            pulls.spawn(self.pull(p::Stream::STDERR, Frame::Errors, frames.clone()));
        }
        let ended = async {
            let exit = self.agent.wait_process(self.named(), None).await?;
            let delivered = async { while pulls.join_next().await.is_some() {} };
            // What others of its session hold open is not waited for.
            let _ = timeout(deadlines::DELIVERY, delivered).await;
            pulls.abort_all();
            let _ = frames.send(Frame::Exit(exit.exit_status)).await;
            drop(frames);
            Ok(())
        };
        let written = async {
            while let Some(frame) = queue.recv().await {
                let is_last = matches!(frame, Frame::Exit(_));
                to.write_all(&frame.encode()).await.map_err(broken)?;
                if is_last {
                    break;
                }
            }
            Ok(())
        };
        let done = async { tokio::try_join!(ended, written).map(drop) };
        let result = tokio::select! {
            done = done => done,
            pushed = self.push(&mut from) => pushed,
        };
        result.and(self.end().await)
    }

    /// Takes what the program writes to one of its streams, until its end.
    fn pull(
        &self,
        stream: p::Stream,
        frame: fn(Vec<u8>) -> Frame,
        frames: mpsc::Sender<Frame>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (agent, exec_id) = (Arc::clone(&self.agent), self.id.clone());
        async move {
            loop {
                let request = p::ReadOutputRequest {
                    exec_id: exec_id.clone(),
                    stream: stream.into(),
                    max: u32::try_from(CHUNK).unwrap_or(u32::MAX),
                    ..Default::default()
                };
                match agent.read_output(request, None).await {
                    // A guest that sends more than it was asked for is not listened to.
                    Ok(answer) if !answer.data.is_empty() && answer.data.len() <= frames::MOST => {
                        if frames.send(frame(answer.data)).await.is_err() {
                            return;
                        }
                    }
                    Ok(_) | Err(_) => return,
                }
            }
        }
    }

    /// Gives the program what comes, until the other end hangs up.
    async fn push(&self, from: &mut ReadHalf<'_>) -> Result<()> {
        while let Some(frame) = receive(from).await? {
            match frame {
                Frame::Data(data) => {
                    for data in data.chunks(CHUNK) {
                        let request = p::WriteStdinRequest {
                            exec_id: self.id.clone(),
                            data: data.to_vec(),
                            ..Default::default()
                        };
                        tokio::select! {
                            // One that no longer reads may write yet.
                            written = self.agent.write_stdin(request, None) => drop(written?),
                            // Whoever has hung up does not wait for what it has sent to be read. Its readiness comes with this interest.
                            hung_up = from.ready(Interest::PRIORITY) => return hung_up.map(drop).map_err(broken),
                        }
                    }
                }
                Frame::Size(rows, columns) => {
                    let request = p::ResizeTerminalRequest {
                        exec_id: self.id.clone(),
                        size: Some(p::TerminalSize {
                            rows: rows.into(),
                            columns: columns.into(),
                            ..Default::default()
                        })
                        .into(),
                        ..Default::default()
                    };
                    // It is only less pretty without.
                    let _ = self.agent.resize_terminal(request, Some(deadlines::SIGNAL)).await;
                }
                Frame::End => {
                    let end = p::CloseStdinRequest {
                        exec_id: self.id.clone(),
                        ..Default::default()
                    };
                    self.agent.close_stdin(end, Some(deadlines::SIGNAL)).await?;
                }
                Frame::Errors(_) | Frame::Exit(_) => {
                    return Err(Error::new(
                        ErrorKind::InvalidArgument,
                        "a frame that only the sandbox may send",
                    ));
                }
            }
        }
        Ok(())
    }

    /// Ends the program, if it has not ended, and forgets it.
    ///
    /// # Errors
    /// The agent's.
    pub(super) async fn end(&self) -> Result<()> {
        for signal in [SIGHUP, SIGKILL] {
            let request = p::SignalProcessRequest {
                exec_id: self.id.clone(),
                signal,
                ..Default::default()
            };
            // Refused when it has ended.
            let sent = self.agent.signal_process(request, Some(deadlines::SIGNAL)).await;
            let waited = self
                .agent
                .wait_process(self.named(), Some(deadlines::CONSOLE_END))
                .await;
            if sent.is_err() || waited.is_ok() {
                break;
            }
        }
        let forgotten = self
            .agent
            .delete_process(self.named(), Some(deadlines::SIGNAL))
            .await;
        forgotten.map(drop).map_err(Error::from)
    }
}

/// The next frame; `None` when the other end has hung up.
pub(super) async fn receive(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>> {
    let mut head = [0; frames::HEAD];
    match from.read_exact(&mut head).await {
        Ok(_) => {}
        Err(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(cause) => return Err(broken(cause)),
    }
    let mut content = vec![0; Frame::length(head)?];
    from.read_exact(&mut content).await.map_err(broken)?;
    Frame::decode(head, content).map(Some)
}

pub(super) fn broken(cause: std::io::Error) -> Error {
    Error::caused(
        ErrorKind::Unavailable,
        "the console's connection is broken",
        cause,
    )
}

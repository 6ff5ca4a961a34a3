//! A handle to a container.

use std::os::fd::OwnedFd;
use std::time::Duration;

use futures::future::BoxFuture;
use oci_spec::runtime::LinuxResources;
use tokio::sync::watch;
use tokio::time::timeout;

use super::link::Told;
use super::options::ExecOptions;
use super::state::ContainerInfo;
use super::streams::{collect, output};
use super::wire::{Answer, Outcome, Request, Wanted, mistaken};
use super::{Runtime, Stats};
use crate::container::ExitStatus;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Input, Output, Stdio};

/// Handle to a container. It may be another process's; see the [module](super).
#[derive(Debug, Clone)]
pub struct Container {
    runtime: Runtime,
    pod: String,
    id: String,
}

/// Size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// What a process has said, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Its output, up to 16 MiB of it.
    pub stdout: Vec<u8>,
    /// Its errors, up to 16 MiB of them.
    pub stderr: Vec<u8>,
    /// There is no more than that.
    pub is_complete: bool,
    /// How it ended.
    pub outcome: Outcome,
}

impl Container {
    pub(super) fn new(runtime: Runtime, pod: String, id: String) -> Self {
        Self { runtime, pod, id }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Id of the pod that it is in: its own, where it has one to itself.
    pub fn pod(&self) -> &str {
        &self.pod
    }

    /// What is known of it, now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: it was removed.
    pub async fn status(&self) -> Result<ContainerInfo> {
        let unknown = || super::own::unknown(&self.id);
        match self.runtime.pod_info(&self.pod).await {
            Ok((mut info, _)) => info.containers.remove(&self.id).ok_or_else(unknown),
            Err(error) if error.kind == ErrorKind::NotFound => Err(unknown()),
            Err(error) => Err(error),
        }
    }

    /// Lets its process execute.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`]: the program is missing, or no program.
    pub async fn start(&self) -> Result<()> {
        self.ask(Request::Start { id: self.id.clone() }).await.map(drop)
    }

    /// Runs another process in it. Its streams are descriptors: a path is its caller's to open.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: the container does not run. [`ErrorKind::InvalidArgument`]: there is no such program.
    pub async fn exec(&self, options: ExecOptions, streams: Stdio) -> Result<Exec> {
        let (streams, fds) = passed(streams)?;
        let request = Request::Exec {
            id: self.id.clone(),
            options: Box::new(options),
            streams,
        };
        match self.runtime.ask(&self.pod, request, fds).await? {
            Answer::Named { id } => Ok(Exec {
                container: self.clone(),
                id,
            }),
            _ => Err(mistaken()),
        }
    }

    /// Runs another process to its end and collects what it says. When its time is over it is killed, which is an answer and not an
    /// error. What it has started itself goes on, as with any runtime.
    ///
    /// # Errors
    /// As [`Self::exec`].
    pub async fn exec_sync(&self, options: ExecOptions, allowed: Option<Duration>) -> Result<Collected> {
        let (stdout, to_stdout) = output(deadlines::STATE).await?;
        let (stderr, to_stderr) = output(deadlines::STATE).await?;
        let (enough, is_enough) = watch::channel(false);
        let collecting =
            futures::future::join(collect(stdout, is_enough.clone()), collect(stderr, is_enough));
        let (_, fds) = passed(Stdio {
            stdout: to_stdout,
            stderr: to_stderr,
            ..Stdio::default()
        })?;
        let request = Request::ExecSync {
            id: self.id.clone(),
            options: Box::new(options),
            timeout: allowed,
        };
        let asking = self.runtime.ask(&self.pod, request, fds);
        tokio::pin!(collecting, asking);
        // Both: what it says has to be taken for it to end.
        let (answer, mut collected) = tokio::select! {
            answer = &mut asking => (answer?, None),
            collected = &mut collecting => (asking.await?, Some(collected)),
        };
        if collected.is_none() {
            // Something else may hold its output open.
            collected = timeout(deadlines::COLLECTED, &mut collecting).await.ok();
        }
        let ((stdout, all_out), (stderr, all_err)) = match collected {
            Some(collected) => collected,
            None => {
                enough.send_replace(true);
                collecting.await
            }
        };
        match answer {
            Answer::Outcome { outcome } => Ok(Collected {
                stdout,
                stderr,
                is_complete: all_out && all_err,
                outcome,
            }),
            _ => Err(mistaken()),
        }
    }

    /// Attaches streams to its first process: output from now on, and input if it was created with some. Several may be attached.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it has ended.
    pub async fn attach(&self, streams: Stdio) -> Result<Attachment> {
        let (streams, fds) = passed(streams)?;
        let request = Request::Attach {
            id: self.id.clone(),
            streams,
        };
        match self.runtime.begin_asking(&self.pod, request, fds).await? {
            Told::Begun(end) => Ok(Attachment { end }),
            Told::Now(_) => Err(mistaken()),
        }
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// The container's.
    pub async fn resize(&self, size: Terminal) -> Result<()> {
        self.ask(Request::Resize {
            id: self.id.clone(),
            exec: None,
            rows: size.rows,
            columns: size.columns,
        })
        .await
        .map(drop)
    }

    /// Opens its log anew at its path, after somebody has moved it away.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it has none, or has ended.
    pub async fn reopen_log(&self) -> Result<()> {
        self.ask(Request::ReopenLog { id: self.id.clone() })
            .await
            .map(drop)
    }

    /// Sends a signal to its first process, or to all.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: it has ended.
    pub async fn kill(&self, signal: u32, all: bool) -> Result<()> {
        self.ask(Request::Signal {
            id: self.id.clone(),
            exec: None,
            signal,
            all,
        })
        .await
        .map(drop)
    }

    /// Sends it its stop signal, and SIGKILL when it has not ended in time: `allowed`, or the timeout that it was created with. With
    /// no time at all SIGKILL is the first. One that has ended is fine.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it is paused.
    pub async fn stop(&self, allowed: Option<Duration>) -> Result<ExitStatus> {
        // Said always: an owner that is stopped itself is not waited for any longer.
        let timeout = match allowed {
            Some(allowed) => allowed,
            None => self.status().await?.stop_timeout,
        };
        let id = self.id.clone();
        let request = Request::Stop { id, timeout };
        exit(self.ask(request).await?)
    }

    /// Waits for the end of its first process. Many may wait, also after the end. Then its output is in its log.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: it was removed. [`ErrorKind::Unavailable`]: its owner has died.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let request = Request::Wait {
            id: self.id.clone(),
            exec: None,
        };
        exit(self.ask(request).await?)
    }

    /// Freezes its processes.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it does not run.
    pub async fn pause(&self) -> Result<()> {
        self.ask(Request::Pause { id: self.id.clone() }).await.map(drop)
    }

    /// Thaws them.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it is not paused.
    pub async fn resume(&self) -> Result<()> {
        self.ask(Request::Resume { id: self.id.clone() }).await.map(drop)
    }

    /// Gives it other limits. The virtual machine grows with them, where it can.
    ///
    /// # Errors
    /// The container's.
    pub async fn update(&self, resources: &LinuxResources) -> Result<()> {
        let resources = Box::new(resources.clone());
        let id = self.id.clone();
        self.ask(Request::Update { id, resources }).await.map(drop)
    }

    /// Its figures, as the guest's kernel has them.
    ///
    /// # Errors
    /// The container's.
    pub async fn stats(&self) -> Result<Stats> {
        match self.ask(Request::Stats { id: self.id.clone() }).await? {
            Answer::Stats { figures } => Ok(figures),
            _ => Err(mistaken()),
        }
    }

    /// Pids of its processes, in the guest.
    ///
    /// # Errors
    /// The container's.
    pub async fn pids(&self) -> Result<Vec<u32>> {
        match self.ask(Request::Pids { id: self.id.clone() }).await? {
            Answer::Pids { pids } => Ok(pids),
            _ => Err(mistaken()),
        }
    }

    /// Removes it. The virtual machine that was made for it goes with it.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`]: it runs, and `force` is not to end it.
    pub async fn remove(&self, force: bool) -> Result<()> {
        let id = self.id.clone();
        self.ask(Request::Remove { id, force }).await.map(drop)
    }

    async fn ask(&self, request: Request) -> Result<Answer> {
        self.runtime.ask(&self.pod, request, Vec::new()).await
    }
}

/// Another process in a container.
#[derive(Debug, Clone)]
pub struct Exec {
    container: Container,
    id: String,
}

impl Exec {
    /// Its id, unique in its container.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Waits for its end. Codes of the last few hundred processes are kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: its container was removed.
    pub async fn wait(&self) -> Result<ExitStatus> {
        let request = Request::Wait {
            id: self.container.id.clone(),
            exec: Some(self.id.clone()),
        };
        exit(self.container.ask(request).await?)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: it has ended.
    pub async fn kill(&self, signal: u32) -> Result<()> {
        let request = Request::Signal {
            id: self.container.id.clone(),
            exec: Some(self.id.clone()),
            signal,
            all: false,
        };
        self.container.ask(request).await.map(drop)
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// The container's.
    pub async fn resize(&self, size: Terminal) -> Result<()> {
        let request = Request::Resize {
            id: self.container.id.clone(),
            exec: Some(self.id.clone()),
            rows: size.rows,
            columns: size.columns,
        };
        self.container.ask(request).await.map(drop)
    }
}

/// Streams that are attached to a container, until this is dropped.
pub struct Attachment {
    end: BoxFuture<'static, Result<Answer>>,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment").finish_non_exhaustive()
    }
}

impl Attachment {
    /// Waits until the container has no more output, or nobody takes it any more.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`]: what was said was not read, and it was detached.
    pub async fn ended(self) -> Result<()> {
        self.end.await.map(drop)
    }
}

fn exit(answer: Answer) -> Result<ExitStatus> {
    match answer {
        Answer::Exit { exit } => Ok(exit),
        _ => Err(mistaken()),
    }
}

/// The descriptors of streams, and which they are. What is named by a path is opened by its caller, who may be another one than the
/// owner.
fn passed(streams: Stdio) -> Result<(Wanted, Vec<OwnedFd>)> {
    if !streams.descriptors.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "descriptors beyond the standard streams are not given to a process of an engine's",
        ));
    }
    let mut fds = Vec::new();
    let mut wanted = Wanted::default();
    let named = || {
        Error::new(
            ErrorKind::Unsupported,
            "a stream is a descriptor here: open the path, and give that",
        )
    };
    match streams.stdin {
        Input::Null => {}
        Input::Descriptor(fd) => {
            wanted.stdin = true;
            fds.push(fd);
        }
        Input::Fifo(_) => return Err(named()),
    }
    for (output, is_wanted) in [
        (streams.stdout, &mut wanted.stdout),
        (streams.stderr, &mut wanted.stderr),
    ] {
        match output {
            Output::Null => {}
            Output::Descriptor(fd) => {
                *is_wanted = true;
                fds.push(fd);
            }
            Output::Fifo(_) | Output::File(_) => return Err(named()),
        }
    }
    Ok((wanted, fds))
}

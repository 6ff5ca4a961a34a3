//! A container and its processes. [`Container`] is a cheap handle to the task that owns it.

mod calls;
mod create;
mod delete;
mod kill;
mod process;
mod state;
mod task;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use agent_protocol::StatsResponse;
use oci_spec::runtime::{LinuxResources, Process};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

pub(crate) use create::{Appeal, Parts, Timeouts, create};
use delete::Extent;
use task::{Command, Reply, Task};

use crate::error::{Error, ErrorKind, Result};
use crate::io::Stdio;
use crate::plan;
use crate::sandbox::RootfsMount;
use crate::{ContainerId, ExecId};

/// What is needed to create a container.
#[derive(Debug)]
pub struct ContainerRequest {
    /// Its id.
    pub id: ContainerId,
    /// OCI bundle (`config.json`).
    pub bundle: PathBuf,
    /// Mounts that make the root file system; empty when `root.path` of the specification is mounted already.
    pub rootfs: Vec<RootfsMount>,
    /// Standard streams of the init process.
    pub stdio: Stdio,
}

/// What is needed to add a process.
#[derive(Debug)]
pub struct ExecRequest {
    /// Its id, unique in the container.
    pub id: ExecId,
    /// OCI process.
    pub process: Process,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Exit code, 128 + signal, or 255 when it is unknown.
    pub code: u32,
    /// When.
    pub at: SystemTime,
    /// Of init: it has failed, and the guest's kernel has killed a process of the container for memory.
    pub oom: bool,
}

/// Status of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Created, not started.
    Created,
    /// Running.
    Running,
    /// Frozen.
    Paused,
    /// Ended.
    Stopped,
}

/// Status of a process, and how it ended if it did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessState {
    /// Status.
    pub status: Status,
    /// Present once stopped.
    pub exit: Option<ExitStatus>,
    /// The process has a terminal.
    pub terminal: bool,
}

/// Figures of the container's cgroup in the guest.
pub type Stats = StatsResponse;

/// Handle to a container. `None` as process names its init.
#[derive(Debug, Clone)]
pub struct Container {
    id: ContainerId,
    bundle: Arc<Path>,
    commands: mpsc::Sender<Command>,
}

impl Container {
    /// Its id.
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Its bundle.
    pub fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Starts the init process. An exec error (program missing, not executable) is `InvalidArgument` with its text.
    pub async fn start(&self) -> Result<()> {
        self.ask(Task::start).await
    }

    /// Registers a process; [`Self::start_exec`] starts it.
    pub async fn exec(&self, request: ExecRequest) -> Result<()> {
        self.ask(|task, reply| task.add(request, reply)).await
    }

    /// Starts a registered process.
    pub async fn start_exec(&self, id: &ExecId) -> Result<()> {
        let id = id.clone();
        self.ask(|task, reply| task.start_exec(id, reply)).await
    }

    /// Sends a signal to one process, or to all of the container. `NotFound` when it has ended already.
    pub async fn kill(&self, process: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        let process = process.cloned();
        self.ask(move |task, reply| task.kill(process, signal, all, reply))
            .await
    }

    /// Waits for the end of a process; many may wait, also after the end.
    pub async fn wait(&self, process: Option<&ExecId>) -> Result<ExitStatus> {
        let name = process.cloned();
        let mut exit = self
            .ask(|task, reply| drop(reply.send(task.subscribe(name))))
            .await?;
        match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => Ok(exit),
            Ok(None) | Err(_) => Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "container {}: the process was deleted before it was started",
                    self.id
                ),
            )),
        }
    }

    /// Status now. Answers at once, whatever else is going on.
    pub async fn state(&self, process: Option<&ExecId>) -> Result<ProcessState> {
        let process = process.cloned();
        self.ask(|task, reply| drop(reply.send(task.state(process))))
            .await
    }

    /// Freezes all processes.
    pub async fn pause(&self) -> Result<()> {
        self.ask(Task::pause).await
    }

    /// Thaws them.
    pub async fn resume(&self) -> Result<()> {
        self.ask(Task::resume).await
    }

    /// Applies new limits. Where the virtual machine grows with its containers, it has what they allow first; if it does not
    /// come to that, they are applied all the same, and the error says so.
    pub async fn update(&self, resources: &LinuxResources) -> Result<()> {
        let limits = serde_json::to_vec(&plan::update(resources)).map_err(|cause| {
            Error::caused(ErrorKind::InvalidArgument, "the resources are not JSON", cause)
        })?;
        let change = Box::new(resources.clone());
        self.ask(|task, reply| task.update(limits, change, reply)).await
    }

    /// Reads the cgroup's figures.
    pub async fn stats(&self) -> Result<Stats> {
        self.ask(Task::stats).await
    }

    /// Pids of the container's processes, in the guest.
    pub async fn pids(&self) -> Result<Vec<u32>> {
        self.ask(Task::pids).await
    }

    /// Sets a terminal's size; remembered when the process is not started yet.
    pub async fn resize(&self, process: Option<&ExecId>, rows: u16, columns: u16) -> Result<()> {
        let process = process.cloned();
        self.ask(move |task, reply| task.resize(process, (rows, columns), reply))
            .await
    }

    /// Ends a process's standard input after what was written so far.
    pub async fn close_stdin(&self, process: Option<&ExecId>) -> Result<()> {
        let process = process.cloned();
        self.ask(|task, reply| drop(reply.send(task.close_stdin(process))))
            .await
    }

    /// Forgets an ended exec process; its output has been delivered (or its reader is gone) when this returns.
    pub async fn delete_exec(&self, id: &ExecId) -> Result<ExitStatus> {
        let id = id.clone();
        self.ask(|task, reply| task.delete_exec(id, reply)).await
    }

    /// Removes a container that is stopped or was never started (then it is killed): guest side, root file system, share.
    pub async fn delete(&self) -> Result<ExitStatus> {
        self.ask(|task, reply| task.delete(Extent::Container, reply))
            .await
    }

    /// The same for a container whose sandbox is going to be stopped next: its output is delivered, what it wrote to disks is
    /// on them, and what else there is of it goes with the sandbox.
    pub async fn delete_with_sandbox(&self) -> Result<ExitStatus> {
        self.ask(|task, reply| task.delete(Extent::Sandbox, reply)).await
    }

    /// Has the owner carry out a request. It is carried out even if nobody waits for the answer any more.
    async fn ask<T>(&self, request: impl FnOnce(&mut Task, Reply<T>) + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
    {
        let gone = || {
            Error::new(
                ErrorKind::NotFound,
                format!("container {} does not exist", self.id),
            )
        };
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |task| request(task, reply));
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

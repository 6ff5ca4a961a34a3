//! A container and its processes. [`Container`] is a cheap handle to the task that owns it.

use std::path::PathBuf;
use std::time::SystemTime;

use agent_protocol::StatsResponse;
use oci_spec::runtime::{LinuxResources, Process};

use crate::error::{Error, ErrorKind, Result};
use crate::io::Stdio;
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit code, 128 + signal, or 255 when it is unknown.
    pub code: u32,
    /// When.
    pub at: SystemTime,
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
pub struct Container {}

fn unsupported<T>() -> Result<T> {
    Err(Error::new(ErrorKind::Unsupported, "containers are not built yet"))
}

impl Container {
    /// Starts the init process. An exec error (program missing, not executable) is `InvalidArgument` with its text.
    pub async fn start(&self) -> Result<()> {
        unsupported()
    }

    /// Registers a process; [`Self::start_exec`] starts it.
    pub async fn exec(&self, _request: ExecRequest) -> Result<()> {
        unsupported()
    }

    /// Starts a registered process.
    pub async fn start_exec(&self, _id: &ExecId) -> Result<()> {
        unsupported()
    }

    /// Sends a signal to one process, or to all of the container. `NotFound` when it has ended already.
    pub async fn kill(&self, _process: Option<&ExecId>, _signal: u32, _all: bool) -> Result<()> {
        unsupported()
    }

    /// Waits for the end of a process; many may wait, also after the end.
    pub async fn wait(&self, _process: Option<&ExecId>) -> Result<ExitStatus> {
        unsupported()
    }

    /// Status now. Answers at once, whatever else is going on.
    pub async fn state(&self, _process: Option<&ExecId>) -> Result<ProcessState> {
        unsupported()
    }

    /// Freezes all processes.
    pub async fn pause(&self) -> Result<()> {
        unsupported()
    }

    /// Thaws them.
    pub async fn resume(&self) -> Result<()> {
        unsupported()
    }

    /// Applies new limits.
    pub async fn update(&self, _resources: &LinuxResources) -> Result<()> {
        unsupported()
    }

    /// Reads the cgroup's figures.
    pub async fn stats(&self) -> Result<Stats> {
        unsupported()
    }

    /// Pids of the container's processes, in the guest.
    pub async fn pids(&self) -> Result<Vec<u32>> {
        unsupported()
    }

    /// Sets a terminal's size; remembered when the process is not started yet.
    pub async fn resize(&self, _process: Option<&ExecId>, _rows: u16, _columns: u16) -> Result<()> {
        unsupported()
    }

    /// Ends a process's standard input after what was written so far.
    pub async fn close_stdin(&self, _process: Option<&ExecId>) -> Result<()> {
        unsupported()
    }

    /// Forgets an ended exec process; its output has been delivered (or its reader is gone) when this returns.
    pub async fn delete_exec(&self, _id: &ExecId) -> Result<ExitStatus> {
        unsupported()
    }

    /// Removes a container that is stopped or was never started (then it is killed): guest side, root file system, share.
    pub async fn delete(&self) -> Result<ExitStatus> {
        unsupported()
    }
}

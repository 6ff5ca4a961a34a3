//! A process of ours: started in its own group with only the intended descriptors, watched by its pidfd, killed and
//! reaped by identity rather than by number. It must not know which program it runs.

mod adopted;
mod record;
mod spawner;
mod sys;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};

use rustix::pipe::PipeFlags;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use crate::{Error, ErrorKind, pages};

pub use crate::rest::Litter;
pub use adopted::Ward;
pub use record::{reap, start_time};
pub use sys::{close_on_exec_from, take_inherited};
pub(crate) use sys::{landlock_abi, watch};

/// What to start.
#[derive(Debug)]
pub struct Program {
    /// The file to execute; not searched for in `PATH`.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Descriptors that it inherits, at the numbers that they have here.
    pub fds: Vec<Arc<OwnedFd>>,
    /// Network namespace that it is started in; `None`: ours.
    pub network_namespace: Option<Arc<OwnedFd>>,
    /// `cgroup.procs` of the cgroups that it is started in, opened for writing: one of each hierarchy. Of the others, ours.
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// What it tells security modules of itself right before it executes.
    pub labels: Vec<Label>,
    /// Files that it makes. They go when it is gone, and not before: one that is being killed may still make them.
    pub litter: Litter,
}

/// What a process tells a security module of the host: as what it wants to execute its program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// A file of the calling thread's, like `/proc/thread-self/attr/exec`.
    pub file: PathBuf,
    /// What is written.
    pub value: String,
}

/// A process of ours. Dropping it kills it; to reap it is the supervisor's part ([`Process::ended`]).
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
    litter: Mutex<Litter>,
    kin: Kin,
    /// It is another process's, who is told of its end; ours is only to reap it.
    given_away: OnceLock<OwnedFd>,
}

/// What a process is to us.
#[derive(Debug)]
enum Kin {
    Child,
    /// Somebody else's child, who reaps it and says here how it has ended.
    Adopted(adopted::News),
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// By itself, with this code.
    Exited(i32),
    /// By this signal.
    Killed(i32),
    /// Its parent alone knew, and is gone.
    Unknown,
}

/// Starts `program` in a new process group, with an empty environment, `/` as its directory, `/dev/null` as stdin, and
/// stdout and stderr in the pipe that is returned. The child is killed when this process dies.
pub async fn start(program: Program) -> Result<(Process, pipe::Receiver), Error> {
    begin(program, None).await
}

/// Starts `program` likewise, but for another process: it is killed when nobody has what is returned last (nor a copy of it) any
/// more, and does not notice the end of this process.
pub async fn start_for_another(program: Program) -> Result<(Process, pipe::Receiver, OwnedFd), Error> {
    let ends = rustix::pipe::pipe_with(PipeFlags::CLOEXEC);
    let (its, ours) = ends.map_err(|source| {
        let source = io::Error::from(source);
        Error::caused(
            ErrorKind::Internal,
            format!("cannot make a pipe: {source}"),
            source,
        )
    })?;
    let (process, output) = begin(program, Some(Arc::new(its))).await?;
    Ok((process, output, ours))
}

async fn begin(program: Program, lifeline: Option<Arc<OwnedFd>>) -> Result<(Process, pipe::Receiver), Error> {
    let failed = |source: io::Error| {
        if source.raw_os_error() == Some(sys::LABEL_REFUSED) {
            let values: Vec<_> = program.labels.iter().map(|label| label.value.as_str()).collect();
            return Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "cannot start {} with the security label {values:?}: the host's kernel refuses it (is it known to the host's \
                     policy, or its profile loaded?)",
                    program.path.display()
                ),
            );
        }
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            _ => ErrorKind::Internal,
        };
        // To join them is a part of the start that has errors of its own, and nothing else tells them apart.
        let place = match (program.cgroups.is_empty(), kind) {
            (true, _) | (_, ErrorKind::NotFound) => "",
            _ => " in its cgroups",
        };
        Error::caused(
            kind,
            format!("cannot start {}{place}: {source}", program.path.display()),
            source,
        )
    };
    let (output, child_end) = io::pipe().map_err(failed)?;
    let mut command = Command::new(&program.path);
    command
        .args(&program.args)
        .env_clear()
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(child_end.try_clone().map_err(failed)?)
        .stderr(child_end);
    sys::prepare(
        &mut command,
        sys::Inheritance {
            fds: program.fds.clone(),
            network_namespace: program.network_namespace.clone(),
            cgroups: program.cgroups.clone(),
            labels: sys::labels(&program.labels).map_err(failed)?,
            lifeline,
        },
    );
    let output = pipe::Receiver::from_owned_fd(output.into()).map_err(failed)?;
    let child = spawner::spawn(command, program.litter).await.map_err(failed)?;
    let mut process = Process::of_child(child.id()).map_err(failed)?;
    // What we are spared in want of memory (containerd's shims are) is not for a guest to hide behind. Raising one's own
    // child's score is always allowed; a child that has ended has none.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
    process.litter = Mutex::new(child.hand_over());
    Ok((process, output))
}

/// Copies memory, in a process that is in these cgroups: pages count where they are touched first. Without any, in this one.
pub fn copy_memory(from: &OwnedFd, to: &OwnedFd, cgroups: Vec<Arc<OwnedFd>>) -> io::Result<()> {
    if cgroups.is_empty() {
        return pages::copy(from, to);
    }
    sys::copy_memory(from.try_clone()?, to.try_clone()?, cgroups)
}

impl Process {
    /// `id` is a child of ours that nobody has waited for.
    fn of_child(id: u32) -> io::Result<Self> {
        let pid = i32::try_from(id)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ESRCH))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self {
            pid,
            start_time: start_time(pid)?,
            pidfd: sys::watch(pidfd)?,
            litter: Mutex::default(),
            kin: Kin::Child,
            given_away: OnceLock::new(),
        })
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Field 22 of `/proc/<pid>/stat`.
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Kills it; a process that has ended already is fine.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    fn signal(&self, signal: Signal) {
        if self.given_away.get().is_some() {
            return;
        }
        // It can only fail because the process has ended.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Waits until it has ended, and reaps it.
    pub async fn ended(&self) -> io::Result<Status> {
        loop {
            let mut guard = self.pidfd.readable().await?;
            if let Kin::Adopted(news) = &self.kin {
                return Ok(news.status().await);
            }
            let id = WaitId::PidFd(self.pidfd.get_ref().as_fd());
            if let Some(status) = waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG)? {
                // Poisoned by nobody, and then it goes with the process.
                if let Ok(mut litter) = self.litter.lock() {
                    litter.clear();
                }
                let status = match status.terminating_signal() {
                    Some(signal) => Status::Killed(signal),
                    None => Status::Exited(status.exit_status().unwrap_or(0)),
                };
                if let Some(owner) = self.given_away.get() {
                    adopted::tell(owner, status);
                }
                return Ok(status);
            }
            guard.clear_ready();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

//! Containers: created, started, entered, controlled and deleted, with the kernel's own means.
//!
//! A container is its cgroup and its first process, a clone of the agent that sets itself up (`setup`) as a `plan`
//! says and executes the program when it is told to. The agent never waits without a deadline, and never reaps: the exit
//! of each process that a [`Started`] names is collected by the agent's own loop.
//!
//! This module must not know of the agent protocol, of streams beyond the descriptors that it passes on, or of storage.
//!
//! The agent must be single-threaded: see `sys::clone_process`.

mod capabilities;
mod cgroup;
mod channel;
mod deadlines;
mod error;
mod mount_options;
mod namespaces;
mod plan;
mod seccomp;
mod setup;
mod spawn;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxResources, Process, Spec};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::pidfd_send_signal;
use tokio::io::Interest;

use crate::patience::patient;
use cgroup::Cgroup;
use channel::{AgentEnd, Message};
use error::Step;
pub use error::{Error, Result};
use plan::{Plan, ProcessPlan};
use seccomp::Filter;
use setup::Child;
use spawn::spawn_init;

/// Does ahead of any container what most of them need and what takes long. Nothing of it changes what containers are. `cgroups`: the
/// tree that containers will have theirs in, where the kernel is the agent's own.
pub fn prepare(cgroups: Option<&Path>) {
    cgroup::prepare(cgroups);
}

/// What a container is created from.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// The container's id, which names its cgroup when the specification does not.
    pub id: &'a str,
    /// The OCI specification; paths in it are the guest's.
    pub spec: &'a Spec,
    /// Streams of the first process.
    pub stdio: ProcessStdio,
    /// Where the container lives.
    pub environment: &'a Environment,
}

/// What the agent offers its containers.
#[derive(Debug, Clone)]
pub struct Environment {
    /// Mount point of the cgroup v2 tree, or a directory in it that the agent may use.
    pub cgroup_root: PathBuf,
    /// A directory of the agent's for what lives as long as a container. Not used yet: nothing has to be kept.
    pub state_dir: PathBuf,
    /// Namespaces that the pod's containers share.
    pub pod: PodNamespaces,
}

/// Paths of namespaces that stand in where a specification asks for a new one. `None`: really a new one.
///
/// Of processes it is otherwise: a pod has one namespace for all, and those that its containers have to themselves are below
/// it. So who shares the pod's processes sees every container's, and nobody sees the guest's.
#[derive(Debug, Clone, Default)]
pub struct PodNamespaces {
    /// IPC namespace.
    pub ipc: Option<PathBuf>,
    /// UTS namespace.
    pub uts: Option<PathBuf>,
    /// Network namespace.
    pub network: Option<PathBuf>,
    /// PID namespace: joined by a container that asks for none, parent of one that is new. `None`: the agent's own.
    pub pid: Option<PathBuf>,
}

/// The process's ends of its streams; one that is `None` is /dev/null.
#[derive(Debug, Default)]
pub struct ProcessStdio {
    /// Standard input.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
    /// All three are a new terminal of the container's instead.
    pub terminal: bool,
    /// The terminal's first size: columns, rows.
    pub size: Option<(u16, u16)>,
    /// Its descriptors 3 and following.
    pub descriptors: Vec<OwnedFd>,
}

impl ProcessStdio {
    /// The first number that no descriptor of the program has.
    fn beyond(&self) -> i32 {
        setup::FIRST_DESCRIPTOR + i32::try_from(self.descriptors.len()).unwrap_or(i32::MAX / 2)
    }
}

/// A process that was made.
#[derive(Debug)]
pub struct Started {
    /// In the agent's pid namespace; a direct child of the agent.
    pub pid: Pid,
    /// Master of the terminal, if one was asked for.
    pub console: Option<OwnedFd>,
}

/// A container. Dropping it leaves it alive; [`Container::delete`] ends it.
#[derive(Debug)]
pub struct Container {
    id: String,
    cgroup: Cgroup,
    init: ChildProcess,
    /// Until the start.
    waiting: Option<AgentEnd>,
    /// How long the start may take.
    start_limit: Duration,
    /// Namespaces in which it differs from the agent.
    namespaces: CloneFlags,
    filter: Option<Filter>,
    processes: Option<File>,
    /// Its mounts, which live until it is deleted. They are file systems of their own where the host has mounts below a share, and
    /// would end within the last process's exit otherwise, while the kernel still reads ahead for that process: Linux 6.1 finds
    /// inodes in use then, and stops at a BUG.
    mounts: File,
}

/// Creates a container; its first process is ready to execute the program, and waits for [`Container::start`].
///
/// A future that is dropped before it is done kills the process, but leaves the cgroup.
///
/// # Errors
/// Whatever is wrong with the specification, before anything was made; or what failed, with everything undone.
pub async fn create(request: CreateRequest<'_>) -> Result<(Container, Started)> {
    let plan = Plan::new(request.id, request.spec, request.environment)?;
    let linux = request.spec.linux().as_ref();
    let filter = linux
        .and_then(|linux| linux.seccomp().as_ref())
        .map(Filter::compile)
        .transpose()?;
    let cgroup = Cgroup::create(&request.environment.cgroup_root, &plan.cgroup)?;
    let resources = linux.and_then(|linux| linux.resources().as_ref());
    match spawn_init(&request, &plan, filter.as_ref(), &cgroup, resources).await {
        Ok(spawned) => {
            let container = Container {
                id: request.id.to_owned(),
                cgroup,
                init: spawned.init,
                waiting: Some(spawned.waiting),
                start_limit: plan.hooks.iter().map(|hook| hook.timeout).sum::<Duration>()
                    + deadlines::EXECUTE,
                namespaces: plan.namespaces.all(),
                filter,
                processes: spawned.processes,
                mounts: spawned.mounts,
            };
            Ok((container, spawned.started))
        }
        Err(error) => {
            // The first error is the one to report.
            let _ = cgroup.delete().await;
            Err(error)
        }
    }
}

/// Something that may hang, done in a process of its own, which has none of the agent's descriptors.
#[derive(Debug)]
pub struct Apart(OwnedFd);

/// Does it.
///
/// # Errors
/// When no process can be made.
pub fn apart(work: impl FnOnce()) -> Result<Apart> {
    apart_keeping(&[], work)
}

/// The same for a process that has some of our descriptors as well.
fn apart_keeping(kept: &[BorrowedFd<'_>], work: impl FnOnce()) -> Result<Apart> {
    let child = || {
        // What it holds of others' streams would keep them open. If it can't be closed, it is not held for long either.
        let _ = sys::close_all_but(kept);
        work();
        sys::exit(0)
    };
    let cloned = sys::clone_process(0, None, child).step(|| "make a process for what may hang")?;
    Ok(Apart(cloned.pidfd))
}

/// Lets a container's mounts go, in a process of its own that has them last. What a share's files were closed is told to the host without
/// waiting for its answer, and not before what was being read of them has come. A file system that ends meanwhile has an inode in
/// use, at which Linux 6.1 stops at a BUG, and with it the guest if that is in the agent. Answers come in the order of the questions: after
/// the second one nothing is under way.
async fn end_mounts(mounts: File) -> Result<()> {
    let ending = apart_keeping(&[mounts.as_fd()], || {
        if setns(&mounts, CloneFlags::CLONE_NEWNS).is_ok() {
            for _ in 0..2 {
                let _ = statx(CWD, "/", AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS);
            }
        }
    })?;
    drop(mounts);
    ending.done("the end of a container's mounts").await
}

impl Apart {
    /// Waits until it is done.
    ///
    /// # Errors
    /// [`Error::Late`]; it may be done yet.
    pub async fn done(self, what: &'static str) -> Result<()> {
        self.done_within(what, deadlines::SETUP).await
    }

    /// The same, for what may take another time.
    ///
    /// # Errors
    /// [`Error::Late`]; it may be done yet.
    pub async fn done_within(self, what: &'static str, limit: Duration) -> Result<()> {
        let limit = patient(limit);
        let ended = sys::watch(self.0.as_fd(), Interest::READABLE).step(|| format!("watch {what}"))?;
        let ready = tokio::time::timeout(limit, ended.readable()).await;
        ready
            .map_err(|_| Error::Late { what, limit })?
            .step(|| format!("watch {what}"))
            .map(drop)
    }
}

/// Something that may hang, done in a process of its own that tells what came of it.
#[derive(Debug)]
pub struct Told(OwnedFd);

/// Does it. The process has none of the agent's descriptors but `keep`. `after`: what follows when it is done; false: nobody waits for
/// it any more.
///
/// # Errors
/// When no process can be made.
pub fn apart_with(
    keep: BorrowedFd<'_>,
    work: impl FnOnce() -> io::Result<()>,
    after: impl FnOnce(bool),
) -> Result<Told> {
    let (hear, tell) =
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).step(|| "make a pipe for what may hang")?;
    let child = || {
        // See `apart_keeping`.
        let _ = sys::close_all_but(&[keep, tell.as_fd()]);
        let errno = match work() {
            Ok(()) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        let was_told = rustix::io::write(&tell, &errno.to_le_bytes()).is_ok();
        if errno == 0 {
            after(was_told);
        }
        sys::exit(0)
    };
    sys::clone_process(0, None, child).step(|| "make a process for what may hang")?;
    Ok(Told(hear))
}

impl Told {
    /// Waits until it is done; the answer is what came of it.
    ///
    /// # Errors
    /// [`Error::Late`]: when it is done yet, it is undone. [`Error::Vanished`].
    pub async fn result_within(self, what: &'static str, limit: Duration) -> Result<io::Result<()>> {
        let limit = patient(limit);
        let watched = sys::watch(self.0.as_fd(), Interest::READABLE).step(|| format!("watch {what}"))?;
        // At its end there is one more look.
        if let Ok(ready) = tokio::time::timeout(limit, watched.readable()).await {
            let _ = ready.step(|| format!("watch {what}"))?;
        }
        let mut errno = [0; 4];
        match rustix::io::read(&self.0, &mut errno) {
            Ok(4) => Ok(match i32::from_le_bytes(errno) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }),
            Err(rustix::io::Errno::AGAIN) => Err(Error::Late { what, limit }),
            Ok(_) => Err(Error::Vanished),
            Err(errno) => Err(errno).step(|| format!("read what came of {what}")),
        }
    }
}

/// Waits for the child's being ready.
async fn ready(channel: &AgentEnd) -> Result<Option<OwnedFd>> {
    match channel
        .receive("the set-up of the container's process", deadlines::SETUP)
        .await?
    {
        Some((Message::Ready, console)) => Ok(console),
        Some((Message::Failed(failure), _)) => Err(failure.into()),
        Some(_) | None => Err(Error::Vanished),
    }
}

/// Waits for the program's execution, which closes the child's end.
async fn executed(channel: &AgentEnd, limit: Duration) -> Result<()> {
    match channel.receive("the execution of the program", limit).await? {
        None => Ok(()),
        Some((Message::Failed(failure), _)) => Err(failure.into()),
        Some(_) => Err(Error::Vanished),
    }
}

fn flags(flags: CloneFlags) -> u64 {
    // The bits are those of clone3; nix has them as a signed integer.
    u64::from(flags.bits().cast_unsigned())
}

impl Container {
    /// Executes the program. The order is given at once; the future is only the wait for it.
    ///
    /// # Errors
    /// [`Error::Program`] when the kernel refuses it; the process is gone then.
    pub fn start(&mut self) -> impl Future<Output = Result<()>> + Send + use<> {
        let ordered = self.order_start();
        let limit = self.start_limit;
        async move { executed(&ordered?, limit).await }
    }

    fn order_start(&mut self) -> Result<AgentEnd> {
        let channel = self
            .waiting
            .take()
            .ok_or(Error::State("the container was started already"))?;
        channel.send(&Message::Start)?;
        Ok(channel)
    }

    /// Starts another process in the container. The process is there at once; the future is only the wait for its program
    /// to run, and kills it when it is dropped before.
    ///
    /// The process may have ended, and been reaped, when the wait is over.
    ///
    /// # Errors
    /// [`Error::State`] for a container that is stopped or paused.
    pub fn exec(
        &self,
        process: &Process,
        stdio: ProcessStdio,
    ) -> impl Future<Output = Result<Started>> + Send + use<> {
        let cloned = self.clone_exec(process, stdio);
        async move {
            let (process, agent_end) = cloned?;
            let console = ready(&agent_end).await?;
            executed(&agent_end, deadlines::EXECUTE).await?;
            let pid = Pid::from_raw(process.pid);
            process.keep();
            Ok(Started { pid, console })
        }
    }

    fn clone_exec(&self, process: &Process, stdio: ProcessStdio) -> Result<(ChildProcess, AgentEnd)> {
        let plan = ProcessPlan::new(process)?;
        if self.has_ended()? {
            return Err(Error::State("the container is stopped"));
        }
        if self.cgroup.is_frozen() {
            return Err(Error::State("the container is paused"));
        }
        let (agent_end, child_end) = channel::pair()?;
        let child_end = child_end.not_below(stdio.beyond())?;
        // An exec starts as soon as it is ready.
        agent_end.send(&Message::Start)?;
        let child = Child {
            id: &self.id,
            process: &plan,
            filter: self.filter.as_ref(),
            stdio: &stdio,
            channel: &child_end,
        };
        // A pid namespace takes effect for children only, so it is the agent that visits it.
        let pid = self.namespaces & CloneFlags::CLONE_NEWPID;
        let visit: &[(_, _)] = if pid.is_empty() {
            &[]
        } else {
            &[(self.init.pidfd.as_fd(), pid)]
        };
        let clone = |cgroup: BorrowedFd<'_>| {
            namespaces::within(visit, || {
                sys::clone_process(0, Some(cgroup), || {
                    setup::exec(&child, self.init.pidfd.as_fd(), self.namespaces & !pid)
                })
            })
        };
        let cloned = match clone(self.cgroup.as_fd())? {
            // A container that manages cgroups itself has moved its processes to nested ones: then a process can only be
            // where they are.
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                clone(self.cgroup.of_process(self.init.pid)?.as_fd())?
            }
            cloned => cloned,
        }
        .step(|| "clone a process for the container")?;
        let process = ChildProcess::new(cloned);
        process.set_oom_score(&plan)?;
        Ok((process, agent_end))
    }

    /// The cgroup's directory, for statistics and events.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The pid namespace that was made for it, the first time that this is asked. It has a name as long as this is open.
    pub fn take_processes(&mut self) -> Option<File> {
        self.processes.take()
    }

    /// Whether limits were accepted without effect, because the agent's tree has no cgroup v2 controllers. Only on a host
    /// with cgroup v1, never in a guest.
    pub fn is_unlimited(&self) -> bool {
        self.cgroup.is_uncontrolled()
    }

    /// Sends a signal to every process of the container.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        self.cgroup.signal(signal)
    }

    /// Stops every process. The order is given at once; the future is only the wait for it.
    pub fn pause(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        self.cgroup.freeze(true)
    }

    /// Lets the processes run again, as [`Container::pause`] stops them.
    pub fn resume(&self) -> impl Future<Output = Result<()>> + Send + use<> {
        self.cgroup.freeze(false)
    }

    /// Changes limits; those that are not named stay, and so do the devices.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        self.cgroup.limit(resources)
    }

    /// Pids of all processes, in the agent's pid namespace.
    pub fn pids(&self) -> Vec<u32> {
        self.cgroup.pids()
    }

    /// Kills what is left of the container and removes its cgroup.
    pub async fn delete(self) -> Result<()> {
        drop(self.waiting);
        let deleted = self.cgroup.delete().await;
        // A host that does not answer keeps nothing from being deleted.
        let _ = end_mounts(self.mounts).await;
        deleted
    }

    /// A pidfd becomes readable when its process ends.
    fn has_ended(&self) -> Result<bool> {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let ready = rustix::io::retry_on_intr(|| {
            poll(&mut [PollFd::new(&self.init.pidfd, PollFlags::IN)], Some(&now))
        });
        Ok(ready.step(|| "look at the container's first process")? > 0)
    }
}

/// A child of the agent. The agent's loop reaps it however it ends.
#[derive(Debug)]
struct ChildProcess {
    pid: i32,
    pidfd: OwnedFd,
    /// Until it got as far as it should, it is killed when this is dropped.
    kept: bool,
}

impl ChildProcess {
    fn new(cloned: sys::Cloned) -> Self {
        Self {
            pid: cloned.pid,
            pidfd: cloned.pidfd,
            kept: false,
        }
    }

    /// Here and not in the child, which may have no right to in its user namespace.
    fn set_oom_score(&self, process: &ProcessPlan) -> Result<()> {
        let Some(score) = process.oom_score_adj else {
            return Ok(());
        };
        std::fs::write(format!("/proc/{}/oom_score_adj", self.pid), score.to_string())
            .step(|| format!("set the OOM score adjustment {score}"))
    }

    /// One of its namespaces, like `pid`.
    fn namespace(&self, name: &str) -> Result<File> {
        let path = format!("/proc/{}/ns/{name}", self.pid);
        File::open(&path).step(|| format!("open {path}"))
    }

    /// From now on it lives without this value.
    fn keep(mut self) -> Self {
        self.kept = true;
        self
    }
}

impl Drop for ChildProcess {
    fn drop(&mut self) {
        if !self.kept {
            // It may be gone already.
            let _ = pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        }
    }
}

//! The first process of a container, as the agent makes it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sched::CloneFlags;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

use super::cgroup::Cgroup;
use super::channel::{self, AgentEnd, Message};
use super::error::{Error, Result, Step};
use super::namespaces::{self, Joins};
use super::plan::Plan;
use super::seccomp::Filter;
use super::setup::{self, Child, Init};
use super::{ChildProcess, CreateRequest, Started, deadlines, flags, ready, sys};

/// What was made for a container before it is one.
pub(super) struct Spawned {
    pub(super) init: ChildProcess,
    pub(super) waiting: AgentEnd,
    pub(super) processes: Option<File>,
    pub(super) mounts: File,
    pub(super) started: Started,
}

/// Makes a container's first process, up to its being ready to execute the program.
pub(super) async fn spawn_init(
    request: &CreateRequest<'_>,
    plan: &Plan,
    filter: Option<&Filter>,
    cgroup: &Cgroup,
    resources: Option<&LinuxResources>,
) -> Result<Spawned> {
    if let Some(resources) = resources {
        cgroup.limit(resources)?;
        cgroup.limit_devices(resources.devices().as_deref())?;
    }
    let joins = namespaces::Joins::open(&plan.namespaces)?;
    let (agent_end, child_end) = channel::pair()?;
    let child_end = child_end.not_below(request.stdio.beyond())?;
    let child = Child {
        id: request.id,
        process: &plan.process,
        filter,
        stdio: &request.stdio,
        channel: &child_end,
    };
    let init = Init {
        plan,
        join: &joins.child,
        cgroup: cgroup.path(),
    };
    // The cgroup namespace is made by the child, once it is in its cgroup.
    let new = plan.namespaces.new & !CloneFlags::CLONE_NEWCGROUP;
    let process = match plan.namespaces.pid_parent {
        None => {
            let clone =
                || sys::clone_process(flags(new), Some(cgroup.as_fd()), || setup::init(&child, &init));
            made(namespaces::within(&joins.agent, clone)?, plan)?
        }
        Some(_) => {
            let clone =
                || sys::clone_sibling(flags(new), Some(cgroup.as_fd()), || setup::init(&child, &init));
            below(plan, &joins, clone).await?
        }
    };
    let process = ChildProcess::new(process);
    drop(child_end);
    process.set_oom_score(&plan.process)?;
    // Others can be below it. Here, where nobody can have reaped the process yet.
    let processes = match plan.namespaces.pid_parent {
        None if new.contains(CloneFlags::CLONE_NEWPID) => Some(process.namespace("pid")?),
        None | Some(_) => None,
    };
    if new.contains(CloneFlags::CLONE_NEWUSER) {
        namespaces::write_mappings(process.pid, &plan.namespaces)?;
        agent_end.send(&Message::Mapped)?;
    }
    let console = ready(&agent_end).await?;
    let mounts = process.namespace("mnt")?;
    let started = Started {
        pid: Pid::from_raw(process.pid),
        console,
    };
    Ok(Spawned {
        init: process.keep(),
        waiting: agent_end,
        processes,
        mounts,
        started,
    })
}

/// Makes it in a new pid namespace below one that is not the agent's own. The kernel makes it only for who is there, so that a
/// process goes there first.
async fn below(
    plan: &Plan,
    joins: &Joins,
    clone: impl FnOnce() -> io::Result<sys::Cloned>,
) -> Result<sys::Cloned> {
    let (agent_end, other_end) = channel::pair()?;
    let go_between = || sys::clone_process(0, None, || setup::go_between(&other_end, clone));
    // It is the reaper's from now on, and ends by itself.
    drop(made(namespaces::within(&joins.agent, go_between)?, plan)?);
    drop(other_end);
    match agent_end
        .receive("the making of the container's process", deadlines::SETUP)
        .await?
    {
        Some((Message::Cloned, Some(pidfd))) => Ok(sys::Cloned {
            pid: pid(&pidfd)?,
            pidfd,
        }),
        Some((Message::Failed(failure), _)) => Err(failure.into()),
        Some(_) | None => Err(Error::Vanished),
    }
}

/// What the kernel says of a clone.
fn made(cloned: io::Result<sys::Cloned>, plan: &Plan) -> Result<sys::Cloned> {
    let pid = CloneFlags::CLONE_NEWPID;
    let joins =
        plan.namespaces.pid_parent.is_some() || plan.namespaces.join.iter().any(|(kind, _)| *kind == pid);
    match cloned {
        // So it says that the first process of a pid namespace has ended.
        Err(error) if joins && error.kind() == io::ErrorKind::OutOfMemory => Err(Error::State(
            "the pod's first container has ended, and the processes of all others with it; run the pod again",
        )),
        cloned => cloned.step(|| setup::CLONE),
    }
}

/// The pid of a child, in the agent's pid namespace.
fn pid(pidfd: &OwnedFd) -> Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = fs::read_to_string(&path).step(|| format!("read {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
        // -1 when it has ended, and was reaped.
        .filter(|pid| *pid > 0)
        .ok_or(Error::Vanished)
}

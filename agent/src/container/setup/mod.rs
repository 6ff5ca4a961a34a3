//! What a container's process does between its clone and the execution of its program. All of this runs in the child.
//!
//! The child is a copy of the single-threaded agent: ordinary Rust works, but nothing of the agent's may be used, and
//! whatever happens it ends by executing a program or by telling the agent why not.

mod copy_up;
mod devices;
mod hooks;
mod mounts;
mod program;
mod resolve;
mod rootfs;
mod terminal;
mod user;

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;

use super::ProcessStdio;
use super::channel::{ChildEnd, Failure, Message};
use super::error::{Error, Result, Step};
use super::plan::{Plan, ProcessPlan, Sysctl};
use super::seccomp::Filter;
use super::sys;
use crate::sysctl;

/// The first descriptor that is no standard stream.
pub(super) const FIRST_DESCRIPTOR: RawFd = 3;

/// What it is called that makes a container's process.
pub(super) const CLONE: &str = "clone the container's process";

/// What init and exec have in common.
pub(super) struct Child<'a> {
    pub(super) id: &'a str,
    pub(super) process: &'a ProcessPlan,
    pub(super) filter: Option<&'a Filter>,
    pub(super) stdio: &'a ProcessStdio,
    pub(super) channel: &'a ChildEnd,
}

/// What only a container's first process has.
pub(super) struct Init<'a> {
    pub(super) plan: &'a Plan,
    /// Namespaces to join here, in this order.
    pub(super) join: &'a [(OwnedFd, CloneFlags)],
    /// The container's cgroup directory.
    pub(super) cgroup: &'a Path,
}

/// The first process of a container.
pub(super) fn init(child: &Child<'_>, init: &Init<'_>) -> Infallible {
    report(child.channel, run_init(child, init))
}

/// Makes a container's process below the pid namespace that it is in itself, as the agent's child, and hands that to the
/// agent: only who is in a pid namespace can make another one in it.
pub(super) fn go_between(
    channel: &ChildEnd,
    clone: impl FnOnce() -> std::io::Result<sys::Cloned>,
) -> Infallible {
    // As in `isolate`: the pod's processes can see this one.
    let made = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .step(|| "protect the memory")
        .and_then(|()| clone().step(|| CLONE));
    match made {
        Ok(cloned) => {
            // Without an agent that listens, the container's process ends by itself.
            let _ = channel.send(&Message::Cloned, Some(cloned.pidfd.as_fd()));
            sys::exit(0)
        }
        Err(error) => report(channel, Err(error)),
    }
}

/// Another process of a container; `namespaces` are those of the container's init, behind its pidfd.
pub(super) fn exec(child: &Child<'_>, init: BorrowedFd<'_>, namespaces: CloneFlags) -> Infallible {
    report(child.channel, run_exec(child, init, namespaces))
}

fn report(channel: &ChildEnd, result: Result<Infallible>) -> Infallible {
    let Err(error) = result;
    // Nothing is left to do if even this fails: the agent sees the end.
    let _ = channel.send(&Message::Failed(Failure::from(&error)), None);
    sys::exit_failed()
}

fn run_init(child: &Child<'_>, init: &Init<'_>) -> Result<Infallible> {
    let null = devices::null()?;
    let mut keep: Vec<RawFd> = init.join.iter().map(|(fd, _)| fd.as_raw_fd()).collect();
    keep.push(null.as_raw_fd());
    isolate(child, keep, null.as_fd())?;
    for (namespace, kind) in init.join {
        setns(namespace, *kind).step(|| format!("join a namespace ({kind:?})"))?;
    }
    let new = init.plan.namespaces.new;
    if new.contains(CloneFlags::CLONE_NEWUSER) {
        await_mappings(child.channel)?;
    }
    // Here, since the one of the clone would have the agent's cgroup as its root.
    let own_cgroups = new.contains(CloneFlags::CLONE_NEWCGROUP);
    if own_cgroups {
        unshare(CloneFlags::CLONE_NEWCGROUP).step(|| "make a cgroup namespace")?;
    }
    if let Some(name) = &init.plan.hostname {
        nix::unistd::sethostname(name).step(|| "set the hostname")?;
    }
    if let Some(name) = &init.plan.domainname {
        rustix::system::setdomainname(name.as_bytes()).step(|| "set the domain name")?;
    }
    rustix::process::umask(Mode::empty());
    // Through the agent's /proc: the container's could be anything.
    for Sysctl { path, value, key } in &init.plan.sysctl {
        std::fs::write(Path::new("/proc/sys").join(path), value)
            .map_err(|cause| Error::spec("linux.sysctl", sysctl::refusal(key, value, &cause)))?;
    }
    let root = rootfs::build(init.plan, init.cgroup, own_cgroups, null.as_fd())?;
    let terminal = match child.stdio.terminal {
        true => Some(terminal::open(root.as_fd(), child.process.uid, child.stdio.size)?),
        false => None,
    };
    if let Some(terminal) = &terminal {
        terminal::bind_console(root.as_fd(), terminal)?;
    }
    rootfs::enter(init.plan, root)?;
    drop(null);
    finish(child, terminal, &init.plan.hooks)
}

fn run_exec(child: &Child<'_>, init: BorrowedFd<'_>, namespaces: CloneFlags) -> Result<Infallible> {
    let null = devices::null()?;
    isolate(child, vec![init.as_raw_fd(), null.as_raw_fd()], null.as_fd())?;
    setns(init, namespaces).step(|| "join the container's namespaces")?;
    if namespaces.contains(CloneFlags::CLONE_NEWUSER) {
        user::become_root()?;
    }
    // Not inherited: the container's program must not find a process that it could enter through this.
    sys::close_range(init.as_raw_fd() as u32, init.as_raw_fd() as u32).step(|| "close init's handle")?;
    drop(null);
    let terminal = match child.stdio.terminal {
        true => {
            let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .step(|| "open the root")?;
            Some(terminal::open(root.as_fd(), child.process.uid, child.stdio.size)?)
        }
        false => None,
    };
    finish(child, terminal, &[])
}

/// Cuts the ties to the agent: signals, descriptors, session, keyring.
fn isolate(child: &Child<'_>, mut keep: Vec<RawFd>, null: BorrowedFd<'_>) -> Result<()> {
    sys::reset_signals().step(|| "reset the signals")?;
    // The child's memory is a copy of the agent's: no process of the container may look at it.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step(|| "protect the memory")?;
    let stdio = child.stdio;
    for (target, stream) in [&stdio.stdin, &stdio.stdout, &stdio.stderr]
        .into_iter()
        .enumerate()
    {
        let stream = stream.as_ref().map_or(null, |stream| stream.as_fd());
        sys::inherit_as(stream, target as RawFd).step(|| "set the standard streams")?;
    }
    keep.push(child.channel.as_fd().as_raw_fd());
    keep.extend(stdio.descriptors.iter().map(AsRawFd::as_raw_fd));
    for (first, last) in gaps(keep) {
        sys::close_range(first, last).step(|| "close the agent's descriptors")?;
    }
    rustix::process::setsid().step(|| "make a session")?;
    let keyring =
        CString::new(format!("_ses.{}", child.id)).map_err(|_| Error::spec("id", "contains a NUL byte"))?;
    match sys::new_session_keyring(&keyring) {
        // A kernel without keyrings has none to protect.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        result => result.step(|| "make a session keyring"),
    }
}

/// Ranges of descriptors above the standard ones that leave out those to keep.
fn gaps(mut keep: Vec<RawFd>) -> Vec<(u32, u32)> {
    keep.sort_unstable();
    let mut next = 3u32;
    let mut gaps = Vec::new();
    for fd in keep.into_iter().filter_map(|fd| u32::try_from(fd).ok()) {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = next.max(fd + 1);
    }
    gaps.push((next, u32::MAX));
    gaps
}

fn await_mappings(channel: &ChildEnd) -> Result<()> {
    match channel.receive().step(|| "wait for the id mappings")? {
        Message::Mapped => user::become_root(),
        _ => Err(Errno::PROTO).step(|| "wait for the id mappings"),
    }
}

/// From a process in its place to its program.
fn finish(
    child: &Child<'_>,
    terminal: Option<terminal::Terminal>,
    hooks: &[super::plan::Hook],
) -> Result<Infallible> {
    let process = child.process;
    // Out of the way of the program's descriptors.
    let terminal = terminal
        .map(|terminal| terminal.not_below(child.stdio.beyond()))
        .transpose()?;
    match &terminal {
        Some(terminal) => {
            for target in 0..3 {
                sys::inherit_as(terminal.slave.as_fd(), target).step(|| "set the standard streams")?;
            }
            rustix::process::ioctl_tiocsctty(&terminal.slave).step(|| "take the controlling terminal")?;
        }
        None => user::own_streams(child.stdio, process.uid)?,
    }
    let descriptors = place(child.stdio, process.uid)?;
    for &(resource, limit) in &process.rlimits {
        rustix::process::setrlimit(resource, limit).step(|| format!("set the limit {resource:?}"))?;
    }
    let capabilities = process.capabilities.limit_bounding()?;
    user::enter(process)?;
    let mut env = process.env.clone();
    if process.variable("HOME").is_none_or(<[u8]>::is_empty) {
        env.retain(|entry| !entry.as_bytes().starts_with(b"HOME="));
        env.push(user::home(process.uid));
    }
    let path = program::find(&process.args[0], process.variable("PATH"))?;
    rustix::process::umask(Mode::from_raw_mode(process.umask));
    // A guest's containers end with its agent, since that is PID 1. This keeps it true of an agent that is an ordinary
    // process; after the change of user, which would undo it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .step(|| "bind the process's life to the agent's")?;

    let master = terminal.as_ref().map(|terminal| terminal.master.as_fd());
    child
        .channel
        .send(&Message::Ready, master)
        .step(|| "tell the agent of being ready")?;
    drop(terminal);
    match child.channel.receive().step(|| "wait for the order to start")? {
        Message::Start => {}
        _ => return Err(Errno::PROTO).step(|| "wait for the order to start"),
    }
    hooks::run(hooks, child.id)?;
    for number in descriptors {
        sys::inherit(number).step(|| "set the program's descriptors")?;
    }

    // Loading a filter takes no_new_privs or CAP_SYS_ADMIN; with the former, the filter is the last thing before the
    // program, so that it need not allow more than the program does.
    if process.no_new_privileges {
        capabilities.apply()?;
        rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs")?;
        load(child.filter)?;
    } else {
        if child.filter.is_some() {
            user::use_all_capabilities()?;
            load(child.filter)?;
        }
        capabilities.apply()?;
    }
    let Err(errno) = nix::unistd::execve(&path, &process.args, &env);
    Err(program::refused(&path, Errno::from_raw_os_error(errno as i32)))
}

/// Gives the program's descriptors their numbers. They are closed on an execution until they are to be inherited: hooks are not the
/// program.
fn place(stdio: &ProcessStdio, uid: u32) -> Result<std::ops::Range<RawFd>> {
    let numbers = FIRST_DESCRIPTOR..stdio.beyond();
    let step = || "set the program's descriptors";
    // First out of the way of each other.
    let aside = stdio
        .descriptors
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, numbers.end))
        .collect::<Result<Vec<OwnedFd>, Errno>>()
        .step(step)?;
    for (fd, number) in aside.iter().zip(numbers.clone()) {
        user::own(fd.as_fd(), uid)?;
        sys::put_at(fd.as_fd(), number).step(step)?;
    }
    Ok(numbers)
}

fn load(filter: Option<&Filter>) -> Result<()> {
    filter.map_or(Ok(()), Filter::load)
}

#[cfg(test)]
mod tests {
    use super::gaps;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn everything_is_closed_but_what_is_kept(keep in proptest::collection::vec(0..40, 0..8)) {
            let gaps = gaps(keep.clone());
            for fd in 3..64 {
                let closed = gaps.iter().any(|&(first, last)| (first..=last).contains(&fd));
                prop_assert_eq!(closed, !keep.contains(&(fd as i32)), "{}", fd);
            }
            prop_assert_eq!(gaps.last().map(|gap| gap.1), Some(u32::MAX));
        }
    }
}

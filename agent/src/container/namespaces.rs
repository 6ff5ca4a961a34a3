//! Namespaces: which the child joins itself, which the agent has to visit for it, and id mappings.
//!
//! A process enters a pid namespace by being cloned into it, and what a new user namespace owns is decided at the clone
//! as well. Instead of an intermediate process, the agent goes there itself for the duration of the clone: `setns` on a
//! pid namespace changes only where children go, the others are given back at once, and the agent has no other thread
//! that could notice.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

use super::error::{Result, Step};
use super::plan::Namespaces;

/// The namespaces to join, opened.
#[derive(Debug)]
pub(super) struct Joins {
    /// By the agent, around the clone.
    pub(super) agent: Vec<(OwnedFd, CloneFlags)>,
    /// By the child.
    pub(super) child: Vec<(OwnedFd, CloneFlags)>,
}

impl Joins {
    /// Opens the namespaces of a plan.
    pub(super) fn open(namespaces: &Namespaces) -> Result<Self> {
        // In a new user namespace, the child would have no right to join anything.
        let all = namespaces.new.contains(CloneFlags::CLONE_NEWUSER);
        let mut joins = Self {
            agent: Vec::new(),
            child: Vec::new(),
        };
        let parent = namespaces
            .pid_parent
            .iter()
            .map(|path| (CloneFlags::CLONE_NEWPID, path));
        let joined = namespaces.join.iter().map(|(kind, path)| (*kind, path));
        for (kind, path) in joined.chain(parent) {
            let file = File::open(path).step(|| format!("linux.namespaces: open {}", path.display()))?;
            match all || kind == CloneFlags::CLONE_NEWPID {
                true => joins.agent.push((file.into(), kind)),
                false => joins.child.push((file.into(), kind)),
            }
        }
        Ok(joins)
    }
}

impl Namespaces {
    /// All in which the container differs from the agent.
    pub(super) fn all(&self) -> CloneFlags {
        self.join.iter().fold(self.new, |all, (kind, _)| all | *kind)
    }
}

/// Does something with the agent in other namespaces, and brings it back.
///
/// # Errors
/// When a namespace can't be entered, before the visit. That the agent can't come back would be a fault of the kernel.
pub(super) fn within<F: AsFd, T>(namespaces: &[(F, CloneFlags)], visit: impl FnOnce() -> T) -> Result<T> {
    let mut way_back = Vec::with_capacity(namespaces.len());
    let mut entered = Ok(());
    for (namespace, kind) in namespaces {
        let step = || format!("visit a namespace ({kind:?})");
        entered = File::open(own(*kind)).step(step).and_then(|own| {
            setns(namespace, *kind).step(step)?;
            way_back.push((own, *kind));
            Ok(())
        });
        if entered.is_err() {
            break;
        }
    }
    let result = entered.map(|()| visit());
    for (own, kind) in way_back.into_iter().rev() {
        setns(own, kind).step(|| "bring the agent back to its namespace")?;
    }
    result
}

fn own(kind: CloneFlags) -> &'static str {
    match kind {
        CloneFlags::CLONE_NEWPID => "/proc/thread-self/ns/pid",
        CloneFlags::CLONE_NEWNET => "/proc/thread-self/ns/net",
        CloneFlags::CLONE_NEWIPC => "/proc/thread-self/ns/ipc",
        CloneFlags::CLONE_NEWUTS => "/proc/thread-self/ns/uts",
        CloneFlags::CLONE_NEWCGROUP => "/proc/thread-self/ns/cgroup",
        _ => "/proc/thread-self/ns/user",
    }
}

/// Writes the mappings of the child's new user namespace.
pub(super) fn write_mappings(pid: i32, namespaces: &Namespaces) -> Result<()> {
    for (file, content) in [("uid_map", &namespaces.uid_map), ("gid_map", &namespaces.gid_map)] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, content).step(|| format!("write {path}"))?;
    }
    Ok(())
}

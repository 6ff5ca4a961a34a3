//! Removes the cgroups of a sandbox, from their record alone: ends what still runs in them, and nothing else.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, getpid, pidfd_open, pidfd_send_signal};
use tokio::time::timeout_at;

use super::super::sys;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::store::CgroupRecord;

/// How often a cgroup may be busy though no process is in it that we could wait for: one ends between two looks.
const LOOKS: usize = 8;

/// What a look at a sandbox's cgroups has left.
struct Left {
    /// The cgroup that is still there.
    path: PathBuf,
    /// What runs in it, and was killed.
    processes: Vec<OwnedFd>,
}

/// Removes them, and waits for that. What is gone already is success. Goes on after an error and answers with the first.
///
/// # Errors
/// Something in a cgroup does not end.
pub(crate) async fn remove(record: &CgroupRecord) -> Result<()> {
    let until = tokio::time::Instant::now() + deadlines::CGROUP_EMPTY;
    let mut result = Ok(());
    for own in &record.own {
        result = result.and(remove_own(own, until).await);
    }
    remove_parents(record);
    result
}

async fn remove_own(own: &Path, until: tokio::time::Instant) -> Result<()> {
    let mut looks = 0;
    while let Some(left) = look(own)? {
        looks = looked(looks, &left)?;
        if tokio::time::Instant::now() >= until {
            return Err(late(own));
        }
        for process in left.processes {
            let process = sys::watch(process).map_err(|cause| failed(own, cause))?;
            match timeout_at(until, process.readable()).await {
                Ok(readable) => drop(readable.map_err(|cause| failed(own, cause))?),
                Err(_) => return Err(late(own)),
            }
        }
    }
    Ok(())
}

/// The same where nothing can be awaited: it blocks, but not for long.
///
/// # Errors
/// As [`remove`].
pub(crate) fn remove_now(record: &CgroupRecord) -> Result<()> {
    let until = Instant::now() + deadlines::CGROUP_EMPTY_NOW;
    let mut result = Ok(());
    for own in &record.own {
        result = result.and(remove_own_now(own, until));
    }
    remove_parents(record);
    result
}

fn remove_own_now(own: &Path, until: Instant) -> Result<()> {
    let mut looks = 0;
    while let Some(left) = look(own)? {
        looks = looked(looks, &left)?;
        for process in left.processes {
            let mut fds = [PollFd::new(&process, PollFlags::IN)];
            let rest = until.saturating_duration_since(Instant::now());
            let rest = Timespec::try_from(rest).ok();
            match poll(&mut fds, rest.as_ref()) {
                Ok(0) => return Err(late(own)),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(failed(own, errno.into())),
            }
        }
    }
    Ok(())
}

/// Counts looks that have found nothing to wait for.
fn looked(looks: usize, left: &Left) -> Result<usize> {
    match (left.processes.is_empty(), looks) {
        (false, _) => Ok(0),
        (true, LOOKS..) => Err(Error::new(
            ErrorKind::Internal,
            format!(
                "the sandbox's cgroup {} cannot be removed: others have made cgroups in it, or put processes there that we \
                 do not see",
                left.path.display()
            ),
        )),
        (true, looks) => Ok(looks + 1),
    }
}

/// Removes a cgroup if nothing runs in it, and kills what does.
fn look(own: &Path) -> Result<Option<Left>> {
    match fs::remove_dir(own) {
        Ok(()) => return Ok(None),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(cause) if cause.kind() == io::ErrorKind::ResourceBusy => {}
        Err(cause) => return Err(failed(own, cause)),
    }
    Ok(Some(Left {
        path: own.to_owned(),
        processes: kill(members(own)?, || members(own))?,
    }))
}

/// Kills what runs in the cgroups of a sandbox, but for its virtual machine, of which others see to the end. Does not wait, and
/// what fails here fails in [`remove`] as well.
pub(crate) fn end_others(record: &CgroupRecord, vm: Option<u32>) {
    let vm = vm.and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    for own in &record.own {
        let others = members(own).unwrap_or_default();
        let others: Vec<_> = others.into_iter().filter(|&pid| Some(pid) != vm).collect();
        // The others of them are the same processes under other controllers.
        if !others.is_empty() && kill(others, || members(own)).is_ok() {
            return;
        }
    }
}

/// Kills those of these processes that `listed` names as well.
fn kill(pids: Vec<Pid>, listed: impl FnOnce() -> Result<Vec<Pid>>) -> Result<Vec<OwnedFd>> {
    let opened: Vec<(Pid, OwnedFd)> = pids
        .into_iter()
        .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
        .collect();
    // Once a pidfd is open its number is not given away. So a number that is still listed is that of a process in here,
    // whoever had it before.
    let after = listed()?;
    let mut processes = Vec::new();
    for (pid, pidfd) in opened {
        if after.contains(&pid) {
            // It can only fail because the process has ended.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            processes.push(pidfd);
        }
    }
    Ok(processes)
}

/// Processes in a cgroup but for this one. Those of other pid namespaces have no number.
fn members(own: &Path) -> Result<Vec<Pid>> {
    let text = match fs::read_to_string(own.join("cgroup.procs")) {
        Ok(text) => text,
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => String::new(),
        Err(cause) => return Err(failed(own, cause)),
    };
    let pids = text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?));
    Ok(pids.filter(|&pid| pid != getpid()).collect())
}

/// Removes what only we had above. Where others are by now, it is theirs.
fn remove_parents(record: &CgroupRecord) {
    for parent in record.parents.iter().rev() {
        let _ = fs::remove_dir(parent);
    }
}

fn failed(own: &Path, cause: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("cannot remove the sandbox's cgroup {}", own.display()),
        cause,
    )
}

fn late(own: &Path) -> Error {
    Error::new(
        ErrorKind::DeadlineExceeded,
        format!(
            "the sandbox's cgroup {} cannot be removed: a process in it did not end in time after SIGKILL",
            own.display()
        ),
    )
}

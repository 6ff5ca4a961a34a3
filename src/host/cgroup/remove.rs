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
    let before = members(own)?;
    let opened: Vec<(Pid, OwnedFd)> = before
        .into_iter()
        .filter_map(|pid| Some((pid, pidfd_open(pid, PidfdFlags::empty()).ok()?)))
        .collect();
    // Once a pidfd is open its number is not given away. So a number that is still listed is that of a process in here,
    // whoever had it before.
    let after = members(own)?;
    let mut processes = Vec::new();
    for (pid, pidfd) in opened {
        if after.contains(&pid) {
            // It can only fail because the process has ended.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            processes.push(pidfd);
        }
    }
    Ok(Some(Left {
        path: own.to_owned(),
        processes,
    }))
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

//! Killing a process from what a record says of it, without its owner.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::time::timeout;

use super::sys;
use crate::{Error, ErrorKind, VmRecord, deadlines};

/// Kills the process of `record` and waits until it is gone. A pid that is free, or was given to another process
/// since, is success: nothing of the VM is left.
pub async fn reap(record: &VmRecord) -> Result<(), Error> {
    let failed = |what: &str, source: io::Error| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot {what} process {}: {source}", record.pid),
            source,
        )
    };
    let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw) else {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{} is not a pid", record.pid),
        ));
    };
    let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(source) => return Err(failed("open", source.into())),
    };
    // In this order: once the pidfd is open, the process whose start time is read is the one that will be killed.
    match start_time(pid) {
        Ok(time) if time == record.start_time => {}
        Ok(_) => return Ok(()),
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("identify", source)),
    }
    match pidfd_send_signal(&pidfd, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(source) => return Err(failed("kill", source.into())),
    }
    let pidfd = sys::watch(pidfd).map_err(|source| failed("watch", source))?;
    match timeout(deadlines::REAP, pidfd.readable()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(source)) => Err(failed("watch", source)),
        Err(_) => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "process {} did not end within {:?} of SIGKILL",
                record.pid,
                deadlines::REAP
            ),
        )),
    }
}

/// When `pid` was started, in clock ticks since boot.
pub fn start_time(pid: Pid) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{}/stat", pid.as_raw_nonzero()))?;
    parse_start_time(&stat).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)). The second field, the program's name in parentheses, may contain anything;
/// so fields are counted from the last `)`.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        for name in ["sh", "a b", "x) S 1 (y", "))"] {
            let stat = format!("77 ({name}) {fields}\n");
            assert_eq!(parse_start_time(stat.as_bytes()), Some(4242), "{name}");
        }
        for broken in [
            "",
            "77 (sh",
            "77 (sh) S 1 2",
            "77 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x",
        ] {
            assert_eq!(parse_start_time(broken.as_bytes()), None, "{broken}");
        }
    }

    #[tokio::test]
    async fn a_pid_that_was_reused_is_left_alone() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let mut record = VmRecord {
            driver: "test".into(),
            pid: child.id(),
            start_time: start_time(pid).unwrap() + 1,
            run_dir: "/nonexistent".into(),
        };
        reap(&record).await.unwrap();
        assert!(child.try_wait().unwrap().is_none(), "another process was killed");

        record.start_time -= 1;
        reap(&record).await.unwrap();
        assert!(
            child.try_wait().unwrap().is_some(),
            "the process of the record lives"
        );
        reap(&record).await.expect("nothing left is success");
    }
}

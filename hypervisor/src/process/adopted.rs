//! A process that changes hands: what its new owner gets, and how he learns of its end, which only its parent is told by the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::{Kin, Process, Status, record, sys};
use crate::deadlines;

/// Bytes in which an end is told: what it was, and its number.
const TOLD: usize = 5;

/// A process, for whoever is to have it.
#[derive(Debug)]
pub struct Ward {
    /// Its number.
    pub pid: u32,
    /// Field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
    /// Itself.
    pub pidfd: OwnedFd,
    /// Says how it has ended.
    pub news: OwnedFd,
}

/// Where its parent says how it has ended.
#[derive(Debug)]
pub(super) struct News(Mutex<pipe::Receiver>);

impl News {
    /// How it has ended, now that it has.
    pub(super) async fn status(&self) -> Status {
        let mut pipe = self.0.lock().await;
        let mut told = [0; TOLD];
        let read = pipe.read_exact(&mut told);
        let Ok(Ok(_)) = timeout(deadlines::EXIT_STATUS, read).await else {
            return Status::Unknown;
        };
        let [kind, number @ ..] = told;
        let number = i32::from_le_bytes(number);
        match kind {
            b'k' => Status::Killed(number),
            _ => Status::Exited(number),
        }
    }
}

/// Tells the new owner of the end. Nobody may be left.
pub(super) fn tell(owner: &OwnedFd, status: Status) {
    let (kind, number) = match status {
        Status::Exited(code) => (b'e', code),
        Status::Killed(signal) => (b'k', signal),
        // It is not our child either.
        Status::Unknown => return,
    };
    let mut told = [kind; TOLD];
    told[1..].copy_from_slice(&number.to_le_bytes());
    let _ = rustix::io::write(owner, &told);
}

impl Process {
    /// Copies of what another process needs to have this one. It is still ours; what is told is told to whoever
    /// [`Process::give_away`] makes its owner.
    ///
    /// # Errors
    /// The kernel's.
    pub fn offer(&self) -> io::Result<(Ward, OwnedFd)> {
        let (news, told) = pipe_with(PipeFlags::CLOEXEC)?;
        // Nobody waits for a reader who does not read: there is room for what is told.
        fcntl_setfl(&told, OFlags::NONBLOCK)?;
        let ward = Ward {
            pid: self.id(),
            start_time: self.start_time,
            pidfd: self.pidfd.get_ref().try_clone()?,
            news,
        };
        Ok((ward, told))
    }

    /// From now on it is somebody else's: whatever becomes of this value, it lives. Who has it is told of its end at `owner`.
    pub fn give_away(&self, owner: OwnedFd) {
        // Once is enough.
        let _ = self.given_away.set(owner);
    }

    /// Takes over a process that another one offers.
    ///
    /// # Errors
    /// It has ended, or is not what it was said to be.
    pub fn adopt(ward: Ward) -> io::Result<Self> {
        let Ward {
            pid,
            start_time,
            pidfd,
            news,
        } = ward;
        let gone = || io::Error::from_raw_os_error(libc::ESRCH);
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
        if record::start_time(number)? != start_time {
            return Err(gone());
        }
        // That it lives now says that what was read above was its own.
        if is_readable(&pidfd)? {
            return Err(gone());
        }
        Ok(Self {
            pid: number,
            start_time,
            pidfd: sys::watch(pidfd)?,
            litter: Default::default(),
            kin: Kin::Adopted(News(Mutex::new(pipe::Receiver::from_owned_fd(news)?))),
            given_away: OnceLock::new(),
        })
    }
}

fn is_readable(fd: impl AsFd) -> io::Result<bool> {
    let mut look = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut look, Some(&Timespec::default()))?;
    Ok(!look[0].revents().is_empty())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::super::{Program, start_for_another};
    use super::*;
    use crate::process::Litter;

    const SOON: Duration = Duration::from_secs(20);

    fn sleeper() -> Program {
        Program {
            path: PathBuf::from("/bin/sleep"),
            args: vec!["60".into()],
            fds: Vec::new(),
            network_namespace: None,
            cgroups: Vec::new(),
            labels: Vec::new(),
            litter: Litter::default(),
        }
    }

    #[tokio::test]
    async fn a_process_lives_as_long_as_its_lifeline_and_no_longer() {
        let (process, _output, lifeline) = start_for_another(sleeper()).await.unwrap();
        let copy = lifeline.try_clone().unwrap();
        drop(lifeline);
        assert!(!is_readable(process.pidfd.get_ref()).unwrap(), "somebody has it");
        drop(copy);
        let status = timeout(SOON, process.ended()).await.unwrap().unwrap();
        assert_eq!(status, Status::Killed(libc::SIGKILL));
    }

    #[tokio::test]
    async fn who_gets_it_can_end_it_and_learns_how_it_ended() {
        let (process, _output, lifeline) = start_for_another(sleeper()).await.unwrap();
        let (ward, owner) = process.offer().unwrap();
        let adopted = Process::adopt(ward).unwrap();
        process.give_away(owner);
        process.kill();
        assert!(
            !is_readable(adopted.pidfd.get_ref()).unwrap(),
            "who gave it away has no power over it"
        );
        adopted.terminate();
        let (parent, owner) = timeout(SOON, async { tokio::join!(process.ended(), adopted.ended()) })
            .await
            .unwrap();
        assert_eq!(parent.unwrap(), Status::Killed(libc::SIGTERM));
        assert_eq!(owner.unwrap(), Status::Killed(libc::SIGTERM));
        drop(lifeline);
    }

    #[tokio::test]
    async fn one_that_has_ended_is_not_taken() {
        let (process, _output, lifeline) = start_for_another(sleeper()).await.unwrap();
        let (ward, _owner) = process.offer().unwrap();
        drop(lifeline);
        timeout(SOON, process.ended()).await.unwrap().unwrap();
        assert!(Process::adopt(ward).is_err());
    }
}

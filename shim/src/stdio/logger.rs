//! A program that takes a process's output (`binary://`): started before the process, ended after its output.
//!
//! It has the output as descriptor 3, the error output as 4, and says that it is ready by writing to descriptor 5 or
//! closing it; its environment names the container. It must not know what runs in the container.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};

use runtime::error::Result;
use runtime::{Error, ErrorKind};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use slog::{debug, warn};
use tokio::io::AsyncReadExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::uri::Program;
use crate::{deadlines, sys};

/// Whose output it takes.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// Id of the container, or of the additional process.
    pub id: &'a str,
}

/// A logger that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Logger {
    name: String,
    pidfd: AsyncFd<OwnedFd>,
    ended: bool,
}

impl Logger {
    /// Starts a logger and waits until it is ready. Answers with the ends that output is written to.
    ///
    /// # Errors
    /// It cannot be started, or is not ready in time. Nothing is left then.
    pub async fn start(
        program: Program,
        owner: &Owner<'_>,
        log: &slog::Logger,
    ) -> Result<(Self, OwnedFd, OwnedFd)> {
        let name = program.path.display().to_string();
        let failed = |error: io::Error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            };
            Error::caused(kind, format!("cannot start the logger {name}"), error)
        };
        let (out, stdout) = io::pipe().map_err(failed)?;
        let (err, stderr) = io::pipe().map_err(failed)?;
        let (ready, readiness) = io::pipe().map_err(failed)?;
        let mut ready = pipe::Receiver::from_owned_fd(ready.into()).map_err(failed)?;
        let mut logger =
            Self::spawn(program, owner, [out.into(), err.into(), readiness.into()]).map_err(failed)?;
        debug!(log, "a logger is started"; "program" => &logger.name);
        match timeout(deadlines::LOGGER_READY, ready.read(&mut [0])).await {
            Ok(Ok(_)) => Ok((logger, stdout.into(), stderr.into())),
            Ok(Err(error)) => {
                logger.kill().await;
                Err(failed(error))
            }
            Err(_) => {
                logger.kill().await;
                Err(Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!(
                        "the logger {} did not say within {:?} that it is ready (by closing descriptor 5)",
                        logger.name,
                        deadlines::LOGGER_READY
                    ),
                ))
            }
        }
    }

    fn spawn(program: Program, owner: &Owner<'_>, fds: [OwnedFd; 3]) -> io::Result<Self> {
        let mut command = Command::new(&program.path);
        command
            .args(&program.args)
            .env("CONTAINER_ID", owner.id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::give(&mut command, fds)?;
        let child = command.spawn()?;
        let watch = || sys::watch(pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?);
        match watch() {
            Ok(pidfd) => Ok(Self {
                name: program.path.display().to_string(),
                pidfd,
                ended: false,
            }),
            Err(error) => {
                let mut child = child;
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Waits for its end, once it has been given the end of its input; a logger that does not end is asked to, and then
    /// killed.
    pub async fn finish(mut self, log: &slog::Logger) {
        if timeout(deadlines::LOGGER_END, self.reaped()).await.is_ok() {
            return;
        }
        self.signal(Signal::TERM);
        if timeout(deadlines::LOGGER_TERM, self.reaped()).await.is_ok() {
            return;
        }
        warn!(log, "a logger did not end and is killed"; "program" => &self.name);
        self.kill().await;
    }

    async fn kill(&mut self) {
        self.signal(Signal::KILL);
        // A killed process ends; if the kernel holds it, it is not waited for.
        let _ = timeout(deadlines::LOGGER_END, self.reaped()).await;
    }

    fn signal(&self, signal: Signal) {
        // It can only fail because the process has ended.
        let _ = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    async fn reaped(&mut self) {
        while !self.ended {
            let Ok(mut guard) = self.pidfd.readable().await else {
                return;
            };
            let id = WaitId::PidFd(self.pidfd.get_ref().as_fd());
            match waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(None) => guard.clear_ready(),
                Ok(Some(_)) | Err(_) => self.ended = true,
            }
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        if !self.ended {
            self.signal(Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::time::Instant;

    const OWNER: Owner<'_> = Owner {
        namespace: "ns",
        id: "c1",
    };

    async fn start(script: &str) -> Result<(Logger, OwnedFd, OwnedFd)> {
        let program = Program {
            path: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
        };
        let log = slog::Logger::root(slog::Discard, slog::o!());
        Logger::start(program, &OWNER, &log).await
    }

    async fn finish(logger: Logger) {
        logger
            .finish(&slog::Logger::root(slog::Discard, slog::o!()))
            .await;
    }

    #[tokio::test]
    async fn it_gets_both_outputs_and_ends_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let got = dir.path().join("got");
        let script = format!(
            "exec 6>{}; exec 5>&-; echo $CONTAINER_NAMESPACE $CONTAINER_ID >&6; cat <&3 >&6; cat <&4 >&6; ls /proc/self/fd | wc -l >&6",
            got.display()
        );
        let (logger, stdout, stderr) = start(&script).await.unwrap();
        File::from(stderr).write_all(b"err\n").unwrap();
        File::from(stdout).write_all(b"out\n").unwrap();
        finish(logger).await;
        // 0 to 4, 6, and the directory that is listed: nothing of ours was inherited.
        assert_eq!(std::fs::read_to_string(&got).unwrap(), "ns c1\nout\nerr\n7\n");
    }

    #[tokio::test]
    async fn one_that_cannot_be_started_is_named() {
        let program = Program {
            path: "/nonexistent/logger".into(),
            args: Vec::new(),
        };
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let error = Logger::start(program, &OWNER, &log).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.chain().contains("/nonexistent/logger"), "{}", error.chain());
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_asked_to() {
        let begun = Instant::now();
        let (logger, stdout, stderr) = start("exec 5>&-; exec sleep 1000").await.unwrap();
        drop((stdout, stderr));
        let pidfd = logger.pidfd.get_ref().try_clone().unwrap();
        finish(logger).await;
        assert!(begun.elapsed() < deadlines::LOGGER_END + deadlines::LOGGER_TERM);
        let gone = pidfd_send_signal(&pidfd, Signal::TERM);
        assert_eq!(gone, Err(rustix::io::Errno::SRCH));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_does_not_get_ready_is_killed() {
        let error = start("exec sleep 1000").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
        assert!(error.context.contains("/bin/sh"), "{error}");
    }
}

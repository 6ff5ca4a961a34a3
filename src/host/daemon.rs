//! A daemon that serves a device of the virtual machine: supervised from its start to its end, which is an event.
//!
//! It must not know which daemon it is.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use hypervisor::console::{Limit, Lines, Tail, Verdict};
use hypervisor::process::{self, Label, Process, Program, Status};
use slog::{Logger, debug, info, o};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::store::DaemonRecord;

/// Lines of a daemon's output that the news of its end quotes.
const QUOTED_LINES: usize = 4;

/// Bytes that a pipe holds.
const PIPE: usize = 64 * 1024;

/// Where a daemon is to be on the host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Place {
    /// See [`VmSpec::cgroups`](hypervisor::VmSpec::cgroups).
    pub(super) cgroups: Vec<Arc<OwnedFd>>,
    /// See [`VmSpec::labels`](hypervisor::VmSpec::labels).
    pub(super) labels: Vec<Label>,
}

/// A running daemon. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Daemon {
    name: &'static str,
    process: Arc<Process>,
    ended: watch::Receiver<Option<String>>,
}

impl Daemon {
    /// Starts one at this place; it inherits `fds` at the numbers that they have here. Cancel safe.
    pub(super) async fn start(
        name: &'static str,
        path: &Path,
        args: Vec<OsString>,
        fds: Vec<Arc<OwnedFd>>,
        place: &Place,
        log: &Logger,
    ) -> Result<Self> {
        debug!(log, "starting {}", name; "program" => %path.display(), "arguments" => ?args);
        let program = Program {
            path: path.to_owned(),
            args,
            fds,
            network_namespace: None,
            cgroups: place.cgroups.clone(),
            labels: place.labels.clone(),
            litter: process::Litter::default(),
        };
        let (process, output) = process::start(program).await?;
        let process = Arc::new(process);
        let (sender, ended) = watch::channel(None);
        let supervised = Arc::clone(&process);
        let log = log.new(o!("daemon" => name));
        tokio::spawn(async move {
            let (status, tail) = supervise(&supervised, output, &log).await;
            let news = news(name, status, &tail);
            info!(log, "{}", news; "pid" => supervised.id());
            sender.send_replace(Some(news));
        });
        Ok(Self { name, process, ended })
    }

    /// What is needed to find it without us.
    pub(super) fn record(&self) -> DaemonRecord {
        DaemonRecord {
            name: self.name.to_owned(),
            pid: self.process.id(),
            start_time: self.process.start_time(),
        }
    }

    /// Waits for its end and tells which daemon it was, and why it ended.
    pub(crate) fn ended(&self) -> impl Future<Output = String> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            match ended.wait_for(Option::is_some).await.map(|news| news.clone()) {
                Ok(Some(news)) => news,
                // Nobody can tell any more.
                Ok(None) | Err(_) => std::future::pending().await,
            }
        }
    }

    /// Ends it, and does not wait for that.
    pub(super) fn kill(&self) {
        self.process.kill();
    }

    /// Ends it and waits until it is reaped.
    pub(crate) async fn stop(&self) -> Result<()> {
        self.process.kill();
        match timeout(deadlines::DAEMON_END, self.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "{} (process {}) did not end within {:?} of SIGKILL",
                    self.name,
                    self.process.id(),
                    deadlines::DAEMON_END
                ),
            )),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// Reads what a daemon says until it has ended.
async fn supervise(
    process: &Process,
    mut output: pipe::Receiver,
    log: &Logger,
) -> (Option<Status>, Vec<String>) {
    let (mut lines, mut tail) = (Lines::default(), Tail::default());
    let mut buffer = [0; 1024];
    let (begun, mut limit) = (Instant::now(), Limit::default());
    // What a guest does can make a daemon complain all day.
    let mut keep = |line: String| {
        if let Verdict::Pass { dropped } = limit.judge(begun.elapsed().as_secs()) {
            debug!(log, "{}", line; "dropped_before" => dropped);
        }
        tail.push(line);
    };
    let mut open = true;
    let status = loop {
        tokio::select! {
            read = output.read(&mut buffer), if open => match read {
                Ok(0) | Err(_) => open = false,
                Ok(count) => lines.push(buffer.get(..count).unwrap_or_default(), &mut keep),
            },
            status = process.ended() => break status.ok(),
        }
    };
    // What it said last is in the pipe. A process that it has left behind may keep that open, and write; so only as much as
    // a pipe holds, if it is there.
    for _ in 0..PIPE / buffer.len() {
        match output.try_read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(count) => lines.push(buffer.get(..count).unwrap_or_default(), &mut keep),
        }
    }
    lines.finish(keep);
    (status, tail.to_vec())
}

fn news(name: &str, status: Option<Status>, tail: &[String]) -> String {
    let how = match status {
        Some(Status::Exited(code)) => format!("exited with code {code}"),
        Some(Status::Killed(signal)) => format!("was killed by signal {signal}"),
        Some(Status::Unknown) | None => "ended".to_owned(),
    };
    let from = tail.len().saturating_sub(QUOTED_LINES);
    match tail.get(from..) {
        Some([]) | None => format!("{name} {how}"),
        Some(lines) => format!("{name} {how}, its last words: {}", lines.join(" / ")),
    }
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};

    use super::*;

    async fn shell(script: &str) -> Daemon {
        let log = Logger::root(Discard, o!());
        let args = vec!["-c".into(), script.into()];
        Daemon::start(
            "testd",
            Path::new("/bin/sh"),
            args,
            Vec::new(),
            &Place::default(),
            &log,
        )
        .await
        .unwrap()
    }

    #[tokio::test]
    async fn its_end_is_told_with_its_last_words() {
        let daemon =
            shell("for n in 1 2 3 4 5; do echo word $n; done; printf '\\033[2Jno newline'; exit 3").await;
        let news = timeout(deadlines::DAEMON_END, daemon.ended()).await.unwrap();
        assert_eq!(
            news,
            "testd exited with code 3, its last words: word 3 / word 4 / word 5 / no newline"
        );
        daemon.stop().await.unwrap();
    }

    #[tokio::test]
    async fn stopping_reaps_it_and_does_not_wait_for_what_it_left() {
        let daemon = shell("sleep 1 & exec sleep 30").await;
        let pid = daemon.record().pid;
        daemon.stop().await.unwrap();
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it is not reaped");
        assert_eq!(daemon.ended().await, "testd was killed by signal 9");
    }
}

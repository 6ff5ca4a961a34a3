//! Watches a VMM from its start to its end: reads its streams, learns why it ends, reaps it, and tells everybody.
//!
//! One task per VMM owns all of this. It must not know which VMM it watches.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use slog::{Logger, debug, info, warn};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::console::{self, Alarms, Limit, Lines, Tail, is_alarming};
use crate::process::{Process, Status, Ward};
use crate::{Error, ErrorKind, Exit, ExitReason, VmRecord, deadlines};

/// Between two reads of a stream. QEMU writes a console byte by byte, and a guest can make it do so all day; this makes
/// it a few hundred reads per second instead of a hundred thousand. What is not read waits in the kernel, and a full
/// socket slows down the guest's console, not us.
const PAUSE: Duration = Duration::from_millis(10);

/// What the VMM said of its coming end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// The guest powered off.
    Shutdown,
    /// The guest reset or panicked.
    Panic,
}

/// The streams and news of a VMM.
#[derive(Debug)]
pub struct Sources {
    /// Its stdout and stderr.
    pub output: pipe::Receiver,
    /// The guest's console, where it is not the VMM's stdout.
    pub console: Option<UnixStream>,
    /// Why it is about to end; the sender is dropped when nothing more can come.
    pub announcement: Option<watch::Receiver<Option<Announcement>>>,
    /// What its end says of the guest where it announces nothing: by its status and its last lines.
    pub verdict: Option<Verdict>,
}

/// See [`Sources::verdict`].
pub type Verdict = fn(Status, &[String]) -> Option<Announcement>;

/// Ends a VMM that nobody can do anything with any more, without keeping it in being.
#[derive(Debug, Clone)]
pub struct Killer(Weak<Process>);

impl Killer {
    /// Kills it, if it is still there.
    pub fn kill(&self) {
        if let Some(process) = self.0.upgrade() {
            process.kill();
        }
    }
}

/// A VMM that is being watched. Dropping it kills the VMM.
#[derive(Debug)]
pub struct Supervised {
    process: Arc<Process>,
    stopping: Arc<AtomicBool>,
    /// Its streams are somebody else's from now on.
    deaf: Arc<Notify>,
    exited: watch::Receiver<Option<Exit>>,
}

impl Supervised {
    /// Begins to watch `process`.
    pub fn start(process: Process, sources: Sources, log: Logger) -> Self {
        let process = Arc::new(process);
        let stopping = Arc::new(AtomicBool::new(false));
        let deaf = Arc::new(Notify::new());
        let (sender, exited) = watch::channel(None);
        let task = Watch {
            process: Arc::clone(&process),
            stopping: Arc::clone(&stopping),
            deaf: Arc::clone(&deaf),
            journal: Journal {
                tail: Tail::default(),
                limit: Limit::default(),
                alarms: Alarms::default(),
                begun: Instant::now(),
                log,
            },
        };
        tokio::spawn(async move {
            let exit = task.run(sources).await;
            sender.send_replace(Some(exit));
        });
        Self {
            process,
            stopping,
            deaf,
            exited,
        }
    }

    /// What another process needs to have this one, and what is to be given to [`Supervised::give_away`] when it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn offer(&self) -> io::Result<(Ward, OwnedFd)> {
        self.process.offer()
    }

    /// The VMM is somebody else's from now on: it is not listened to any more, not killed, and only reaped.
    pub fn give_away(&self, owner: OwnedFd) {
        self.expect_end();
        self.process.give_away(owner);
        self.deaf.notify_one();
    }

    /// The VMM's pid.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What is needed to reap it without us.
    pub fn record(&self, driver: &str, run_dir: &Path) -> VmRecord {
        VmRecord {
            driver: driver.to_owned(),
            pid: self.process.id(),
            start_time: self.process.start_time(),
            run_dir: run_dir.to_owned(),
        }
    }

    /// Becomes `Some` at the end.
    pub fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    /// Asks the VMM's process to end.
    pub fn terminate(&self) {
        self.expect_end();
        self.process.terminate();
    }

    /// Something to kill the VMM with, however it is held.
    pub fn killer(&self) -> Killer {
        Killer(Arc::downgrade(&self.process))
    }

    /// The error of a VMM that is of no use, and is ended: what it said goes along, because that mostly tells why.
    pub async fn failed_early(&mut self, vmm: &str, error: Error) -> Error {
        let ended = match error.kind {
            // It closed its socket because it is ending; what it said is worth waiting for.
            ErrorKind::Unavailable => self.end_within(deadlines::QUIT).await,
            _ => None,
        };
        if let Some(exit) = ended {
            let words = exit.console.join("; ");
            return Error::new(
                ErrorKind::Unavailable,
                format!("{vmm} did not start, {}: {words}", exit.reason),
            );
        }
        match self.kill().await {
            Ok(exit) if !exit.console.is_empty() => Error {
                context: format!("{} ({})", error.context, exit.console.join("; ")),
                ..error
            },
            Ok(_) => error,
            Err(worse) => worse,
        }
    }

    /// From now on the VMM's end is what we want.
    pub fn expect_end(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits for the VMM's end for at most `limit`.
    pub async fn end_within(&mut self, limit: Duration) -> Option<Exit> {
        match timeout(limit, self.exited.wait_for(Option::is_some)).await {
            Ok(Ok(exit)) => exit.clone(),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Kills the VMM and waits until it is reaped.
    pub async fn kill(&mut self) -> Result<Exit, Error> {
        self.expect_end();
        self.process.kill();
        self.end_within(deadlines::REAP).await.ok_or_else(|| {
            Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "process {} did not end within {:?} of SIGKILL",
                    self.pid(),
                    deadlines::REAP
                ),
            )
        })
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        self.expect_end();
        self.process.kill();
    }
}

struct Watch {
    process: Arc<Process>,
    stopping: Arc<AtomicBool>,
    deaf: Arc<Notify>,
    journal: Journal,
}

impl Watch {
    async fn run(mut self, sources: Sources) -> Exit {
        let mut output = Stream::new("vmm", sources.output);
        let mut console = sources.console.map(|console| Stream::new("console", console));
        let status = loop {
            tokio::select! {
                line = output.read() => output.take(line, &mut self.journal),
                line = read(&mut console) => {
                    if let Some(console) = &mut console {
                        console.take(line, &mut self.journal);
                    }
                }
                () = self.deaf.notified() => {
                    output.reader = None;
                    console = None;
                }
                status = self.process.ended() => break status,
            }
        };
        // All writers are gone, so that the streams end; a descendant that keeps one open must not hold us up.
        let _ = timeout(deadlines::DRAIN, async {
            output.drain(&mut self.journal).await;
            if let Some(console) = &mut console {
                console.drain(&mut self.journal).await;
            }
        })
        .await;
        let announcement = match sources.announcement {
            Some(mut news) => last(&mut news).await,
            None => None,
        };
        let status = status.unwrap_or_else(|error| {
            warn!(self.journal.log, "the VMM's exit status is lost"; "error" => %error);
            Status::Exited(-1)
        });
        let lines = self.journal.tail.to_vec();
        let announcement =
            announcement.or_else(|| sources.verdict.and_then(|verdict| verdict(status, &lines)));
        let reason = reason(self.stopping.load(Ordering::Relaxed), announcement, status);
        info!(self.journal.log, "{}", reason; "pid" => self.process.id());
        if reason == ExitReason::GuestPanic {
            // Which of the lines before says why, nobody can know.
            info!(self.journal.log, "the console's last lines"; "lines" => lines.join("\n"));
        }
        Exit {
            reason,
            console: lines,
        }
    }
}

/// The last news, once no more can come.
async fn last(news: &mut watch::Receiver<Option<Announcement>>) -> Option<Announcement> {
    let _ = timeout(deadlines::DRAIN, async { while news.changed().await.is_ok() {} }).await;
    *news.borrow()
}

/// Why a VMM ended. That we wanted it outweighs what happened to happen at the same time.
fn reason(stopping: bool, announcement: Option<Announcement>, status: Status) -> ExitReason {
    match (stopping, announcement, status) {
        (true, _, _) => ExitReason::Stopped,
        (false, Some(Announcement::Shutdown), _) => ExitReason::GuestShutdown,
        (false, Some(Announcement::Panic), _) => ExitReason::GuestPanic,
        (false, None, Status::Exited(code)) => ExitReason::VmmExited(code),
        (false, None, Status::Killed(signal)) => ExitReason::VmmKilled(signal),
        (false, None, Status::Unknown) => ExitReason::VmmEnded,
    }
}

/// Where lines go: the log, at a limited rate, and the tail that the end's report shows.
struct Journal {
    tail: Tail,
    limit: Limit,
    alarms: Alarms,
    begun: Instant,
    log: Logger,
}

impl Journal {
    fn line(&mut self, source: &'static str, line: String) {
        let second = self.begun.elapsed().as_secs();
        match self.limit.judge(second) {
            console::Verdict::Pass { dropped } => {
                if dropped > 0 {
                    warn!(self.log, "lines of the guest's console were dropped"; "count" => dropped);
                }
                if is_alarming(&line) && self.alarms.allow(second) {
                    info!(self.log, "{}", line; "source" => source);
                } else {
                    debug!(self.log, "{}", line; "source" => source);
                }
            }
            console::Verdict::Drop => {}
        }
        self.tail.push(line);
    }
}

/// A stream of text from the VMM.
struct Stream<R> {
    name: &'static str,
    /// `None` once it has ended.
    reader: Option<R>,
    buffer: Box<[u8; 4096]>,
    lines: Lines,
    /// When it may be read again.
    due: Instant,
}

impl<R: AsyncRead + Unpin> Stream<R> {
    fn new(name: &'static str, reader: R) -> Self {
        Self {
            name,
            reader: Some(reader),
            buffer: Box::new([0; 4096]),
            lines: Lines::default(),
            due: Instant::now(),
        }
    }

    /// Number of bytes now in the buffer; 0 at the end. Waits until a read is due; never returns once the stream has
    /// ended. Cancelling it loses nothing.
    async fn read(&mut self) -> io::Result<usize> {
        match &mut self.reader {
            Some(reader) => {
                sleep_until(self.due).await;
                reader.read(&mut self.buffer[..]).await
            }
            None => std::future::pending().await,
        }
    }

    fn take(&mut self, read: io::Result<usize>, journal: &mut Journal) {
        let name = self.name;
        match read {
            Ok(0) | Err(_) => {
                self.reader = None;
                self.lines.finish(|line| journal.line(name, line));
            }
            Ok(count) => {
                self.due = Instant::now() + PAUSE;
                self.lines
                    .push(&self.buffer[..count], |line| journal.line(name, line));
            }
        }
    }

    async fn drain(&mut self, journal: &mut Journal) {
        while self.reader.is_some() {
            self.due = Instant::now();
            let read = self.read().await;
            self.take(read, journal);
        }
    }
}

/// Reads a stream that may not be there.
async fn read(stream: &mut Option<Stream<UnixStream>>) -> io::Result<usize> {
    match stream {
        Some(stream) => stream.read().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_has_one_reason() {
        use Announcement::{Panic, Shutdown};
        let table = [
            (false, None, Status::Exited(1), ExitReason::VmmExited(1)),
            (false, None, Status::Killed(9), ExitReason::VmmKilled(9)),
            (
                false,
                Some(Shutdown),
                Status::Exited(0),
                ExitReason::GuestShutdown,
            ),
            (false, Some(Panic), Status::Exited(0), ExitReason::GuestPanic),
            (true, None, Status::Killed(9), ExitReason::Stopped),
            (true, Some(Shutdown), Status::Exited(0), ExitReason::Stopped),
        ];
        for (stopping, announcement, status, expected) in table {
            assert_eq!(reason(stopping, announcement, status), expected);
        }
    }
}

//! One process as its caller knows it: its pid and streams, and the order of its news: start before end, end before
//! deletion.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use runtime::error::Result;
use runtime::{Container, ContainerId, ExecId, ExitStatus};
use tokio::sync::watch;

use crate::events::Events;
use crate::stdio::{Logger, Streams};

/// See the module's documentation.
#[derive(Debug)]
pub struct Process {
    /// What callers are shown.
    pub pid: u32,
    /// Its streams, as it was asked for them.
    pub streams: Streams,
    logger: Mutex<Option<Logger>>,
    /// Starts under way.
    starts: watch::Sender<u32>,
    end: watch::Sender<Option<ExitStatus>>,
    /// An OOM notice of its container was published.
    oom_told: AtomicBool,
}

impl Process {
    /// A process that nobody has started yet.
    pub fn new(pid: u32, streams: Streams, logger: Option<Logger>) -> Arc<Self> {
        Arc::new(Self {
            pid,
            streams,
            logger: Mutex::new(logger),
            starts: watch::Sender::new(0),
            end: watch::Sender::new(None),
            oom_told: AtomicBool::new(false),
        })
    }

    /// Its logger, to be ended.
    pub fn take_logger(&self) -> Option<Logger> {
        self.logger.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// A start is under way: until the guard is dropped the process's end is not announced.
    pub fn starting(self: &Arc<Self>) -> Starting {
        self.starts.send_modify(|starts| *starts += 1);
        Starting(Arc::clone(self))
    }

    /// Becomes `Some` when its end was announced; the sender goes when the process is forgotten.
    pub fn end(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.end.subscribe()
    }

    /// Whether an OOM notice is still news, which is published then: after the end it is, unless there was one.
    pub fn is_oom_news(&self) -> bool {
        let told = self.oom_told.swap(true, Ordering::Relaxed);
        !told || self.end.borrow().is_none()
    }

    /// Announces its end when it has come.
    pub fn announce(self: &Arc<Self>, container: Container, exec: Option<ExecId>, events: Events) {
        let id = container.id().clone();
        let ended = async move {
            let ended = container.wait(exec.as_ref()).await;
            (exec, ended)
        };
        let process = Arc::clone(self);
        tokio::spawn(async move {
            let (exec, ended) = ended.await;
            process.announce_end(&id, exec.as_ref(), ended, &events).await;
        });
    }

    async fn announce_end(
        self: Arc<Self>,
        id: &ContainerId,
        exec: Option<&ExecId>,
        ended: Result<ExitStatus>,
        events: &Events,
    ) {
        // Deleted without having run: there is no end to tell.
        let Ok(exit) = ended else {
            return;
        };
        // The sender is ours.
        let _ = self.starts.subscribe().wait_for(|starts| *starts == 0).await;
        // containerd takes the reason of an end from what was told before it.
        if exit.oom && !self.oom_told.swap(true, Ordering::Relaxed) {
            events.oom(id);
        }
        events.exited(id, exec, self.pid, exit);
        self.end.send_replace(Some(exit));
    }
}

/// A start under way.
pub struct Starting(Arc<Process>);

impl Drop for Starting {
    fn drop(&mut self) {
        self.0
            .starts
            .send_modify(|starts| *starts = starts.saturating_sub(1));
    }
}

/// Waits until an end is announced; `None`: it will not be, because the process is forgotten.
pub async fn announced(mut end: watch::Receiver<Option<ExitStatus>>) -> Option<ExitStatus> {
    end.wait_for(Option::is_some).await.ok().and_then(|end| *end)
}

//! What happened in the guest that nobody asked about: a bounded log with sequence numbers, and the watch on the
//! containers' memory that feeds it.
//!
//! Must not know who reads the log nor what a container is beyond its id and its cgroup.

use std::collections::{HashMap, VecDeque};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::error::{Error, Result};
use crate::sys;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The kernel killed a process of this container for want of memory.
    Oom {
        /// Container's id.
        container: String,
    },
}

/// Events that are kept for a host that does not fetch them; older ones are dropped.
const CAPACITY: usize = 1024;

/// The log. Sequence numbers count from 1.
#[derive(Debug)]
pub struct Log {
    kept: VecDeque<Event>,
    /// Sequence number of the newest event; a change wakes those who wait.
    newest: watch::Sender<u64>,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            kept: VecDeque::new(),
            newest: watch::Sender::new(0),
        }
    }
}

impl Log {
    /// Adds an event, and wakes those who wait for one.
    pub fn push(&mut self, event: Event) {
        if self.kept.len() == CAPACITY {
            self.kept.pop_front();
        }
        self.kept.push_back(event);
        self.newest.send_modify(|newest| *newest += 1);
    }

    /// Every event after this sequence number that is still there, with its own.
    pub fn after(&self, sequence: u64) -> Vec<(u64, Event)> {
        let newest = *self.newest.borrow();
        let first = newest - self.kept.len() as u64 + 1;
        (first..)
            .zip(&self.kept)
            .filter(|(n, _)| *n > sequence)
            .map(|(n, e)| (n, e.clone()))
            .collect()
    }

    /// Changes whenever an event is added.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }
}

/// Watches the `memory.events` of cgroups; what has changed in it is for the caller to read.
#[derive(Debug)]
pub struct MemoryWatch {
    inotify: AsyncFd<OwnedFd>,
    watched: HashMap<i32, String>,
}

impl MemoryWatch {
    /// An empty watch. Needs a Tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no inotify descriptor.
    pub fn new() -> Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
            .map_err(Error::system("init inotify"))?;
        let inotify = sys::register(fd, Interest::READABLE).map_err(Error::system("register inotify"))?;
        Ok(Self {
            inotify,
            watched: HashMap::new(),
        })
    }

    /// Watches a container's cgroup. Nothing is watched where the memory controller is missing.
    pub fn add(&mut self, container: &str, cgroup: &Path) {
        if let Ok(wd) = inotify::add_watch(&self.inotify, cgroup.join("memory.events"), WatchFlags::MODIFY) {
            self.watched.insert(wd, container.to_owned());
        }
    }

    /// Stops watching a container.
    pub fn remove(&mut self, container: &str) {
        self.watched.retain(|wd, id| {
            let keep = id != container;
            if !keep {
                // Gone already when the cgroup is.
                let _ = inotify::remove_watch(&self.inotify, *wd);
            }
            keep
        });
    }

    /// Waits until some have changed, and answers with their containers' ids.
    ///
    /// # Errors
    /// The kernel's, on reading.
    pub async fn changed(&mut self) -> Result<Vec<String>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let wds = self
            .inotify
            .async_io(Interest::READABLE, |fd| {
                let mut reader = inotify::Reader::new(fd, &mut buffer);
                let mut wds = Vec::new();
                loop {
                    let event = reader.next()?;
                    if event.events().contains(ReadFlags::IGNORED) {
                        // The cgroup is gone.
                    } else {
                        wds.push(event.wd());
                    }
                    if reader.is_buffer_empty() {
                        return Ok(wds);
                    }
                }
            })
            .await
            .map_err(Error::system("read inotify"))?;
        Ok(wds
            .iter()
            .filter_map(|wd| self.watched.get(wd))
            .cloned()
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn oom(n: usize) -> Event {
        Event::Oom {
            container: n.to_string(),
        }
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen() {
        let mut log = Log::default();
        assert_eq!(log.after(0), []);
        log.push(oom(1));
        log.push(oom(2));
        assert_eq!(log.after(0), [(1, oom(1)), (2, oom(2))]);
        assert_eq!(log.after(1), [(2, oom(2))]);
        assert_eq!(log.after(2), []);
        assert_eq!(log.after(u64::MAX), []);
    }

    #[test]
    fn a_log_that_nobody_reads_stays_bounded_and_shows_the_gap() {
        let mut log = Log::default();
        for n in 1..=CAPACITY + 10 {
            log.push(oom(n));
        }
        let all = log.after(0);
        assert_eq!(all.len(), CAPACITY);
        assert_eq!(all[0], (11, oom(11)));
    }

    #[tokio::test]
    async fn a_change_names_its_container() {
        let dir = tempfile::tempdir().unwrap();
        let mut watch = MemoryWatch::new().unwrap();
        for id in ["a", "b"] {
            std::fs::create_dir(dir.path().join(id)).unwrap();
            std::fs::write(dir.path().join(id).join("memory.events"), "oom_kill 0\n").unwrap();
            watch.add(id, &dir.path().join(id));
        }
        watch.add("no controller", Path::new("/nonexistent"));
        watch.remove("a");
        for id in ["a", "b"] {
            std::fs::write(dir.path().join(id).join("memory.events"), "oom_kill 1\n").unwrap();
        }
        let changed = watch.changed().await.unwrap();
        assert!(
            !changed.is_empty() && changed.iter().all(|id| id == "b"),
            "{changed:?}"
        );
    }
}

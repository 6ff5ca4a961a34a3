//! Reaps every child of the agent and tells the owner of each process how it ended.
//!
//! As PID 1 the agent inherits orphans that nobody owns, and a process may end before its owner knows its pid. So an
//! owner announces a creation first ([`Reaper::expect`]): statuses without an owner are kept while any creation is
//! under way, and dropped otherwise. Must not know about containers.

use std::collections::HashMap;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::error::{Error, Result};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit code, or 128 + the signal that ended it.
    pub status: u32,
    /// Wall clock of the guest when it was reaped, nanoseconds since 1970.
    pub at_unix_ns: i64,
}

/// Becomes `Some` when the process has ended, and stays so.
pub type Exited = watch::Receiver<Option<Exit>>;

enum Command {
    /// A creation begins.
    Expect,
    /// Its process is this one.
    Claim(i32, watch::Sender<Option<Exit>>),
    /// A creation is over, successful or not.
    Settled,
}

/// The way to the reaper's task. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reaper {
    commands: mpsc::UnboundedSender<Command>,
}

/// A creation under way: exits that nobody claimed yet are kept until this is dropped.
#[derive(Debug)]
pub struct Expectation {
    commands: mpsc::UnboundedSender<Command>,
}

impl Reaper {
    /// Starts reaping, as a task of the current runtime.
    ///
    /// # Errors
    /// When the handler of SIGCHLD can't be installed.
    pub fn start() -> Result<Self> {
        let (commands, queue) = mpsc::unbounded_channel();
        let children = signal(SignalKind::child()).map_err(Error::system("handle SIGCHLD"))?;
        tokio::spawn(run(children, queue));
        Ok(Self { commands })
    }

    /// Announces that a child is about to be created. To be called before the fork.
    pub fn expect(&self) -> Expectation {
        // Fails only when the runtime is shutting down: then nobody waits for an answer either.
        let _ = self.commands.send(Command::Expect);
        Expectation {
            commands: self.commands.clone(),
        }
    }
}

impl Expectation {
    /// Takes ownership of a child: the answer becomes `Some` when it ends, or at once if it has ended already.
    pub fn claim(&self, pid: i32) -> Exited {
        let (sender, exited) = watch::channel(None);
        let _ = self.commands.send(Command::Claim(pid, sender));
        exited
    }
}

impl Drop for Expectation {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Settled);
    }
}

/// Waits for the end of a process.
///
/// # Errors
/// [`Error::ShuttingDown`] when the reaper is gone.
pub async fn ended(mut exited: Exited) -> Result<Exit> {
    let exit = exited
        .wait_for(Option::is_some)
        .await
        .map_err(|_| Error::ShuttingDown)?;
    exit.ok_or(Error::ShuttingDown)
}

/// Who waits for which pid, and which ends nobody has asked for yet. No I/O.
#[derive(Default)]
struct Ledger {
    owners: HashMap<i32, watch::Sender<Option<Exit>>>,
    unclaimed: HashMap<i32, Exit>,
    creations: usize,
}

impl Ledger {
    fn apply(&mut self, command: Command) {
        match command {
            Command::Expect => self.creations += 1,
            Command::Claim(pid, owner) => match self.unclaimed.remove(&pid) {
                Some(exit) => {
                    let _ = owner.send_replace(Some(exit));
                }
                None => {
                    self.owners.insert(pid, owner);
                }
            },
            Command::Settled => {
                self.creations = self.creations.saturating_sub(1);
                if self.creations == 0 {
                    self.unclaimed.clear();
                }
            }
        }
    }

    fn ended(&mut self, pid: i32, exit: Exit) {
        if let Some(owner) = self.owners.remove(&pid) {
            let _ = owner.send_replace(Some(exit));
        } else if self.creations > 0 {
            self.unclaimed.insert(pid, exit);
        }
    }
}

async fn run(mut children: Signal, mut queue: mpsc::UnboundedReceiver<Command>) {
    let mut ledger = Ledger::default();
    loop {
        tokio::select! {
            // Commands first: a creation is announced before its fork, so it is known before its child can be reaped.
            biased;
            command = queue.recv() => match command {
                Some(command) => ledger.apply(command),
                None => return,
            },
            _ = children.recv() => {
                while let Ok(command) = queue.try_recv() {
                    ledger.apply(command);
                }
                while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
                    if let Some(status) = exit_status(status) {
                        ledger.ended(pid.as_raw_nonzero().get(), Exit { status, at_unix_ns: now_unix_ns() });
                    }
                }
            }
        }
    }
}

/// As a shell reports it; `None` for a status that is not an end.
fn exit_status(status: WaitStatus) -> Option<u32> {
    let code = status
        .exit_status()
        .or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    code.and_then(|code| u32::try_from(code).ok())
}

fn now_unix_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit {
        status: 7,
        at_unix_ns: 1,
    };

    fn claim(ledger: &mut Ledger, pid: i32) -> Exited {
        let (sender, exited) = watch::channel(None);
        ledger.apply(Command::Claim(pid, sender));
        exited
    }

    #[test]
    fn an_end_reaches_its_owner_in_either_order() {
        let mut ledger = Ledger::default();
        ledger.apply(Command::Expect);
        let late = claim(&mut ledger, 10);
        ledger.ended(10, EXIT);
        ledger.ended(11, EXIT);
        let early = claim(&mut ledger, 11);
        assert_eq!(*late.borrow(), Some(EXIT));
        assert_eq!(*early.borrow(), Some(EXIT));
    }

    #[test]
    fn orphans_leave_no_trace() {
        let mut ledger = Ledger::default();
        ledger.ended(5, EXIT);
        assert!(ledger.unclaimed.is_empty(), "nobody is expecting a child");
        ledger.apply(Command::Expect);
        ledger.apply(Command::Expect);
        ledger.ended(6, EXIT);
        ledger.apply(Command::Settled);
        assert_eq!(ledger.unclaimed.len(), 1, "one creation is still under way");
        ledger.apply(Command::Settled);
        assert!(ledger.unclaimed.is_empty());
        let fresh = claim(&mut ledger, 6);
        assert_eq!(*fresh.borrow(), None, "a reused pid starts unended");
    }

    #[tokio::test]
    async fn real_children_are_reaped_with_code_and_signal() {
        let reaper = Reaper::start().unwrap();
        for (script, expected) in [("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)] {
            let expectation = reaper.expect();
            #[expect(clippy::zombie_processes, reason = "the reaper under test waits for it")]
            let child = std::process::Command::new("/bin/sh")
                .args(["-c", script])
                .spawn()
                .unwrap();
            let exited = expectation.claim(child.id().try_into().unwrap());
            drop(expectation);
            let exit = tokio::time::timeout(std::time::Duration::from_secs(10), ended(exited)).await;
            assert_eq!(exit.unwrap().unwrap().status, expected, "{script}");
        }
    }
}

//! One container with its processes: what the sandbox keeps of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::state::{self, Call, State};
use super::turn::Turns;
use crate::container::Container;
use crate::error::{Error, Result};
use crate::process::{Process, Signal};
use crate::storage::Mounted;
use crate::sys;

/// A container that was created and not yet deleted.
#[derive(Debug)]
pub struct Entry {
    /// The container itself.
    pub container: Container,
    /// Its first process.
    pub init: Process,
    /// Processes that were added, by their id.
    pub execs: BTreeMap<String, Process>,
    /// Ids of execs under way, whose programs do not run yet.
    pub begun: BTreeSet<String>,
    /// Who may be at work on it.
    pub turns: Turns,
    /// What it uses of the host's shares.
    pub used: BTreeSet<PathBuf>,
    /// What was mounted for it.
    pub mounts: Vec<Mounted>,
    /// Kills for want of memory that were announced already.
    pub oom_kills: u64,
    state: State,
}

impl Entry {
    /// A container that was just created.
    pub fn new(container: Container, init: Process, mounts: Vec<Mounted>) -> Self {
        Self {
            container,
            init,
            execs: BTreeMap::new(),
            begun: BTreeSet::new(),
            turns: Turns::default(),
            used: BTreeSet::new(),
            mounts,
            oom_kills: 0,
            state: State::Created,
        }
    }

    /// The state after a call, if it may be made now. Changes nothing.
    pub fn check(&self, call: Call) -> Result<State> {
        // The end of init is known to the reaper before anybody tells us.
        let state = match self.init.exit() {
            Some(_) => state::next(self.state, Call::Ended)?,
            None => self.state,
        };
        state::next(state, call)
    }

    /// Notes that a call succeeded.
    pub fn enter(&mut self, state: State) {
        self.state = state;
    }

    /// The process with this id; the empty id is init's.
    pub fn process(&self, container: &str, id: &str) -> Result<&Process> {
        if id.is_empty() {
            Some(&self.init)
        } else {
            self.execs.get(id)
        }
        .ok_or_else(|| unknown(container, id))
    }

    /// Like [`Entry::process`].
    pub fn process_mut(&mut self, container: &str, id: &str) -> Result<&mut Process> {
        if id.is_empty() {
            Some(&mut self.init)
        } else {
            self.execs.get_mut(id)
        }
        .ok_or_else(|| unknown(container, id))
    }

    /// Signals every process, also those that nobody asked us to start.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        if let Ok(named) = nix::sys::signal::Signal::try_from(signal.number()) {
            return Ok(self.container.signal_all(named)?);
        }
        // A real-time signal, or none at all.
        for pid in self.container.pids() {
            // One that ended meanwhile needs no signal.
            let _ = sys::kill(pid.cast_signed(), signal.number());
        }
        Ok(())
    }

    /// Every process.
    pub fn processes(&self) -> impl Iterator<Item = &Process> {
        std::iter::once(&self.init).chain(self.execs.values())
    }
}

fn unknown(container: &str, process: &str) -> Error {
    Error::NoProcess {
        container: container.to_owned(),
        process: process.to_owned(),
    }
}

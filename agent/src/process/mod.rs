//! One process of a container as the agent sees it: pid, end, and the ends of its streams that the agent holds.
//!
//! Must not know how a process is created nor which container it belongs to.

pub mod stdio;
pub mod stream;

use crate::error::{Error, Result};
use crate::reaper::{Exit, Exited};
use crate::sys;
use stdio::Streams;

/// A process: alive, or ended and not yet forgotten.
#[derive(Debug)]
pub struct Process {
    /// Pid in the agent's pid namespace.
    pub pid: i32,
    /// How it ended, once it has.
    pub exited: Exited,
    /// The agent's ends of its streams; output stays readable until the process is forgotten.
    pub streams: Streams,
}

impl Process {
    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exited.borrow()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// [`Error::State`] when it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        // The reaper has not run between the end and this call if the pid is a zombie still: then the signal goes
        // nowhere, which is as good. A pid that was reaped is never signalled.
        if self.exit().is_some() {
            return Err(Error::State("process already ended"));
        }
        sys::kill(self.pid, signal.0).map_err(Error::system("signal process"))
    }
}

/// A signal number that the kernel knows; 0 only asks whether the process is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signal(i32);

impl Signal {
    /// SIGKILL.
    pub const KILL: Self = Self(libc::SIGKILL);
    /// SIGTERM.
    pub const TERM: Self = Self(libc::SIGTERM);
    /// The last real-time signal.
    const MAX: u32 = 64;

    /// Checks a number from the wire.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that names no signal.
    pub fn new(number: u32) -> Result<Self> {
        match i32::try_from(number) {
            Ok(signal) if number <= Self::MAX => Ok(Self(signal)),
            _ => Err(Error::invalid("signal", format!("{number} is not a signal"))),
        }
    }

    /// The number.
    pub fn number(self) -> i32 {
        self.0
    }
}

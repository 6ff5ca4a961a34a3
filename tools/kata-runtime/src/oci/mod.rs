//! The verbs of an OCI runtime: thin clients of the daemon that has the sandbox. One verb, or one kind of them, per file.

pub mod create;
pub mod delete;
pub mod exec;
pub mod features;
pub mod list;
mod neighbour;
mod others;
pub mod query;
pub mod run;
pub mod simple;
pub mod spec;
mod terminal;

pub use terminal::Raw;

use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use runtime::{ContainerId, SandboxId};

use crate::client;
use crate::place::{Record, Root};
use crate::wire::{Answer, Ask, Call};

/// What holds for every verb.
pub struct Context {
    /// Where containers are known.
    pub root: Root,
    /// The configuration file that was named.
    pub config: Option<PathBuf>,
    /// More is logged.
    pub debug: bool,
    /// What the caller has left open for the process that is to be.
    pub descriptors: Cell<Vec<OwnedFd>>,
}

/// A container that is known, and its daemon.
pub struct Target {
    /// Its id.
    pub id: ContainerId,
    /// What is kept of it.
    pub record: Record,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// `None`: the daemon is dead.
    pub daemon: Option<UnixStream>,
}

impl Context {
    /// Finds a container. `None`: there is none of that id.
    ///
    /// # Errors
    /// The id is none, or what is kept of it cannot be read.
    pub fn find(&self, id: &str) -> Result<Option<Target>> {
        let id = ContainerId::new(id)?;
        let Some(record) = self.root.read(&id)? else {
            return Ok(None);
        };
        let sandbox = SandboxId::new(record.sandbox.as_str())?;
        Ok(Some(Target {
            daemon: self.root.connect(&sandbox)?,
            id,
            record,
            sandbox,
        }))
    }

    /// Finds a container that there is.
    ///
    /// # Errors
    /// There is none.
    pub fn target(&self, id: &str) -> Result<Target> {
        match self.find(id)? {
            Some(target) => Ok(target),
            None => bail!("container {id} does not exist"),
        }
    }

    /// Asks the daemon of a container.
    ///
    /// # Errors
    /// There is none, or it refuses.
    pub fn ask(&self, id: &str, ask: Ask) -> Result<Answer> {
        self.target(id)?.ask(ask)
    }
}

impl Target {
    /// Asks its daemon.
    ///
    /// # Errors
    /// It is dead, or it refuses.
    pub fn ask(&self, ask: Ask) -> Result<Answer> {
        let call = Call {
            id: self.id.to_string(),
            ask,
        };
        client::ask(self.daemon()?, &call, &[])
    }

    /// Its daemon.
    ///
    /// # Errors
    /// It is dead.
    pub fn daemon(&self) -> Result<&UnixStream> {
        self.daemon.as_ref().with_context(|| {
            format!(
                "container {} has ended with its sandbox's daemon: container not running; delete it",
                self.id
            )
        })
    }
}

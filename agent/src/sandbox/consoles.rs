//! Processes by their names: those of containers, and those of the guest itself, which belong to the empty id.

use super::{Sandbox, spec};
use crate::console::{self, ConsoleRequest};
use crate::error::{Error, Result};
use crate::process::Process;

/// Programs in the guest itself at a time.
const MOST_CONSOLES: usize = 16;

impl Sandbox {
    /// A process of a container, or one of the guest itself, which belongs to the empty id.
    pub(super) fn process(&self, container: &str, exec: &str) -> Result<&Process> {
        if !container.is_empty() {
            return self.entry(container)?.process(container, exec);
        }
        self.consoles.get(exec).ok_or_else(|| no_console(exec))
    }

    /// Like [`Sandbox::process`].
    pub(super) fn process_mut(&mut self, container: &str, exec: &str) -> Result<&mut Process> {
        if !container.is_empty() {
            return self.entry_mut(container)?.process_mut(container, exec);
        }
        self.consoles.get_mut(exec).ok_or_else(|| no_console(exec))
    }

    /// Runs a program in the guest itself.
    pub(super) fn open_console(&mut self, request: &ConsoleRequest) -> Result<i32> {
        self.ready()?;
        spec::check_id("exec_id", &request.id)?;
        if self.consoles.contains_key(&request.id) {
            return Err(Error::Exists {
                what: "console",
                id: request.id.clone(),
            });
        }
        if self.consoles.len() >= MOST_CONSOLES {
            return Err(Error::State("too many consoles are open"));
        }
        let process = console::open(request, self.workshop.mounter.root().dir(), &self.workshop.reaper)?;
        let pid = process.pid;
        self.consoles.insert(request.id.clone(), process);
        Ok(pid)
    }
}

fn no_console(exec: &str) -> Error {
    Error::NoProcess {
        container: String::new(),
        process: exec.to_owned(),
    }
}

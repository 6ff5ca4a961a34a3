//! The terminal of whoever called, while a container has it.

use std::os::fd::{AsFd, OwnedFd};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Passes on every byte as it is until it is dropped; what makes lines of bytes is the terminal in the guest.
pub struct Raw {
    terminal: OwnedFd,
    before: Termios,
}

impl Raw {
    /// Sets it so. `None`: this is no terminal.
    pub fn set(terminal: impl AsFd) -> Option<Self> {
        let before = tcgetattr(&terminal).ok()?;
        let terminal = terminal.as_fd().try_clone_to_owned().ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw).ok()?;
        Some(Self { terminal, before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // One that has been hung up has no settings.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

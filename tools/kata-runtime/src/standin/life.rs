//! A stand-in's life: it passes on signals and sizes until it is told how its process has ended.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::tcgetwinsize;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::channel::{LENGTH, Said, Told};
use super::root;

/// Exit status when the daemon is gone, and the virtual machine with it: 128 + SIGKILL.
const LOST: u8 = 137;

/// Signals that are about the stand-in itself, and not for the workload. Of those that stop a job, SIGTSTP alone is passed on: the
/// others come of touching a terminal, which the stand-in does not.
const OWN: [Signal; 6] = [
    Signal::SIGCHLD,
    Signal::SIGPIPE,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
    Signal::SIGURG,
    Signal::SIGCONT,
];

/// A stand-in.
pub struct Life<'a> {
    daemon: UnixStream,
    terminal: Option<BorrowedFd<'a>>,
    signals: SignalFd,
    /// What is to become the root directory.
    root: Option<PathBuf>,
}

impl<'a> Life<'a> {
    /// From here on signals are passed on. The process has one thread.
    ///
    /// # Errors
    /// The system's.
    pub fn begin(
        daemon: UnixStream,
        terminal: Option<BorrowedFd<'a>>,
        root: Option<PathBuf>,
    ) -> io::Result<Self> {
        let mut all = SigSet::all();
        // What a fault of our own causes must end us.
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGFPE,
            Signal::SIGILL,
            Signal::SIGABRT,
        ] {
            all.remove(fault);
        }
        all.thread_block()?;
        let signals = SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self {
            daemon,
            terminal,
            signals,
            root,
        })
    }

    /// Lives until the end of the process that it stands for, and answers with that one's status.
    pub fn live(mut self) -> u8 {
        // A daemon that cannot be read or written any more is as good as gone.
        self.watch().unwrap_or(LOST)
    }

    fn watch(&mut self) -> io::Result<u8> {
        loop {
            let (signalled, spoken) = {
                let mut fds = [
                    PollFd::new(&self.signals, PollFlags::IN),
                    PollFd::new(&self.daemon, PollFlags::IN),
                ];
                match poll(&mut fds, None) {
                    Err(Errno::INTR) => continue,
                    polled => polled?,
                };
                let [signals, daemon] = fds.map(|fd| !fd.revents().is_empty());
                (signals, daemon)
            };
            if signalled {
                while let Some(signal) = self.signals.read_signal()? {
                    self.pass_on(signal.ssi_signo)?;
                }
            }
            if spoken {
                let mut word = [0; LENGTH];
                self.daemon.read_exact(&mut word)?;
                match Told::from_bytes(word) {
                    Some(Told::Settle(pid)) => self.settle(pid)?,
                    Some(Told::End(status)) => return Ok(status),
                    None => return Err(io::ErrorKind::InvalidData.into()),
                }
            }
        }
    }

    fn pass_on(&mut self, signal: u32) -> io::Result<()> {
        if signal == Signal::SIGWINCH as u32 {
            return self.tell_size();
        }
        if OWN.iter().any(|own| *own as u32 == signal) {
            return Ok(());
        }
        self.say(Said::Signal(signal))
    }

    fn tell_size(&mut self) -> io::Result<()> {
        let Some(terminal) = self.terminal else {
            return Ok(());
        };
        // One that has been hung up has no size.
        let Ok(size) = tcgetwinsize(terminal) else {
            return Ok(());
        };
        self.say(Said::Size {
            rows: size.ws_row,
            columns: size.ws_col,
        })
    }

    /// Becomes what its caller looks for.
    fn settle(&mut self, pid: u32) -> io::Result<()> {
        if let Err(error) = self.enter(pid) {
            let number = error.raw_os_error().unwrap_or_default();
            return self.say(Said::Failed(number.unsigned_abs()));
        }
        // The size may have changed before it was told to anybody.
        self.tell_size()?;
        self.say(Said::Ready)
    }

    fn enter(&mut self, pid: u32) -> io::Result<()> {
        // Found by the host's own /proc, which is not there afterwards.
        let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        match self.root.take() {
            Some(root) => root::enter(&root),
            None => Ok(()),
        }
    }

    fn say(&mut self, said: Said) -> io::Result<()> {
        self.daemon.write_all(&said.to_bytes())
    }
}

/// Ends this process with a status.
pub fn ends_with(status: u8) -> ! {
    std::process::exit(status.into())
}

//! `kata-standin`: the process of the host that stands for one of a guest. `kata-runtime` starts it; nobody else does.
//!
//! Its standard input is the connection to the sandbox's daemon; with the argument `terminal`, its standard output is the terminal of
//! the process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::process::{ioctl_tiocsctty, setsid};
use standin::{Life, ends_with};

/// Nothing could be begun.
const FAILED: u8 = 255;

fn main() {
    ends_with(run().unwrap_or(FAILED));
}

fn run() -> io::Result<u8> {
    // Callers kill the process group of the one that they know.
    setsid()?;
    let output = io::stdout();
    let terminal = std::env::args_os().nth(1).is_some_and(|word| word == "terminal");
    let daemon: OwnedFd = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let life = Life::begin(UnixStream::from(daemon), terminal.then_some(output.as_fd()))?;
    if terminal {
        // From here on a change of its size is a signal to us.
        ioctl_tiocsctty(&output)?;
    }
    Ok(life.live())
}

//! `kata-standin`: the process of the host that stands for one of a guest. `kata-runtime` starts it; nobody else does.
//!
//! Its standard input is the connection to the sandbox's daemon. Its arguments are those of the process, for whoever lists processes;
//! what is for itself is in its environment (`standin::root`).

use std::env;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::process::{ioctl_tiocsctty, setsid};
use standin::root::{ROOT, TERMINAL};
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
    let terminal = env::var_os(TERMINAL).is_some();
    let daemon: OwnedFd = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let life = Life::begin(
        UnixStream::from(daemon),
        terminal.then_some(output.as_fd()),
        env::var_os(ROOT).map(PathBuf::from),
    )?;
    if terminal {
        // From here on a change of its size is a signal to us.
        ioctl_tiocsctty(&output)?;
    }
    Ok(life.live())
}

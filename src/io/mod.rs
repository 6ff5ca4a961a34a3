//! A process's standard streams: where they lead on the host, and the moving of bytes between there and the guest.
//!
//! Parsing of URIs is the caller's. Must not know what a container is beyond the names of a process in the agent's calls.

mod descriptor;
mod endpoint;
mod fifo;
mod pump;
mod sys;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

pub(crate) use endpoint::{Opened, Sink, Source};
pub(crate) use pump::{CHUNK, Delivery, Input as InputPump, Name, Output as OutputPump, Target};

/// The streams of one process: the standard ones, and what it has beyond them.
#[derive(Debug, Default)]
pub struct Stdio {
    /// The process gets a terminal; output is `stdout` alone.
    pub terminal: bool,
    /// Standard input.
    pub stdin: Input,
    /// Standard output.
    pub stdout: Output,
    /// Standard error.
    pub stderr: Output,
    /// Its descriptors 3 and following, in this order: pipes, connected stream sockets, terminals, and files as streams
    /// ([`check_descriptor`]). In the guest it has a pipe or a connected socket for each, whose bytes are carried, in whichever directions
    /// there are; each direction ends by itself, and all of them with the process.
    pub descriptors: Vec<OwnedFd>,
}

/// Looks whether a process of a guest can have this descriptor, as its own of this number (see [`Stdio::descriptors`]). Whoever wants to
/// refuse before anything is started asks before.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) says what it is, and what would do.
pub fn check_descriptor(number: u32, fd: impl AsFd) -> crate::error::Result<()> {
    descriptor::check(number, fd).map(drop)
}

/// Source of standard input.
#[derive(Debug, Default)]
pub enum Input {
    /// Nothing.
    #[default]
    Null,
    /// A named pipe that clients write, one after the other; opened without blocking. The end of input comes by
    /// `close_stdin` alone.
    Fifo(PathBuf),
    /// An open descriptor.
    Descriptor(OwnedFd),
}

/// Sink of output.
#[derive(Debug, Default)]
pub enum Output {
    /// Nothing: the guest throws it away.
    #[default]
    Null,
    /// A named pipe; kept open for reading by us as well, so that a reader may come and go without losing output.
    Fifo(PathBuf),
    /// A file that is appended to; created, with its directories, when missing.
    File(PathBuf),
    /// An open descriptor (the pipe of a logger).
    Descriptor(OwnedFd),
}

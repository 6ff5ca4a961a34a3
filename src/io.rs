//! Where a process's standard streams lead on the host. Parsing of URIs is the caller's; moving bytes is ours.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// The standard streams of one process.
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
}

/// Source of standard input.
#[derive(Debug, Default)]
pub enum Input {
    /// Nothing.
    #[default]
    Null,
    /// A named pipe that the client writes; opened without blocking. End of input comes by `close_stdin` or when the
    /// last writer has closed.
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

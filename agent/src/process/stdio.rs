//! Makes the two sides of a process's standard streams: the child's ends for its creation, ours to read and write.

use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::sync::watch;

use super::stream::{End, Input, Output};
use crate::container::{ProcessStdio, Started};
use crate::error::{Error, Result};

/// Which streams somebody wants to read or write; the others are /dev/null.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A terminal carries all of them.
    pub terminal: bool,
    /// Input.
    pub stdin: bool,
    /// Output.
    pub stdout: bool,
    /// Errors; a terminal has none of its own.
    pub stderr: bool,
    /// Rows and columns of the terminal.
    pub size: Option<(u16, u16)>,
}

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    console: Option<End>,
    /// Ends what is under way on them when the process is forgotten.
    _forget: watch::Sender<()>,
}

/// Bytes a pipe holds when the kernel allows it: as much as one call may carry, so that few calls move much.
const PIPE_SIZE: usize = agent_protocol::MAX_CHUNK;

/// Our ends while the process is being created.
#[derive(Debug)]
pub struct Pending {
    wanted: Wanted,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// Makes the pipes that are wanted; a terminal is made by the creation itself.
///
/// # Errors
/// When the kernel gives no pipe.
pub fn prepare(wanted: Wanted) -> Result<(Pending, ProcessStdio)> {
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        if !wanted {
            return Ok((None, None));
        }
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("make a pipe"))?;
        // A smaller pipe is only slower.
        let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
        Ok((Some(read), Some(write)))
    };
    let pipes = !wanted.terminal;
    let (child_stdin, stdin) = pipe(pipes && wanted.stdin)?;
    let (stdout, child_stdout) = pipe(pipes && wanted.stdout)?;
    let (stderr, child_stderr) = pipe(pipes && wanted.stderr)?;
    let child = ProcessStdio {
        stdin: child_stdin,
        stdout: child_stdout,
        stderr: child_stderr,
        terminal: wanted.terminal,
        // A creation counts columns first.
        size: wanted.size.map(|(rows, columns)| (columns, rows)),
    };
    Ok((
        Pending {
            wanted,
            stdin,
            stdout,
            stderr,
        },
        child,
    ))
}

impl Pending {
    /// Our ends, once the process exists.
    ///
    /// # Errors
    /// When they can't be registered with the event loop.
    pub fn connect(self, started: &mut Started) -> Result<Streams> {
        let (forget, forgotten) = watch::channel(());
        let console = started
            .console
            .take()
            .map(|fd| End::new(fd, Interest::READABLE | Interest::WRITABLE))
            .transpose()?;
        if let (Some(console), false) = (&console, self.wanted.stdout) {
            // Nobody will read the terminal, and a process must not wait for that.
            tokio::spawn(discard(Output::new(console.clone(), forgotten.clone())));
        }
        let end = |pipe: Option<OwnedFd>, shared: bool, interest: Interest| match pipe {
            Some(fd) => End::new(fd, interest).map(Some),
            None => Ok(console.clone().filter(|_| shared)),
        };
        let stdin = end(self.stdin, self.wanted.stdin, Interest::WRITABLE)?;
        let stdout = end(self.stdout, self.wanted.stdout, Interest::READABLE)?;
        let stderr = end(self.stderr, false, Interest::READABLE)?;
        Ok(Streams {
            stdin: stdin.map(|end| Input::new(end, forgotten.clone())),
            stdout: stdout.map(|end| Output::new(end, forgotten.clone())),
            stderr: stderr.map(|end| Output::new(end, forgotten)),
            console,
            _forget: forget,
        })
    }
}

async fn discard(output: Output) {
    while output.read(4096).await.is_ok_and(|data| !data.is_empty()) {}
}

impl Streams {
    /// Standard output, or the terminal's.
    ///
    /// # Errors
    /// [`Error::NoStream`] when it was not wanted.
    pub fn stdout(&self) -> Result<Output> {
        self.stdout.clone().ok_or(Error::NoStream("stdout"))
    }

    /// Standard error.
    ///
    /// # Errors
    /// [`Error::NoStream`] when it was not wanted, or is the terminal's output.
    pub fn stderr(&self) -> Result<Output> {
        self.stderr.clone().ok_or(Error::NoStream("stderr"))
    }

    /// Standard input, or the terminal's.
    ///
    /// # Errors
    /// [`Error::NoStream`] when it was not wanted or is closed.
    pub fn stdin(&self) -> Result<Input> {
        self.stdin.clone().ok_or(Error::NoStream("stdin"))
    }

    /// Ends the input: the process reads the end of the pipe after what was written before. A terminal has no such
    /// end; there it only means that no more will come.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Tells the terminal its size; the kernel signals its foreground processes.
    ///
    /// # Errors
    /// [`Error::NoStream`] when the process has no terminal.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let console = self.console.as_ref().ok_or(Error::NoStream("terminal"))?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(console.fd(), size).map_err(Error::system("resize the terminal"))
    }
}

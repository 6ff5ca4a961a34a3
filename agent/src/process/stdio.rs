//! Makes the two sides of a process's streams, the standard ones and further descriptors: the child's ends for its creation, ours to
//! read and write.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, shutdown, socketpair};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::sync::watch;

use super::stream::{End, Forgotten, Input, Output};
use crate::container::{ProcessStdio, Started};
use crate::error::{Error, Result};

/// Which streams somebody wants to read or write; the others are /dev/null.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
    /// Descriptors 3 and following.
    pub descriptors: Vec<Direction>,
}

/// What a process does with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It reads a pipe.
    Reads,
    /// It writes to a pipe.
    Writes,
    /// Both, with a connected socket.
    Both,
}

/// The agent's ends of a process's streams.
#[derive(Debug)]
pub struct Streams {
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    console: Option<End>,
    /// Of descriptors 3 and following.
    descriptors: Vec<Descriptor>,
    /// Ends what is under way on them when the process is forgotten.
    _forget: watch::Sender<()>,
}

/// The agent's end of a descriptor beyond the standard ones.
#[derive(Debug)]
struct Descriptor {
    input: Option<Input>,
    output: Option<Output>,
    /// Of a socket.
    socket: Option<End>,
    /// Ends a read that is under way.
    finish: watch::Sender<()>,
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
    descriptors: Vec<OwnedFd>,
}

/// Makes the pipes that are wanted; a terminal is made by the creation itself.
///
/// # Errors
/// When the kernel gives no pipe.
pub fn prepare(wanted: &Wanted) -> Result<(Pending, ProcessStdio)> {
    let pipe = |wanted: bool| -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        if !wanted {
            return Ok((None, None));
        }
        let (read, write) = self::pipe()?;
        Ok((Some(read), Some(write)))
    };
    let (mut descriptors, mut child_descriptors) = (Vec::new(), Vec::new());
    for direction in &wanted.descriptors {
        let (ours, its) = match direction {
            Direction::Reads => self::pipe().map(|(read, write)| (write, read))?,
            Direction::Writes => self::pipe()?,
            Direction::Both => {
                let (unix, stream) = (AddressFamily::UNIX, SocketType::STREAM);
                socketpair(unix, stream, SocketFlags::CLOEXEC, None)
                    .map_err(Error::system("make a pair of sockets"))?
            }
        };
        descriptors.push(ours);
        child_descriptors.push(its);
    }
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
        descriptors: child_descriptors,
    };
    Ok((
        Pending {
            wanted: wanted.clone(),
            descriptors,
            stdin,
            stdout,
            stderr,
        },
        child,
    ))
}

/// The end to read and the end to write.
fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(Error::system("make a pipe"))?;
    // A smaller pipe is only slower.
    let _ = fcntl_setpipe_size(&write, PIPE_SIZE);
    Ok((read, write))
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
        let directions = self.wanted.descriptors.iter().copied();
        let descriptors = self
            .descriptors
            .into_iter()
            .zip(directions)
            .map(|(fd, direction)| Descriptor::new(fd, direction, &forgotten))
            .collect::<Result<_>>()?;
        Ok(Streams {
            descriptors,
            stdin: stdin.map(|end| Input::new(end, forgotten.clone())),
            stdout: stdout.map(|end| Output::new(end, forgotten.clone())),
            stderr: stderr.map(|end| Output::new(end, forgotten)),
            console,
            _forget: forget,
        })
    }
}

impl Descriptor {
    fn new(fd: OwnedFd, direction: Direction, forgotten: &Forgotten) -> Result<Self> {
        let interest = match direction {
            Direction::Reads => Interest::WRITABLE,
            Direction::Writes => Interest::READABLE,
            Direction::Both => Interest::READABLE | Interest::WRITABLE,
        };
        let end = End::new(fd, interest)?;
        let (finish, finished) = watch::channel(());
        Ok(Self {
            input: (direction != Direction::Writes).then(|| Input::new(end.clone(), forgotten.clone())),
            output: (direction != Direction::Reads).then(|| Output::new(end.clone(), finished)),
            socket: (direction == Direction::Both).then_some(end),
            finish,
        })
    }

    /// The process finds the end of what it reads, after what was written before.
    fn close_input(&mut self) {
        self.input = None;
        self.shut(Shutdown::Write);
    }

    /// The process finds broken what it writes to.
    fn close_output(&mut self) {
        self.output = None;
        self.finish.send_replace(());
        self.shut(Shutdown::Read);
    }

    /// Ends one direction of a socket, and closes it after the other.
    fn shut(&mut self, how: Shutdown) {
        if let Some(socket) = &self.socket {
            // The process has closed it.
            let _ = shutdown(socket.fd(), how);
        }
        if self.input.is_none() && self.output.is_none() {
            self.socket = None;
        }
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

    /// What the process writes to one of its descriptors beyond the standard ones.
    ///
    /// # Errors
    /// [`Error::NoStream`] when there is none, it does not write there, or nobody reads it any more.
    pub fn output(&self, number: u32) -> Result<Output> {
        let descriptor = index(number).and_then(|index| self.descriptors.get(index));
        descriptor
            .and_then(|descriptor| descriptor.output.clone())
            .ok_or(Error::NoStream("descriptor to read"))
    }

    /// Where it reads what is written to one of those.
    ///
    /// # Errors
    /// [`Error::NoStream`] when there is none, it does not read there, or that has ended.
    pub fn input(&self, number: u32) -> Result<Input> {
        let descriptor = index(number).and_then(|index| self.descriptors.get(index));
        descriptor
            .and_then(|descriptor| descriptor.input.clone())
            .ok_or(Error::NoStream("descriptor to write to"))
    }

    /// Ends what the process reads from one of those. One that is not there has ended.
    pub fn close_input(&mut self, number: u32) {
        if let Some(descriptor) = self.descriptor(number) {
            descriptor.close_input();
        }
    }

    /// Nobody reads what the process writes to one of those.
    pub fn close_output(&mut self, number: u32) {
        if let Some(descriptor) = self.descriptor(number) {
            descriptor.close_output();
        }
    }

    fn descriptor(&mut self, number: u32) -> Option<&mut Descriptor> {
        self.descriptors.get_mut(index(number)?)
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

/// Place of a descriptor among those beyond the standard ones.
fn index(number: u32) -> Option<usize> {
    usize::try_from(number.checked_sub(agent_protocol::FIRST_DESCRIPTOR)?).ok()
}

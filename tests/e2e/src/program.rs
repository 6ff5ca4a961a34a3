//! Running other programs with a deadline. What a failure says is all that one needs: the command, its end, its output.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::deadlines;
use crate::terminal::{Size, Terminal};

/// A program to run.
#[derive(Debug)]
pub struct Program {
    command: Command,
    stdin: Option<Vec<u8>>,
    limit: Duration,
}

impl Program {
    /// The program called `name`. Its standard input is empty.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Self {
            command,
            stdin: None,
            limit: deadlines::CALL,
        }
    }

    /// Adds arguments.
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of its environment.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its working directory.
    pub fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Gives it these bytes on standard input, and then its end.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.command.stdin(Stdio::piped());
        self.stdin = Some(bytes.into());
        self
    }

    /// Leaves its standard input open: see [`Running::stdin`].
    pub fn open_stdin(mut self) -> Self {
        self.command.stdin(Stdio::piped());
        self
    }

    /// Gives it this file as standard input.
    pub fn stdin_from(mut self, file: File) -> Self {
        self.command.stdin(file);
        self
    }

    /// Has a shell open descriptors for it: redirections, as they follow `exec`. To be said last.
    pub fn redirected(mut self, redirections: &str) -> Self {
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("exec {redirections}; exec \"$0\" \"$@\""))
            .arg(self.command.get_program())
            .args(self.command.get_args())
            .stdin(Stdio::null());
        for (name, value) in self.command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        if let Some(directory) = self.command.get_current_dir() {
            shell.current_dir(directory);
        }
        self.command = shell;
        self
    }

    /// How long it may take, instead of [`deadlines::CALL`].
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(mut self) -> Result<Running> {
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::start(self.command, self.limit, self.stdin, None)
    }

    /// Starts it with its standard output going to where somebody else reads it, or nobody.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_writing_to(mut self, output: impl Into<Stdio>) -> Result<Running> {
        self.command.stdout(output).stderr(Stdio::piped());
        Running::start(self.command, self.limit, self.stdin, None)
    }

    /// Starts it with both of its outputs going to `log`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start_logging_to(mut self, log: File) -> Result<Running> {
        let both = log.try_clone().context("duplicate a log's descriptor")?;
        self.command.stdout(both).stderr(log);
        Running::start(self.command, self.limit, self.stdin, None)
    }

    /// Starts it with a terminal of its own, which is its controlling one, for all three standard streams.
    ///
    /// # Errors
    /// It can't be started, or there is no terminal to be had.
    pub fn start_on_terminal(self, size: Size) -> Result<Terminal> {
        let (terminal, end) = Terminal::open(size)?;
        // The one program that makes its terminal the controlling one and then becomes another.
        let mut command = Command::new("setsid");
        command
            .arg("--ctty")
            .arg(self.command.get_program())
            .args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        command.env("TERM", "xterm");
        command
            .stdin(end.try_clone()?)
            .stdout(end.try_clone()?)
            .stderr(end);
        let running = Running::start(command, self.limit, None, Some(terminal.try_clone()?))?;
        Ok(Terminal::new(running, terminal))
    }

    /// Runs it to its end, however it ends.
    ///
    /// # Errors
    /// It can't be started, or did not end within its time; then it was killed.
    pub fn output(self) -> Result<Output> {
        self.start()?.end()
    }

    /// Runs it, and answers what it wrote to standard output.
    ///
    /// # Errors
    /// It failed.
    pub fn read(self) -> Result<String> {
        self.output()?.success()
    }

    /// The command, for what is not run to its end here.
    pub fn into_command(self) -> Command {
        self.command
    }
}

/// A program that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// Becomes readable at the child's end.
    pidfd: OwnedFd,
    shown: String,
    begin: Instant,
    end: Instant,
    stdout: Arc<Gathered>,
    stderr: Arc<Gathered>,
}

impl Running {
    /// Starts `command`, whose output is gathered where it is piped, and its standard output from `terminal` if it has one.
    fn start(
        mut command: Command,
        limit: Duration,
        stdin: Option<Vec<u8>>,
        terminal: Option<File>,
    ) -> Result<Self> {
        let shown = shown(&command);
        let mut child = command.spawn().with_context(|| format!("start {shown}"))?;
        let pidfd =
            pidfd_open(pid(&child)?, PidfdFlags::empty()).context("open a descriptor of a process")?;
        if let Some(bytes) = stdin
            && let Some(mut pipe) = child.stdin.take()
        {
            // On its own thread: a program may write before it has read all. One that reads not all is no error of ours.
            thread::spawn(move || {
                let _ = pipe.write_all(&bytes);
            });
        }
        let begin = Instant::now();
        // Holds our copies of what the child has, of a terminal's end among others, which would then never close.
        drop(command);
        Ok(Self {
            stdout: match terminal {
                Some(terminal) => Gathered::from(Some(terminal)),
                None => Gathered::from(child.stdout.take()),
            },
            stderr: Gathered::from(child.stderr.take()),
            pidfd,
            shown,
            begin,
            end: begin + limit,
            child,
        })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its standard input, if it was left open. Its end is when this is dropped.
    pub fn stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> Vec<u8> {
        self.stdout.lock().bytes.clone()
    }

    /// Waits until its standard output has `text`, and answers all that it has then.
    ///
    /// # Errors
    /// It ended, or its time is over, and the text has not come.
    pub fn wait_for(&self, text: &str) -> Result<String> {
        self.wait_until(&format!("{text:?}"), |bytes| {
            bytes.windows(text.len()).any(|window| window == text.as_bytes())
        })?;
        Ok(String::from_utf8_lossy(&self.stdout()).into_owned())
    }

    /// Waits until it has written `count` bytes to standard output.
    ///
    /// # Errors
    /// It ended, or its time is over, and has written less.
    pub fn wait_for_bytes(&self, count: usize) -> Result<()> {
        self.wait_until(&format!("{count} bytes"), |bytes| bytes.len() >= count)
    }

    pub(crate) fn wait_until(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> Result<()> {
        if self.stdout.wait_until(self.end, wanted) {
            return Ok(());
        }
        bail!(
            "`{}` did not write {what}\nstdout:\n{}\nstderr:\n{}",
            self.shown,
            Quoted(&self.stdout.lock().bytes),
            Quoted(&self.stderr.lock().bytes),
        );
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// It has ended and was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(pid(&self.child)?, signal).with_context(|| format!("send a signal to `{}`", self.shown))
    }

    /// Whether it has ended.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end and for the end of its output.
    ///
    /// # Errors
    /// It did not end within its time; then it was killed.
    pub fn end(mut self) -> Result<Output> {
        let status = self.wait()?;
        // What holds its pipes open beyond its end is a leak, and is told as one.
        let complete = self.stdout.wait_until_closed(self.end) && self.stderr.wait_until_closed(self.end);
        let output = Output {
            shown: self.shown.clone(),
            status,
            stdout: std::mem::take(&mut self.stdout.lock().bytes),
            stderr: String::from_utf8_lossy(&self.stderr.lock().bytes).into_owned(),
            took: self.begin.elapsed(),
        };
        if !complete {
            bail!("another process holds the output of what has ended: {output}");
        }
        Ok(output)
    }

    /// Waits for its end, from now on for `limit`.
    ///
    /// # Errors
    /// It did not end within that time; then it was killed.
    pub fn wait_at_most(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.begin = Instant::now();
        self.end = self.begin + limit;
        self.wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It did not end within its time; then it was killed.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        if !self.ends_by(self.end)? {
            self.kill();
            bail!(
                "`{}` did not end within {:.0} s\nstdout:\n{}\nstderr:\n{}",
                self.shown,
                (self.end - self.begin).as_secs_f64(),
                Quoted(&self.stdout.lock().bytes),
                Quoted(&self.stderr.lock().bytes),
            );
        }
        Ok(self.child.wait()?)
    }

    /// Waits for its end until `deadline`, and says whether it came.
    fn ends_by(&self, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left)?;
            let mut polled = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            match poll(&mut polled, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => return Ok(true),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("wait for the end of a process"),
            }
        }
    }

    fn kill(&mut self) {
        // Fails where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn pid(child: &Child) -> Result<Pid> {
    i32::try_from(child.id())
        .ok()
        .and_then(Pid::from_raw)
        .context("a process has a positive id")
}

/// The command, as one would type it.
fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// What comes out of a pipe, gathered by a thread.
#[derive(Debug, Default)]
struct Gathered {
    state: Mutex<Stream>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Stream {
    bytes: Vec<u8>,
    closed: bool,
}

impl Gathered {
    fn from(pipe: Option<impl Read + Send + 'static>) -> Arc<Self> {
        let gathered = Arc::new(Self::default());
        let Some(mut pipe) = pipe else {
            gathered.lock().closed = true;
            return gathered;
        };
        let writer = Arc::clone(&gathered);
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            // A terminal whose other side is closed answers with an error, not with an end.
            while let Ok(count) = pipe.read(&mut buffer)
                && let Some(read @ [_, ..]) = buffer.get(..count)
            {
                writer.lock().bytes.extend_from_slice(read);
                writer.changed.notify_all();
            }
            writer.lock().closed = true;
            writer.changed.notify_all();
        });
        gathered
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stream> {
        // A reader that panicked has left whole bytes.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the bytes are as wanted. Says whether they are; false at the deadline, or when no more can come.
    fn wait_until(&self, deadline: Instant, wanted: impl Fn(&[u8]) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if wanted(&state.bytes) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return false;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn wait_until_closed(&self, deadline: Instant) -> bool {
        self.wait_until(deadline, |_| false);
        self.lock().closed
    }
}

/// What a program did.
#[derive(Debug)]
pub struct Output {
    shown: String,
    status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
    /// From its start to its end.
    pub took: Duration,
}

impl Output {
    /// Its exit code; none where a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// What it wrote to standard output.
    ///
    /// # Errors
    /// It failed.
    pub fn success(self) -> Result<String> {
        self.exits(0)
    }

    /// What it wrote to standard output, as text.
    ///
    /// # Errors
    /// It did not exit with `code`.
    pub fn exits(self, code: i32) -> Result<String> {
        if self.code() != Some(code) {
            bail!("not the exit code {code}: {self}");
        }
        Ok(String::from_utf8_lossy(&self.stdout).into_owned())
    }

    /// What it wrote to standard error.
    ///
    /// # Errors
    /// It succeeded.
    pub fn failure(self) -> Result<String> {
        if self.status.success() {
            bail!("this should have failed: {self}");
        }
        Ok(self.stderr)
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` ended after {:.1} s with {}\nstdout:\n{}\nstderr:\n{}",
            self.shown,
            self.took.as_secs_f64(),
            self.status,
            Quoted(&self.stdout),
            Quoted(self.stderr.as_bytes()),
        )
    }
}

/// Output in an error: indented, and of much of it only the end.
pub(crate) struct Quoted<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MOST: usize = 6000;
        let from = self.0.len().saturating_sub(MOST);
        if from > 0 {
            writeln!(f, "  [{from} bytes]")?;
        }
        let text = String::from_utf8_lossy(self.0.get(from..).unwrap_or_default());
        // Control characters are what one looks for in vain otherwise.
        text.split_terminator('\n')
            .try_for_each(|line| writeln!(f, "  {}", line.escape_debug()))
    }
}

/// Whether a program is there: at this path, or below a directory of `PATH` if it is a mere name.
pub fn exists(program: &Path) -> bool {
    if program.components().count() > 1 {
        return program.is_file();
    }
    let path = search_path();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// `PATH`, with the directories of an administrator's programs, which `sudo` and `su` may leave out.
pub fn search_path() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

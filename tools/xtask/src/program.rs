//! Running other programs: what is run is shown, and a failure says what was run and how it ended.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// A program to run in the foreground.
#[derive(Debug)]
pub struct Program {
    command: Command,
}

impl Program {
    /// The program called `name`. Its standard input is empty.
    pub fn new(name: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(name);
        command.stdin(Stdio::null());
        Self { command }
    }

    /// The cargo that runs us.
    pub fn cargo() -> Self {
        Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
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

    /// What it prints goes into this file.
    ///
    /// # Errors
    /// No more descriptors can be had.
    pub fn into_file(mut self, file: &File) -> Result<Self> {
        self.command.stdout(file.try_clone()?).stderr(file.try_clone()?);
        Ok(self)
    }

    /// Runs it in `dir`.
    pub fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs it at a lower priority, so that an hour of building leaves the machine usable.
    pub fn nice(self) -> Self {
        let mut nice = Self::new("nice");
        nice.command
            .arg(self.command.get_program())
            .args(self.command.get_args());
        for (name, value) in self.command.get_envs() {
            if let Some(value) = value {
                nice.command.env(name, value);
            }
        }
        if let Some(dir) = self.command.get_current_dir() {
            nice.command.current_dir(dir);
        }
        nice
    }

    /// Runs it; what it prints is seen as it comes.
    ///
    /// # Errors
    /// It could not be started, or failed.
    pub fn run(mut self) -> Result<()> {
        let status = self
            .command
            .status()
            .with_context(|| format!("run {}", self.shown()))?;
        if !status.success() {
            bail!("`{}` failed: {status}", self.shown());
        }
        Ok(())
    }

    /// Runs it, and answers what it wrote to standard output. Standard error is seen as it comes.
    ///
    /// # Errors
    /// It could not be started, failed, or wrote what is not UTF-8.
    pub fn read(mut self) -> Result<String> {
        self.command.stderr(Stdio::inherit());
        let output = self.output()?;
        if !output.status.success() {
            bail!("`{}` failed: {}", self.shown(), output.status);
        }
        String::from_utf8(output.stdout).with_context(|| format!("read the output of {}", self.shown()))
    }

    /// Runs it, and answers all of its output, however it ends.
    ///
    /// # Errors
    /// It could not be started.
    pub fn output(&mut self) -> Result<Output> {
        self.command
            .output()
            .with_context(|| format!("run {}", self.shown()))
    }

    /// Starts it, with its standard output on a pipe.
    ///
    /// # Errors
    /// It could not be started.
    pub fn spawn_piped(mut self) -> Result<Child> {
        self.command.stdout(Stdio::piped());
        self.command
            .spawn()
            .with_context(|| format!("run {}", self.shown()))
    }

    /// What is run, as one would type it.
    fn shown(&self) -> String {
        let words = std::iter::once(self.command.get_program()).chain(self.command.get_args());
        words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
    }
}

/// Whether we may change the system.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    // The owner of our own entry in /proc is our effective user.
    std::fs::metadata("/proc/self").is_ok_and(|entry| entry.uid() == 0)
}

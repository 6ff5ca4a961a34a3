//! The processes that a command leaves behind: the daemon of a sandbox, and the stand-in of a process.
//!
//! They hold no descriptor of whoever called but those that are theirs: a caller waits for the end of its pipes, and keeps ports busy
//! by sockets that it lets leak.

use std::env;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, unshare};
use runtime::SandboxId;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fstat};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcgetwinsize, tcsetattr};

use standin::root::{ROOT, TERMINAL};

use crate::client;
use crate::daemon;
use crate::place::Root;
use crate::wire::{Answer, Ask, Call, MORE, NewProcess};

/// The first descriptor that is no standard stream.
const FIRST: i32 = 3;

/// Name of the stand-in's program, beside ours.
const STANDIN: &str = "kata-standin";

/// Starts the daemon of a sandbox. It listens when this returns.
///
/// # Errors
/// It cannot be started.
pub fn daemon(root: &Root, sandbox: &SandboxId, debug: bool) -> Result<()> {
    let listener: UnixListener = root.listen(sandbox)?;
    let spawned = || -> Result<()> {
        let program = env::current_exe().context("cannot find this program's file")?;
        let path = daemon::log_path(root, sandbox);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut command = Command::new(&program);
        command.arg("--root").arg(root.path());
        if debug {
            command.arg("--debug");
        }
        command
            .args(["daemon", sandbox.as_str()])
            .current_dir("/")
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(log);
        command
            .spawn()
            .map(drop)
            .with_context(|| format!("cannot start {}", program.display()))
    };
    spawned().inspect_err(|_| {
        // Nobody else knows it yet.
        let _ = root.remove_socket(sandbox);
    })
}

/// Keeps from children what whoever called let leak.
///
/// # Errors
/// The kernel is too old.
pub fn keep_descriptors() -> Result<()> {
    hypervisor::process::close_on_exec_from(FIRST.unsigned_abs())
        .context("cannot keep descriptors from children")
}

/// Takes over what a caller has left open for a container or a process: so many descriptors. To be asked once, before this program
/// opens anything.
///
/// # Errors
/// One is not open, or is nothing that can be carried into a virtual machine.
pub fn preserved(count: u32) -> Result<Vec<OwnedFd>> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    if count > MORE {
        bail!("--preserve-fds {count}: at most {MORE} descriptors can be carried into a virtual machine");
    }
    let fds = hypervisor::process::take_inherited(FIRST, count)
        .map_err(|number| anyhow!("--preserve-fds {count}: descriptor {number} is not open"))?;
    for (number, fd) in (FIRST..).zip(&fds) {
        runtime::check_descriptor(number.unsigned_abs(), fd)
            .with_context(|| format!("--preserve-fds {count}"))?;
    }
    Ok(fds)
}

/// Refuses what a service manager has passed on for a container (sd_listen_fds): those descriptors come before all others, and are
/// listening sockets, or a container that waits for one.
///
/// # Errors
/// There are some.
pub fn no_activation() -> Result<()> {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == std::process::id() && count > 0 => bail!(
            "LISTEN_FDS={count}: sockets of a service manager cannot be brought into a virtual machine; publish a port of the \
             container's instead, or leave a connection to it with --preserve-fds"
        ),
        _ => Ok(()),
    }
}

/// The streams of a new process, on this side.
pub struct Streams {
    /// Standard input, output and error output, as far as they are moved by the daemon.
    fds: [Option<OwnedFd>; 3],
    /// The terminal, if there is one.
    terminal: bool,
}

impl Streams {
    /// Those of this program.
    ///
    /// # Errors
    /// They are not open.
    pub fn own(terminal: bool) -> Result<Self> {
        let again = |fd: BorrowedFd<'_>, flags| reopen(fd, flags).context("cannot keep a standard stream");
        Ok(Self {
            fds: [
                Some(again(io::stdin().as_fd(), OFlags::RDONLY)?),
                Some(again(io::stdout().as_fd(), OFlags::WRONLY)?),
                match terminal {
                    true => None,
                    false => Some(again(io::stderr().as_fd(), OFlags::WRONLY)?),
                },
            ],
            terminal,
        })
    }

    /// A new terminal, whose other end goes to whoever listens at `socket`.
    ///
    /// # Errors
    /// There is none to be had, or nobody takes it.
    pub fn console(socket: &Path) -> Result<Self> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let opened = || -> rustix::io::Result<(OwnedFd, OwnedFd)> {
            let master = openpt(flags)?;
            grantpt(&master)?;
            unlockpt(&master)?;
            let slave = ioctl_tiocgptpeer(&master, flags)?;
            // What makes lines of bytes is the terminal in the guest.
            let mut settings = tcgetattr(&slave)?;
            settings.make_raw();
            tcsetattr(&slave, OptionalActions::Now, &settings)?;
            Ok((master, slave))
        };
        let (master, slave) = opened().context("cannot open a terminal")?;
        let sent = || -> Result<()> {
            let stream = UnixStream::connect(socket)?;
            client::send_descriptor(&stream, master.as_fd())?;
            Ok(())
        };
        sent().with_context(|| {
            format!(
                "cannot send the terminal to --console-socket {}",
                socket.display()
            )
        })?;
        Ok(Self {
            fds: [Some(slave.try_clone()?), Some(slave), None],
            terminal: true,
        })
    }

    fn size(&self) -> Option<(u16, u16)> {
        let terminal = self.fds.first()?.as_ref().filter(|_| self.terminal)?;
        let size = tcgetwinsize(terminal).ok()?;
        (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
    }
}

/// A descriptor for the daemon, which makes it one that does not block. That is a property of what it refers to, and whoever else has
/// it would be astonished: so it is opened anew where that is the same.
fn reopen(fd: BorrowedFd<'_>, mode: OFlags) -> io::Result<OwnedFd> {
    let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
    if matches!(kind, FileType::Fifo | FileType::CharacterDevice) {
        let flags = mode | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        // A pipe whose reader is gone cannot be.
        if let Ok(fd) = rustix::fs::open(path, flags, rustix::fs::Mode::empty()) {
            return Ok(fd);
        }
    }
    fd.try_clone_to_owned()
}

/// What a stand-in looks like.
#[derive(Debug, Default)]
pub struct Guise {
    /// Arguments of the process that it stands for.
    pub arguments: Vec<String>,
    /// The root file system of the container, for the stand-in of its first process.
    pub root: Option<PathBuf>,
}

/// A process that is to be: its streams, and the connection of its stand-in.
pub struct Draft {
    streams: Streams,
    /// Descriptors beyond the standard ones.
    more: Vec<OwnedFd>,
    /// The daemon's end.
    channel: UnixStream,
    /// Its stand-in; `None`: that is ourselves.
    standin: Option<Child>,
}

impl Draft {
    /// With a stand-in of its own, which lives on when we have ended.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn detached(streams: Streams, guise: &Guise) -> Result<Self> {
        let (ours, its) = UnixStream::pair().context("cannot connect a stand-in")?;
        let program = env::current_exe()
            .context("cannot find this program's file")?
            .with_file_name(STANDIN);
        let mut command = Command::new(&program);
        command
            .arg0(STANDIN)
            .args(&guise.arguments)
            .env_clear()
            .current_dir("/")
            .stdin(OwnedFd::from(its))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if streams.terminal
            && let [Some(terminal), ..] = &streams.fds
        {
            command.env(TERMINAL, "yes").stdout(terminal.try_clone()?);
        }
        if let Some(root) = &guise.root {
            command.env(ROOT, root);
            // Of what we start from now on. The daemon runs already.
            unshare(CloneFlags::CLONE_NEWPID).context("cannot make a pid namespace for a stand-in")?;
        }
        let standin = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        Ok(Self {
            streams,
            more: Vec::new(),
            channel: ours,
            standin: Some(standin),
        })
    }

    /// With ourselves as the stand-in. Answers with our end of the connection, too.
    ///
    /// # Errors
    /// The system's.
    pub fn attached(streams: Streams) -> Result<(Self, UnixStream)> {
        let (theirs, ours) = UnixStream::pair().context("cannot connect to the daemon")?;
        let draft = Self {
            streams,
            more: Vec::new(),
            channel: theirs,
            standin: None,
        };
        Ok((draft, ours))
    }

    /// With these descriptors beyond the standard streams.
    ///
    /// # Errors
    /// The system's.
    pub fn carrying(mut self, descriptors: Vec<OwnedFd>) -> Result<Self> {
        for fd in descriptors {
            let again = || {
                let mode = fcntl_getfl(&fd)? & OFlags::RWMODE;
                reopen(fd.as_fd(), mode)
            };
            self.more.push(again().context("cannot keep a descriptor")?);
        }
        Ok(self)
    }

    /// Pid of the stand-in.
    pub fn pid(&self) -> u32 {
        self.standin.as_ref().map_or_else(std::process::id, Child::id)
    }

    /// Asks the daemon to make it. Our descriptors are closed when this returns.
    ///
    /// # Errors
    /// There is no such process then, and no stand-in.
    pub fn submit(
        mut self,
        daemon: &UnixStream,
        id: &str,
        ask: impl FnOnce(NewProcess) -> Ask,
    ) -> Result<Answer> {
        let process = NewProcess {
            standin: self.pid(),
            attached: self.standin.is_none(),
            terminal: self.streams.terminal,
            size: self.streams.size(),
            streams: self.streams.fds.each_ref().map(Option::is_some),
            more: self.more.len(),
        };
        let call = Call {
            id: id.to_owned(),
            ask: ask(process),
        };
        let mut fds = vec![self.channel.as_fd()];
        fds.extend(
            self.streams
                .fds
                .iter()
                .flatten()
                .chain(&self.more)
                .map(AsFd::as_fd),
        );
        let answer = client::ask(daemon, &call, &fds);
        // From now on it is whoever inherits it that waits for it.
        if answer.is_ok() {
            self.standin = None;
        }
        answer
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Some(standin) = &mut self.standin {
            // It may have ended by itself.
            let _ = standin.kill();
            let _ = standin.wait();
        }
    }
}

//! The debug console: a program that the host sends, run in the guest itself and not in a container.
//!
//! Must not know of the wire. The host says whether there is a console; a guest is the host's to look into anyhow.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agent_protocol::MAX_CONSOLE;
use nix::unistd::Pid;
use rustix::fs::OFlags;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::container::{ProcessStdio, Started};
use crate::error::{Error, Result};
use crate::process::Process;
use crate::process::stdio::{self, Wanted};
use crate::reaper::Reaper;
use crate::sys;

/// Name of the program in the agent's directory.
const PROGRAM: &str = "console";

/// Most arguments and variables.
const MOST_WORDS: usize = 256;

/// The request for a console.
#[derive(Debug)]
pub struct ConsoleRequest {
    /// Its id.
    pub id: String,
    /// The program's bytes.
    pub program: Vec<u8>,
    /// Its arguments, the first of which is its name.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Its streams.
    pub stdio: Wanted,
}

/// Runs the program. `dir` is the agent's directory.
///
/// # Errors
/// [`Error::Invalid`]; what the kernel refuses.
pub fn open(request: &ConsoleRequest, dir: &Path, reaper: &Reaper) -> Result<Process> {
    check(request)?;
    let program = keep(&request.program, dir)?;
    let (pending, streams) = stdio::prepare(&request.stdio)?;
    let (mut command, console) = command(request, &program, streams)?;
    let expectation = reaper.expect();
    let child = command.spawn().map_err(Error::file("execute", &program))?;
    // Their other ends are the child's alone now.
    drop(command);
    let pid = child.id().cast_signed();
    let exited = expectation.claim(pid);
    let mut started = Started {
        pid: Pid::from_raw(pid),
        console,
    };
    match pending.connect(&mut started) {
        Ok(streams) => Ok(Process { pid, exited, streams }),
        Err(error) => {
            // It may be gone already.
            let _ = sys::kill(pid, libc::SIGKILL);
            Err(error)
        }
    }
}

fn check(request: &ConsoleRequest) -> Result<()> {
    if !request.stdio.descriptors.is_empty() {
        return Err(Error::invalid("descriptors", "a console has none"));
    }
    if request.program.is_empty() || request.program.len() > MAX_CONSOLE {
        let size = request.program.len();
        return Err(Error::invalid(
            "program",
            format!("{size} bytes; it takes 1 to {MAX_CONSOLE}"),
        ));
    }
    // A libc would give anything else to a shell to interpret.
    if !request.program.starts_with(b"\x7fELF") {
        return Err(Error::invalid("program", "not an ELF executable"));
    }
    if request.args.is_empty() {
        return Err(Error::invalid("args", "there is no name of the program"));
    }
    for (field, words) in [("args", &request.args), ("env", &request.env)] {
        if words.len() > MOST_WORDS {
            return Err(Error::invalid(field, format!("more than {MOST_WORDS}")));
        }
        if words.iter().any(|word| word.contains('\0')) {
            return Err(Error::invalid(field, "a zero byte"));
        }
    }
    Ok(())
}

/// Writes the program so that one that runs is not written to.
fn keep(program: &[u8], dir: &Path) -> Result<PathBuf> {
    let path = dir.join(PROGRAM);
    if fs::read(&path).is_ok_and(|there| there == program) {
        return Ok(path);
    }
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, program).map_err(Error::file("write", &unfinished))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o700))
        .map_err(Error::file("make executable", &unfinished))?;
    fs::rename(&unfinished, &path).map_err(Error::file("rename to", &path))?;
    Ok(path)
}

/// The command, with its streams, and the master of its terminal if it gets one.
fn command(
    request: &ConsoleRequest,
    program: &Path,
    streams: ProcessStdio,
) -> Result<(Command, Option<std::os::fd::OwnedFd>)> {
    let mut words = request.args.iter();
    let mut command = Command::new(program);
    command
        .args(words.by_ref().skip(1))
        .env_clear()
        .envs(request.env.iter().filter_map(|word| word.split_once('=')))
        .current_dir("/");
    if let Some(name) = request.args.first() {
        command.arg0(name);
    }
    sys::lead_session(&mut command, streams.terminal);
    if !streams.terminal {
        let end = |fd: Option<std::os::fd::OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        command
            .stdin(end(streams.stdin))
            .stdout(end(streams.stdout))
            .stderr(end(streams.stderr));
        return Ok((command, None));
    }
    let make = || -> std::io::Result<_> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, peer)?;
        if let Some((columns, rows)) = streams.size {
            let size = Winsize {
                ws_row: rows,
                ws_col: columns,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            tcsetwinsize(&master, size)?;
        }
        // As the terminals of containers are.
        rustix::fs::fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK)?;
        Ok((master, slave))
    };
    let (master, slave) = make().map_err(Error::system("make a terminal"))?;
    let copy = || slave.try_clone().map_err(Error::system("copy the terminal"));
    command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
    Ok((command, Some(master)))
}

//! A virtual machine without a runtime: the same QEMU with the same arguments, kernel, initramfs and daemons as a sandbox of
//! ours. What a runtime takes beyond it is its own.
//!
//! Knows of the agent only what PROTOCOL.md says of its first bytes.

mod command;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::census::{self, Process};
use e2e::wait;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};

use crate::deadlines;
use command::{Inherited, Line, Plan};

pub use command::Sandbox;

/// What the agent says first (PROTOCOL.md); the rest of 16 bytes is its version.
const GREETING: &[u8] = b"KATA-AGENT/";

/// Bytes of the greeting.
const GREETING_LENGTH: usize = 16;

/// No descriptor of ours has such a number.
const FIRST_NUMBER: i32 = 500;

impl Sandbox {
    /// The processes of the sandbox whose virtual machine monitor this is: that, and what else its shim has started.
    ///
    /// # Errors
    /// It has ended.
    pub fn of(qemu: u32) -> Result<Self> {
        let vmm = census::process(qemu).with_context(|| format!("there is no process {qemu}"))?;
        let daemons = census::processes()?
            .into_iter()
            .filter(|process| process.parent == vmm.parent && process.pid != vmm.pid);
        Ok(Self {
            daemons: daemons.map(command_of).collect::<Result<_>>()?,
            qemu: command_of(vmm)?,
        })
    }
}

fn command_of(process: Process) -> Result<Vec<String>> {
    ensure!(!process.command.is_empty(), "{process} is ending");
    Ok(process.command)
}

/// Starts the same virtual machine in `directory`, which is made and removed, and answers how long it took from QEMU's
/// start to its agent's greeting. The daemons are started before.
///
/// # Errors
/// It can't be started, or the agent does not greet; the error quotes QEMU and the console.
pub fn boot(sandbox: &Sandbox, directory: &Path) -> Result<Duration> {
    let plan = Plan::like(sandbox, directory)?;
    fs::create_dir(directory).with_context(|| format!("create {}", directory.display()))?;
    let took = boot_in(&plan, directory);
    let removed = fs::remove_dir_all(directory).with_context(|| format!("remove {}", directory.display()));
    let took = took?;
    removed.map(|()| took)
}

fn boot_in(plan: &Plan, directory: &Path) -> Result<Duration> {
    for path in &plan.directories {
        fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
    }
    let listener = UnixListener::bind(&plan.agent)
        .with_context(|| format!("listen for the agent at {}", plan.agent.display()))?;
    let mut running = Vec::new();
    for (number, daemon) in plan.daemons.iter().enumerate() {
        let log = directory.join(format!("daemon-{number}.log"));
        running.push(Prepared::new(daemon, &log)?.start()?);
    }
    for path in &plan.awaited {
        wait::until(
            &format!("{} is listened on", path.display()),
            deadlines::DAEMON,
            || Ok(is_listened_on(&fs::read_to_string("/proc/net/unix")?, path).then_some(())),
        )?;
    }
    let log = directory.join("qemu.log");
    let (prepared, streams) = Prepared::with_pairs(&plan.qemu, &log)?;
    // Nobody must wait for us to read.
    let readers: Vec<_> = streams
        .into_iter()
        .map(|stream| thread::spawn(|| all_of(stream)))
        .collect();
    let begin = Instant::now();
    let mut qemu = prepared.start()?;
    let greeted = greeting(&listener, begin + deadlines::BOOT);
    let took = begin.elapsed();
    let ended = qemu.child.try_wait()?;
    drop(qemu);
    let said: Vec<_> = readers
        .into_iter()
        .map(|reader| reader.join().unwrap_or_default())
        .collect();
    greeted.with_context(|| {
        format!(
            "QEMU ({}) said: {}\nits control protocol and console: {said:?}",
            ended.map_or("it runs still".into(), |status| status.to_string()),
            fs::read_to_string(&log).unwrap_or_default(),
        )
    })?;
    Ok(took)
}

/// What comes out of a stream until its other end is closed.
fn all_of(mut stream: UnixStream) -> String {
    let mut bytes = Vec::new();
    // Reset where QEMU was killed with something unread; what it said before is there.
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for somebody to come and greet as an agent does.
fn greeting(listener: &UnixListener, end: Instant) -> Result<()> {
    wait_readable(listener, end).context("nobody came to the agent's socket")?;
    let (mut stream, _) = listener.accept().context("accept the agent")?;
    let mut said = [0; GREETING_LENGTH];
    wait_readable(&stream, end).context("the agent came and did not greet")?;
    stream
        .read_exact(&mut said)
        .context("read the agent's greeting")?;
    ensure!(
        said.starts_with(GREETING),
        "this is no greeting of an agent: {:?}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

fn wait_readable(descriptor: impl AsFd, end: Instant) -> Result<()> {
    let left = end.saturating_duration_since(Instant::now());
    let timeout = Timespec::try_from(left)?;
    let mut polled = [PollFd::new(&descriptor, PollFlags::IN)];
    match poll(&mut polled, Some(&timeout))? {
        0 => bail!("within {:.0} s", deadlines::BOOT.as_secs_f64()),
        _ => Ok(()),
    }
}

/// A program with the descriptors that it inherits, about to be started.
struct Prepared {
    command: Command,
    /// Closed here once it runs.
    _inherited: Vec<OwnedFd>,
}

impl Prepared {
    /// One whose descriptors are all sockets that listen.
    fn new(line: &Line, log: &Path) -> Result<Self> {
        Self::with_pairs(line, log).map(|(prepared, _)| prepared)
    }

    /// With our ends of the pairs.
    fn with_pairs(line: &Line, log: &Path) -> Result<(Self, Vec<UnixStream>)> {
        let (mut inherited, mut ours) = (Vec::new(), Vec::new());
        let mut numbers = BTreeMap::new();
        for (&old, what) in &line.inherited {
            let theirs: OwnedFd = match what {
                Inherited::Paired => {
                    let (our, their) = UnixStream::pair().context("make a pair of sockets")?;
                    ours.push(our);
                    their.into()
                }
                Inherited::Listening(path) => UnixListener::bind(path)
                    .with_context(|| format!("listen at {}", path.display()))?
                    .into(),
            };
            let theirs = fcntl_dupfd_cloexec(&theirs, FIRST_NUMBER).context("duplicate a descriptor")?;
            // Nothing else is started until it is closed here.
            fcntl_setfd(&theirs, FdFlags::empty()).context("let a descriptor be inherited")?;
            numbers.insert(old, theirs.as_raw_fd());
            inherited.push(theirs);
        }
        let words = line.renumbered(&numbers);
        let (program, arguments) = words.split_first().context("a command has a program")?;
        let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut command = Command::new(program);
        // As our runtime starts it.
        command
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let prepared = Self {
            command,
            _inherited: inherited,
        };
        Ok((prepared, ours))
    }

    fn start(mut self) -> Result<Running> {
        let child = self
            .command
            .spawn()
            .with_context(|| format!("start {:?}", self.command.get_program()))?;
        Ok(Running { child })
    }
}

/// A program that runs. Killed and reaped when dropped.
struct Running {
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails where it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether the kernel's list of unix sockets has a listening one of this path.
fn is_listened_on(list: &str, path: &Path) -> bool {
    // Num, RefCount, Protocol, Flags, Type, St, Inode, Path. The flag is the kernel's __SO_ACCEPTCON.
    let accepts = |flags: &str| u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & (1 << 16) != 0);
    list.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3).is_some_and(accepts) && fields.nth(3).map(PathBuf::from).as_deref() == Some(path)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn only_a_socket_that_accepts_is_listened_on() {
        let list = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000: 00000002 00000000 00010000 0001 01 17000 /run/a/vhost.sock\n\
            0000: 00000002 00000000 00000000 0001 01 17001 /run/b/vhost.sock\n\
            0000: 00000003 00000000 00000000 0001 03 17002\n";
        for (path, expected) in [
            ("/run/a/vhost.sock", true),
            ("/run/b/vhost.sock", false),
            ("/vhost.sock", false),
        ] {
            assert_eq!(is_listened_on(list, Path::new(path)), expected, "{path}");
        }
    }

    #[test]
    fn whoever_comes_is_judged_by_what_he_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        for (said, expected) in [
            (&b"KATA-AGENT/0001\n"[..], None),
            (b"GET / HTTP/1.1\r\n\r\n", Some("no greeting")),
            (b"KATA", Some("read the agent's greeting")),
        ] {
            let mut guest = UnixStream::connect(&path).unwrap();
            guest.write_all(said).unwrap();
            drop(guest);
            let greeted = greeting(&listener, Instant::now() + deadlines::DAEMON);
            match expected {
                None => greeted.unwrap(),
                Some(text) => assert!(format!("{:#}", greeted.unwrap_err()).contains(text), "{text}"),
            }
        }
    }
}

//! What cannot be said in safe Rust: the part of starting a process between fork and exec, and watching its pidfd.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd, write};
use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal, setpriority_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Label;
use crate::pages;

/// What the start of a child fails with whose label was refused, so that it can be told from whatever else can happen there:
/// nothing else there has to do with keys.
pub const LABEL_REFUSED: i32 = libc::EKEYREJECTED;
/// Niceness of a process that is started for another one: nobody waits for it yet, and who takes it over gives it his own.
const PRIORITY_FOR_ANOTHER: i32 = 10;

/// What a child has from us besides its standard streams. See [`Program`](super::Program).
pub struct Inheritance {
    pub fds: Vec<Arc<OwnedFd>>,
    pub network_namespace: Option<Arc<OwnedFd>>,
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// Files, and what is written to them.
    pub labels: Vec<(CString, Vec<u8>)>,
    /// What its life depends on instead of ours.
    pub lifeline: Option<Arc<OwnedFd>>,
}

/// Labels as a child can write them, which must not allocate.
pub fn labels(labels: &[Label]) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let one = |label: &Label| {
        let file = CString::new(label.file.as_os_str().as_bytes())?;
        Ok((file, label.value.as_bytes().to_vec()))
    };
    labels.iter().map(one).collect()
}

/// Makes `command` inherit exactly this (descriptors at the numbers they have here), and die with the thread that spawns it, or
/// with its lifeline.
pub fn prepare(command: &mut Command, inheritance: Inheritance) {
    let parent = getpid();
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock, so that it may run in the
    // child of a process with threads. The descriptors stay open because the closure owns them.
    unsafe {
        command.pre_exec(move || between_fork_and_exec(parent, &inheritance));
    }
}

/// Has a child in these cgroups copy memory, and never execute a program. Answers when it is done.
///
/// # Errors
/// The copy's; the child was killed.
pub fn copy_memory(from: OwnedFd, to: OwnedFd, cgroups: Vec<Arc<OwnedFd>>) -> io::Result<()> {
    let parent = getpid();
    let done = move || {
        die_with(parent)?;
        join(&cgroups)?;
        pages::copy(&from, &to)?;
        // Nothing that a system call of ours answers with. The caller's `spawn` fails with it, and reaps the child.
        Err(io::Error::from_raw_os_error(libc::ECANCELED))
    };
    let mut command = Command::new("/");
    // SAFETY: the closure makes system calls only, and so does `pages::copy`: it neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(done);
    }
    match command.spawn() {
        Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => Ok(()),
        Err(error) => Err(error),
        // It went without a word.
        Ok(mut child) => {
            let status = child.wait()?;
            Err(io::Error::other(format!(
                "the process that does it ended: {status}"
            )))
        }
    }
}

/// Has the kernel end this process with the thread of `parent` that has started it.
fn die_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // The parent may have died before the line above; then nobody is left to send the signal.
    match getppid() == Some(parent) {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

fn join(cgroups: &[Arc<OwnedFd>]) -> io::Result<()> {
    for procs in cgroups {
        // The process that writes.
        write(procs, b"0")?;
    }
    Ok(())
}

/// Has the kernel end this process when nobody holds the other end of this pipe any more.
///
/// The process itself holds the end that is read, and is to be told by a signal of what happens there (`O_ASYNC`): by SIGKILL,
/// which no program can overlook. Nothing is ever written to it, so that the end of the last writer is all that can happen.
fn live_by(pipe: &OwnedFd) -> io::Result<()> {
    /// linux/fcntl.h
    const F_SETSIG: libc::c_int = 10;
    let fd = pipe.as_raw_fd();
    let settings = [
        (libc::F_SETOWN, getpid().as_raw_nonzero().get()),
        (F_SETSIG, libc::SIGKILL),
        (libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK),
    ];
    for (command, value) in settings {
        // SAFETY: these commands take a number and set a property of an open descriptor.
        if unsafe { libc::fcntl(fd, command, value) } == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    // The last one may have gone before the lines above; then nothing will happen any more.
    let mut look = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut look, Some(&Timespec::default()))?;
    match look[0].revents().is_empty() {
        true => Ok(()),
        false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
    }
}

fn between_fork_and_exec(parent: Pid, inheritance: &Inheritance) -> io::Result<()> {
    match &inheritance.lifeline {
        Some(pipe) => {
            live_by(pipe)?;
            setpriority_process(None, PRIORITY_FOR_ANOTHER)?;
        }
        None => die_with(parent)?,
    }
    // Here, so that no thread, child or page of the program is ever counted elsewhere.
    join(&inheritance.cgroups)?;
    if let Some(namespace) = &inheritance.network_namespace {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    close_on_exec_from(3)?;
    for fd in inheritance.fds.iter().chain(&inheritance.lifeline) {
        // SAFETY: `fd` is open: it is owned by the caller's closure.
        let fd = unsafe { BorrowedFd::borrow_raw(fd.as_raw_fd()) };
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    // The last of it: what the program may do is not for us to be bound by.
    for (file, value) in &inheritance.labels {
        let refused = |_| io::Error::from_raw_os_error(LABEL_REFUSED);
        let file = open(file.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).map_err(refused)?;
        match write(&file, value).map_err(refused)? {
            written if written == value.len() => {}
            _ => return Err(io::Error::from_raw_os_error(LABEL_REFUSED)),
        }
    }
    Ok(())
}

/// Marks every descriptor from `first` on close-on-exec: also those that some library opened without the flag, or that
/// whoever started us let leak. A system call and nothing else: a child may call it before its exec.
///
/// # Errors
/// The kernel is too old.
pub fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: close_range with CLOSE_RANGE_CLOEXEC closes nothing; it sets a flag and takes no pointers.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC as libc::c_uint,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Takes over descriptors that this program was started with, the first of which has this number; from then on they are closed on
/// an execution. It is to be asked once, before the program opens anything by itself: whatever has such a number then is taken for
/// inherited, and closed with the answer.
///
/// # Errors
/// The number of one that is not open.
pub fn take_inherited(first: RawFd, count: usize) -> Result<Vec<OwnedFd>, RawFd> {
    let numbers = first..first.saturating_add(i32::try_from(count).unwrap_or(i32::MAX));
    for number in numbers.clone() {
        // SAFETY: the call looks at a flag by number, and fails for a number that nothing has.
        let set = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        if set < 0 {
            return Err(number);
        }
    }
    // SAFETY: each is open, as was just seen, and nothing of the program's own, by what is asked of the caller.
    Ok(numbers
        .map(|number| unsafe { OwnedFd::from_raw_fd(number) })
        .collect())
}

/// The version of Landlock's interface that this kernel has; 0 without.
pub fn landlock_abi() -> u32 {
    /// linux/landlock.h, `LANDLOCK_CREATE_RULESET_VERSION`.
    const VERSION: libc::c_uint = 1;
    let (attributes, size) = (std::ptr::null::<libc::c_void>(), 0_usize);
    // SAFETY: with this flag the call makes nothing and looks at no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attributes, size, VERSION) };
    u32::try_from(version).unwrap_or(0)
}

/// Registers a descriptor with the runtime. A pidfd becomes readable when its process has ended.
pub fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped, which is when the `AsyncFd` drops it.
    let watched = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

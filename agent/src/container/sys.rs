//! The system calls of container creation for which no safe binding is at hand; all of this module's `unsafe`.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::cgroup::Instruction;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Exit code of a child that failed after it told its parent why.
const CHILD_FAILED: libc::c_int = 255;

/// A process made by [`clone_process`].
pub(super) struct Cloned {
    /// Its pid, in the caller's pid namespace.
    pub(super) pid: i32,
    /// A handle that can't come to mean another process.
    pub(super) pidfd: OwnedFd,
}

/// Clones the process: the copy runs `child` and never returns from here. Handlers of signals are reset in it.
///
/// The caller must be single-threaded (the agent is): the copy has only the calling thread, and a lock that another
/// thread holds would stay locked.
pub(super) fn clone_process(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> io::Result<Cloned> {
    clone(namespaces, libc::SIGCHLD as u64, cgroup, child)
}

/// The same for a copy that is a child of the caller's parent, and tells that one of its end as the caller does.
pub(super) fn clone_sibling(
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> io::Result<Cloned> {
    clone(namespaces | libc::CLONE_PARENT as u64, 0, cgroup, child)
}

fn clone(
    flags: u64,
    exit_signal: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce() -> Infallible,
) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    // SAFETY: `clone_args` is plain data, for which all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // CLONE_CLEAR_SIGHAND and CLONE_INTO_CGROUP do not fit libc's c_int.
    arguments.flags = flags | libc::CLONE_PIDFD as u64 | 0x1_0000_0000;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = exit_signal;
    if let Some(cgroup) = cgroup {
        arguments.flags |= 0x2_0000_0000;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM and with no stack given this is fork: the copy has its own memory. `pidfd` outlives the
    // call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            std::mem::size_of::<libc::clone_args>(),
        )
    };
    match pid {
        0 => {
            // A panic must not unwind into the copy of the agent.
            let _ = catch_unwind(AssertUnwindSafe(child));
            exit(CHILD_FAILED)
        }
        pid if pid > 0 => Ok(Cloned {
            pid: pid as i32,
            // SAFETY: the kernel has just made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process at once, without the agent's exit handlers.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: does not return.
    unsafe { libc::_exit(code) }
}

/// Ends a child that failed.
pub(super) fn exit_failed() -> ! {
    exit(CHILD_FAILED)
}

/// Closes the descriptors `first..=last`.
pub(super) fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: takes integers. Whoever owned a descriptor in the range never runs again: the caller is a child that will
    // execute a program or exit.
    check(unsafe { libc::close_range(first, last, 0) })
}

/// Closes all descriptors but the standard ones and these.
pub(super) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
    numbers.sort_unstable();
    let mut first = 3;
    for number in numbers {
        if number > first {
            close_range(first, number - 1)?;
        }
        first = first.max(number + 1);
    }
    close_range(first, u32::MAX)
}

/// Registers a descriptor with the event loop for as long as the answer lives.
pub(super) fn watch(fd: BorrowedFd<'_>, interest: Interest) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    // SAFETY: a `BorrowedFd` names the same open descriptor as long as it lives.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Makes `target` a copy of `fd` that the program inherits.
pub(super) fn inherit_as(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    if fd.as_raw_fd() == target {
        // dup2 onto itself would leave close-on-exec set.
        // SAFETY: takes integers.
        return check(unsafe { libc::fcntl(target, libc::F_SETFD, 0) });
    }
    // SAFETY: takes integers; `target` is one of 0, 1, 2, which no `OwnedFd` of the child holds.
    check(unsafe { libc::dup2(fd.as_raw_fd(), target) })
}

/// Makes `target` a copy of `fd`, which the program inherits only after [`inherit`].
pub(super) fn put_at(fd: BorrowedFd<'_>, target: RawFd) -> io::Result<()> {
    // SAFETY: takes integers; whatever of the child's has this number is not used any more, and not dropped either: the child ends
    // by executing a program, or by exiting.
    check(unsafe { libc::dup3(fd.as_raw_fd(), target, libc::O_CLOEXEC) })
}

/// Has the program inherit a descriptor.
pub(super) fn inherit(number: RawFd) -> io::Result<()> {
    // SAFETY: takes integers, and changes a flag.
    check(unsafe { libc::fcntl(number, libc::F_SETFD, 0) })
}

/// Sets SIGPIPE, which Rust's runtime ignores, to its default, and unblocks all signals.
pub(super) fn reset_signals() -> io::Result<()> {
    // SAFETY: SIG_DFL is no function of ours; the set is initialised by sigemptyset before use.
    unsafe {
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(
            libc::SIG_SETMASK,
            &raw const set,
            std::ptr::null_mut(),
        ))
    }
}

/// Sets and clears attributes (`MOUNT_ATTR_*`) and propagation (`MS_SHARED` and its like, 0 for none) of a mount.
pub(super) fn mount_setattr(
    mount: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    // SAFETY: `mount_attr` is plain data, for which all zeroes is a valid value.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = set;
    attributes.attr_clr = clear;
    attributes.propagation = propagation;
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: an empty terminated path, and a structure of the given size, valid for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            std::mem::size_of::<libc::mount_attr>(),
        )
    };
    check(result as libc::c_int)
}

/// Gives the process a session keyring of its own, named for a person who looks at it.
pub(super) fn new_session_keyring(name: &std::ffi::CStr) -> io::Result<()> {
    // SAFETY: a terminated string, valid for the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Loads a seccomp filter (`struct sock_filter` array, as libseccomp exports it) for this process and its children.
pub(super) fn load_filter(program: &[libc::sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let filter = libc::sock_fprog {
        len: length,
        filter: program.as_ptr().cast_mut(),
    };
    // SAFETY: `filter` points to `len` instructions, valid for the call, which the kernel copies and checks.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const filter,
        )
    };
    check(result as libc::c_int)
}

/// So often a program is loaded that signals keep from being loaded.
const LOADS: u32 = 32;

/// Loads an eBPF program for device access.
pub(super) fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    // Of `union bpf_attr` in linux/bpf.h, the part that BPF_PROG_LOAD needs.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log: [u64; 2],
        version_and_flags: u64,
    }
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: 0,
    };
    for attempt in 1..=LOADS {
        // SAFETY: the attributes point to `insn_cnt` instructions and a terminated string, all valid for the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const load, size_of::<Load>()) };
        match check(fd as libc::c_int) {
            // A signal, such as that of a child's end, cuts the kernel's look at a program short.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && attempt < LOADS => {}
            // SAFETY: the kernel has just made this descriptor for us.
            loaded => return loaded.map(|()| unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}

/// Puts a loaded eBPF program for device access in force for a cgroup. It lives as long as the cgroup does.
pub(super) fn attach_device_program(cgroup: BorrowedFd<'_>, loaded: BorrowedFd<'_>) -> io::Result<()> {
    // Of `union bpf_attr`, the part of BPF_PROG_ATTACH.
    #[repr(C)]
    struct Attach {
        target_fd: i32,
        attach_bpf_fd: i32,
        attach_type: u32,
        attach_flags: u32,
    }
    const BPF_PROG_ATTACH: libc::c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    let attach = Attach {
        target_fd: cgroup.as_raw_fd(),
        attach_bpf_fd: loaded.as_raw_fd(),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: two open descriptors and integers, valid for the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of::<Attach>(),
        )
    };
    check(result as libc::c_int)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

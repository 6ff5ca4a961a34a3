//! What cannot be said in safe Rust: registering a descriptor with the event loop, which descriptors a child inherits,
//! and what of the program stays in memory.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use hypervisor::process::close_on_exec_from;
use rustix::io::fcntl_dupfd_cloexec;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor for reading.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and keeps its number until it is dropped, which is when the `AsyncFd` drops it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    watched.map_err(io::Error::from)
}

/// The first descriptor behind those that a child is given.
const ABOVE: i32 = 6;

/// Makes `command`'s process have `fds` as its descriptors 3, 4 and 5, and none above. They are closed here with the
/// command.
///
/// # Errors
/// There is no descriptor left.
pub fn give(command: &mut Command, fds: [OwnedFd; 3]) -> io::Result<()> {
    // Out of the way first, so that none is overwritten before it is copied.
    let mut moved = Vec::with_capacity(fds.len());
    for (target, fd) in (3..).zip(fds) {
        moved.push((fcntl_dupfd_cloexec(&fd, ABOVE)?, target));
    }
    let copy = move || {
        for (fd, target) in &moved {
            // SAFETY: dup2 of an open descriptor, which the closure owns, touches no memory. What it replaces in the
            // child is a copy of ours that would be closed at exec.
            let copied = unsafe { libc::dup2(fd.as_raw_fd(), *target) };
            if copied < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        close_on_exec_from(6)
    };
    // SAFETY: the closure makes system calls only; it neither allocates nor takes a lock.
    unsafe { command.pre_exec(copy) };
    Ok(())
}

/// Gives back what only the start of a sandbox needed: freed memory of the heap, and the pages of this program and its
/// libraries that are never written. One that is needed again is mapped from the page cache, with its neighbours; most never
/// are, and there is a shim for each pod.
pub fn give_back_memory() {
    // SAFETY: takes an integer.
    unsafe { libc::malloc_trim(0) };
    // SAFETY: the callback has the type that is asked for, does not unwind, and takes no data.
    unsafe { libc::dl_iterate_phdr(Some(give_back_object), std::ptr::null_mut()) };
}

/// For each loaded object: its segments that are mapped without leave to write.
unsafe extern "C" fn give_back_object(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    // SAFETY: the loader passes a valid object, whose program headers are as many as it says and stay for the call.
    let (base, headers) = unsafe {
        let object = &*object;
        if object.dlpi_phdr.is_null() {
            return 0;
        }
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        (object.dlpi_addr, headers)
    };
    // What relocation wrote to and protected afterwards (RELRO) lies in a segment that says it is written.
    for header in headers
        .iter()
        .filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0)
    {
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64;
        let begin = (base + header.p_vaddr) / page * page;
        let end = (base + header.p_vaddr + header.p_memsz).div_ceil(page) * page;
        // SAFETY: the range is a mapping of a file that nobody has written to through it, so that what comes back is
        // what was there. The kernel refuses what is no such mapping (its vDSO).
        unsafe {
            libc::madvise(
                begin as *mut libc::c_void,
                (end - begin) as usize,
                libc::MADV_DONTNEED,
            )
        };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_there_again() {
        static TEXT: &str = "never written";
        // A table of functions is relocated, and protected after that.
        let shown: Vec<&dyn std::fmt::Display> = vec![&TEXT, &1.5, &'c'];
        for _ in 0..3 {
            give_back_memory();
            let text: Vec<_> = shown.iter().map(ToString::to_string).collect();
            assert_eq!(text, ["never written", "1.5", "c"]);
        }
    }
}

//! What cannot be said in safe Rust: descriptors that a program is started with, a guest that dies with its monitor, a tap.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use rustix::process::{Signal, set_parent_process_death_signal};

/// Takes a descriptor that this program was started with, and told the number of. Once for each.
pub fn inherited(number: RawFd) -> OwnedFd {
    assert!(number > 2, "{number} is a standard stream");
    // SAFETY: whoever started this program left it open for it, and nobody else in it knows of it.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Has the kernel kill what is started when the thread that starts it ends.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure makes one system call, and neither allocates nor takes a lock.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

/// The version of Landlock's interface that this kernel has; 0 without.
pub fn landlock_abi() -> i64 {
    // SAFETY: with the last argument (`LANDLOCK_CREATE_RULESET_VERSION`) the call makes nothing and looks at no memory.
    unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0_usize,
            1_u32,
        )
    }
    .max(0)
}

/// A tap of this network namespace, which is removed when this is dropped, if it is still there. Needs root.
pub struct Tap {
    name: String,
    queue: Option<OwnedFd>,
}

impl Tap {
    /// Makes it.
    pub fn make(name: &str) -> Self {
        let tun = File::options().read(true).write(true).open("/dev/net/tun");
        let tun = tun.expect("/dev/net/tun (is this root?)");
        // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        assert!(name.len() < request.ifr_name.len(), "{name} is too long");
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF takes a pointer to an `ifreq` with a terminated name, valid for the call.
        let result = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
        Self {
            name: name.into(),
            queue: Some(tun.into()),
        }
    }

    /// Its one queue, once.
    pub fn queues(&mut self) -> Vec<Arc<OwnedFd>> {
        self.queue.take().map(Arc::new).into_iter().collect()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // It went with its last descriptor, unless it was made to stay.
        let _ = Command::new("ip").args(["link", "del", &self.name]).output();
    }
}

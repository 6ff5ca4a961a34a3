//! What no library wraps: making a descriptor a tap's, and bpf(2); and what one cannot wrap safely: a thread with mounts of its
//! own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// How a descriptor becomes a tap's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TapFlags {
    /// The tap has several queues.
    pub(super) multi_queue: bool,
    /// There must be none of that name.
    pub(super) new: bool,
}

/// Makes a descriptor of `/dev/net/tun` a queue of the tap of this name, whose frames come with virtio's header.
///
/// # Errors
/// The kernel's: EBUSY, EINVAL (also for a name that is too long), EPERM.
pub(super) fn become_tap(tun: impl AsFd, name: &str, flags: TapFlags) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut bits = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if flags.multi_queue {
        bits |= libc::IFF_MULTI_QUEUE;
    }
    if flags.new {
        bits |= libc::IFF_TUN_EXCL;
    }
    request.ifr_ifru.ifru_flags = bits as libc::c_short;
    // SAFETY: TUNSETIFF takes a pointer to an `ifreq` with a terminated name, valid for the call; the kernel writes the
    // name that it chose into it.
    let result = unsafe { libc::ioctl(tun.as_fd().as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Gives the calling thread mounts of its own.
///
/// # Errors
/// The kernel's: EPERM.
pub(super) fn unshare_mounts() -> io::Result<()> {
    // SAFETY: takes no pointers. The thread no longer shares its working directory and root with the others of the process,
    // which breaks what relies on that; it is one that ends with the work it was made for.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNS | libc::CLONE_FS) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Moves the calling thread into a new network namespace.
///
/// # Errors
/// The kernel's: EPERM.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: takes no pointers. Open sockets stay where they are; what the thread opens from now on is in the new namespace,
    // and the thread ends with the work it was made for.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// `union bpf_attr` (linux/bpf.h), of which each command reads its part. What an older kernel does not know is zero.
#[repr(C, align(8))]
struct BpfAttributes([u8; 128]);

impl BpfAttributes {
    fn new() -> Self {
        Self([0; 128])
    }

    fn with<const N: usize>(mut self, at: usize, value: [u8; N]) -> Self {
        self.0[at..at + N].copy_from_slice(&value);
        self
    }

    fn number(self, at: usize, value: u32) -> Self {
        self.with(at, value.to_ne_bytes())
    }

    fn descriptor(self, at: usize, fd: impl AsFd) -> Self {
        self.with(at, fd.as_fd().as_raw_fd().to_ne_bytes())
    }

    fn pointer<T>(self, at: usize, to: *const T) -> Self {
        self.with(at, (to.expose_provenance() as u64).to_ne_bytes())
    }

    /// Makes the call; the answer is a descriptor or 0.
    ///
    /// # Safety
    /// What the attributes point to is alive, and as the command says.
    unsafe fn call(&self, command: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: the kernel reads the structure of the size that is named; for what it points to the caller vouches.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                std::ptr::from_ref(self),
                size_of::<Self>() as libc::c_uint,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // Descriptors are small.
        Ok(result as libc::c_int)
    }
}

/// `BPF_PROG_TYPE_SK_LOOKUP` and `BPF_SK_LOOKUP`.
const SK_LOOKUP_PROGRAM: u32 = 30;
const SK_LOOKUP_ATTACH: u32 = 36;

/// A map of two sockets.
///
/// # Errors
/// The kernel's: EPERM.
pub(super) fn socket_map() -> io::Result<OwnedFd> {
    const MAP_CREATE: libc::c_int = 0;
    const SOCKMAP: u32 = 15;
    let attributes = BpfAttributes::new()
        .number(0, SOCKMAP)
        // Bytes of a key, bytes of a value, entries.
        .number(4, 4)
        .number(8, 4)
        .number(12, 2);
    // SAFETY: nothing is pointed to, and the descriptor in the answer is ours.
    unsafe { attributes.call(MAP_CREATE).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Puts a socket into a map. It goes when it is closed.
///
/// # Errors
/// The kernel's: EOPNOTSUPP for a listener before Linux 5.7.
pub(super) fn put_socket(map: impl AsFd, place: i32, socket: impl AsFd) -> io::Result<()> {
    const MAP_UPDATE_ELEM: libc::c_int = 2;
    let value = socket.as_fd().as_raw_fd();
    let attributes = BpfAttributes::new()
        .descriptor(0, map)
        .pointer(8, &raw const place)
        .pointer(16, &raw const value);
    // SAFETY: key and value have the four bytes that the map was made with, and outlive the call.
    unsafe { attributes.call(MAP_UPDATE_ELEM).map(drop) }
}

/// Has the kernel check and take a program that is asked for the socket of a connection.
///
/// # Errors
/// The kernel's: EINVAL before Linux 5.9, EACCES for a program that it does not trust, EPERM.
pub(super) fn load_socket_lookup(instructions: &[u64]) -> io::Result<OwnedFd> {
    const PROG_LOAD: libc::c_int = 5;
    let count = u32::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::E2BIG))?;
    let attributes = BpfAttributes::new()
        .number(0, SK_LOOKUP_PROGRAM)
        .number(4, count)
        .pointer(8, instructions.as_ptr())
        .pointer(16, c"Apache-2.0".as_ptr())
        .with(48, *b"kata_localhost\0\0")
        .number(68, SK_LOOKUP_ATTACH);
    // SAFETY: `instructions` are as many as is said, the licence ends with its zero byte, and both outlive the call. What the
    // program may do the kernel judges. The descriptor in the answer is ours.
    unsafe { attributes.call(PROG_LOAD).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

/// Asks that program in a network namespace, as long as the answer is open.
///
/// # Errors
/// The kernel's: EPERM, E2BIG when 64 are asked already.
pub(super) fn attach_socket_lookup(program: impl AsFd, namespace: impl AsFd) -> io::Result<OwnedFd> {
    const LINK_CREATE: libc::c_int = 28;
    let attributes = BpfAttributes::new()
        .descriptor(0, program)
        .descriptor(4, namespace)
        .number(8, SK_LOOKUP_ATTACH);
    // SAFETY: nothing is pointed to, and the descriptor in the answer is ours.
    unsafe { attributes.call(LINK_CREATE).map(|fd| OwnedFd::from_raw_fd(fd)) }
}

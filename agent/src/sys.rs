//! The system calls for which no safe binding is at hand. All of the agent's `unsafe` outside container creation.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Sends a signal, real-time signals included, to one process.
///
/// # Errors
/// The kernel's: ESRCH, EPERM, EINVAL.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes two integers and touches no memory of ours.
    check(unsafe { libc::kill(pid, signal) })
}

/// Sets the interface's IFF_UP flag. `socket` is any socket of the network namespace.
///
/// # Errors
/// The kernel's: ENODEV, EPERM. EINVAL when the name is longer than the kernel allows.
pub fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    // SAFETY: `ifreq` is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: SIOCGIFFLAGS and SIOCSIFFLAGS take a pointer to an `ifreq` with a terminated name, valid for the call; the
    // kernel has filled the union's `ifru_flags` when it is read.
    unsafe {
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFFLAGS as _,
            &raw mut request,
        ))?;
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        check(libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        ))
    }
}

/// Largest seed that [`credit_entropy`] takes, in bytes.
pub const MAX_ENTROPY: usize = 512;

/// Mixes the seed into the kernel's pool, credits it in full and reseeds the generator. `random` is /dev/random.
///
/// # Errors
/// The kernel's: EPERM. EINVAL for a seed over [`MAX_ENTROPY`].
pub fn credit_entropy(random: BorrowedFd<'_>, seed: &[u8]) -> io::Result<()> {
    // `struct rand_pool_info` of linux/random.h, with its flexible array at its largest.
    #[repr(C)]
    struct PoolInfo {
        entropy_count: libc::c_int,
        buf_size: libc::c_int,
        buf: [u8; MAX_ENTROPY],
    }
    if seed.len() > MAX_ENTROPY {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let size = seed.len() as libc::c_int;
    let mut info = PoolInfo {
        entropy_count: size * 8,
        buf_size: size,
        buf: [0; MAX_ENTROPY],
    };
    info.buf[..seed.len()].copy_from_slice(seed);
    // linux/random.h: RNDADDENTROPY is _IOW('R', 0x03, int[2]), RNDRESEEDCRNG is _IO('R', 0x07).
    const RNDADDENTROPY: u32 = 0x4008_5203;
    const RNDRESEEDCRNG: u32 = 0x5207;
    // SAFETY: the kernel reads the two integers and `buf_size` bytes behind them, all inside `info`.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) })
}

/// Registers a descriptor, which must be non-blocking, with the event loop.
///
/// # Errors
/// EPERM for a file that can't be polled.
pub fn register(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` answers the same open descriptor as long as it lives, and `AsyncFd` owns it from here on.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(io::Error::from)
}

/// Makes a program that is about to be executed the leader of a session of its own; with `terminal`, its standard input is that
/// session's.
pub fn lead_session(command: &mut std::process::Command, terminal: bool) {
    use std::os::unix::process::CommandExt as _;
    let lead = move || {
        rustix::process::setsid()?;
        if terminal {
            // SAFETY: the standard input, which the caller has set, is open here.
            rustix::process::ioctl_tiocsctty(unsafe { BorrowedFd::borrow_raw(0) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two system calls, and neither allocates nor takes a lock.
    unsafe { command.pre_exec(lead) };
}

/// Has an ext4 file system, of which `root` is any directory, have so many blocks.
///
/// # Errors
/// The kernel's: EPERM, and others for a file system that cannot grow so far.
pub fn resize_ext4(root: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // fs/ext4/ext4.h: EXT4_IOC_RESIZE_FS is _IOW('f', 16, __u64).
    const RESIZE_FS: u32 = 0x4008_6610;
    // SAFETY: the kernel reads the eight bytes of `blocks`.
    check(unsafe { libc::ioctl(root.as_raw_fd(), RESIZE_FS as _, &raw const blocks) })
}

/// The same for XFS.
///
/// # Errors
/// The kernel's: EPERM, EINVAL for less than there is.
pub fn resize_xfs(root: BorrowedFd<'_>, blocks: u64) -> io::Result<()> {
    // fs/xfs/libxfs/xfs_fs.h: `struct xfs_fsop_geom_v1`, XFS_IOC_FSGEOMETRY_V1 is _IOR('X', 100, it).
    #[repr(C)]
    struct Geometry {
        first: [u32; 7],
        inode_percent: u32,
        rest: [u64; 10],
    }
    // `struct xfs_growfs_data`, XFS_IOC_FSGROWFSDATA is _IOW('X', 110, it).
    #[repr(C)]
    struct Growth {
        blocks: u64,
        inode_percent: u32,
        padding: u32,
    }
    const GEOMETRY: u32 = 0x8070_5864;
    const GROW: u32 = 0x4010_586e;
    const _: () = assert!(size_of::<Geometry>() == 112 && size_of::<Growth>() == 16);
    let mut geometry = Geometry {
        first: [0; 7],
        inode_percent: 0,
        rest: [0; 10],
    };
    // SAFETY: the kernel writes its 112 bytes to `geometry`, for which any are valid.
    check(unsafe { libc::ioctl(root.as_raw_fd(), GEOMETRY as _, &raw mut geometry) })?;
    let growth = Growth {
        blocks,
        inode_percent: geometry.inode_percent,
        padding: 0,
    };
    // SAFETY: the kernel reads `growth`.
    check(unsafe { libc::ioctl(root.as_raw_fd(), GROW as _, &raw const growth) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Takes free memory and gives it back, which has the kernel write zeros over what was in it. Not all of it: what the guest needs
/// is left, and it ends after a while.
pub fn zero_free_memory() {
    const CHUNK: usize = 32 << 20;
    const MOST: usize = 512 << 20;
    const WHILE: Duration = Duration::from_secs(3);
    let begun = Instant::now();
    let has_room = || {
        let memory = rustix::system::sysinfo();
        let left = memory.totalram / 8;
        memory.freeram.saturating_sub(left) * u64::from(memory.mem_unit) > 2 * CHUNK as u64
    };
    let mut taken = Vec::new();
    while taken.len() * CHUNK < MOST && has_room() && begun.elapsed() < WHILE {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE;
        // SAFETY: a new mapping wherever there is room, which nobody but this function knows.
        let chunk = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                CHUNK,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                -1,
                0,
            )
        };
        if chunk == libc::MAP_FAILED {
            break;
        }
        taken.push(chunk);
    }
    for chunk in taken {
        // SAFETY: made above, with this size, and never looked at.
        unsafe {
            libc::munmap(chunk, CHUNK);
        }
    }
}

/// Has the allocator keep what is freed, up to a few of the largest messages, instead of giving it back: a message that
/// is made of fresh pages costs a fault for each, which is most of its time where the guest is emulated.
pub fn keep_freed_memory() {
    const KEPT: libc::c_int = 4 << 20;
    const LARGE: libc::c_int = 1 << 20;
    // SAFETY: takes two integers; a refusal leaves everything as it is.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

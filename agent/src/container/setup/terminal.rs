//! A pseudo terminal of the container's own devpts.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags, Uid, makedev};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use super::mounts;
use super::resolve::{self, Missing};
use crate::container::error::{Result, Step};

/// The two ends.
pub(super) struct Terminal {
    pub(super) master: OwnedFd,
    pub(super) slave: OwnedFd,
}

impl Terminal {
    /// The same terminal, with numbers that are not below this one.
    pub(super) fn not_below(self, number: i32) -> Result<Self> {
        if self.master.as_raw_fd().min(self.slave.as_raw_fd()) >= number {
            return Ok(self);
        }
        let moved = |fd| rustix::io::fcntl_dupfd_cloexec(fd, number).step(|| "move the terminal");
        Ok(Self {
            master: moved(&self.master)?,
            slave: moved(&self.slave)?,
        })
    }
}

/// Opens a terminal of the container's devpts, for a user, with a size of (columns, rows).
pub(super) fn open(root: BorrowedFd<'_>, uid: u32, size: Option<(u16, u16)>) -> Result<Terminal> {
    let step = || "open a terminal at /dev/pts/ptmx";
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = resolve::open(root, Path::new("/dev/pts/ptmx"), flags | OFlags::NOFOLLOW).step(step)?;
    let stat = rustix::fs::fstat(&master).step(step)?;
    // The kernel's number of every ptmx.
    if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice || stat.st_rdev != makedev(5, 2) {
        return Err(Errno::NOTTY).step(step);
    }
    unlockpt(&master).step(step)?;
    // By descriptor: a name under /dev/pts could be the container's work.
    let peer = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = ioctl_tiocgptpeer(&master, peer).step(step)?;
    if let Some((columns, rows)) = size {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).step(|| "set the terminal's size")?;
    }
    rustix::fs::fchown(&slave, Some(Uid::from_raw(uid)), None).step(|| "give the terminal to the user")?;
    Ok(Terminal { master, slave })
}

/// Makes /dev/console the terminal.
pub(super) fn bind_console(root: BorrowedFd<'_>, terminal: &Terminal) -> Result<()> {
    let step = || "bind the terminal at /dev/console";
    let place = resolve::open_or_create(root, Path::new("/dev/console"), Missing::File).step(step)?;
    let tree = mounts::bind_fd(terminal.slave.as_fd(), false).step(step)?;
    mounts::attach(tree.as_fd(), place.as_fd()).step(step)
}

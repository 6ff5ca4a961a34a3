//! Which descriptors of the host's a process in a guest can have as well: those whose bytes can be carried, one direction or both.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags, Stat, fcntl_get_seals, fcntl_getfl, fstat, major, minor};
use rustix::io;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use rustix::net::{SocketType, getpeername};

use crate::error::{Error, ErrorKind, Result};

/// Major and minor number of /dev/null.
const NULL: (u32, u32) = (1, 3);

/// What a process does with a descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// It has a connection.
    Both,
}

impl Way {
    /// Whether it reads.
    pub(super) fn reads(self) -> bool {
        self != Self::Write
    }

    /// Whether it writes.
    pub(super) fn writes(self) -> bool {
        self != Self::Read
    }
}

/// Looks whether a process of a guest can have this descriptor, as its own of this number.
///
/// # Errors
/// [`ErrorKind::Unsupported`] says what it is, and what would do.
pub(super) fn check(number: u32, fd: impl AsFd) -> Result<Way> {
    let fd = fd.as_fd();
    let looked = || -> io::Result<std::result::Result<Way, &'static str>> {
        let (stat, flags) = (fstat(fd)?, fcntl_getfl(fd)?);
        if flags.contains(OFlags::PATH) {
            return Ok(Err("the place of a file, not opened (O_PATH)"));
        }
        let way = match flags & OFlags::RWMODE {
            OFlags::RDONLY => Way::Read,
            OFlags::WRONLY => Way::Write,
            _ => Way::Both,
        };
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Fifo if way == Way::Both => Err("a pipe that is opened at both ends"),
            FileType::Fifo => Ok(way),
            FileType::Socket => return socket(fd),
            FileType::CharacterDevice if is_null(&stat) || fd.is_terminal() => Ok(way),
            FileType::RegularFile if way == Way::Both && fcntl_get_seals(fd).is_ok() => {
                Err("a file in memory (memfd)")
            }
            FileType::RegularFile if way == Way::Both => Err("a file that is opened for reading and writing"),
            FileType::RegularFile => Ok(way),
            FileType::Directory => Err("a directory"),
            FileType::CharacterDevice | FileType::BlockDevice => Err("a device"),
            FileType::Symlink | FileType::Unknown => {
                Err("an object of the host's kernel (such as an eventfd)")
            }
        })
    };
    let refused = match looked() {
        Ok(Ok(way)) => return Ok(way),
        Ok(Err(kind)) => kind,
        Err(errno) => {
            return Err(Error::caused(
                ErrorKind::InvalidArgument,
                format!("descriptor {number} cannot be used"),
                std::io::Error::from(errno),
            ));
        }
    };
    Err(Error::new(
        ErrorKind::Unsupported,
        format!(
            "descriptor {number} is {refused}, which cannot be brought into a virtual machine; pipes, connected stream sockets, \
             terminals, and files that are opened only for reading or only for writing are carried as streams"
        ),
    ))
}

fn socket(fd: std::os::fd::BorrowedFd<'_>) -> io::Result<std::result::Result<Way, &'static str>> {
    if socket_type(fd)? != SocketType::STREAM {
        return Ok(Err("a socket for datagrams"));
    }
    if socket_acceptconn(fd)? {
        return Ok(Err("a listening socket"));
    }
    Ok(match getpeername(fd) {
        Ok(_) => Ok(Way::Both),
        Err(_) => Err("a socket that is not connected"),
    })
}

fn is_null(stat: &Stat) -> bool {
    (major(stat.st_rdev), minor(stat.st_rdev)) == NULL
}

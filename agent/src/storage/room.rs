//! How full the file system of a disk is, and how it takes a disk that has grown into use.
//!
//! Must not know who asks.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, StatVfs, fstatfs, fstatvfs, openat};

use super::disk::Disk;
use crate::container;
use crate::error::{Error, Result};
use crate::sys;

/// For a file system to grow. What was done by then stays, and it may go on.
const GROWN: Duration = Duration::from_secs(120);

/// What `statfs(2)` calls file systems (linux/magic.h).
const EXT4: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;

/// How much there is, and how much of it is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes.
    pub total: u64,
    /// Bytes that nobody has.
    pub free: u64,
    /// Of those, what is for everybody.
    pub available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Inodes that nobody has.
    pub free_inodes: u64,
}

/// The file system of a disk.
#[derive(Debug)]
pub struct Volume {
    disk: Disk,
    path: PathBuf,
}

impl Volume {
    pub(super) fn new(disk: Disk, path: PathBuf) -> Self {
        Self { disk, path }
    }

    /// How much room there is.
    ///
    /// # Errors
    /// The kernel's.
    pub fn room(&self) -> Result<Room> {
        let figures = open(&self.path).and_then(|root| Ok(fstatvfs(root)?));
        figures
            .map(|figures| Room::of(&figures))
            .map_err(Error::file("examine", &self.path))
    }

    /// Takes the disk's whole size into use, once it has at least `size` bytes. One that is in use already is success.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when the disk does not grow; [`Error::Unsupported`] for a file system that cannot; the kernel's.
    pub async fn grow(&self, size: u64) -> Result<Room> {
        let bytes = self.disk.grown(size).await?;
        let root = open(&self.path).map_err(Error::file("open", &self.path))?;
        // Not here: it writes to the disk, which may take its time. What has grown by then stays.
        let growing = container::apart_with(root.as_fd(), || grow(&root, bytes), |_| ())?;
        match growing
            .result_within("the growth of a file system", GROWN)
            .await?
        {
            Ok(()) => self.room(),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Err(Error::Unsupported(format!(
                "the growth of what is mounted at {} (ext4 and XFS can)",
                self.path.display()
            ))),
            Err(error) => Err(Error::file("grow", &self.path)(error)),
        }
    }
}

impl Room {
    fn of(figures: &StatVfs) -> Self {
        let bytes = |blocks: u64| blocks.saturating_mul(figures.f_frsize);
        Self {
            total: bytes(figures.f_blocks),
            free: bytes(figures.f_bfree),
            available: bytes(figures.f_bavail),
            inodes: figures.f_files,
            free_inodes: figures.f_ffree,
        }
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

fn grow(root: &OwnedFd, bytes: u64) -> io::Result<()> {
    let figures = fstatfs(root)?;
    let block = u64::try_from(figures.f_bsize).unwrap_or(0);
    let blocks = bytes.checked_div(block).unwrap_or(0);
    match figures.f_type {
        EXT4 => sys::resize_ext4(root.as_fd(), blocks),
        XFS => sys::resize_xfs(root.as_fd(), blocks),
        _ => Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
    }
}

//! A file at a second path, for a monitor that can name it only by one.

use std::fs::{self, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_remount, move_mount, open_tree, unmount,
};

use crate::{Error, ErrorKind};

/// A bind mount of an open file or device, until this is dropped. Whoever cleans up after an owner that died unmounts what is
/// below the VM's directory.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Mounted {
    /// Mounts the very file of the descriptor, whatever its path leads to by now.
    ///
    /// # Errors
    /// There is something at the path already; it cannot be mounted (without root, or because it has no path at all).
    pub fn new(path: PathBuf, file: BorrowedFd<'_>) -> Result<Self, Error> {
        let made = File::create_new(&path);
        made.map_err(|source| failed(&path, source))?;
        let mounted = Self(path);
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(file, "", flags)
            .and_then(|tree| {
                move_mount(
                    &tree,
                    "",
                    CWD,
                    &mounted.0,
                    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
                )
            })
            .map_err(|errno| failed(&mounted.0, errno.into()))?;
        Ok(mounted)
    }

    /// The same, which nobody can write to by this path.
    ///
    /// # Errors
    /// As for [`Mounted::new`].
    pub fn read_only(path: PathBuf, file: BorrowedFd<'_>) -> Result<Self, Error> {
        let mounted = Self::new(path, file)?;
        mount_remount(&mounted.0, MountFlags::BIND | MountFlags::RDONLY, "")
            .map_err(|errno| failed(&mounted.0, errno.into()))?;
        Ok(mounted)
    }

    /// One that somebody has left who is dead.
    pub fn of_dead(path: PathBuf) -> Self {
        Self(path)
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("cannot mount a file at {}: {source}", path.display()),
        source,
    )
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Not mounted, where that is what failed.
        let _ = unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = fs::remove_file(&self.0);
    }
}

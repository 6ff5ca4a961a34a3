//! Mounts, by descriptors: what is opened once is what is mounted, whatever happens to its path meanwhile.
//!
//! It must not know what is mounted where and why.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{CWD, Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    move_mount, open_tree, unmount,
};

use super::options::{Bind, Options};
use super::{mountinfo, sys};

/// What cannot be done with a mount, whoever asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    /// Nothing in it changes.
    pub(super) readonly: bool,
    /// It is there to be served: the host never executes from it, nor opens a device in it.
    pub(super) inert: bool,
}

impl Limits {
    fn flags(self) -> MountFlags {
        let mut flags = MountFlags::empty();
        flags.set(MountFlags::RDONLY, self.readonly);
        flags.set(
            MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
            self.inert,
        );
        flags
    }
}

/// Opens what is to be mounted. Links are followed: the path is the caller's.
pub(super) fn open_source(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Opens the directory that is to be mounted.
pub(super) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

/// Shows `source` at `target` as well, within `limits`.
pub(super) fn bind(source: &OwnedFd, target: &Path, bind: Bind, limits: Limits) -> io::Result<()> {
    bind_with(source, target, bind, limits.flags())
}

fn bind_with(source: &OwnedFd, target: &Path, bind: Bind, flags: MountFlags) -> io::Result<()> {
    attach(&clone(source, bind, flags)?, target)
}

/// What is mounted at `source`, and nowhere yet, within `limits`. It can be attached wherever mounts are ours to make.
pub(super) fn detached(source: &OwnedFd, bind: Bind, limits: Limits) -> io::Result<OwnedFd> {
    clone(source, bind, limits.flags())
}

fn clone(source: &OwnedFd, bind: Bind, flags: MountFlags) -> io::Result<OwnedFd> {
    let recursive = bind == Bind::Recursive;
    let mut how =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    how.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    let tree = open_tree(source, c"", how)?;
    // Before it is anywhere: what the target's mount propagates to has it with these attributes, or never.
    let attributes = libc::mount_attr {
        propagation: libc::MS_PRIVATE,
        ..attributes(flags)
    };
    sys::set_attributes(&tree, recursive, &attributes)?;
    Ok(tree)
}

/// Shows a mount at `target` as well, and what will be mounted below it, there as here. Only its own attributes are
/// limited, not those of what is below it.
pub(super) fn mirror(source: &Path, target: &Path, limits: Limits) -> io::Result<()> {
    let how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, source, how)?;
    sys::set_attributes(&tree, false, &attributes(limits.flags()))?;
    attach(&tree, target)
}

/// The same flags as attributes.
fn attributes(flags: MountFlags) -> libc::mount_attr {
    const TABLE: &[(MountFlags, u64, u64)] = &[
        (MountFlags::RDONLY, libc::MOUNT_ATTR_RDONLY, 0),
        (MountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID, 0),
        (MountFlags::NODEV, libc::MOUNT_ATTR_NODEV, 0),
        (MountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC, 0),
        (MountFlags::NODIRATIME, libc::MOUNT_ATTR_NODIRATIME, 0),
        (
            MountFlags::NOATIME,
            libc::MOUNT_ATTR_NOATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
        (
            MountFlags::RELATIME,
            libc::MOUNT_ATTR_RELATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
        (
            MountFlags::STRICTATIME,
            libc::MOUNT_ATTR_STRICTATIME,
            libc::MOUNT_ATTR__ATIME,
        ),
    ];
    let mut attributes = libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    for (flag, set, clear) in TABLE {
        if flags.contains(*flag) {
            attributes.attr_set |= set;
            attributes.attr_clr |= clear;
        }
    }
    attributes
}

/// Puts a tree that is nowhere yet at `target`, which is ours and no link.
pub(super) fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(
        tree,
        c"",
        CWD,
        target,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// A file system in memory of our own, of which mirrors can be made.
pub(super) fn memory(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tmpfs", target, "tmpfs", flags, c"mode=0755")?;
    // First private: it may have come to share with what the directory's own mount shares with.
    mount_change(target, MountPropagationFlags::PRIVATE)?;
    mount_change(target, MountPropagationFlags::SHARED)?;
    Ok(())
}

/// Mounts a file system, or a bind mount where the options say so.
pub(super) fn new(
    fs_type: &str,
    source: &str,
    options: &Options,
    target: &Path,
    limits: Limits,
) -> io::Result<()> {
    let flags = options.flags | limits.flags();
    if let Some(bind) = options.bind {
        return bind_with(&open_source(Path::new(source))?, target, bind, flags);
    }
    let data = options
        .data()
        .map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
    let mount =
        || mount(source, target, fs_type, flags, Some(&*c_string(&data.text)?)).map_err(io::Error::from);
    match &data.base {
        None => mount(),
        Some(base) => within(base, mount),
    }
}

fn c_string(text: &str) -> io::Result<std::ffi::CString> {
    std::ffi::CString::new(text).map_err(io::Error::from)
}

/// Calls from a thread that has a working directory of its own.
fn within(dir: &Path, call: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || {
            unshare(CloneFlags::CLONE_FS)?;
            std::env::set_current_dir(dir)?;
            call()
        })?;
        thread
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

/// Takes away everything that is mounted at `target`, one over the other. Nothing there is success.
pub(super) fn clear(target: &Path) -> io::Result<()> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount (any more), or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes away everything that is mounted on `dir` or below it. Goes on after an error and answers with the first.
pub(super) fn clear_below(dir: &Path) -> io::Result<()> {
    let list = std::fs::read("/proc/self/mountinfo")?;
    let mut result = Ok(());
    for path in mountinfo::below(&list, dir).iter().rev() {
        let cleared = clear(path);
        result =
            result.and(cleared.map_err(|cause| {
                io::Error::new(cause.kind(), format!("unmount {}: {cause}", path.display()))
            }));
    }
    result
}

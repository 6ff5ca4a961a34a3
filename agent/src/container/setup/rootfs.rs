//! The container's file tree, from the agent's mounts to its own root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, UnmountFlags, mount_change, move_mount, unmount};

use super::resolve::{self, Missing};
use super::{devices, mounts};
use crate::container::error::{Result, Step};
use crate::container::plan::Plan;
use crate::container::sys;

/// Builds the tree on the container's root directory and answers that root. `null` is the real /dev/null.
pub(super) fn build(plan: &Plan, cgroup: &Path, own_cgroups: bool, null: BorrowedFd<'_>) -> Result<OwnedFd> {
    let files = &plan.filesystem;
    // What the container mounts must not appear at the agent; a slave still sees the agent's later mounts, which is what
    // a volume with propagation needs.
    let ours = match files.propagation {
        Some((libc::MS_PRIVATE, true)) => MountPropagationFlags::PRIVATE,
        _ => MountPropagationFlags::DOWNSTREAM,
    };
    mount_change("/", ours | MountPropagationFlags::REC).step(|| "separate the mounts from the agent's")?;
    let step = || format!("take {} as the root", files.root.display());
    // pivot_root wants a mount; the directory becomes one.
    let root = mounts::bind(&files.root, true).step(step)?;
    move_mount(
        &root,
        c"",
        CWD,
        files.root.as_path(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_SYMLINKS,
    )
    .step(step)?;
    for mount in &files.mounts {
        mounts::mount(root.as_fd(), mount, cgroup, own_cgroups)?;
    }
    for device in &files.devices {
        devices::create(root.as_fd(), device)?;
    }
    if files.own_dev {
        devices::link(root.as_fd())?;
    }
    resolve::open_or_create(root.as_fd(), &plan.process.cwd, Missing::Directory)
        .step(|| format!("find the working directory {}", plan.process.cwd.display()))?;
    mounts::finish(root.as_fd(), &files.mounts)?;
    for path in &files.readonly_paths {
        mounts::make_readonly(root.as_fd(), path)?;
    }
    for path in &files.masked {
        mounts::mask(root.as_fd(), path, null)?;
    }
    Ok(root)
}

/// Makes the tree the root of everything and lets go of the agent's.
pub(super) fn enter(plan: &Plan, root: OwnedFd) -> Result<()> {
    rustix::process::fchdir(&root).step(|| "enter the root")?;
    // pivot_root(2): with both arguments the same directory, the old root lands on top of the new one, where the current
    // directory still reaches it.
    rustix::process::pivot_root(".", ".").step(|| "change the root")?;
    unmount(".", UnmountFlags::DETACH).step(|| "let go of the agent's root")?;
    rustix::process::chdir("/").step(|| "enter the root")?;
    let files = &plan.filesystem;
    if let Some((propagation, recursive)) = files.propagation {
        set(0, propagation, recursive).step(|| "set the root's propagation")?;
    }
    if files.readonly {
        set(libc::MOUNT_ATTR_RDONLY, 0, false).step(|| "make the root read-only")?;
    }
    Ok(())
}

fn set(attributes: u64, propagation: u64, recursive: bool) -> std::io::Result<()> {
    let root = rustix::fs::open(
        "/",
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    sys::mount_setattr(root.as_fd(), recursive, attributes, 0, propagation)
}

//! The mounts of a container, each made detached and complete, and then attached to a place inside the root by
//! descriptor: no moment in which a mount is there with too few restrictions, and no path that a link could divert.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::resolve::{self, Missing};
use crate::container::error::{Error, Result, Step};
use crate::container::mount_options::Attributes;
use crate::container::plan::{Mount, MountKind};
use crate::container::sys;

/// `PROC_SUPER_MAGIC` of linux/magic.h.
const PROC_MAGIC: i64 = 0x9fa0;

/// Makes one mount inside the root. `cgroup` is the container's cgroup directory, and `own_cgroups` says whether the
/// container has a cgroup namespace, with that directory as its root.
pub(super) fn mount(root: BorrowedFd<'_>, mount: &Mount, cgroup: &Path, own_cgroups: bool) -> Result<()> {
    let destination = mount.destination.as_path();
    let options = &mount.options;
    let step = |what: &str| format!("{what} for the mount at {}", destination.display());
    let tree = match &mount.kind {
        MountKind::Bind { source } => bind(source, options.bind == Some(true))
            .step(|| format!("bind {} at {}", source.display(), destination.display()))?,
        MountKind::Cgroup if own_cgroups => match new_filesystem("cgroup2", "cgroup2", &[]) {
            Ok(tree) => tree,
            // A user namespace's restriction, or a controller in use by version 1.
            Err(_) => bind(cgroup, true).step(|| step("bind the cgroup"))?,
        },
        MountKind::Cgroup => bind(cgroup, true).step(|| step("bind the cgroup"))?,
        MountKind::New { fstype, source } => {
            new_filesystem(fstype, source, &data(mount)).map_err(|error| located(error, destination))?
        }
        MountKind::Remount => {
            let there =
                resolve::open(root, destination, OFlags::PATH).step(|| step("find what is mounted"))?;
            return restrict(there.as_fd(), mount, options.attributes).step(|| step("set the options"));
        }
    };
    let attributes = match &mount.kind {
        // Its devices are yet to be made; `finish` does the rest.
        MountKind::New { .. } if is_late(mount) => Attributes {
            set: options.attributes.set & !libc::MOUNT_ATTR_RDONLY,
            ..options.attributes
        },
        _ => options.attributes,
    };
    restrict(tree.as_fd(), mount, attributes).step(|| step("set the options"))?;
    let place = place(root, destination, tree.as_fd(), &mount.kind)?;
    if options.copy_up {
        super::copy_up::copy(place.as_fd(), tree.as_fd()).step(|| step("copy the hidden files"))?;
    }
    attach(tree.as_fd(), place.as_fd()).step(|| step("attach"))
}

fn located(error: Error, destination: &Path) -> Error {
    match error {
        Error::Step { step, source } => Error::Step {
            step: format!("mount at {}: {step}", destination.display()),
            source,
        },
        other => other,
    }
}

/// Makes read-only what had to be writable while it was filled.
pub(super) fn finish(root: BorrowedFd<'_>, mounts: &[Mount]) -> Result<()> {
    for mount in mounts.iter().filter(|mount| is_late(mount)) {
        resolve::open(root, &mount.destination, OFlags::PATH)
            .and_then(|place| sys::mount_setattr(place.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0))
            .step(|| format!("make {} read-only", mount.destination.display()))?;
    }
    Ok(())
}

fn is_late(mount: &Mount) -> bool {
    mount.destination == Path::new("/dev")
        && matches!(mount.kind, MountKind::New { .. })
        && mount.options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0
}

/// A detached copy of a mount, from any path of the agent's.
pub(super) fn bind(source: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags)
}

/// A detached copy of the mount of an open file, with that file as its root.
pub(super) fn bind_fd(file: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(file, c"", flags)
}

/// Attaches a detached mount.
pub(super) fn attach(tree: BorrowedFd<'_>, place: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(
        tree,
        c"",
        place,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// A detached new instance of a file system.
pub(super) fn new_filesystem(fstype: &str, source: &str, data: &[&str]) -> Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC).step(|| format!("file system {fstype}"))?;
    let configure = || {
        fsconfig_set_string(&context, "source", source)?;
        for option in data {
            match option.split_once('=') {
                Some((key, value)) => fsconfig_set_string(&context, key, value)?,
                None => fsconfig_set_flag(&context, *option)?,
            }
        }
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    configure().step(|| format!("file system {fstype}{}", complaint(&context)))
}

/// The kernel's own words about a bad option, which it keeps with the context.
fn complaint(context: &OwnedFd) -> String {
    let mut text = [0; 256];
    let mut words = String::new();
    // One message a read; it starts with the severity's letter and a space.
    while let Ok(length @ 2..) = rustix::io::read(context, &mut text) {
        words.push_str(": ");
        words.push_str(String::from_utf8_lossy(&text[2..length]).trim_end());
    }
    words
}

/// Options for the file system. A read-only mount of a disk needs a read-only super block as well; the kernel's own
/// file systems share theirs with others.
fn data(mount: &Mount) -> Vec<&str> {
    let mut data: Vec<&str> = mount.options.data.iter().map(String::as_str).collect();
    let MountKind::New { fstype, .. } = &mount.kind else {
        return data;
    };
    let of_the_kernel = matches!(
        fstype.as_str(),
        "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "ramfs" | "devtmpfs"
    );
    if mount.options.attributes.set & libc::MOUNT_ATTR_RDONLY != 0 && !of_the_kernel {
        data.push("ro");
    }
    data
}

fn restrict(tree: BorrowedFd<'_>, mount: &Mount, attributes: Attributes) -> std::io::Result<()> {
    if !attributes.is_empty() {
        sys::mount_setattr(tree, false, attributes.set, attributes.clear, 0)?;
    }
    let recursive = mount.options.recursive;
    if !recursive.is_empty() {
        sys::mount_setattr(tree, true, recursive.set, recursive.clear, 0)?;
    }
    for &(propagation, recursive) in &mount.options.propagation {
        sys::mount_setattr(tree, recursive, 0, 0, propagation)?;
    }
    Ok(())
}

/// The place to mount on, made if it is missing: a directory on a directory, a file on a file.
fn place(
    root: BorrowedFd<'_>,
    destination: &Path,
    tree: BorrowedFd<'_>,
    kind: &MountKind,
) -> Result<OwnedFd> {
    let step = || format!("find the place of the mount at {}", destination.display());
    let stat = rustix::fs::fstat(tree).step(step)?;
    let missing = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Missing::Directory,
        _ => Missing::File,
    };
    let place = resolve::open_or_create(root, destination, missing).step(step)?;
    let of_the_system = destination == Path::new("/proc") || destination == Path::new("/sys");
    if of_the_system {
        // A link here would have the kernel's files appear where masking does not look for them.
        let plain = resolve::open(root, destination, OFlags::PATH | OFlags::NOFOLLOW).step(step)?;
        let stat = rustix::fs::fstat(&plain).step(step)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Err(Error::Step {
                step: format!("mount at {}: it is no ordinary directory", destination.display()),
                source: Errno::NOTDIR.into(),
            });
        }
    }
    if destination == Path::new("/proc") && matches!(kind, MountKind::Bind { .. }) {
        let kind = rustix::fs::fstatfs(tree).step(step)?.f_type;
        if kind != PROC_MAGIC {
            return Err(Error::spec("mounts", "what is bound at /proc is no procfs"));
        }
    }
    Ok(place)
}

/// Hides a path: a file behind /dev/null, a directory behind an empty read-only one. What is not there needs no hiding.
pub(super) fn mask(root: BorrowedFd<'_>, path: &Path, null: BorrowedFd<'_>) -> Result<()> {
    let step = || format!("mask {}", path.display());
    let Some(place) = existing(root, path).step(step)? else {
        return Ok(());
    };
    let stat = rustix::fs::fstat(&place).step(step)?;
    let tree = if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        let tree = new_filesystem("tmpfs", "tmpfs", &["size=0", "nr_inodes=2"])?;
        sys::mount_setattr(tree.as_fd(), false, libc::MOUNT_ATTR_RDONLY, 0, 0).step(step)?;
        tree
    } else {
        bind_fd(null, false).step(step)?
    };
    attach(tree.as_fd(), place.as_fd()).step(step)
}

/// Makes a path and all below it read-only.
pub(super) fn make_readonly(root: BorrowedFd<'_>, path: &Path) -> Result<()> {
    let step = || format!("make {} read-only", path.display());
    let Some(place) = existing(root, path).step(step)? else {
        return Ok(());
    };
    let tree = bind_fd(place.as_fd(), true).step(step)?;
    sys::mount_setattr(tree.as_fd(), true, libc::MOUNT_ATTR_RDONLY, 0, 0).step(step)?;
    attach(tree.as_fd(), place.as_fd()).step(step)
}

fn existing(root: BorrowedFd<'_>, path: &Path) -> std::io::Result<Option<OwnedFd>> {
    match resolve::open(root, path, OFlags::PATH) {
        Ok(place) => Ok(Some(place)),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => Ok(None),
        Err(error) => Err(error),
    }
}

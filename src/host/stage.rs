//! Where hooks act that change a container's files: mounts of their own on the host, in which the container's root file system
//! stands where its specification says, with what it mounts of the host; and the pod's network.
//!
//! The guest sees nothing of that root until they are done. Another container of the pod, or the guest as a whole, may be somebody's
//! who would put a link in the way of a program of the host's. All of it ends with the descriptor of its mounts: there is nothing to
//! undo.
//!
//! It must not know what hooks do.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, chroot};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount as mount_new, mount_change, unmount,
};

use super::mount::{self, Limits};
use super::options::Bind;
use super::share::{ROOT, SOURCE, mount_root, theirs};
use super::step::Steps;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{RootPlan, StageMount, StagePlan};

/// Links that lead from one place of a mount to the next, at most; as many as the kernel follows.
const LINKS: usize = 40;

/// Where the root file system appears once it is the guest's as well.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) limits: Limits,
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Stage {
    root: PathBuf,
    /// The namespace of its mounts.
    mounts: File,
    /// What was mounted in the root, in this order.
    mounted: Vec<OwnedFd>,
    network: Option<Arc<OwnedFd>>,
    place: Place,
}

impl Stage {
    /// Mounts everything. May have to wait for file systems.
    ///
    /// # Errors
    /// What cannot be mounted, and why. Nothing is left.
    pub(super) fn set(
        plan: &StagePlan,
        root: &RootPlan,
        place: Place,
        network: Option<Arc<OwnedFd>>,
        steps: &Steps,
    ) -> Result<Self> {
        let made = apart(|| {
            own_mounts().map_err(|cause| internal("make mounts for hooks (is this root?)", cause))?;
            steps.at(&plan.root)?;
            // A link is the caller's to follow, and a mount is at no link.
            let place = fs::canonicalize(&plan.root).map_err(|cause| theirs(ROOT, &plan.root, cause))?;
            mount_root(root, &place, Limits::default(), steps)?;
            let mounts = File::open("/proc/thread-self/ns/mnt")
                .map_err(|cause| internal("hold the mounts of hooks", cause))?;
            let mounted = mount_all(&plan.mounts, &place, steps)?;
            Ok((place, mounts, mounted))
        });
        let (root, mounts, mounted) = made?;
        Ok(Self {
            root,
            mounts,
            mounted,
            network,
            place,
        })
    }

    /// The container's root file system, for who is on it.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Starts a program on it.
    pub(super) fn start(&self, mut command: Command) -> io::Result<Child> {
        let mut start = || {
            self.enter()?;
            if let Some(network) = &self.network {
                setns(network, CloneFlags::CLONE_NEWNET)?;
            }
            command.spawn()
        };
        apart(|| Ok(start()))
            .map_err(io::Error::other)
            .and_then(|child| child)
    }

    /// Shows the guest what it has become, also what was mounted there.
    ///
    /// # Errors
    /// The system's. The guest has nothing of it then.
    pub(super) fn publish(&self) -> Result<()> {
        let take = || {
            self.enter()?;
            for mounted in self.mounted.iter().rev() {
                let path = format!("/proc/thread-self/fd/{}", mounted.as_raw_fd());
                match unmount(path, UnmountFlags::DETACH) {
                    // A hook has done it.
                    Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            let root = mount::open_directory(&self.root)?;
            mount::detached(&root, Bind::Recursive, self.place.limits)
        };
        apart(|| Ok(take()))?
            .and_then(|tree| mount::attach(&tree, &self.place.path))
            .map_err(|cause| {
                internal(
                    "show the guest what hooks have made of its root file system",
                    cause,
                )
            })
    }

    /// Moves this thread there.
    fn enter(&self) -> io::Result<()> {
        unshare(CloneFlags::CLONE_FS)?;
        setns(&self.mounts, CloneFlags::CLONE_NEWNS)?;
        Ok(())
    }
}

/// Does some work on a thread of its own, whose namespaces and root are nobody else's.
fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let started = thread::Builder::new().spawn_scoped(scope, work);
        let thread = started.map_err(|cause| internal("start a thread for hooks", cause))?;
        thread.join().unwrap_or_else(|_| {
            Err(internal(
                "set the stage for hooks",
                io::Error::other("the thread panicked"),
            ))
        })
    })
}

/// Gives this thread mounts of its own, of which nobody else sees any, and in which others' go when they go.
fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    Ok(mount_change("/", flags)?)
}

/// Mounts what the container does. Links lead nowhere but into its root: that is this thread's from here on.
fn mount_all(mounts: &[StageMount], root: &Path, steps: &Steps) -> Result<Vec<OwnedFd>> {
    let mut trees = Vec::new();
    for one in mounts {
        trees.push(source(one, steps)?);
    }
    chroot(root)
        .and_then(|()| std::env::set_current_dir("/"))
        .map_err(|cause| theirs(ROOT, root, cause))?;
    let mut mounted = Vec::new();
    for (one, tree) in mounts.iter().zip(trees) {
        steps.at(&one.destination)?;
        mounted.push(mount_one(one, tree).map_err(|cause| {
            Error::caused(
                ErrorKind::InvalidArgument,
                format!(
                    "config.json: mounts[{}]: hooks of the container cannot have it at {}",
                    one.index,
                    one.destination.display()
                ),
                cause,
            )
        })?);
    }
    Ok(mounted)
}

/// What is to be mounted, and whether it is a directory.
fn source(one: &StageMount, steps: &Steps) -> Result<Option<(OwnedFd, bool)>> {
    let Some(path) = &one.source else {
        return Ok(None);
    };
    steps.at(path)?;
    let bind = match one.recursive {
        true => Bind::Recursive,
        false => Bind::Single,
    };
    let limits = Limits {
        readonly: one.readonly,
        inert: false,
    };
    let opened = mount::open_source(path).and_then(|source| {
        let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode)
            == rustix::fs::FileType::Directory;
        Ok((mount::detached(&source, bind, limits)?, is_directory))
    });
    opened.map(Some).map_err(|cause| theirs(SOURCE, path, cause))
}

fn mount_one(one: &StageMount, tree: Option<(OwnedFd, bool)>) -> io::Result<OwnedFd> {
    let destination = Path::new("/").join(&one.destination);
    let place = make_place(
        destination,
        tree.as_ref().is_none_or(|(_, is_directory)| *is_directory),
    )?;
    match tree {
        Some((tree, _)) => {
            mount::attach(&tree, &place)?;
            Ok(tree)
        }
        None => {
            mount_new(
                "tmpfs",
                &place,
                "tmpfs",
                MountFlags::NOSUID | MountFlags::NODEV,
                c"mode=0755",
            )?;
            mount::open_directory(&place)
        }
    }
}

/// A path at which something can be mounted, made if it is not there: as a container's root has it, where links may lead to what
/// has yet to be made.
fn make_place(path: PathBuf, is_directory: bool) -> io::Result<PathBuf> {
    let mut path = path;
    for _ in 0..LINKS {
        match fs::metadata(&path) {
            Ok(_) => return fs::canonicalize(&path),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {}
            Err(cause) => return Err(cause),
        }
        let parent = path.parent().unwrap_or(Path::new("/")).to_owned();
        if let Ok(target) = fs::read_link(&path) {
            path = parent.join(target);
            continue;
        }
        let parent = make_place(parent, true)?;
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let path = parent.join(name);
        match is_directory {
            true => DirBuilder::new().mode(0o755).create(&path)?,
            false => OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o644)
                .open(&path)
                .map(drop)?,
        }
        return Ok(path);
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

fn internal(what: &str, cause: io::Error) -> Error {
    Error::caused(ErrorKind::Internal, format!("cannot {what}"), cause)
}

//! What the guest sees of the host: a small file system of our own (`mounts`), into which the host puts directories and
//! mounts, one directory per container; and its mirror (`shared`), in which the same mounts appear, and which nobody can
//! write, so that no name in it is ever the guest's. The mirror is what is served.
//!
//! It must not know who serves it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::timeout;

use super::mount::{self, Limits};
use super::options::{Bind, Options};
use super::step::Steps;
use crate::aside::Site;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::ROOTFS;
use crate::model::{BindPlan, ContainerPlan, RootPlan};
use crate::sandbox::RootfsMount;
use crate::{ContainerId, deadlines};

/// What the caller names, in errors.
const ROOT: &str = "the root file system";
const SOURCE: &str = "the source of a mount";

/// The share of one sandbox. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Share {
    mounts: PathBuf,
    shared: PathBuf,
    inert: bool,
    /// Directories of the containers that are there. Held for moments only.
    directories: Arc<Mutex<BTreeMap<ContainerId, PathBuf>>>,
    /// Containers that are being added.
    adding: watch::Sender<usize>,
}

/// A container is being added.
struct Adding<'a>(&'a Share);

impl Drop for Adding<'_> {
    fn drop(&mut self) {
        self.0
            .adding
            .send_modify(|adding| *adding = adding.saturating_sub(1));
    }
}

impl Share {
    /// Makes it in the sandbox's directory. `inert`: it is served to a virtual machine, and the host itself uses none of it.
    /// What a failure leaves is [`mount::clear_below`]'s to take away.
    pub(super) fn make(dir: &Path, inert: bool, steps: &Steps) -> Result<Self> {
        let share = Self {
            mounts: dir.join("mounts"),
            shared: dir.join("shared"),
            inert,
            directories: Arc::default(),
            adding: watch::Sender::new(0),
        };
        let failed = |cause: io::Error| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot make the sandbox's shared directory in {}", dir.display()),
                cause,
            )
        };
        make_directory(&share.mounts).map_err(failed)?;
        make_directory(&share.shared).map_err(failed)?;
        steps.take()?;
        mount::memory(&share.mounts).map_err(failed)?;
        steps.take()?;
        let limits = Limits {
            readonly: true,
            inert,
        };
        mount::mirror(&share.mounts, &share.shared, limits).map_err(failed)?;
        steps.take()?;
        Ok(share)
    }

    /// The directory to be served.
    pub(super) fn directory(&self) -> &Path {
        &self.shared
    }

    /// Makes a container's files appear. On an error, or if nobody wants them any more, nothing of them is left.
    pub(super) fn add(&self, plan: &ContainerPlan, steps: &Steps) -> Result<()> {
        self.adding.send_modify(|adding| *adding += 1);
        let _adding = Adding(self);
        let dir = self.mounts.join(name(&plan.directory)?);
        make_directory(&dir).map_err(|cause| ours(&dir, cause))?;
        let filled = self.fill(&dir, plan, steps).and_then(|()| {
            let mut directories = self.directories();
            // Whoever gives up removes afterwards what is in the list by then.
            steps.at(&dir)?;
            directories.insert(plan.id.clone(), dir.clone());
            Ok(())
        });
        filled.map_err(|error| {
            let error = error.while_doing(format_args!("container {}", plan.id));
            match clear(&dir) {
                Ok(()) => error,
                Err(second) => error.and(&second),
            }
        })
    }

    /// Waits until nothing is being added, or for the time that takes where nothing hangs.
    pub(super) async fn settled(&self) {
        let mut adding = self.adding.subscribe();
        // The sender is ours.
        let _ = timeout(deadlines::SETTLED, adding.wait_for(|adding| *adding == 0)).await;
    }

    fn directories(&self) -> MutexGuard<'_, BTreeMap<ContainerId, PathBuf>> {
        // Nothing panics while it holds them.
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, dir: &Path, plan: &ContainerPlan, steps: &Steps) -> Result<()> {
        steps.take()?;
        let root = dir.join(ROOTFS);
        make_directory(&root).map_err(|cause| ours(&root, cause))?;
        match &plan.root {
            RootPlan::Mounts(mounts) => {
                for one in mounts {
                    steps.take()?;
                    steps.at(Path::new(&one.source))?;
                    self.mount_root(one, &root)?;
                }
            }
            RootPlan::Directory(source) => {
                let limits = self.limits(false);
                steps.at(source)?;
                mount::open_directory(source)
                    .and_then(|source| mount::bind(&source, &root, Bind::Recursive, limits))
                    .map_err(|cause| theirs(ROOT, source, cause))?;
            }
        }
        for bind in &plan.binds {
            steps.take()?;
            steps.at(&bind.source)?;
            self.bind(bind, dir)?;
        }
        steps.take()
    }

    fn limits(&self, readonly: bool) -> Limits {
        Limits {
            readonly,
            inert: self.inert,
        }
    }

    fn mount_root(&self, one: &RootfsMount, root: &Path) -> Result<()> {
        let what = format!("the root file system's {} mount of {:?}", one.fs_type, one.source);
        let options = Options::parse(&one.fs_type, &one.options)
            .map_err(|reason| Error::new(ErrorKind::InvalidArgument, format!("{what}: {reason}")))?;
        mount::new(&one.fs_type, &one.source, &options, root, self.limits(false)).map_err(|cause| {
            let said = match cause.raw_os_error() {
                Some(libc::ENODEV) => "the host's kernel does not know this file system".to_owned(),
                _ if options.bind.is_some() => reason(&cause),
                _ => cause.to_string(),
            };
            Error::caused(kind(&cause), format!("{what} failed: {said}"), cause)
        })
    }

    fn bind(&self, bind: &BindPlan, dir: &Path) -> Result<()> {
        let target = dir.join(name(&bind.name)?);
        let source = mount::open_source(&bind.source).map_err(|cause| theirs(SOURCE, &bind.source, cause))?;
        let status = rustix::fs::fstat(&source).map_err(|errno| ours(&bind.source, errno.into()))?;
        let made = match rustix::fs::FileType::from_raw_mode(status.st_mode) {
            rustix::fs::FileType::Directory => make_directory(&target),
            _ => make_file(&target),
        };
        made.map_err(|cause| ours(&target, cause))?;
        let depth = match bind.recursive {
            true => Bind::Recursive,
            false => Bind::Single,
        };
        mount::bind(&source, &target, depth, self.limits(bind.readonly))
            .map_err(|cause| theirs(SOURCE, &bind.source, cause))
    }

    /// Takes a container's files away. Nothing there is success. Nothing is deleted but what was made here: empty
    /// directories and files.
    pub(super) fn remove(&self, id: &ContainerId) -> Result<()> {
        let Some(dir) = self.directories().get(id).cloned() else {
            return Ok(());
        };
        clear(&dir)?;
        self.directories().remove(id);
        Ok(())
    }
}

/// Takes a container's directory away.
fn clear(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|cause| ours(dir, cause))?;
    let mut result = Ok(());
    for entry in entries.flatten() {
        let path = entry.path();
        let removed = mount::clear(&path).and_then(|()| match entry.file_type()?.is_dir() {
            true => fs::remove_dir(&path),
            false => fs::remove_file(&path),
        });
        result = result.and(removed.map_err(|cause| ours(&path, cause)));
    }
    result?;
    fs::remove_dir(dir).map_err(|cause| ours(dir, cause))
}

/// Looks for everything of the host's that a container is to see: `root` says whether the root file system is already there.
pub(super) fn find_sources(plan: &ContainerPlan, root: bool, site: &Site) -> Result<()> {
    if let RootPlan::Directory(source) = &plan.root
        && root
    {
        site.at(source)?;
        mount::open_directory(source).map_err(|cause| theirs(ROOT, source, cause))?;
    }
    for bind in &plan.binds {
        site.at(&bind.source)?;
        mount::open_source(&bind.source).map_err(|cause| theirs(SOURCE, &bind.source, cause))?;
    }
    Ok(())
}

/// A name in one of our directories.
fn name(text: &str) -> Result<&OsStr> {
    let mut components = Path::new(text).components();
    match (components.next(), components.next()) {
        (Some(Component::Normal(name)), None) => Ok(name),
        _ => Err(Error::new(
            ErrorKind::Internal,
            format!("{text:?} is not a name for what is shared"),
        )),
    }
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o755).create(path)
}

fn make_file(path: &Path) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
        .map(drop)
}

/// An error with something of our own making.
fn ours(path: &Path, cause: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("{} cannot be used", path.display()),
        cause,
    )
}

/// An error with something that the caller has named.
fn theirs(what: &str, path: &Path, cause: io::Error) -> Error {
    let said = reason(&cause);
    Error::caused(
        kind(&cause),
        format!("{what}, {}, cannot be used: {said}", path.display()),
        cause,
    )
}

fn reason(cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(libc::ELOOP) => "its path is a link that leads in a circle".to_owned(),
        Some(libc::ENOENT) => "there is no such file or directory".to_owned(),
        Some(libc::ENOTDIR) => "it is not a directory".to_owned(),
        _ => cause.to_string(),
    }
}

/// Whose mistake it is.
fn kind(cause: &io::Error) -> ErrorKind {
    match cause.raw_os_error() {
        Some(libc::ELOOP | libc::ENOENT | libc::ENOTDIR | libc::EINVAL | libc::ENAMETOOLONG) => {
            ErrorKind::InvalidArgument
        }
        Some(libc::ENODEV) => ErrorKind::Unsupported,
        _ if cause.kind() == io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
        _ => ErrorKind::Internal,
    }
}

//! What the guest sees of the host: a small file system of our own (`mounts`), into which the host puts directories and
//! mounts, one directory per container and one per volume; and its mirror (`shared`), in which the same mounts appear, and which nobody can
//! write, so that no name in it is ever the guest's. The mirror is what is served.
//!
//! It must not know who serves it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use super::mount::{self, Limits};
use super::options::{Bind, Options};
use super::step::Steps;
use crate::ContainerId;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{DATA, ROOTFS};
use crate::model::{BindPlan, ContainerPlan, RootPlan};
use crate::plan::Volumes;
use crate::sandbox::RootfsMount;

/// What the caller names, in errors.
const ROOT: &str = "the root file system";
const SOURCE: &str = "the source of a mount";

/// The share of one sandbox.
#[derive(Debug)]
pub(super) struct Share {
    mounts: PathBuf,
    shared: PathBuf,
    inert: bool,
    /// Directories of the containers that are there.
    directories: BTreeMap<ContainerId, PathBuf>,
    /// What is there for several of them.
    volumes: Volumes,
}

impl Share {
    /// Makes it in the sandbox's directory. `inert`: it is served to a virtual machine, and the host itself uses none of it.
    /// What a failure leaves is [`mount::clear_below`]'s to take away.
    pub(super) fn make(dir: &Path, inert: bool, steps: &mut Steps) -> Result<Self> {
        let share = Self {
            mounts: dir.join("mounts"),
            shared: dir.join("shared"),
            inert,
            directories: BTreeMap::new(),
            volumes: Volumes::default(),
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

    /// What it shares for several containers.
    pub(super) fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Makes a container's files appear. On an error nothing of them is left.
    pub(super) fn add(&mut self, plan: &ContainerPlan, steps: &mut Steps) -> Result<()> {
        let dir = self.mounts.join(name(&plan.directory)?);
        self.directories.insert(plan.id.clone(), dir.clone());
        self.fill(&dir, plan, steps).map_err(|error| {
            let error = error.while_doing(format_args!("container {}", plan.id));
            match self.remove(&plan.id) {
                Ok(()) => error,
                Err(second) => error.and(&second),
            }
        })
    }

    fn fill(&mut self, dir: &Path, plan: &ContainerPlan, steps: &mut Steps) -> Result<()> {
        let root = Self::make_place(dir, ROOTFS, make_directory)?;
        steps.take()?;
        self.seal(dir)?;
        steps.take()?;
        match &plan.root {
            RootPlan::Mounts(mounts) => {
                for one in mounts {
                    steps.take()?;
                    self.mount_root(one, &root)?;
                }
            }
            RootPlan::Directory(source) => {
                let limits = self.limits(false);
                mount::open_directory(source)
                    .and_then(|source| mount::bind(&source, &root, Bind::Recursive, limits))
                    .map_err(|cause| theirs(ROOT, source, cause))?;
            }
        }
        for bind in &plan.binds {
            steps.take()?;
            let dir = self.mounts.join(name(&bind.name)?);
            if self.volumes.enter(bind, &plan.id) {
                self.bind(bind, &dir)?;
            }
        }
        steps.take()
    }

    /// Makes a directory with one name in it, where something is to be mounted.
    fn make_place(dir: &Path, name: &str, make: impl FnOnce(&Path) -> io::Result<()>) -> Result<PathBuf> {
        let place = dir.join(name);
        make_directory(dir)
            .and_then(|()| make(&place))
            .map_err(|cause| ours(dir, cause))?;
        Ok(place)
    }

    /// Makes a directory a mount of its own, to which nobody adds names. What is mounted in it afterwards goes with it in the
    /// guest: that drops one mount, and with it all that it remembers and we would have to hold open.
    fn seal(&self, dir: &Path) -> Result<()> {
        mount::open_directory(dir)
            .and_then(|source| mount::bind(&source, dir, Bind::Single, self.limits(true)))
            .map_err(|cause| ours(dir, cause))
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
        let source = mount::open_source(&bind.source).map_err(|cause| theirs(SOURCE, &bind.source, cause))?;
        let status = rustix::fs::fstat(&source).map_err(|errno| ours(&bind.source, errno.into()))?;
        let target = match rustix::fs::FileType::from_raw_mode(status.st_mode) {
            rustix::fs::FileType::Directory => Self::make_place(dir, DATA, make_directory),
            _ => Self::make_place(dir, DATA, make_file),
        }?;
        self.seal(dir)?;
        let depth = match bind.recursive {
            true => Bind::Recursive,
            false => Bind::Single,
        };
        mount::bind(&source, &target, depth, self.limits(bind.readonly))
            .map_err(|cause| theirs(SOURCE, &bind.source, cause))
    }

    /// Takes a container's files away, and what it was the last to use. Nothing there is success. Nothing is deleted but what
    /// was made here: empty directories and files.
    pub(super) fn remove(&mut self, id: &ContainerId) -> Result<()> {
        let Some(dir) = self.directories.get(id) else {
            return Ok(());
        };
        take_away(dir)?;
        self.directories.remove(id);
        self.volumes.leave(id);
        let mut result = Ok(());
        for name in self.volumes.unused() {
            let taken = take_away(&self.mounts.join(&name));
            if taken.is_ok() {
                self.volumes.forget(&name);
            }
            result = result.and(taken);
        }
        result
    }
}

/// Unmounts what is in a sealed directory, and removes it. Nothing there is success.
fn take_away(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|cause| ours(dir, cause))?,
    };
    let places: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let mut result = Ok(());
    for place in places.iter().map(PathBuf::as_path).chain([dir]) {
        result = result.and(mount::clear(place).map_err(|cause| ours(place, cause)));
    }
    result?;
    for place in &places {
        let removed = match place.is_dir() {
            true => fs::remove_dir(place),
            false => fs::remove_file(place),
        };
        removed.map_err(|cause| ours(place, cause))?;
    }
    fs::remove_dir(dir).map_err(|cause| ours(dir, cause))
}

/// Looks for everything of the host's that a container is to see: `root` says whether the root file system is already there.
pub(super) fn find_sources(plan: &ContainerPlan, root: bool) -> Result<()> {
    if let RootPlan::Directory(source) = &plan.root
        && root
    {
        mount::open_directory(source).map_err(|cause| theirs(ROOT, source, cause))?;
    }
    for bind in &plan.binds {
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

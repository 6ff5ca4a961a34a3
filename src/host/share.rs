//! What the guest sees of the host: a small file system of our own (`mounts`), into which the host puts directories and
//! mounts, one directory per container and one per volume; and its mirror (`shared`), in which the same mounts appear, and which nobody can
//! write, so that no name in it is ever the guest's. The mirror is what is served.
//!
//! It must not know who serves it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::timeout;

use super::mount::{self, Limits};
use super::options::{Bind, Options};
use super::stage::{Place, Stage};
use super::step::Steps;
use crate::aside::Site;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{DATA, ROOTFS};
use crate::model::{BindPlan, ContainerPlan, RootPlan};
use crate::plan::Volumes;
use crate::sandbox::RootfsMount;
use crate::{ContainerId, deadlines};

/// What the caller names, in errors.
pub(super) const ROOT: &str = "the root file system";
pub(super) const SOURCE: &str = "the source of a mount";

/// The share of one sandbox. Clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Share {
    mounts: PathBuf,
    shared: PathBuf,
    inert: bool,
    /// Held for moments only.
    held: Arc<Mutex<Held>>,
    /// A volume was made, or could not be.
    made: Arc<Condvar>,
    /// Containers that are being added.
    adding: watch::Sender<usize>,
}

/// What is there.
#[derive(Debug, Default)]
struct Held {
    /// Directories of the containers.
    directories: BTreeMap<ContainerId, PathBuf>,
    /// What there is, or will be, for several of them.
    volumes: Volumes,
    /// Names of those that somebody is making, and of those that are there.
    making: BTreeSet<String>,
    ready: BTreeSet<String>,
    /// Names of those that nobody uses, that are not gone yet, and that nobody is taking away.
    doomed: BTreeSet<String>,
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
            held: Arc::default(),
            made: Arc::default(),
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

    /// Makes a container's files appear, as they are planned with what is shared already. On an error, or if nobody wants
    /// them any more, nothing of them is left.
    pub(super) fn add(
        &self,
        planned: impl FnOnce(&Volumes) -> Result<ContainerPlan>,
        steps: &Steps,
    ) -> Result<ContainerPlan> {
        self.adding.send_modify(|adding| *adding += 1);
        let _adding = Adding(self);
        // From here on a release waits for us, and before it nobody wanted this any more.
        steps.at(&self.mounts)?;
        // Another container that is added meanwhile is planned with what this one is about to share.
        let plan = {
            let mut held = self.held();
            let plan = planned(&held.volumes)?;
            for bind in &plan.binds {
                held.volumes.enter(bind, &plan.id);
            }
            plan
        };
        let filled = self.directory_of(&plan).and_then(|dir| {
            let filled = self.fill(&dir, &plan, steps).and_then(|()| {
                let mut held = self.held();
                // Whoever gives up removes afterwards what is in the list by then.
                steps.at(&dir)?;
                held.directories.insert(plan.id.clone(), dir.clone());
                Ok(())
            });
            filled.map_err(|error| or_both(error, take_away(&dir)))
        });
        match filled {
            Ok(()) => Ok(plan),
            Err(error) => {
                let error = error.while_doing(format_args!("container {}", plan.id));
                Err(or_both(error, self.leave(&plan.id)))
            }
        }
    }

    /// Where hooks act that change a container's files, if there are any: what [`Self::add`] has left out.
    pub(super) fn stage(
        &self,
        plan: &ContainerPlan,
        network: Option<Arc<OwnedFd>>,
        steps: &Steps,
    ) -> Result<Option<Stage>> {
        let Some(stage) = &plan.stage else {
            return Ok(None);
        };
        let place = Place {
            path: self.directory_of(plan)?.join(ROOTFS),
            limits: self.limits(false),
        };
        let stage = Stage::set(stage, &plan.root, place, network, steps)?;
        steps.take()?;
        Ok(Some(stage))
    }

    fn directory_of(&self, plan: &ContainerPlan) -> Result<PathBuf> {
        Ok(self.mounts.join(name(&plan.directory)?))
    }

    /// Waits until nothing is being added, or for the time that takes where nothing hangs.
    pub(super) async fn settled(&self) {
        let mut adding = self.adding.subscribe();
        // The sender is ours.
        let _ = timeout(deadlines::SETTLED, adding.wait_for(|adding| *adding == 0)).await;
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Nothing panics while it holds them.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self, dir: &Path, plan: &ContainerPlan, steps: &Steps) -> Result<()> {
        let root = Self::make_place(dir, ROOTFS, make_directory)?;
        steps.take()?;
        self.seal(dir)?;
        steps.take()?;
        if plan.stage.is_none() {
            mount_root(&plan.root, &root, self.limits(false), steps)?;
        }
        for bind in &plan.binds {
            steps.take()?;
            steps.at(&bind.source)?;
            self.volume(bind, steps)?;
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

    /// Makes a volume, unless it is there; if somebody else is at it, waits for that.
    fn volume(&self, bind: &BindPlan, steps: &Steps) -> Result<()> {
        let mut held = self.held();
        loop {
            if held.ready.contains(&bind.name) {
                return Ok(());
            }
            if held.making.insert(bind.name.clone()) {
                break;
            }
            let waited = self.made.wait_timeout(held, deadlines::LOOK);
            held = waited.unwrap_or_else(PoisonError::into_inner).0;
            // Whoever makes it may hang.
            steps.at(&bind.source)?;
        }
        drop(held);
        let made = name(&bind.name).and_then(|name| {
            let dir = self.mounts.join(name);
            self.bind(bind, &dir)
                .map_err(|error| or_both(error, take_away(&dir)))
        });
        let mut held = self.held();
        held.making.remove(&bind.name);
        if made.is_ok() {
            held.ready.insert(bind.name.clone());
        }
        drop(held);
        self.made.notify_all();
        made
    }

    /// Takes a container's files away, and what it was the last to use. Nothing there is success. Nothing is deleted but what
    /// was made here: empty directories and files.
    pub(super) fn remove(&self, id: &ContainerId) -> Result<()> {
        let Some(dir) = self.held().directories.get(id).cloned() else {
            return Ok(());
        };
        take_away(&dir)?;
        self.held().directories.remove(id);
        self.leave(id)
    }

    /// A container uses nothing any more: takes away what it was the last to use, and what could not be taken away before.
    fn leave(&self, id: &ContainerId) -> Result<()> {
        let doomed = {
            let mut held = self.held();
            held.volumes.leave(id);
            for name in held.volumes.unused() {
                // From here on nobody finds it, and its name is not used again.
                held.volumes.forget(&name);
                if held.ready.remove(&name) {
                    held.doomed.insert(name);
                }
            }
            // All of them, and not their names only: another container that goes now leaves them to us.
            std::mem::take(&mut held.doomed)
        };
        let mut result = Ok(());
        for name in doomed {
            let taken = take_away(&self.mounts.join(&name));
            if taken.is_err() {
                self.held().doomed.insert(name);
            }
            result = result.and(taken);
        }
        result
    }
}

/// Makes a root file system appear at `root`.
pub(super) fn mount_root(plan: &RootPlan, root: &Path, limits: Limits, steps: &Steps) -> Result<()> {
    match plan {
        RootPlan::Mounts(mounts) => {
            for one in mounts {
                steps.take()?;
                steps.at(Path::new(&one.source))?;
                mount_one(one, root, limits)?;
            }
            Ok(())
        }
        RootPlan::Disk => Ok(()),
        RootPlan::Directory(source) => {
            steps.at(source)?;
            mount::open_directory(source)
                .and_then(|source| mount::bind(&source, root, Bind::Recursive, limits))
                .map_err(|cause| theirs(ROOT, source, cause))
        }
    }
}

fn mount_one(one: &RootfsMount, root: &Path, limits: Limits) -> Result<()> {
    let what = format!("the root file system's {} mount of {:?}", one.fs_type, one.source);
    let options = Options::parse(&one.fs_type, &one.options)
        .map_err(|reason| Error::new(ErrorKind::InvalidArgument, format!("{what}: {reason}")))?;
    mount::new(&one.fs_type, &one.source, &options, root, limits).map_err(|cause| {
        let said = match cause.raw_os_error() {
            Some(libc::ENODEV) => "the host's kernel does not know this file system".to_owned(),
            _ if options.bind.is_some() => reason(&cause),
            _ => cause.to_string(),
        };
        Error::caused(kind(&cause), format!("{what} failed: {said}"), cause)
    })
}

/// An error, and what went wrong in undoing what had been done.
fn or_both(error: Error, undone: Result<()>) -> Error {
    match undone {
        Ok(()) => error,
        Err(second) => error.and(&second),
    }
}

/// Unmounts what is in a sealed directory, and removes it. Nothing there is success, also where somebody else has just taken it
/// away: one whose deadline had passed, or the end of the sandbox.
fn take_away(dir: &Path) -> Result<()> {
    let places: Vec<PathBuf> = match fs::read_dir(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => {
            let entries = entries.map_err(|cause| ours(dir, cause))?;
            entries.flatten().map(|entry| entry.path()).collect()
        }
    };
    take_away_places(dir, &places)
}

/// The same, where these were in it.
fn take_away_places(dir: &Path, places: &[PathBuf]) -> Result<()> {
    let mut result = Ok(());
    for place in places.iter().map(PathBuf::as_path).chain([dir]) {
        result = result.and(mount::clear(place).map_err(|cause| ours(place, cause)));
    }
    result?;
    for place in places {
        let removed = match place.is_dir() {
            true => fs::remove_dir(place),
            false => fs::remove_file(place),
        };
        or_gone(removed).map_err(|cause| ours(place, cause))?;
    }
    or_gone(fs::remove_dir(dir)).map_err(|cause| ours(dir, cause))
}

/// What is gone is gone, whoever has removed it.
fn or_gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
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
pub(super) fn theirs(what: &str, path: &Path, cause: io::Error) -> Error {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_has_taken_away_since_one_looked_is_gone() {
        let run_dir = tempfile::tempdir().unwrap();
        let dir = run_dir.path().join("v8");
        let make = || {
            fs::create_dir(&dir).unwrap();
            [dir.join(DATA), dir.join("file")].map(|place| {
                make_directory(&place).unwrap();
                place
            })
        };
        // Everything, or one place, or nothing has gone.
        let places = make();
        fs::remove_dir_all(&dir).unwrap();
        take_away_places(&dir, &places).unwrap();
        let places = make();
        fs::remove_dir(&places[0]).unwrap();
        take_away_places(&dir, &places).unwrap();
        take_away_places(&dir, &make()).unwrap();
        take_away(&dir).unwrap();
        // What is not ours stays, and is told.
        let places = make();
        fs::write(places[0].join("kept"), "").unwrap();
        take_away_places(&dir, &places).unwrap_err();
        assert!(places[0].join("kept").exists());
    }
}

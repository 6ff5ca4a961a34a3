//! File systems that the host asks for, mounted in the guest outside any container, and unmounted in reverse.
//!
//! Must not know who asks: a sandbox and a container own what was mounted for them.

mod copy;
mod disk;
mod options;
mod pages;
mod path;
mod room;

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, fstat, open, statx, syncfs};
use rustix::mount::{
    MountFlags, UnmountFlags, mount, mount_bind, mount_bind_recursive, mount_remount, unmount,
};

use crate::container;
use crate::error::{Error, Result};
use crate::init::modules;
use crate::uevent;
pub use copy::Copied;
pub use disk::DiskDevice;
use disk::{DEVICE_DEADLINE, Disk};
use options::Options;
use pages::Pages;
pub use path::{GuestPath, Root};
use path::{Make, name_of};
pub use room::{Room, Volume};

/// Of a share, at once: twice what the kernel would. Where guests are emulated a program of 2 MiB begins a quarter sooner with four
/// times as much, and no sooner with eight times; but what is read and not wanted is memory that each copy of a template has to
/// itself (0.3 % more of a copy's, from twice to four times).
const READ_AHEAD_KIB: &str = "256";

/// A mount that the host asked for, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    driver: Driver,
    options: Options,
    mount_point: GuestPath,
    of_pod: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Driver {
    VirtioFs {
        tag: String,
    },
    Tmpfs,
    Copy(Vec<Copied>),
    HugePages(Pages),
    Bind {
        source: GuestPath,
        recursive: bool,
    },
    Block {
        disk: Disk,
        fstype: String,
    },
    Overlay {
        lower: Vec<GuestPath>,
        upper: Option<GuestPath>,
        work: Option<GuestPath>,
    },
}

impl Storage {
    /// Checks a request from the wire; the fields are those of the protocol's `Storage`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with field and reason.
    pub fn parse(
        driver: &str,
        source: &str,
        fstype: &str,
        options: &[String],
        mount_point: &str,
    ) -> Result<Self> {
        let mount_point = GuestPath::parse("storage.mount_point", mount_point)?;
        let recursive = options.iter().any(|o| o == "rbind");
        let mut options = Options::parse(options)?;
        let driver = match driver {
            "virtio-fs" => Driver::VirtioFs {
                tag: name("storage.source", source)?,
            },
            "tmpfs" => Driver::Tmpfs,
            "copy" => Driver::Copy(Vec::new()),
            "hugetlbfs" => Driver::HugePages(Pages::parse(&options.data)?),
            "bind" => Driver::Bind {
                source: GuestPath::parse("storage.source", source)?,
                recursive,
            },
            "block" => Driver::Block {
                disk: Disk::parse("storage.source", source)?,
                fstype: name("storage.fstype", fstype)?,
            },
            "overlay" => overlay(&mut options)?,
            other => return Err(Error::Unsupported(format!("storage driver {other:?}"))),
        };
        Ok(Self {
            driver,
            options,
            mount_point,
            of_pod: false,
        })
    }

    /// The same, for all containers of the pod.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is not memory: another kind may have to be waited for.
    pub fn of_the_pod(self) -> Result<Self> {
        match self.driver {
            Driver::Tmpfs | Driver::HugePages(_) => Ok(Self { of_pod: true, ..self }),
            _ => Err(Error::invalid(
                "storage.pod",
                "set for a driver that is not of memory",
            )),
        }
    }

    /// The same, with these files in it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for too many, or a storage that has its own.
    pub fn with_files(self, files: Vec<Copied>) -> Result<Self> {
        copy::check(&files)?;
        match self.driver {
            Driver::Copy(_) => Ok(Self {
                driver: Driver::Copy(files),
                ..self
            }),
            _ if files.is_empty() => Ok(self),
            _ => Err(Error::invalid(
                "storage.files",
                "set for a driver that copies none",
            )),
        }
    }

    /// Whether it is the pod's, whichever container names it.
    pub fn is_of_the_pod(&self) -> bool {
        self.of_pod
    }

    /// Whether what is written in it is for a disk.
    fn writes(&self) -> bool {
        matches!(self.driver, Driver::Block { .. }) && !self.options.flags.0.contains(MountFlags::RDONLY)
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> PathBuf {
        self.mount_point.in_guest()
    }
}

/// A short name without separators: a file system, a tag, a serial number.
fn name(field: &'static str, text: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if text.is_empty() || text.len() > 64 || !text.chars().all(plain) || text.starts_with('.') {
        return Err(Error::invalid(
            field,
            format!("{text:?} is not a plain name of 1 to 64 characters"),
        ));
    }
    Ok(text.to_owned())
}

/// Takes the directories out of an overlay's options; the rest stays.
fn overlay(options: &mut Options) -> Result<Driver> {
    const FIELD: &str = "storage.options";
    let (mut lower, mut upper, mut work) = (Vec::new(), None, None);
    let mut rest = Vec::new();
    for option in options.data.drain(..) {
        match option.split_once('=') {
            Some(("lowerdir", dirs)) => {
                lower = dirs
                    .split(':')
                    .map(|dir| GuestPath::parse(FIELD, dir))
                    .collect::<Result<_>>()?;
            }
            Some(("upperdir", dir)) => upper = Some(GuestPath::parse(FIELD, dir)?),
            Some(("workdir", dir)) => work = Some(GuestPath::parse(FIELD, dir)?),
            _ => rest.push(option),
        }
    }
    if lower.is_empty() {
        return Err(Error::invalid(FIELD, "an overlay needs a lowerdir"));
    }
    options.data = rest;
    Ok(Driver::Overlay { lower, upper, work })
}

/// Something that was mounted. To be given back to [`Mounter::unmount`].
#[derive(Debug)]
pub struct Mounted {
    mount_point: GuestPath,
    make: Make,
    made: bool,
    /// There may be something in memory that belongs on a disk.
    writes: bool,
    /// On what it is.
    disk: Option<Disk>,
}

/// Mounts below the agent's directory.
#[derive(Debug)]
pub struct Mounter {
    root: Root,
    /// Directories that stand for a virtio-fs share when the agent is an ordinary process.
    shares: HashMap<String, PathBuf>,
    has_mounted_a_disk: AtomicBool,
}

impl Mounter {
    /// A mounter below `root`. Tags in `shares` are bind mounts of those directories, not virtio-fs.
    pub fn new(root: Root, shares: HashMap<String, PathBuf>) -> Self {
        Self {
            root,
            shares,
            has_mounted_a_disk: AtomicBool::new(false),
        }
    }

    /// Whether the file system of a disk was ever mounted.
    pub fn has_mounted_a_disk(&self) -> bool {
        self.has_mounted_a_disk.load(Ordering::Relaxed)
    }

    /// The agent's directory.
    pub fn root(&self) -> &Root {
        &self.root
    }

    /// Where this storage is a share of the host's, in which the kernel mounts by itself what is a mount there.
    pub fn share(&self, storage: &Storage) -> Option<PathBuf> {
        match &storage.driver {
            Driver::VirtioFs { tag } if !self.shares.contains_key(tag) => {
                Some(self.root.locate(&storage.mount_point))
            }
            _ => None,
        }
    }

    /// Mounts all, in order; on failure everything is undone.
    ///
    /// # Errors
    /// [`Error::File`] with the kernel's reason, [`Error::NoDevice`] for a disk that does not appear.
    pub async fn mount_all(&self, storages: &[Storage]) -> Result<Vec<Mounted>> {
        let mut mounted = Vec::new();
        for storage in storages {
            match self.mount(storage).await {
                Ok(one) => mounted.push(one),
                Err(error) => {
                    // The first error is the one that matters; what can't be undone here is reported by nobody better.
                    let _ = self.unmount_all(mounted);
                    return Err(error);
                }
            }
        }
        Ok(mounted)
    }

    async fn mount(&self, storage: &Storage) -> Result<Mounted> {
        match &storage.driver {
            Driver::Block { disk, fstype } => {
                self.has_mounted_a_disk.store(true, Ordering::Relaxed);
                self.mount_disk(storage, &disk.appeared().await?, fstype).await
            }
            // The device of a share may have to appear as well; until then its tag is as wrong as any other.
            Driver::VirtioFs { tag } if !self.shares.contains_key(tag) => {
                let look = || match self.mount_now(storage) {
                    Err(Error::File { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => None,
                    mounted => Some(mounted),
                };
                uevent::wait_for(&format!("a share with the tag {tag:?}"), DEVICE_DEADLINE, look).await?
            }
            _ => self.mount_now(storage),
        }
    }

    /// In another process: the kernel reads the disk, replays what its journal has, and the host may have the disk on a slow or
    /// broken network.
    async fn mount_disk(&self, storage: &Storage, device: &Path, fstype: &str) -> Result<Mounted> {
        modules::load(&format!("{}.{fstype}", modules::LIST))?;
        let (mounted, target) = self.mount_point(storage, Make::Directory)?;
        let name = name_of(&target);
        let data = storage.options.text(&[])?;
        let mounting = container::apart_with(
            target.as_fd(),
            || {
                Ok(mount(
                    device,
                    &name,
                    fstype,
                    storage.options.flags.0,
                    data.as_c_str(),
                )?)
            },
            |was_told| match was_told {
                true => disk::pass_on(device),
                // Nobody has waited.
                false => {
                    let _ = unmount(&name, UnmountFlags::DETACH);
                }
            },
        )?;
        let result = match mounting.result_within("the mount of a disk", MOUNT).await {
            Ok(result) => result.map_err(Error::file("mount", storage.mount_point.in_guest())),
            Err(error) => Err(error.into()),
        };
        drop(target);
        match result {
            Ok(()) => Ok(mounted),
            Err(error) => {
                let _ = self.unmount(mounted);
                Err(error)
            }
        }
    }

    /// Opens the directory or file to mount on, made if need be.
    fn mount_point(&self, storage: &Storage, make: Make) -> Result<(Mounted, OwnedFd)> {
        let (target, made) = self.root.resolve_or_make(&storage.mount_point, make)?;
        let mounted = Mounted {
            mount_point: storage.mount_point.clone(),
            make,
            made,
            writes: storage.writes(),
            disk: match &storage.driver {
                Driver::Block { disk, .. } => Some(disk.clone()),
                _ => None,
            },
        };
        Ok((mounted, target))
    }

    /// Mounts one of the pod's.
    ///
    /// # Errors
    /// [`Error::File`] with the kernel's reason; [`Error::NoPages`].
    pub fn mount_of_pod(&self, storage: &Storage) -> Result<Mounted> {
        self.mount_now(storage)
    }

    fn mount_now(&self, storage: &Storage) -> Result<Mounted> {
        let source = match &storage.driver {
            Driver::Bind { source, .. } => Some(self.root.resolve(source)?),
            _ => None,
        };
        if let Driver::HugePages(pages) = &storage.driver {
            pages.reserve(Path::new(pages::ALL))?;
        }
        let make = match &source {
            Some(fd) if !is_directory(fd) => Make::File,
            _ => Make::Directory,
        };
        let (mounted, target) = self.mount_point(storage, make)?;
        let target = name_of(&target).into_os_string();
        let path = storage.mount_point.in_guest();
        let result = match &storage.driver {
            Driver::VirtioFs { tag } => match self.shares.get(tag) {
                Some(dir) => mount_bind_recursive(dir, &target).map_err(Error::file("mount", path)),
                None => self
                    .mount_new(tag, "virtiofs", storage, &[], &target)
                    .inspect(|()| self.read_ahead(storage)),
            },
            Driver::Tmpfs => self.mount_new("tmpfs", "tmpfs", storage, &[], &target),
            Driver::Copy(files) => self.mount_copy(storage, files, &target),
            Driver::HugePages(_) => self.mount_new("hugetlbfs", "hugetlbfs", storage, &[], &target),
            Driver::Bind { recursive, .. } => {
                let source = source.as_ref().map(name_of).unwrap_or_default();
                let bind = if *recursive {
                    mount_bind_recursive(source, &target)
                } else {
                    mount_bind(source, &target)
                };
                bind.map_err(Error::file("bind", path))
            }
            Driver::Block { .. } => Err(Error::State("a disk is mounted beside everything else")),
            Driver::Overlay { lower, upper, work } => {
                self.mount_overlay(storage, lower, upper.as_ref(), work.as_ref(), &target)
            }
        };
        let result = result.and_then(|()| self.tighten(storage));
        match result {
            Ok(()) => Ok(mounted),
            Err(error) => {
                // Either nothing is mounted, or a bind mount whose flags the kernel refused, or memory that was too small.
                let _ = self.unmount(mounted);
                Err(error)
            }
        }
    }

    fn mount_new(
        &self,
        source: impl AsRef<Path>,
        fstype: &str,
        storage: &Storage,
        directories: &[String],
        target: &std::ffi::OsStr,
    ) -> Result<()> {
        let data = storage.options.text(directories)?;
        mount(
            source.as_ref(),
            target,
            fstype,
            storage.options.flags.0,
            data.as_c_str(),
        )
        .map_err(Error::file("mount", storage.mount_point.in_guest()))
    }

    /// Has the kernel read more of a share's files at once than it does by itself: what a request costs is the way to the host and
    /// back, and not the bytes. Where it does not take it, it goes on as it was.
    fn read_ahead(&self, storage: &Storage) {
        let number = || -> Result<String> {
            let mounted = self.root.resolve(&storage.mount_point)?;
            // As the kernel knows it: the host is not asked.
            let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
            let found = statx(mounted, c"", flags, StatxFlags::TYPE)
                .map_err(Error::file("look at", storage.mount_point.in_guest()))?;
            Ok(format!("{}:{}", found.stx_dev_major, found.stx_dev_minor))
        };
        if let Ok(number) = number() {
            let _ = std::fs::write(format!("/sys/class/bdi/{number}/read_ahead_kb"), READ_AHEAD_KIB);
        }
    }

    fn mount_copy(&self, storage: &Storage, files: &[Copied], target: &std::ffi::OsStr) -> Result<()> {
        self.mount_new("tmpfs", "tmpfs", storage, &[], target)?;
        let mounted = self.root.resolve(&storage.mount_point)?;
        copy::fill(files, &mounted, &storage.mount_point.in_guest())
    }

    fn mount_overlay(
        &self,
        storage: &Storage,
        lower: &[GuestPath],
        upper: Option<&GuestPath>,
        work: Option<&GuestPath>,
        target: &std::ffi::OsStr,
    ) -> Result<()> {
        let open = |path: &GuestPath| self.root.resolve(path);
        let name = |fd: &OwnedFd| String::from_utf8_lossy(name_of(fd).as_os_str().as_bytes()).into_owned();
        // The descriptors have to live until the kernel has walked their names.
        let lower = lower.iter().map(open).collect::<Result<Vec<_>>>()?;
        let upper = upper.map(open).transpose()?;
        let work = work.map(open).transpose()?;
        let mut directories = vec![format!(
            "lowerdir={}",
            lower.iter().map(name).collect::<Vec<_>>().join(":")
        )];
        directories.extend(upper.as_ref().map(|fd| format!("upperdir={}", name(fd))));
        directories.extend(work.as_ref().map(|fd| format!("workdir={}", name(fd))));
        self.mount_new("overlay", "overlay", storage, &directories, target)
    }

    /// A bind mount takes the flags of its source first; its own need a second step.
    fn tighten(&self, storage: &Storage) -> Result<()> {
        let bound = match &storage.driver {
            Driver::Bind { .. } => true,
            Driver::VirtioFs { tag } => self.shares.contains_key(tag),
            _ => false,
        };
        if !bound || storage.options.flags.0.is_empty() {
            return Ok(());
        }
        let mounted = self.root.resolve(&storage.mount_point)?;
        mount_remount(name_of(&mounted), storage.options.flags.0 | MountFlags::BIND, "")
            .map_err(Error::file("remount", storage.mount_point.in_guest()))
    }

    /// Has the kernel write to the disks what belongs on them: with the last mount of a disk it would as well, but nobody could
    /// wait for that, nor be told of it. In another process, because it may take its time.
    ///
    /// # Errors
    /// [`container::Error::Late`](crate::container::Error::Late): it may yet be done.
    pub async fn flush(&self, mounted: &[Mounted]) -> Result<()> {
        let disks: Vec<PathBuf> = mounted
            .iter()
            .filter(|one| one.writes)
            .map(|one| self.root.locate(&one.mount_point))
            .collect();
        if disks.is_empty() {
            return Ok(());
        }
        let flushing = container::apart(|| {
            for disk in &disks {
                // An error is the disk's, and what can be done about it is the host's to know.
                let _ = open(disk, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(syncfs);
            }
        })?;
        Ok(flushing.done_within("the writing of disks", FLUSH).await?)
    }

    /// The file system of a disk, if that is what was mounted at a path of the host's.
    pub fn volume(&self, mounted: &Mounted, mount_point: &GuestPath) -> Option<Volume> {
        let disk = mounted.disk.clone()?;
        (mounted.mount_point == *mount_point).then(|| Volume::new(disk, self.root.locate(mount_point)))
    }

    /// Unmounts in reverse order; goes on after a failure and answers with the first.
    ///
    /// # Errors
    /// [`Error::File`] with the kernel's reason.
    pub fn unmount_all(&self, mut mounted: Vec<Mounted>) -> Result<()> {
        let mut result = Ok(());
        while let Some(one) = mounted.pop() {
            result = result.and(self.unmount(one));
        }
        result
    }

    fn unmount(&self, mounted: Mounted) -> Result<()> {
        let target = self.root.resolve(&mounted.mount_point)?;
        // Detached, because our own descriptor keeps the mount busy; it goes with the descriptor.
        let result = unmount(name_of(&target), UnmountFlags::DETACH);
        drop(target);
        if mounted.made {
            self.root.unmake(&mounted.mount_point, mounted.make);
        }
        result.map_err(Error::file("unmount", mounted.mount_point.in_guest()))
    }
}

/// For the kernel to mount the file system of a disk. A large one that was not left in order takes its time.
const MOUNT: Duration = Duration::from_secs(60);

/// For the kernel to write to disks what belongs on them: gigabytes, on a slow one. The host gives up before, and asks again.
const FLUSH: Duration = Duration::from_secs(3600);

/// Has the kernel mount what is a mount of the host's at these paths of a share, here, where every container's mount namespace is
/// copied from: mounted in each of them it would be a file system of its own in each.
///
/// # Errors
/// [`container::Error::Late`] when the host does not answer.
pub async fn visit(paths: Vec<PathBuf>) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    let visiting = container::apart(|| {
        for path in &paths {
            // Not stat(2), which leaves what would have to be mounted alone. What is not there is told by who needs it.
            let _ = statx(CWD, path, AtFlags::empty(), StatxFlags::TYPE);
        }
    })?;
    Ok(visiting.done("a look at what the host shares").await?)
}

/// Lets the kernel forget what it has seen in directories of a share that are mounts of their own: with the mount go the names
/// and files below it that the host holds open for it. In another process, because the host may not answer.
///
/// # Errors
/// When there can be no such process.
pub fn forget(directories: &[PathBuf]) -> Result<()> {
    if directories.is_empty() {
        return Ok(());
    }
    container::apart(|| {
        for directory in directories {
            // That a file was closed is told to the host without waiting for the answer, and not before what was being read of it has
            // come. A file system that ends meanwhile has an inode in use, and Linux 6.1 stops at a BUG. Answers come in the order
            // of the questions: after the second one nothing is under way.
            for _ in 0..2 {
                let _ = statx(
                    CWD,
                    directory,
                    AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT,
                    StatxFlags::BASIC_STATS,
                );
            }
            // One of which nothing was ever used is no mount.
            let _ = unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        }
    })?;
    Ok(())
}

fn is_directory(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests;

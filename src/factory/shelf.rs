//! The directory where templates are: one directory for each, named by its key, which is there whole or not at all. Nothing in
//! it is believed before it is seen that it is root's alone and as it was written.
//!
//! It must not know how a template is made, nor what is in its files.

mod manifest;
mod uses;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::key;
use super::lock::{Lock, lock};
use crate::error::{Error, ErrorKind, Result};
use manifest::{Manifest, Sealed};
pub(super) use uses::Use;
pub use uses::Uses;

const MEMORY: &str = "memory";
const STATE: &str = "state";

/// What the name of a template that is being made begins with.
const UNFINISHED: &str = ".new-";

/// The directory of all templates.
#[derive(Debug, Clone)]
pub(super) struct Shelf {
    dir: PathBuf,
}

/// A template, for one copy.
pub(super) struct Found {
    pub(super) memory: OwnedFd,
    pub(super) state: OwnedFd,
}

/// A template that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its key.
    pub key: String,
    /// Seconds since 1970; 0 if it does not say.
    pub created_at: u64,
    /// What its copies begin with, MiB; 0 if it does not say.
    pub memory_mib: u64,
    /// What its files take, bytes.
    pub bytes: u64,
    /// Why there are no copies of it.
    pub problem: Option<String>,
}

/// The directory, which nobody else changes meanwhile.
pub(super) struct Locked {
    dir: PathBuf,
    lock: Lock,
}

/// A template that is being made. Dropping it takes it away again.
pub(super) struct Unfinished {
    locked: Locked,
    key: String,
    dir: PathBuf,
    is_finished: bool,
}

impl Shelf {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The template with this key, if there is one.
    pub(super) fn find(&self, key: &str) -> Result<Option<Found>> {
        let Some(shelf) = self.open()? else {
            return Ok(None);
        };
        let path = self.dir.join(key);
        let Some(dir) = directory(&shelf, &path, key)? else {
            return Ok(None);
        };
        let manifest = Manifest::read(&dir, &path)?;
        let open = |name, sealed: &Sealed| -> Result<OwnedFd> {
            let path = path.join(name);
            let file = openat(
                &dir,
                name,
                OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map_err(|cause| refused(&path, format_args!("cannot be opened: {cause}")))?;
            sealed.check(&stat(&file, &path)?, &path)?;
            Ok(file)
        };
        Ok(Some(Found {
            memory: open(MEMORY, &manifest.memory)?,
            state: open(STATE, &manifest.state)?,
        }))
    }

    /// Everything that is there.
    pub(super) fn list(&self) -> Result<Vec<Kept>> {
        let Some(shelf) = self.open()? else {
            return Ok(Vec::new());
        };
        let mut kept = Vec::new();
        for name in names(&self.dir)? {
            if !key::is_key(&name) {
                continue;
            }
            let path = self.dir.join(&name);
            let manifest = match directory(&shelf, &path, &name) {
                Ok(Some(dir)) => Manifest::read(&dir, &path).ok(),
                // Taken away meanwhile.
                Ok(None) => continue,
                Err(_) => None,
            };
            let problem = self.find(&name).err().map(|error| error.chain());
            kept.push(Kept {
                created_at: manifest.as_ref().map_or(0, |manifest| manifest.created_at),
                memory_mib: manifest
                    .as_ref()
                    .map_or(0, |manifest| manifest.memory.length >> 20),
                bytes: bytes(&path),
                key: name,
                problem,
            });
        }
        kept.sort_by_key(|one| std::cmp::Reverse(one.created_at));
        Ok(kept)
    }

    /// Notes what became of a start. Where there is no directory nobody asks.
    pub(super) fn note(&self, one: Use<'_>) {
        if let Ok(Some(shelf)) = self.open() {
            // Figures for people.
            let _ = uses::note(&shelf, one);
        }
    }

    /// What became of the starts.
    pub(super) fn uses(&self) -> Result<Uses> {
        match self.open()? {
            Some(shelf) => uses::read(&shelf).map_err(failed("read", &self.dir)),
            None => Ok(Uses::default()),
        }
    }

    /// Keeps everybody else from changing the directory, which is made if it is not there. Waits for them.
    pub(super) async fn lock(&self) -> Result<Locked> {
        let lock = lock(self.dir.clone(), |dir| directory(CWD, dir, dir)).await?;
        Ok(Locked {
            dir: self.dir.clone(),
            lock,
        })
    }

    /// Takes everything away.
    pub(super) async fn clear(&self) -> Result<()> {
        if self.open()?.is_none() {
            return Ok(());
        }
        let locked = self.lock().await?;
        for name in names(&self.dir)? {
            let path = self.dir.join(&name);
            let is_ours = key::is_key(&name) || name.starts_with(UNFINISHED);
            if is_ours {
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            } else if name == uses::FILE {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        // Something of somebody else's may be in it, or it may be mounted: then it stays.
        let _ = fs::remove_dir(&self.dir);
        drop(locked);
        Ok(())
    }

    /// The directory, if it is there and can be trusted.
    fn open(&self) -> Result<Option<OwnedFd>> {
        directory(CWD, &self.dir, &self.dir)
    }
}

impl Locked {
    /// Begins a template. Of an earlier one with this key, and of those that were never finished, nothing is left.
    pub(super) fn begin(self, key: &str) -> Result<Unfinished> {
        for name in names(&self.dir)? {
            if name == key || name.starts_with(UNFINISHED) {
                let path = self.dir.join(&name);
                fs::remove_dir_all(&path).map_err(failed("remove", &path))?;
            }
        }
        uses::begin(&self.lock).map_err(failed("write", &self.dir))?;
        let dir = self.dir.join(format!("{UNFINISHED}{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(failed("make", &dir))?;
        Ok(Unfinished {
            locked: self,
            key: key.to_owned(),
            dir,
            is_finished: false,
        })
    }
}

impl Unfinished {
    /// Where it is made.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its files, empty: memory and state.
    pub(super) fn files(&self) -> Result<(OwnedFd, OwnedFd)> {
        let make = |name| -> Result<OwnedFd> {
            let path = self.dir.join(name);
            let file = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path);
            file.map(Into::into).map_err(failed("make", &path))
        };
        Ok((make(MEMORY)?, make(STATE)?))
    }

    /// Seals its files and makes it the template of its key. Answers with what they take, bytes.
    pub(super) fn finish(mut self, hypervisor: &str) -> Result<u64> {
        let sealed = |name| -> Result<Sealed> {
            let path = self.dir.join(name);
            let seal = || -> io::Result<Stat> {
                let file = File::open(&path)?;
                file.set_permissions(fs::Permissions::from_mode(manifest::MODE))?;
                file.sync_all()?;
                Ok(fstat(&file)?)
            };
            seal()
                .map(|stat| Sealed::of(&stat))
                .map_err(failed("seal", &path))
        };
        let manifest = Manifest::new(&self.key, hypervisor, sealed(MEMORY)?, sealed(STATE)?);
        manifest.write(&self.dir)?;
        let path = self.locked.dir.join(&self.key);
        fs::rename(&self.dir, &path).map_err(failed("make", &path))?;
        self.is_finished = true;
        rustix::fs::fsync(&self.locked.lock)
            .map_err(|cause| failed("write", &self.locked.dir)(cause.into()))?;
        Ok(bytes(&path))
    }

    /// Takes away what was made so far.
    pub(super) fn abandon(mut self) -> Result<()> {
        self.is_finished = true;
        fs::remove_dir_all(&self.dir).map_err(failed("remove", &self.dir))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_finished {
            // Whoever makes the next one takes it away, if this does not.
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// A directory that is root's alone to change; `None` if it is not there.
fn directory(at: impl AsFd, path: &Path, name: impl rustix::path::Arg) -> Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match openat(at, name, flags, Mode::empty()) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(refused(path, format_args!("is no directory"))),
        Err(cause) => return Err(failed("open", path)(cause.into())),
    };
    let stat = stat(&dir, path)?;
    owned(&stat, path)?;
    if stat.st_mode & 0o022 != 0 {
        return Err(refused(
            path,
            format_args!("can be written by others (mode {:o})", stat.st_mode & 0o7777),
        ));
    }
    Ok(Some(dir))
}

/// That a file is this process's user's.
fn owned(stat: &Stat, path: &Path) -> Result<()> {
    match stat.st_uid == geteuid().as_raw() {
        true => Ok(()),
        false => Err(refused(path, format_args!("belongs to user {}", stat.st_uid))),
    }
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

fn stat(file: &OwnedFd, path: &Path) -> Result<Stat> {
    fstat(file).map_err(|cause| failed("examine", path)(cause.into()))
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let list = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().into_string().ok()));
        Ok(names
            .collect::<io::Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect())
    };
    list().map_err(failed("list", dir))
}

/// What the files of a template take.
fn bytes(dir: &Path) -> u64 {
    let taken = |name| fs::metadata(dir.join(name)).map_or(0, |file| file.blocks() * 512);
    taken(MEMORY) + taken(STATE)
}

/// Something that is not to be believed.
fn refused(path: &Path, why: std::fmt::Arguments<'_>) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        format!(
            "{} {why}; remove it, and make it anew with `kata-runtime factory init`",
            path.display()
        ),
    )
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
    move |cause| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot {what} {}: {cause}", path.display()),
            cause,
        )
    }
}

//! The directory where virtual machines are kept: the socket of who keeps them, his log, and what is there of those that are being
//! made. There is one who keeps them, or none.
//!
//! It must not know how they are made or given away.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};

use configuration::Config;
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::super::lock::{Lock, lock};
use super::Line;
use super::keep::DIRECTORY;
use crate::error::{Error, ErrorKind, Result};

/// Name of the log.
const LOG: &str = "cache.log";

/// Where virtual machines are kept: the directory of the socket.
pub struct Place {
    endpoint: PathBuf,
    dir: PathBuf,
}

impl Place {
    /// The one of a configuration.
    pub fn of(config: &Config) -> Self {
        let endpoint = config.factory.vm_cache_endpoint.clone();
        let dir = endpoint.parent().unwrap_or(Path::new("/")).to_owned();
        Self { endpoint, dir }
    }

    /// The directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where who keeps them writes what happens.
    pub fn log(&self) -> PathBuf {
        self.dir.join(LOG)
    }

    /// Listens, unless somebody does: then it is `None`. What a dead one has left goes. `start` gets the socket, and nobody else can
    /// begin before it is done.
    ///
    /// # Errors
    /// The directory is somebody else's or cannot be made; what `start` answers with.
    pub async fn begin<T>(&self, start: impl FnOnce(StdListener) -> Result<T>) -> Result<Option<T>> {
        let _locked = self.lock().await?;
        if self.is_taken().await? {
            return Ok(None);
        }
        self.sweep()?;
        let failed = self.failed("listen at", &self.endpoint);
        let listener = StdListener::bind(&self.endpoint).map_err(&failed)?;
        fs::set_permissions(&self.endpoint, fs::Permissions::from_mode(0o600)).map_err(&failed)?;
        let started = start(listener);
        if started.is_err() {
            let _ = fs::remove_file(&self.endpoint);
        }
        started.map(Some)
    }

    /// Takes away what is left, if nobody is there.
    pub(super) async fn clear(&self) -> Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        let locked = self.lock().await?;
        if self.is_taken().await? {
            return Ok(());
        }
        self.sweep()?;
        let _ = fs::remove_file(self.log());
        // Something of somebody else's may be in it: then it stays.
        let _ = fs::remove_dir(&self.dir);
        drop(locked);
        Ok(())
    }

    async fn is_taken(&self) -> Result<bool> {
        match Line::to(&self.endpoint).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the socket and the directories of a dead one.
    fn sweep(&self) -> Result<()> {
        match fs::remove_file(&self.endpoint) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(self.failed("remove", &self.endpoint)(cause));
            }
            _ => {}
        }
        let failed = self.failed("sweep", &self.dir);
        for entry in fs::read_dir(&self.dir).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            if entry.file_name().to_string_lossy().starts_with(DIRECTORY) {
                fs::remove_dir_all(entry.path()).map_err(&failed)?;
            }
        }
        Ok(())
    }

    async fn lock(&self) -> Result<Lock> {
        lock(self.dir.clone(), open).await
    }

    fn failed<'a>(&self, what: &'a str, path: &'a Path) -> impl Fn(io::Error) -> Error + 'a {
        move |cause| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot {what} {}: {cause}", path.display()),
                cause,
            )
        }
    }
}

/// The directory, if it is there. It is this process's user's alone to change.
fn open(dir: &Path) -> Result<Option<OwnedFd>> {
    let unfit = || {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "{} can be changed by others, or is no directory; give vm_cache_endpoint a directory of its own",
                dir.display()
            ),
        )
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = match openat(CWD, dir, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => return Err(unfit()),
        opened => opened.and_then(|dir| Ok((fstat(&dir)?, dir))),
    };
    let (found, opened) = opened.map_err(|cause| {
        let context = format!("cannot open {}: {cause}", dir.display());
        Error::caused(ErrorKind::Internal, context, io::Error::from(cause))
    })?;
    match found.st_uid == geteuid().as_raw() && found.st_mode & 0o022 == 0 {
        true => Ok(Some(opened)),
        false => Err(unfit()),
    }
}

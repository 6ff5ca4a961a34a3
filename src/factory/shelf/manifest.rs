//! What a template says of itself, and what its files were when they were sealed.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, Stat, openat};
use serde::{Deserialize, Serialize};

use super::{failed, is_file, owned, refused, stat};
use crate::error::Result;

const FILE: &str = "template.json";

/// Raised when an older program could misunderstand a newer one.
const VERSION: u32 = 1;

/// Longest manifest that is read, bytes. Ours have less than a kilobyte.
const MAX: u64 = 64 * 1024;

/// Permissions of all files of a template.
pub(super) const MODE: u32 = 0o400;

/// What a template says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    version: u32,
    key: String,
    /// For people.
    hypervisor: String,
    /// Seconds since 1970.
    pub(super) created_at: u64,
    pub(super) memory: Sealed,
    pub(super) state: Sealed,
}

/// A file when it was sealed. Whoever writes to it, or makes it another one, changes something of this: nobody can set the time
/// of the last change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sealed {
    inode: u64,
    /// Bytes.
    pub(super) length: u64,
    /// Seconds and nanoseconds: of the content, and of anything.
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Manifest {
    pub(super) fn new(key: &str, hypervisor: &str, memory: Sealed, state: Sealed) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            key: key.to_owned(),
            hypervisor: hypervisor.to_owned(),
            created_at: now.as_secs(),
            memory,
            state,
        }
    }

    /// Writes it into the template's directory.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let written = || -> io::Result<()> {
            let mut file = File::options()
                .write(true)
                .create_new(true)
                .mode(MODE)
                .open(&path)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()
        };
        written().map_err(failed("write", &path))
    }

    /// Reads it from a template's directory, whose name is the key.
    pub(super) fn read(dir: &OwnedFd, path: &Path) -> Result<Self> {
        let name = path.join(FILE);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(dir, FILE, flags, Mode::empty())
            .map_err(|cause| refused(&name, format_args!("cannot be opened: {cause}")))?;
        let found = stat(&file, &name)?;
        protected(&found, &name)?;
        let mut text = String::new();
        File::from(file)
            .take(MAX)
            .read_to_string(&mut text)
            .map_err(failed("read", &name))?;
        let manifest: Self = serde_json::from_str(&text)
            .map_err(|cause| refused(&name, format_args!("cannot be understood: {cause}")))?;
        if manifest.version != VERSION {
            return Err(refused(
                &name,
                format_args!("has version {}, and not {VERSION}", manifest.version),
            ));
        }
        if !path.ends_with(&manifest.key) {
            return Err(refused(&name, format_args!("is of another template")));
        }
        Ok(manifest)
    }
}

impl Sealed {
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            inode: stat.st_ino,
            length: stat.st_size.unsigned_abs(),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// Checks that a file is what was sealed.
    pub(super) fn check(&self, found: &Stat, path: &Path) -> Result<()> {
        protected(found, path)?;
        let found = Self::of(found);
        if found.length != self.length {
            return Err(refused(
                path,
                format_args!("has {} bytes, and was sealed with {}", found.length, self.length),
            ));
        }
        match found == *self {
            true => Ok(()),
            false => Err(refused(path, format_args!("was changed after it was sealed"))),
        }
    }
}

/// That a file is ours, and that nobody may write to it, nor read it but we.
fn protected(stat: &Stat, path: &Path) -> Result<()> {
    owned(stat, path)?;
    if !is_file(stat) {
        return Err(refused(path, format_args!("is no regular file")));
    }
    match stat.st_mode & 0o7777 {
        MODE => Ok(()),
        mode => Err(refused(path, format_args!("has mode {mode:o}, and not {MODE:o}"))),
    }
}

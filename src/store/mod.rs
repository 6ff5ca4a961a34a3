//! What is kept of a sandbox on disk, so that whoever comes after a dead owner can clean up: one record per sandbox, with a
//! version, written whole or not at all.
//!
//! It must not know how anything in it is made or undone.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use hypervisor::VmRecord;
use serde::{Deserialize, Serialize};

use crate::SandboxId;
use crate::error::{Error, ErrorKind, Result};

/// Raised when an older program could misunderstand a newer record.
const VERSION: u32 = 1;

/// Name of the record in the sandbox's directory.
const FILE: &str = "record.json";

/// Under this name it is written.
const UNFINISHED: &str = "record.json.new";

/// Longest record that is read, in bytes. Ours have less than a kilobyte.
const MAX: u64 = 64 * 1024;

/// What is kept of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    version: u32,
    /// Scope of the id.
    pub(crate) scope: String,
    /// The sandbox's id.
    pub(crate) id: String,
    /// Pid of its owner, for people: that it lives is proved by its lock.
    pub(crate) owner: u32,
    /// Seconds since 1970.
    pub(crate) created_at: u64,
    /// The virtual machine, once there is one.
    pub(crate) vm: Option<VmRecord>,
    /// Daemons that serve its devices.
    pub(crate) daemons: Vec<DaemonRecord>,
    /// What it has in the pod's network namespace.
    #[serde(default)]
    pub(crate) network: Option<NetworkRecord>,
    /// Its cgroups on the host.
    #[serde(default)]
    pub(crate) cgroup: Option<CgroupRecord>,
}

/// Cgroups of a sandbox, as absolute paths: those that it has made, or was about to make.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CgroupRecord {
    /// Every process in one of these is the sandbox's.
    pub(crate) own: Vec<PathBuf>,
    /// Directories above, each before those below it. Others may use them by now; then they stay.
    pub(crate) parents: Vec<PathBuf>,
}

/// What a sandbox has in a network namespace. Taps are not listed: they go with their owner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkRecord {
    /// Where the namespace was found.
    pub(crate) namespace: PathBuf,
    /// Device and inode numbers of the namespace, so that another one at that path is left alone.
    pub(crate) device: u64,
    /// See `device`.
    pub(crate) inode: u64,
    /// Numbers of the links whose frames go elsewhere.
    pub(crate) redirected: Vec<u32>,
    /// Numbers of the links that were made.
    pub(crate) made: Vec<u32>,
}

/// A daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DaemonRecord {
    /// What it is.
    pub(crate) name: String,
    /// Its process.
    pub(crate) pid: u32,
    /// Start time of that process (field 22 of `/proc/<pid>/stat`), so that a reused pid is never killed.
    pub(crate) start_time: u64,
}

/// The part that every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Record {
    /// Of a sandbox that is about to begin, owned by this process.
    pub(crate) fn new(scope: &SandboxId, id: &SandboxId) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            version: VERSION,
            scope: scope.to_string(),
            id: id.to_string(),
            owner: std::process::id(),
            created_at: now.as_secs(),
            vm: None,
            daemons: Vec::new(),
            network: None,
            cgroup: None,
        }
    }

    /// Writes it into the sandbox's directory, over an earlier one.
    pub(crate) fn write(&self, dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        let written = || -> io::Result<()> {
            let unfinished = dir.join(UNFINISHED);
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&unfinished)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            fs::rename(unfinished, &path)
        };
        written().map_err(|cause| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot write the sandbox's record {}", path.display()),
                cause,
            )
        })
    }

    /// Reads the one in a sandbox's directory. `None`: its owner had not come so far, or was done already.
    pub(crate) fn read(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let failed = |cause: io::Error| unusable(&path, cause);
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path);
        let file = match opened {
            Ok(file) => file,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(failed(cause)),
        };
        let mut bytes = Vec::new();
        file.take(MAX).read_to_end(&mut bytes).map_err(failed)?;
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(|cause| failed(cause.into()))?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the sandbox's record {} has version {version}, this program knows {VERSION}: use the one that \
                     made the sandbox",
                    path.display()
                ),
            ));
        }
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|cause| failed(cause.into()))
    }
}

/// Names of the files that a record may consist of.
pub(crate) fn files() -> [PathBuf; 2] {
    [PathBuf::from(UNFINISHED), PathBuf::from(FILE)]
}

fn unusable(path: &Path, cause: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("the sandbox's record {} cannot be read", path.display()),
        cause,
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record() -> Record {
        Record::new(&SandboxId::new("k8s.io").unwrap(), &SandboxId::new("s").unwrap())
    }

    #[test]
    fn what_is_written_is_read_again_and_nobody_else_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        let mut record = record();
        record.write(dir.path()).unwrap();
        record.daemons.push(DaemonRecord {
            name: "virtiofsd".into(),
            pid: 7,
            start_time: 8,
        });
        record.vm = Some(VmRecord {
            driver: "qemu".into(),
            pid: 9,
            start_time: 10,
            run_dir: "/run/x".into(),
        });
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        let mode = fs::metadata(dir.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!dir.path().join(UNFINISHED).exists());
    }

    #[test]
    fn one_that_its_writer_did_not_finish_is_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(UNFINISHED), "{\"version\":1,").unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        record().write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record()));
    }

    #[test]
    fn one_that_cannot_be_understood_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        for (text, kind, said) in [
            ("", ErrorKind::Internal, "record.json"),
            ("{", ErrorKind::Internal, "record.json"),
            ("{\"version\":1}", ErrorKind::Internal, "record.json"),
            ("{\"version\":2}", ErrorKind::Unsupported, "version 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = Record::read(dir.path()).unwrap_err();
            assert_eq!(error.kind, kind, "{text}");
            assert!(error.chain().contains(said), "{text}: {}", error.chain());
        }
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(Record::read(dir.path()).is_err(), "a link is not followed");
    }
}

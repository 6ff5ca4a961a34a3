//! The directory that processes with the same containers share: what is known of each pod, in a file that its owner alone writes,
//! whole or not at all; and who owns it, as a lock that goes with the process.
//!
//! | path | is |
//! |---|---|
//! | `pods/ID.json` | what is known of a pod and its containers; the pod exists as long as it does |
//! | `owners/ID` | locked by the pod's owner |
//! | `sockets/DIGEST` | where the owner takes questions |
//! | `lock` | locked by whoever takes an id, or removes a pod |
//!
//! It belongs on a file system that a reboot empties (`/run`), as what it tells of does not outlive one. So nothing is waited for to
//! reach a disk. It must not know what is done with a pod.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::state::{PodInfo, VERSION};
use crate::SandboxId;
use crate::error::{Error, ErrorKind, Result};

/// Longest file that is read, in bytes. A container has half a kilobyte, and its labels.
const LONGEST: u64 = 32 << 20;

/// Bytes that the kernel takes for the path of a unix socket.
const SOCKET_PATH: usize = 107;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(super) struct Root {
    dir: PathBuf,
}

/// Proof that nobody else takes an id, or removes a pod.
#[derive(Debug)]
pub(super) struct Locked(File);

/// Proof that this process owns a pod.
#[derive(Debug)]
pub(super) struct Claim(File);

/// A child that is being started has the descriptor too, until it executes its program: closing would not do.
fn unlock(file: &File) {
    let _ = flock(file, FlockOperation::Unlock);
}

impl Drop for Locked {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// A pod, as it was found.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) info: PodInfo,
    /// Its owner lives.
    pub(super) is_owned: bool,
}

/// All that is there.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) pods: Vec<Found>,
    /// What cannot be understood.
    pub(super) unreadable: Vec<(PathBuf, Error)>,
}

impl Root {
    /// Makes it, if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or is another one's.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let named = dir.display();
        let failed = |cause| {
            let text = format!("the state directory {named} cannot be used");
            Error::caused(ErrorKind::Internal, text, cause)
        };
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(dir).map_err(failed)?;
        let dir = fs::canonicalize(dir).map_err(failed)?;
        let status = fs::metadata(&dir).map_err(failed)?;
        if status.uid() != rustix::process::geteuid().as_raw() || status.mode() & 0o022 != 0 {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the state directory {} is not this user's alone to write: choose another one, or chmod 0700",
                    dir.display()
                ),
            ));
        }
        for part in ["pods", "owners", "sockets"] {
            builder.create(dir.join(part)).map_err(failed)?;
        }
        let root = Self { dir };
        let longest = root.socket("x").as_os_str().as_bytes().len();
        if longest > SOCKET_PATH {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "the path of the state directory {} is {} bytes too long for a socket below it",
                    root.dir.display(),
                    longest - SOCKET_PATH
                ),
            ));
        }
        Ok(root)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name for the sandboxes of this directory, so that another one may have pods of the same ids.
    pub(super) fn scope(&self) -> Result<SandboxId> {
        let digest = digest(self.dir.as_os_str().as_bytes(), 4);
        SandboxId::new(format!("engine-{digest}"))
    }

    /// Waits until nobody else has it. It is held for moments.
    pub(super) fn lock(&self) -> Result<Locked> {
        let path = self.dir.join("lock");
        let locked = || -> io::Result<Locked> {
            let file = lock_file(&path)?;
            flock(&file, FlockOperation::LockExclusive)?;
            Ok(Locked(file))
        };
        locked().map_err(|cause| {
            let text = format!("{} cannot be locked", path.display());
            Error::caused(ErrorKind::Internal, text, cause)
        })
    }

    /// Becomes the owner of a pod that is new, or was never ready.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`]: its owner lives.
    pub(super) fn claim(&self, _: &Locked, id: &str) -> Result<Claim> {
        let path = self.owner(id);
        let failed = |cause: io::Error| {
            let text = format!("{} cannot be locked", path.display());
            Error::caused(ErrorKind::Internal, text, cause)
        };
        let file = lock_file(&path).map_err(failed)?;
        // Shared with those who only look, so that they are not taken for an owner.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(Error::new(
                    ErrorKind::AlreadyExists,
                    format!("pod {id} exists already, and has an owner"),
                ));
            }
            Err(cause) => return Err(failed(cause.into())),
        }
        // Who else claims waits for `lock`: only those who look are in the way, each for a moment.
        flock(&file, FlockOperation::LockExclusive).map_err(|cause| failed(cause.into()))?;
        Ok(Claim(file))
    }

    /// Becomes the owner of a pod whose owner is dead. What that has left is written down as ended first: nobody who sees that there is
    /// an owner takes this one for one that runs it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: it is not there any more. [`ErrorKind::AlreadyExists`]: its owner lives.
    pub(super) fn inherit(&self, locked: &Locked, id: &str) -> Result<Claim> {
        match self.find(id)? {
            None => {
                return Err(Error::new(
                    ErrorKind::NotFound,
                    format!("pod {id} does not exist"),
                ));
            }
            Some(found) if !found.is_owned => self.write(&found.info)?,
            // Refused below.
            Some(_) => {}
        }
        self.claim(locked, id)
    }

    /// Whether a pod's owner lives.
    ///
    /// # Errors
    /// It cannot be told.
    fn is_owned(&self, id: &str) -> Result<bool> {
        let path = self.owner(id);
        let failed = |cause: io::Error| {
            let text = format!(
                "it cannot be told from {} whether the owner of pod {id} lives",
                path.display()
            );
            Error::caused(ErrorKind::Internal, text, cause)
        };
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path);
        let file = match opened {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened.map_err(failed)?,
        };
        // A shared one, for a moment: nobody who looks takes another one who does for an owner.
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {
                unlock(&file);
                Ok(false)
            }
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(cause) => Err(failed(cause.into())),
        }
    }

    /// Writes what is known of a pod.
    pub(super) fn write(&self, info: &PodInfo) -> Result<()> {
        let path = self.file(&info.id);
        let written = || -> io::Result<()> {
            let unfinished = self.dir.join("pods").join(format!(".{}.new", info.id));
            let mut file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&unfinished)?;
            file.write_all(&serde_json::to_vec(info)?)?;
            fs::rename(unfinished, &path)
        };
        written().map_err(|cause| {
            let text = format!(
                "the state of pod {} cannot be written to {}",
                info.id,
                path.display()
            );
            Error::caused(ErrorKind::Internal, text, cause)
        })
    }

    /// Removes a pod and everything in it: there is one file, so all goes or nothing.
    pub(super) fn remove(&self, _: &Locked, id: &str) -> Result<()> {
        let path = self.file(id);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                let text = format!("pod {id} cannot be removed: {}", path.display());
                return Err(Error::caused(ErrorKind::Internal, text, cause));
            }
            Ok(()) | Err(_) => {}
        }
        // Nothing is known by these alone.
        let _ = fs::remove_file(self.socket(id));
        let _ = fs::remove_file(self.owner(id));
        Ok(())
    }

    /// All pods that are there, or are being made, as their owners have written, or left, them.
    pub(super) fn load(&self) -> Result<Loaded> {
        let dir = self.dir.join("pods");
        let failed = |cause| {
            let text = format!("the state directory {} cannot be read", dir.display());
            Error::caused(ErrorKind::Internal, text, cause)
        };
        let mut loaded = Loaded::default();
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let id = match (path.file_stem(), path.extension()) {
                (Some(stem), Some(extension)) if extension == "json" => stem.to_str().map(str::to_owned),
                _ => None,
            };
            let Some(id) = id.filter(|id| SandboxId::new(id.as_str()).is_ok()) else {
                continue;
            };
            match self.find(&id) {
                Ok(Some(found)) => loaded.pods.push(found),
                // It went meanwhile, or is not there yet.
                Ok(None) => {}
                Err(error) => loaded.unreadable.push((path, error)),
            }
        }
        loaded
            .pods
            .sort_by(|a, b| (a.info.created, &a.info.id).cmp(&(b.info.created, &b.info.id)));
        Ok(loaded)
    }

    /// One pod; `None` if it is not there.
    pub(super) fn find(&self, id: &str) -> Result<Option<Found>> {
        if !self.is_there(id)? {
            return Ok(None);
        }
        // Before it is read: then that is what this owner, or a later one, has written, or the last words of a dead one.
        let is_owned = self.is_owned(id)?;
        let Some((mut info, written)) = self.read(id)? else {
            return Ok(None);
        };
        if is_owned {
            return Ok(Some(Found { info, is_owned }));
        }
        if !info.is_ready {
            return Ok(None);
        }
        let why = format!("its owner, process {}, is dead", info.owner);
        info.end(&why, written);
        Ok(Some(Found { info, is_owned }))
    }

    /// Whether a pod is there, or is being made.
    fn is_there(&self, id: &str) -> Result<bool> {
        let path = self.file(id);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(true),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(cause) => {
                let text = format!("the state of pod {id} cannot be looked for at {}", path.display());
                Err(Error::caused(ErrorKind::Internal, text, cause))
            }
        }
    }

    fn read(&self, id: &str) -> Result<Option<(PodInfo, SystemTime)>> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let path = self.file(id);
        let failed = |cause: io::Error| {
            let text = format!("the state of pod {id} cannot be read from {}", path.display());
            Error::caused(ErrorKind::Internal, text, cause)
        };
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path);
        let file = match opened {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let written = file
            .metadata()
            .and_then(|status| status.modified())
            .map_err(failed)?;
        let mut bytes = Vec::new();
        file.take(LONGEST).read_to_end(&mut bytes).map_err(failed)?;
        let Versioned { version } = serde_json::from_slice(&bytes).map_err(|cause| failed(cause.into()))?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the state of pod {id} in {} has version {version}, this program knows {VERSION}: use the one \
                     that made the pod",
                    path.display()
                ),
            ));
        }
        let info: PodInfo = serde_json::from_slice(&bytes).map_err(|cause| failed(cause.into()))?;
        if info.id != id {
            return Err(failed(io::Error::other(format!("it tells of pod {:?}", info.id))));
        }
        Ok(Some((info, written)))
    }

    fn file(&self, id: &str) -> PathBuf {
        self.dir.join("pods").join(format!("{id}.json"))
    }

    fn owner(&self, id: &str) -> PathBuf {
        self.dir.join("owners").join(id)
    }

    /// Where a pod's owner takes questions. As long for every id: a socket's path has to be short.
    pub(super) fn socket(&self, id: &str) -> PathBuf {
        self.dir.join("sockets").join(digest(id.as_bytes(), 8))
    }
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn digest(bytes: &[u8], length: usize) -> String {
    let digest = Sha256::digest(bytes);
    digest
        .iter()
        .take(length)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::state::ContainerState;
    use super::super::state::tests::{container, pod};
    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("state")).unwrap();
        (dir, root)
    }

    #[test]
    fn a_pod_is_its_owners_until_that_goes_and_what_it_knew_stays() {
        let (_dir, root) = root();
        let claim = root.claim(&root.lock().unwrap(), "p").unwrap();
        root.write(&pod("p", vec![container("c", ContainerState::Running)]))
            .unwrap();
        let seen = root.find("p").unwrap().unwrap();
        assert!(seen.is_owned && seen.info.ended.is_none());
        let error = root.claim(&root.lock().unwrap(), "p").unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        drop(claim);
        let left = root.find("p").unwrap().unwrap();
        assert!(!left.is_owned);
        assert_eq!(left.info.ended.as_deref(), Some("its owner, process 1, is dead"));
        assert_eq!(left.info.containers["c"].exit.unwrap().code, 255);
        root.claim(&root.lock().unwrap(), "p").unwrap();
    }

    #[test]
    fn an_owner_that_cannot_be_looked_for_is_not_taken_for_dead() {
        let (_dir, root) = root();
        root.write(&pod("p", vec![container("c", ContainerState::Running)]))
            .unwrap();
        std::os::unix::fs::symlink("elsewhere", root.owner("p")).unwrap();
        let error = root.find("p").unwrap_err();
        assert!(
            error.context.contains("whether the owner of pod p lives"),
            "{error}"
        );
    }

    #[test]
    fn who_looks_is_no_owner_and_who_claims_waits_for_him() {
        let (_dir, root) = root();
        let looked_at = lock_file(&root.owner("p")).unwrap();
        flock(&looked_at, FlockOperation::LockShared).unwrap();
        let looker = std::thread::spawn(move || {
            let inode = looked_at.metadata().unwrap().ino();
            // Until somebody waits for it: the kernel marks such a lock by an arrow.
            while !fs::read_to_string("/proc/locks")
                .unwrap()
                .lines()
                .any(|line| line.contains("->") && line.contains(&format!(":{inode} ")))
            {
                std::thread::yield_now();
            }
            unlock(&looked_at);
        });
        let _claim = root.claim(&root.lock().unwrap(), "p").unwrap();
        looker.join().unwrap();
        root.write(&pod("p", vec![])).unwrap();
        assert!(root.find("p").unwrap().unwrap().is_owned);
    }

    #[test]
    fn what_a_dead_owner_has_left_is_written_down_by_who_inherits_it() {
        let (_dir, root) = root();
        drop(root.claim(&root.lock().unwrap(), "p").unwrap());
        root.write(&pod("p", vec![container("c", ContainerState::Running)]))
            .unwrap();
        let left = root.find("p").unwrap().unwrap().info;
        let _claim = root.inherit(&root.lock().unwrap(), "p").unwrap();
        let seen = root.find("p").unwrap().unwrap();
        assert!(seen.is_owned);
        assert_eq!(seen.info, left);
        for (id, kind) in [("p", ErrorKind::AlreadyExists), ("q", ErrorKind::NotFound)] {
            let error = root.inherit(&root.lock().unwrap(), id).unwrap_err();
            assert_eq!(error.kind, kind);
        }
    }

    #[test]
    fn a_removal_leaves_nothing() {
        let (_dir, root) = root();
        let locked = root.lock().unwrap();
        let _claim = root.claim(&locked, "p").unwrap();
        root.write(&pod("p", vec![container("c", ContainerState::Exited)]))
            .unwrap();
        root.remove(&locked, "p").unwrap();
        root.remove(&locked, "p").unwrap();
        assert!(root.find("p").unwrap().is_none());
        for part in ["pods", "owners", "sockets"] {
            assert_eq!(fs::read_dir(root.dir().join(part)).unwrap().count(), 0, "{part}");
        }
    }

    #[test]
    fn what_is_not_ready_is_not_there_and_what_is_broken_is_named() {
        let (_dir, root) = root();
        let mut half = pod("half", vec![]);
        half.is_ready = false;
        root.write(&half).unwrap();
        root.write(&pod("whole", vec![])).unwrap();
        let pods = root.dir().join("pods");
        fs::write(pods.join("broken.json"), "{").unwrap();
        fs::write(pods.join("newer.json"), "{\"version\":9}").unwrap();
        fs::write(
            pods.join("other.json"),
            serde_json::to_vec(&pod("x", vec![])).unwrap(),
        )
        .unwrap();
        fs::write(pods.join(".p.new"), "{").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", pods.join("link.json")).unwrap();
        let mut loaded = root.load().unwrap();
        let ids: Vec<_> = loaded.pods.iter().map(|found| found.info.id.as_str()).collect();
        assert_eq!(ids, ["whole"]);
        loaded.unreadable.sort_by(|a, b| a.0.cmp(&b.0));
        let said: Vec<_> = loaded.unreadable.iter().map(|(_, error)| error.chain()).collect();
        assert_eq!(said.len(), 4, "{said:?}");
        for (said, expected) in said
            .iter()
            .zip(["broken", "link", "version 9", "tells of pod \"x\""])
        {
            assert!(said.contains(expected), "{said}");
        }
    }

    #[test]
    fn a_directory_that_others_may_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = Root::open(dir.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let long = dir.path().join("x".repeat(100));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(Root::open(&long).unwrap_err().kind, ErrorKind::InvalidArgument);
    }
}

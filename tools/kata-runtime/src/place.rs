//! Where containers are known: below the directory that `--root` names, a directory for each container, with what is to be known of
//! it when its daemon is dead; and the daemons' sockets.
//!
//! It must not know what a container is.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use runtime::{ContainerId, SandboxId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Where containers are known unless the caller says otherwise.
pub const DEFAULT: &str = "/run/kata-runtime";

/// Name of a container's record.
const RECORD: &str = "state.json";

/// Directory of the daemons' sockets. No container has an id like this.
const SANDBOXES: &str = ".sandboxes";

/// Bytes of the root's hash that keep apart the sandboxes of different roots.
const HASHED: usize = 8;

/// What is kept of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its id.
    pub id: String,
    /// Its sandbox.
    pub sandbox: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The configuration file that was named when it was created.
    pub config: Option<PathBuf>,
    /// Where the sandbox's directory is, once that is known.
    pub run_dir: Option<PathBuf>,
    /// Its stand-in; 0: it is being created.
    pub pid: u32,
    /// When it was created (RFC 3339).
    pub created: String,
    /// Annotations of its specification.
    pub annotations: BTreeMap<String, String>,
    /// Cgroups that were made for its stand-ins, each before those below it.
    #[serde(default)]
    pub cgroups: Vec<PathBuf>,
}

/// The directory that `--root` names.
#[derive(Debug, Clone)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// Takes it, whether it is there or not.
    ///
    /// # Errors
    /// It is relative, and the working directory is gone.
    pub fn new(path: &Path) -> Result<Self> {
        let path =
            std::path::absolute(path).with_context(|| format!("--root {} is not usable", path.display()))?;
        Ok(Self { path })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Keeps the sandboxes of this root apart from those of others.
    ///
    /// # Errors
    /// None that can happen.
    pub fn scope(&self) -> Result<SandboxId> {
        let name = if self.path == Path::new(DEFAULT) {
            "oci".to_owned()
        } else {
            let hash = Sha256::digest(self.path.as_os_str().as_encoded_bytes());
            let hash: String = hash
                .iter()
                .take(HASHED)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            format!("oci-{hash}")
        };
        Ok(SandboxId::new(name)?)
    }

    /// Takes an id.
    ///
    /// # Errors
    /// It is taken, or the directory cannot be made.
    pub fn reserve(&self, id: &ContainerId, record: &Record) -> Result<()> {
        let dir = self.path.join(id.as_str());
        make(&self.path, 0o711)?;
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("container with id {id} exists already: delete it first, or choose another id")
            }
            made => made.with_context(|| format!("cannot make {}", dir.display()))?,
        }
        self.write(id, record)
    }

    /// Replaces a container's record.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, id: &ContainerId, record: &Record) -> Result<()> {
        let path = self.path.join(id.as_str()).join(RECORD);
        replace(&path, &serde_json::to_vec(record)?)
    }

    /// A container's record. `None`: there is no such container.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, id: &ContainerId) -> Result<Option<Record>> {
        let path = self.path.join(id.as_str()).join(RECORD);
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("{} is damaged: remove it", path.display())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Gives an id free.
    ///
    /// # Errors
    /// The directory stays.
    pub fn forget(&self, id: &ContainerId) -> Result<()> {
        let dir = self.path.join(id.as_str());
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", dir.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Ids of all containers.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn ids(&self) -> Result<Vec<ContainerId>> {
        let entries = match fs::read_dir(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        let mut ids = Vec::new();
        for entry in entries {
            let name = entry.context("cannot read the root directory")?.file_name();
            // What is not an id is not ours.
            ids.extend(name.to_str().and_then(|name| ContainerId::new(name).ok()));
        }
        ids.sort();
        Ok(ids)
    }

    /// Path of a daemon's socket, for people.
    pub fn socket(&self, sandbox: &SandboxId) -> PathBuf {
        self.path.join(SANDBOXES).join(sandbox.as_str())
    }

    /// Listens for the daemon of a sandbox.
    ///
    /// # Errors
    /// Somebody listens already, or the system refuses.
    pub fn listen(&self, sandbox: &SandboxId) -> Result<UnixListener> {
        if self.connect(sandbox)?.is_some() {
            bail!("sandbox {sandbox} exists already: delete its containers first, or choose another id");
        }
        make(&self.path, 0o711)?;
        make(&self.path.join(SANDBOXES), 0o700)?;
        self.remove_socket(sandbox)?;
        let doing = || format!("cannot listen at {}", self.socket(sandbox).display());
        let dir = self.open_sockets().with_context(doing)?;
        let path = short(&dir, sandbox);
        let listener = UnixListener::bind(&path).with_context(doing)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).with_context(doing)?;
        Ok(listener)
    }

    /// Connects to the daemon of a sandbox. `None`: it has none.
    ///
    /// # Errors
    /// There may be one, but it cannot be reached.
    pub fn connect(&self, sandbox: &SandboxId) -> Result<Option<UnixStream>> {
        let connected = self
            .open_sockets()
            .and_then(|dir| UnixStream::connect(short(&dir, sandbox)));
        match connected {
            Ok(stream) => Ok(Some(stream)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                Ok(None)
            }
            Err(error) => {
                Err(error).with_context(|| format!("cannot connect to {}", self.socket(sandbox).display()))
            }
        }
    }

    /// Removes the socket of a daemon that has ended, or will.
    ///
    /// # Errors
    /// It stays.
    pub fn remove_socket(&self, sandbox: &SandboxId) -> Result<()> {
        let path = self.socket(sandbox);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn open_sockets(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(self.path.join(SANDBOXES))
    }
}

/// The path of a socket in an open directory. The root's own may be longer than the 107 bytes that the kernel takes.
fn short(dir: &File, sandbox: &SandboxId) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(sandbox.as_str())
}

fn make(dir: &Path, mode: u32) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(dir)
        .with_context(|| format!("cannot make {}", dir.display()))
}

/// Writes a file so that a reader sees all of it or nothing.
///
/// # Errors
/// It cannot be written.
pub fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    let hidden = path.with_file_name(name);
    let write = || {
        File::create(&hidden)?.write_all(content)?;
        fs::rename(&hidden, path)
    };
    write().with_context(|| {
        // It may not have been created.
        let _ = fs::remove_file(&hidden);
        format!("cannot write {}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            id: "c".into(),
            sandbox: "c".into(),
            bundle: "/b".into(),
            config: None,
            run_dir: Some("/run/k".into()),
            pid: 7,
            created: "2026-01-01T00:00:00Z".into(),
            annotations: BTreeMap::from([("a".into(), "b".into())]),
            cgroups: vec!["/sys/fs/cgroup/a".into()],
        }
    }

    #[test]
    fn an_id_is_taken_once_and_given_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(&dir.path().join("deep/root")).unwrap();
        let id = ContainerId::new("c").unwrap();
        assert_eq!(root.read(&id).unwrap(), None);
        assert!(root.ids().unwrap().is_empty());
        root.reserve(&id, &record()).unwrap();
        let error = root.reserve(&id, &record()).unwrap_err();
        assert!(error.to_string().contains("exists already"), "{error}");
        assert_eq!(root.read(&id).unwrap(), Some(record()));
        assert_eq!(root.ids().unwrap(), std::slice::from_ref(&id));
        root.forget(&id).unwrap();
        root.forget(&id).unwrap();
        assert_eq!(root.read(&id).unwrap(), None);
    }

    #[test]
    fn a_socket_is_reached_below_any_root_and_is_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(&dir.path().join("r".repeat(200))).unwrap();
        let sandbox = SandboxId::new("s".repeat(76)).unwrap();
        assert!(root.connect(&sandbox).unwrap().is_none());
        let listener = root.listen(&sandbox).unwrap();
        let mode = fs::metadata(root.socket(&sandbox)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(root.connect(&sandbox).unwrap().is_some());
        assert!(root.listen(&sandbox).is_err(), "it is served");
        drop(listener);
        assert!(root.connect(&sandbox).unwrap().is_none(), "its server is dead");
        root.listen(&sandbox).unwrap();
        assert!(root.ids().unwrap().is_empty(), "sockets are no containers");
    }

    #[test]
    fn roots_do_not_share_their_sandboxes() {
        let scope = |path: &str| Root::new(Path::new(path)).unwrap().scope().unwrap();
        assert_eq!(scope(DEFAULT).as_str(), "oci");
        assert_ne!(scope("/run/a"), scope("/run/b"));
        assert!(scope("/run/a").as_str().starts_with("oci-"));
    }
}

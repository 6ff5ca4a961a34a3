//! Which sandboxes there are on this host, whoever has started them: from their records, without asking anybody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::SOCKET;
use crate::SandboxId;
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::store::Record;

/// A sandbox, as its record has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Keeps its id apart from those of other callers: containerd's namespace, or an OCI runtime's root.
    pub scope: SandboxId,
    /// Its id.
    pub id: SandboxId,
    /// Its directory.
    pub dir: PathBuf,
    /// Its owner lives.
    pub alive: bool,
    /// Pid of its owner.
    pub owner: u32,
    /// Pid of its VMM, once there is one.
    pub vmm: Option<u32>,
    /// Daemons that serve its devices, and their pids.
    pub daemons: Vec<(String, u32)>,
    /// When it was begun.
    pub created: SystemTime,
}

impl Found {
    /// Where its owner answers an administrator, if it lives.
    pub fn socket(&self) -> PathBuf {
        self.dir.join(SOCKET)
    }

    /// Its id with what keeps it apart from others.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.scope, self.id)
    }
}

/// What there is in a run directory.
#[derive(Debug, Default)]
pub struct Survey {
    /// Sandboxes, by scope and id.
    pub sandboxes: Vec<Found>,
    /// Directories that an owner has left before it could write a record, or after it has removed it.
    pub bare: Vec<PathBuf>,
    /// Records that cannot be read.
    pub unreadable: Vec<(PathBuf, Error)>,
}

impl Survey {
    /// Looks into a run directory. One that is not there has no sandboxes.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn take(run_dir: &Path) -> Result<Self> {
        let failed = |cause| {
            let text = format!("the run directory {} cannot be read", run_dir.display());
            Error::caused(ErrorKind::Internal, text, cause)
        };
        let entries = match fs::read_dir(run_dir) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.map_err(failed)?,
        };
        let mut survey = Self::default();
        for entry in entries {
            let dir = entry.map_err(failed)?.path();
            if dir.is_dir() {
                survey.look(dir);
            }
        }
        survey
            .sandboxes
            .sort_by(|a, b| (&a.scope, &a.id).cmp(&(&b.scope, &b.id)));
        survey.bare.sort();
        Ok(survey)
    }

    fn look(&mut self, dir: PathBuf) {
        // Read first: an owner that ends in between is seen as dead, and never a new one as an old one's.
        let record = Record::read(&dir);
        let alive = host::is_owned(&dir);
        match record {
            Ok(Some(record)) => match found(&record, &dir, alive.unwrap_or(false)) {
                Ok(found) => self.sandboxes.push(found),
                Err(error) => self.unreadable.push((dir, error)),
            },
            // What nobody has ever locked is not a sandbox's.
            Ok(None) if alive == Some(false) => self.bare.push(dir),
            Ok(None) => {}
            Err(error) => self.unreadable.push((dir, error)),
        }
    }
}

fn found(record: &Record, dir: &Path, alive: bool) -> Result<Found> {
    Ok(Found {
        scope: SandboxId::new(record.scope.as_str())?,
        id: SandboxId::new(record.id.as_str())?,
        dir: dir.to_owned(),
        alive,
        owner: record.owner,
        vmm: record.vm.as_ref().map(|vm| vm.pid),
        daemons: record
            .daemons
            .iter()
            .map(|daemon| (daemon.name.clone(), daemon.pid))
            .collect(),
        created: UNIX_EPOCH + Duration::from_secs(record.created_at),
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, flock};

    use super::*;

    fn begin(run_dir: &Path, scope: &str, id: &str) -> PathBuf {
        let dir = run_dir.join(format!("{scope}@{id}"));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("owner"), "1").unwrap();
        let record = Record::new(&SandboxId::new(scope).unwrap(), &SandboxId::new(id).unwrap());
        record.write(&dir).unwrap();
        dir
    }

    #[test]
    fn a_sandbox_lives_as_long_as_its_directory_is_locked() {
        let run = tempfile::tempdir().unwrap();
        let living = begin(run.path(), "k8s.io", "b");
        begin(run.path(), "k8s.io", "a");
        let lock = fs::File::open(living.join("owner")).unwrap();
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let survey = Survey::take(run.path()).unwrap();
        let seen: Vec<_> = survey
            .sandboxes
            .iter()
            .map(|found| (found.full_name(), found.alive))
            .collect();
        assert_eq!(
            seen,
            [("k8s.io/a".to_owned(), false), ("k8s.io/b".to_owned(), true)]
        );
        // To look is not to take.
        flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert!(survey.bare.is_empty() && survey.unreadable.is_empty());
    }

    #[test]
    fn what_is_no_sandbox_is_told_apart() {
        let run = tempfile::tempdir().unwrap();
        assert!(
            Survey::take(&run.path().join("none"))
                .unwrap()
                .sandboxes
                .is_empty()
        );
        fs::create_dir(run.path().join("something")).unwrap();
        fs::write(run.path().join("file"), "").unwrap();
        let bare = run.path().join("k8s.io@bare");
        fs::create_dir(&bare).unwrap();
        fs::write(bare.join("owner"), "1").unwrap();
        let broken = begin(run.path(), "k8s.io", "broken");
        fs::write(broken.join("record.json"), "{").unwrap();
        let survey = Survey::take(run.path()).unwrap();
        assert!(survey.sandboxes.is_empty());
        assert_eq!(survey.bare, [bare]);
        assert_eq!(survey.unreadable.len(), 1);
        assert_eq!(survey.unreadable[0].0, broken);
    }
}

//! A sandbox's directory on the host, and the proof of who owns it: a file in it that its owner has locked. The lock goes
//! with the process that holds it, whatever ends that.
//!
//! It must not know what is kept in the directory.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, flock, fstat, ftruncate, open, openat, statat};
use rustix::io::{Errno, pwrite};
use sha2::{Digest, Sha256};

use super::tree;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{self, Record};
use crate::{SandboxId, deadlines};

/// Bytes that the kernel takes for the path of a unix socket.
const SOCKET_PATH: usize = 107;

/// The longest name of a socket in the directory.
const LONGEST_SOCKET: &str = "vsock_1024";

/// The file that the owner has locked.
const LOCK: &str = "owner";

/// Others may take the directory away while it is being claimed. They make progress each time, so this is not for waiting.
const ATTEMPTS: usize = 100;

/// A sandbox's directory that we own. Dropping it gives up the ownership and leaves the directory.
#[derive(Debug)]
pub(super) struct Home {
    dir: PathBuf,
    lock: File,
}

impl Drop for Home {
    fn drop(&mut self) {
        // To close it would not do: a child that is just being started has it too, until it executes its program.
        let _ = flock(&self.lock, FlockOperation::Unlock);
    }
}

/// What an attempt has come to.
enum Attempt<T> {
    Done(T),
    /// The owner is dead, and yet its lock is held.
    Lingers,
    /// The owner is dead, and this process cleans up after it.
    Cleaned(u32),
}

/// How somebody else's lock ended our attempt.
enum Refused {
    /// The directory, or the file, is another one by now.
    Changed,
    /// Its owner lives.
    Owned,
    /// The system's answer.
    Failed(io::Error),
}

impl From<Errno> for Refused {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::NOENT => Self::Changed,
            Errno::WOULDBLOCK => Self::Owned,
            errno => Self::Failed(errno.into()),
        }
    }
}

impl Home {
    /// Claims the directory of a sandbox that is to be, and makes it if it is not there. Whether it was: then a dead owner
    /// has left it, and what is in it.
    pub(super) async fn claim(run_dir: &Path, scope: &SandboxId, id: &SandboxId) -> Result<(Self, bool)> {
        let late = |pid| {
            Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("sandbox {id} exists still: its owner is dead, and process {pid} cleans up after it"),
            ))
        };
        insist(id, || Self::try_claim(run_dir, scope, id), late).await
    }

    fn try_claim(run_dir: &Path, scope: &SandboxId, id: &SandboxId) -> Result<Attempt<(Self, bool)>> {
        let run_dir = run_directory(run_dir)?;
        let dir = directory(&run_dir, scope, id)?;
        for _ in 0..ATTEMPTS {
            let made = match DirBuilder::new().mode(0o700).create(&dir) {
                Ok(()) => true,
                Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => false,
                Err(cause) => return Err(unusable(&dir, cause)),
            };
            match lock(&dir) {
                Ok(lock) => return Ok(Attempt::Done((Self { dir, lock }, !made))),
                Err(Refused::Changed) => {}
                Err(Refused::Owned) => {
                    return owned(ErrorKind::AlreadyExists, id, &dir, "exists already");
                }
                Err(Refused::Failed(cause)) => return Err(unusable(&dir, cause)),
            }
        }
        Err(contended(&dir))
    }

    /// Takes over what a dead owner has left. `None`: nothing, or somebody else has taken it over and is not done yet.
    pub(super) async fn inherit(run_dir: &Path, scope: &SandboxId, id: &SandboxId) -> Result<Option<Self>> {
        // Whoever cleans up goes on.
        insist(id, || Self::try_inherit(run_dir, scope, id), |_| Ok(None)).await
    }

    fn try_inherit(run_dir: &Path, scope: &SandboxId, id: &SandboxId) -> Result<Attempt<Option<Self>>> {
        let run_dir = match fs::canonicalize(run_dir) {
            Ok(run_dir) => run_dir,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Attempt::Done(None)),
            Err(cause) => return Err(unusable(run_dir, cause)),
        };
        let dir = directory(&run_dir, scope, id)?;
        for _ in 0..ATTEMPTS {
            match lock(&dir) {
                Ok(lock) => return Ok(Attempt::Done(Some(Self { dir, lock }))),
                Err(Refused::Changed) if !dir.exists() => return Ok(Attempt::Done(None)),
                Err(Refused::Changed) => {}
                Err(Refused::Owned) => {
                    let what = "cannot be cleaned up: its owner lives";
                    return owned(ErrorKind::FailedPrecondition, id, &dir, what);
                }
                Err(Refused::Failed(cause)) => return Err(unusable(&dir, cause)),
            }
        }
        Err(contended(&dir))
    }

    /// Its path, without links.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Removes the directory and what is in it, the record last. Never what is mounted there: then it stays, with its
    /// record.
    pub(super) fn remove(&self) -> Result<()> {
        let removed = || -> io::Result<()> {
            let fd = open_directory(&self.dir)?;
            let mut kept = store::files().to_vec();
            kept.push(LOCK.into());
            tree::empty(&fd, &kept)?;
            tree::empty(&fd, &[LOCK.into()])?;
            tree::empty(&fd, &[])?;
            match fs::remove_dir(&self.dir) {
                // Somebody has claimed it in the moment since the lock went, and may be done with it as well.
                Err(cause)
                    if matches!(
                        cause.kind(),
                        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound
                    ) =>
                {
                    Ok(())
                }
                removed => removed,
            }
        };
        removed().map_err(|cause| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot remove the sandbox's directory {}", self.dir.display()),
                cause,
            )
        })
    }
}

/// Makes the directory of all sandboxes. Its path without links: the kernel's list of mounts has such paths.
fn run_directory(run_dir: &Path) -> Result<PathBuf> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(run_dir)
        .and_then(|()| fs::canonicalize(run_dir))
        .map_err(|cause| unusable(run_dir, cause))
}

/// A sandbox's directory. Its name tells scope and id, if a socket in it can still be reached by its path; else it is a
/// digest of them.
///
/// # Errors
/// Not even that is short enough.
pub(super) fn directory(run_dir: &Path, scope: &SandboxId, id: &SandboxId) -> Result<PathBuf> {
    if run_dir.as_os_str().as_bytes().contains(&b',') {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the path {} contains a comma, which separates the arguments of daemons; set another run_dir",
                run_dir.display()
            ),
        ));
    }
    // No id has this separator: two pairs never have one name, nor is one a digest.
    let name = format!("{scope}@{id}");
    let room = SOCKET_PATH.saturating_sub(run_dir.as_os_str().as_bytes().len() + 2 + LONGEST_SOCKET.len());
    if name.len() <= room {
        return Ok(run_dir.join(name));
    }
    let digest: String = Sha256::digest(&name)
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if digest.len() <= room {
        return Ok(run_dir.join(digest));
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!(
            "the path {} is too long: a socket's path below it would have more than {SOCKET_PATH} bytes; set a shorter \
             run_dir",
            run_dir.display()
        ),
    ))
}

fn lock(dir: &Path) -> Result<File, Refused> {
    let fd = open_directory(dir)?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = openat(&fd, LOCK, flags, Mode::RUSR | Mode::WUSR)?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    // What is locked may have been removed meanwhile; then it proves nothing.
    let there = statat(CWD, dir.join(LOCK), AtFlags::SYMLINK_NOFOLLOW)?;
    let ours = fstat(&lock)?;
    if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) {
        // Our pid, for whoever comes next: the record has another one's, as long as we clean up.
        ftruncate(&lock, 0)?;
        pwrite(&lock, std::process::id().to_string().as_bytes(), 0)?;
        Ok(lock.into())
    } else {
        Err(Refused::Changed)
    }
}

/// Whether somebody owns a sandbox's directory now. `None`: nobody ever has. To look takes the lock for a moment, which whoever
/// claims the directory waits for as for a dying owner's.
pub(crate) fn is_owned(dir: &Path) -> Option<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let lock = openat(open_directory(dir).ok()?, LOCK, flags, Mode::empty()).ok()?;
    // A shared one: two that look do not take each other for an owner.
    Some(match flock(&lock, FlockOperation::NonBlockingLockShared) {
        Ok(()) => false,
        Err(errno) => errno == Errno::WOULDBLOCK,
    })
}

fn open_directory(dir: &Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    open(
        dir,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Tries until there is an answer. There is none while the owner is dead, and yet its lock is held: by a child that it was
/// just starting, which ends as soon as it notices; or by somebody who cleans up. Nobody tells when. `late` answers instead of
/// one who cleans up for too long.
async fn insist<T>(
    id: &SandboxId,
    attempt: impl Fn() -> Result<Attempt<T>>,
    late: impl FnOnce(u32) -> Result<T>,
) -> Result<T> {
    const INSTANT: Duration = Duration::from_millis(1);
    let begun = Instant::now();
    loop {
        match attempt()? {
            Attempt::Done(answer) => return Ok(answer),
            Attempt::Lingers if begun.elapsed() >= deadlines::LOCK_GONE => {
                return Err(Error::new(
                    ErrorKind::DeadlineExceeded,
                    format!("the owner of sandbox {id} is dead, but something has kept its lock"),
                ));
            }
            Attempt::Cleaned(pid) if begun.elapsed() >= deadlines::CLEANED => return late(pid),
            Attempt::Lingers | Attempt::Cleaned(_) => tokio::time::sleep(INSTANT).await,
        }
    }
}

/// What an attempt on a directory comes to whose lock is held: an error, unless the one who should hold it is dead.
fn owned<T>(kind: ErrorKind, id: &SandboxId, dir: &Path, what: &str) -> Result<Attempt<T>> {
    let owner = match Record::read(dir) {
        Ok(Some(record)) if is_dead(record.owner) => {
            return Ok(match holder(dir).filter(|&pid| !is_dead(pid)) {
                Some(pid) => Attempt::Cleaned(pid),
                None => Attempt::Lingers,
            });
        }
        Ok(Some(record)) => format!("process {} owns it", record.owner),
        // Somebody looks, or its owner has died early.
        Ok(None) | Err(_) if holder(dir).is_none_or(is_dead) => return Ok(Attempt::Lingers),
        // Its owner is only just beginning.
        Ok(None) | Err(_) => "a process owns it".to_owned(),
    };
    Err(Error::new(
        kind,
        format!("sandbox {id} {what} ({owner}, in {})", dir.display()),
    ))
}

/// Who has taken the lock last.
fn holder(dir: &Path) -> Option<u32> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = openat(open_directory(dir).ok()?, LOCK, flags, Mode::empty()).ok()?;
    let mut text = String::new();
    io::Read::read_to_string(&mut io::Read::take(File::from(file), 16), &mut text).ok()?;
    text.parse().ok()
}

fn is_dead(pid: u32) -> bool {
    match fs::read(format!("/proc/{pid}/stat")) {
        // The state is behind the name, which may contain anything (proc(5)). A zombie has no locks.
        Ok(stat) => stat
            .iter()
            .rposition(|&byte| byte == b')')
            .is_some_and(|end| matches!(stat.get(end + 2), Some(b'Z' | b'X'))),
        Err(cause) => cause.kind() == io::ErrorKind::NotFound,
    }
}

fn unusable(dir: &Path, cause: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("the directory {} cannot be used", dir.display()),
        cause,
    )
}

fn contended(dir: &Path) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("others keep removing the directory {}", dir.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn id(text: &str) -> SandboxId {
        SandboxId::new(text).unwrap()
    }

    #[test]
    fn names_are_told_apart_and_sockets_fit() {
        let long = "x".repeat(76);
        let table = [
            ("/run/kata", "k8s.io", "pod", "/run/kata/k8s.io@pod"),
            ("/run/kata", "a.b", "c", "/run/kata/a.b@c"),
            ("/run/kata", "a", "b.c", "/run/kata/a@b.c"),
        ];
        for (run_dir, scope, name, expected) in table {
            let dir = directory(Path::new(run_dir), &id(scope), &id(name)).unwrap();
            assert_eq!(dir, Path::new(expected));
        }
        for length in [1, 20, 60] {
            let run_dir = Path::new("/").join("r".repeat(length));
            let dir = directory(&run_dir, &id(&long), &id(&long)).unwrap();
            assert!(dir.join(LONGEST_SOCKET).as_os_str().len() <= SOCKET_PATH);
            assert_ne!(dir, directory(&run_dir, &id(&long), &id("y")).unwrap());
        }
        let error = directory(&Path::new("/").join("r".repeat(80)), &id("a"), &id(&long)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.context.contains("run_dir"), "{error}");
    }

    #[test]
    fn a_path_that_daemons_would_take_apart_is_refused() {
        let error = directory(Path::new("/run/a,b"), &id("t"), &id("s")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
    }

    #[tokio::test]
    async fn a_claim_lasts_as_long_as_its_owner() {
        let run_dir = tempfile::tempdir().unwrap();
        let run_dir = run_dir.path().join("run");
        let (first, left) = Home::claim(&run_dir, &id("t"), &id("s")).await.unwrap();
        assert!(!left);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(first.dir()), 0o700);
        Record::new(&id("t"), &id("s")).write(first.dir()).unwrap();

        let error = Home::claim(&run_dir, &id("t"), &id("s")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        let pid = format!("process {}", std::process::id());
        assert!(error.context.contains(&pid), "{error}");
        let error = Home::inherit(&run_dir, &id("t"), &id("s")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);

        // It dies; the next one is told that there is something left.
        drop(first);
        let (second, left) = Home::claim(&run_dir, &id("t"), &id("s")).await.unwrap();
        assert!(left);
        second.remove().unwrap();
        assert!(!second.dir().exists());
        assert!(
            Home::inherit(&run_dir, &id("t"), &id("s"))
                .await
                .unwrap()
                .is_none()
        );
        // The id is free at once, though the old owner has not let go.
        let (_, left) = Home::claim(&run_dir, &id("t"), &id("s")).await.unwrap();
        assert!(!left);
    }

    #[tokio::test]
    async fn a_dead_owners_lock_may_outlive_it_a_little() {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let run_dir = tempfile::tempdir().unwrap();
        let (scope, id) = (id("t"), id("s"));
        let (home, _) = Home::claim(run_dir.path(), &scope, &id).await.unwrap();
        let mut record = Record::new(&scope, &id);
        let mut owner = std::process::Command::new("true").spawn().unwrap();
        record.owner = owner.id();
        record.write(home.dir()).unwrap();
        // A zombie: it has ended, and nobody has waited for it.
        let pid = Pid::from_child(&owner);
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        let inherited = Home::inherit(run_dir.path(), &scope, &id);
        let inherited = tokio::time::timeout(Duration::from_millis(20), inherited).await;
        assert!(inherited.is_err(), "its lock is held");
        owner.wait().unwrap();
        // Of whoever holds the lock there is nothing in its file, as long as it has not become a program.
        fs::write(home.dir().join(LOCK), owner.id().to_string()).unwrap();
        let ends = async {
            tokio::task::yield_now().await;
            drop(home);
        };
        let (inherited, ()) = tokio::join!(Home::inherit(run_dir.path(), &scope, &id), ends);
        assert!(inherited.unwrap().is_some());
    }

    #[tokio::test]
    async fn whoever_cleans_up_is_waited_for_and_then_left_alone() {
        let run_dir = tempfile::tempdir().unwrap();
        let (scope, id) = (id("t"), id("s"));
        let (cleaner, _) = Home::claim(run_dir.path(), &scope, &id).await.unwrap();
        let mut record = Record::new(&scope, &id);
        let mut owner = std::process::Command::new("true").spawn().unwrap();
        record.owner = owner.id();
        owner.wait().unwrap();
        record.write(cleaner.dir()).unwrap();
        let begun = Instant::now();
        let inherited = Home::inherit(run_dir.path(), &scope, &id).await;
        assert!(inherited.unwrap().is_none(), "it is not ours to take");
        assert!(begun.elapsed() >= deadlines::CLEANED);
        let error = Home::claim(run_dir.path(), &scope, &id).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::AlreadyExists);
        assert!(
            error.context.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        // It is killed, and not done.
        let ends = async {
            tokio::task::yield_now().await;
            drop(cleaner);
        };
        let (inherited, ()) = tokio::join!(Home::inherit(run_dir.path(), &scope, &id), ends);
        assert!(inherited.unwrap().is_some(), "what it has left is taken over");
    }

    #[test]
    fn many_claim_one_directory_and_one_has_it_at_a_time() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let run_dir = tempfile::tempdir().unwrap();
        let owners = AtomicU32::new(0);
        let claims = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        match Home::try_claim(run_dir.path(), &id("t"), &id("s")) {
                            Ok(Attempt::Cleaned(_)) => panic!("everybody lives"),
                            // It has the lock, and has not written yet who it is.
                            Ok(Attempt::Lingers) => {}
                            Ok(Attempt::Done((home, _))) => {
                                assert_eq!(owners.fetch_add(1, Ordering::SeqCst), 0);
                                claims.fetch_add(1, Ordering::SeqCst);
                                owners.fetch_sub(1, Ordering::SeqCst);
                                home.remove().unwrap();
                            }
                            Err(error) => assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}"),
                        }
                    }
                });
            }
        });
        assert!(claims.into_inner() > 0);
        assert_eq!(fs::read_dir(run_dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_claim_waits_for_who_only_looks() {
        let run_dir = tempfile::tempdir().unwrap();
        let dir = directory(run_dir.path(), &id("t"), &id("s")).unwrap();
        fs::create_dir(&dir).unwrap();
        let look = File::create(dir.join(LOCK)).unwrap();
        flock(&look, FlockOperation::NonBlockingLockShared).unwrap();
        let (scope, id) = (id("t"), id("s"));
        let looks_away = async {
            tokio::task::yield_now().await;
            drop(look);
        };
        let (claimed, ()) = tokio::join!(Home::claim(run_dir.path(), &scope, &id), looks_away);
        claimed.unwrap();
    }

    #[test]
    fn a_link_in_the_place_of_the_directory_is_not_followed() {
        let run_dir = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), run_dir.path().join("t@s")).unwrap();
        assert!(Home::try_claim(run_dir.path(), &id("t"), &id("s")).is_err());
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }
}

//! A cell: namespaces of its own for processes, mounts, network and host name, with an empty `/run` and `/dev/shm`.
//!
//! containerd and all that it starts live in one. So a test can list everything that is left, whoever made it; other
//! containerds on the machine are out of reach; and whatever happens, even a kill of the harness, ends with the cell.
//! What a cell can't hold is below a directory of its own and in cgroups that have its tag.
//!
//! A program becomes one in a cell by three processes: [`Cell::command`] starts it again by `unshare`; there it is the
//! first process, whose work is to adopt and reap orphans ([`enter`]), and starts itself again as what works.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, WaitOptions, wait};
use tempfile::TempDir;

use crate::census::cgroups;
use crate::snapshotter::{self, detach};
use crate::{deadlines, wait as waiting};

/// Says what this process is in a cell: `first` or `worker`.
const ROLE: &str = "KATA_CELL";

/// The cell's directory.
const DIRECTORY: &str = "KATA_CELL_DIRECTORY";

/// What the names of cells' directories begin with.
const PREFIX: &str = "cell";

/// A cell, seen from outside.
#[derive(Debug)]
pub struct Cell {
    directory: TempDir,
    /// Held as long as somebody will take the cell away.
    _lock: File,
}

impl Cell {
    /// A place for a cell. Nothing runs yet. What is left of cells whose makers were killed is taken away.
    ///
    /// # Errors
    /// This is not root, or the place can't be made.
    pub fn new(below: &Path) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("containerd needs root: run this as root");
        }
        fs::create_dir_all(below).with_context(|| format!("create {}", below.display()))?;
        // A directory that is made and not locked yet must not be swept.
        let all = File::open(below).with_context(|| format!("open {}", below.display()))?;
        flock(&all, FlockOperation::LockExclusive).context("lock the directory of cells")?;
        sweep(below)?;
        let directory = tempfile::Builder::new()
            .prefix(PREFIX)
            .rand_bytes(6)
            .tempdir_in(below)
            .with_context(|| format!("create a directory in {}", below.display()))?;
        let lock = File::open(directory.path()).context("open the cell's directory")?;
        flock(&lock, FlockOperation::LockShared).context("lock the cell's directory")?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// The command that starts this program again, in the cell. There, [`enter`] is to be called first. The cell ends with
    /// the thread that starts it.
    ///
    /// # Errors
    /// Our own program has no path.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig=KILL", "--", "unshare"])
            .args([
                "--mount",
                "--pid",
                "--net",
                "--fork",
                "--mount-proc",
                "--kill-child=KILL",
                "--",
            ])
            .arg(env::current_exe().context("find our own program")?)
            .env(ROLE, "first")
            .env(DIRECTORY, self.directory.path());
        Ok(command)
    }

    /// Takes away what a cell that has ended left outside of it.
    ///
    /// # Errors
    /// Something can't be taken away.
    pub fn close(self) -> Result<()> {
        let gone = remove_cgroups(&tag(self.directory.path()));
        let gone = gone.and(detach(self.directory.path()));
        let removed = self.directory.close().context("remove the cell's directory");
        gone.and(removed)
    }
}

/// Takes away what is left of cells that nobody holds.
fn sweep(below: &Path) -> Result<()> {
    for entry in fs::read_dir(below)? {
        let entry = entry?;
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let path = entry.path();
        // One that was taken away meanwhile is no error.
        if let Ok(directory) = File::open(&path)
            && flock(&directory, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            remove_cgroups(&tag(&path))?;
            detach(&path)?;
            fs::remove_dir_all(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

fn remove_cgroups(tag: &str) -> Result<()> {
    waiting::until("the cell's cgroups are gone", deadlines::GONE, || {
        let mut left = cgroups(tag)?;
        // The deepest first.
        left.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        for path in &left {
            // Busy until its processes are reaped; then the next look removes it.
            let _ = fs::remove_dir(path);
        }
        Ok(left.is_empty().then_some(()))
    })
}

/// Makes Ctrl-C, which the kernel sends to all processes of a terminal, end the cells and not us: what they leave is to be
/// taken away. The flag says whether it came.
///
/// # Errors
/// The signal can't be caught.
pub fn outlive_interrupt() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&interrupted))
        .context("catch SIGINT")?;
    Ok(interrupted)
}

/// A cell, seen from within.
#[derive(Debug)]
pub struct Inside {
    /// A directory on disk, for what a tmpfs should not hold.
    pub directory: PathBuf,
    /// A word that no other cell of this machine has, for names of what a cell does not hold.
    pub tag: String,
}

/// What this process is.
#[derive(Debug)]
pub enum Place {
    /// In no cell.
    Outside,
    /// In a cell, with work to do.
    Inside(Inside),
    /// The first process of a cell, and done.
    Done(ExitCode),
}

/// Does this process's part in a cell. To be called before there are threads.
///
/// # Errors
/// The cell can't be furnished.
pub fn enter() -> Result<Place> {
    match env::var(ROLE).as_deref() {
        Err(_) => Ok(Place::Outside),
        Ok("first") => Ok(Place::Done(reap()?)),
        Ok(_) => {
            let directory: PathBuf = env::var_os(DIRECTORY).context("a cell has a directory")?.into();
            let tag = tag(&directory);
            Ok(Place::Inside(Inside { directory, tag }))
        }
    }
}

/// Furnishes the cell, starts the worker, and reaps whoever ends until it is the worker. Then the kernel kills the rest.
fn reap() -> Result<ExitCode> {
    for place in ["/run", "/dev/shm"] {
        mount(
            "cell",
            place,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            Some(c"mode=755"),
        )
        .with_context(|| format!("mount a tmpfs on {place}"))?;
    }
    snapshotter::furnish()?;
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    let worker = Command::new(env::current_exe().context("find our own program")?)
        .args(arguments)
        .env(ROLE, "worker")
        .spawn()
        .context("start the cell's worker")?;
    let worker = i32::try_from(worker.id()).ok().and_then(Pid::from_raw);
    loop {
        let Some((pid, status)) = wait(WaitOptions::empty()).context("wait for a child")? else {
            continue;
        };
        if Some(pid) == worker {
            let code = status.exit_status().and_then(|code| u8::try_from(code).ok());
            return Ok(code.map_or(ExitCode::FAILURE, ExitCode::from));
        }
    }
}

/// The last part of a cell's directory, which `tempfile` has made unique.
fn tag(directory: &Path) -> String {
    directory
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .to_lowercase()
}

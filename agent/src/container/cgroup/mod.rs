//! A container's cgroup (version 2): made, limited, frozen, killed and removed.
//!
//! Must not know of namespaces or processes beyond their pids. Waits are events of `cgroup.events`, never sleeps.

mod devices;
mod limits;
pub(super) mod path;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};
use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;

use super::deadlines;
use super::error::{Error, Result};
use super::sys;
use crate::patience::patient;
pub(super) use devices::Instruction;

/// What containers are given of; the others (misc, rdma) the guest does not offer.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// A tree without any of these is the second one of a host whose limits are in cgroup v1; it may have an odd controller
/// that v1 left over, which is not touched.
const ESSENTIAL: [&str; 3] = ["cpu", "memory", "pids"];

/// Programs that are loaded, see [`prepare`].
static USUAL: OnceLock<Vec<(Vec<Instruction>, OwnedFd)>> = OnceLock::new();

/// A cgroup that is never used, and never removed. No container's id begins like it.
const KEPT: &str = ".kept";

/// Loads ahead of any container the programs that most of them have: the kernel's examination of one is a good part of what
/// the creation of a container costs. So is the rewriting of the kernel's own code when the first cgroup comes to have a
/// controller or a program, and when the last has gone: one is kept in `root`.
pub(super) fn prepare(root: Option<&Path>) {
    let usual = USUAL.get_or_init(|| {
        let load = |program: Vec<Instruction>| {
            // Where there are no such programs, a container finds out.
            let loaded = sys::load_device_program(&program).ok()?;
            Some((program, loaded))
        };
        devices::usual().into_iter().filter_map(load).collect()
    });
    let Some(kept) = root.map(|root| root.join(KEPT)) else {
        return;
    };
    // Containers do without it, only later.
    if fs::create_dir(&kept).is_ok()
        && let (Ok(directory), Some((_, program))) = (open(&kept), usual.first())
    {
        let _ = sys::attach_device_program(directory.as_fd(), program.as_fd());
    }
}

/// The cgroup of one container. Made by [`Cgroup::create`], undone by [`Cgroup::delete`].
#[derive(Debug)]
pub(super) struct Cgroup {
    path: PathBuf,
    /// The tree that the agent may use.
    root: PathBuf,
    /// For CLONE_INTO_CGROUP.
    directory: OwnedFd,
    /// Directories that this container made, outermost first; the last is `path`.
    made: Vec<PathBuf>,
    /// The tree has none of [`ESSENTIAL`]: the agent is an ordinary process on a host with cgroup v1.
    uncontrolled: bool,
}

fn failed(action: impl Into<String>, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Cgroup {
        action: action.into(),
        path: path.to_owned(),
        source,
    }
}

impl Cgroup {
    /// Makes the cgroup at `relative` below `root`, with the root's controllers enabled down to it.
    ///
    /// # Errors
    /// When the directory exists with processes in it, or can't be made. What was made is removed again.
    pub(super) fn create(root: &Path, relative: &Path) -> Result<Self> {
        let offered = fs::read_to_string(root.join("cgroup.controllers"))
            .map_err(failed("use cgroup v2, read", &root.join("cgroup.controllers")))?;
        let is_offered = |controller: &&&str| offered.split_whitespace().any(|name| name == **controller);
        let uncontrolled = !ESSENTIAL.iter().any(|controller| is_offered(&controller));
        let enable: Vec<String> = match uncontrolled {
            true => Vec::new(),
            false => CONTROLLERS
                .iter()
                .filter(is_offered)
                .map(|controller| format!("+{controller}"))
                .collect(),
        };
        let mut made = Made(Vec::new());
        let mut path = root.to_owned();
        for component in relative {
            enable_controllers(&path, &enable);
            path.push(component);
            match fs::create_dir(&path) {
                Ok(()) => made.0.push(path.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(failed("create", &path)(error)),
            }
        }
        if made.0.last() != Some(&path) && !pids_below(&path).is_empty() {
            return Err(failed("create", &path)(io::ErrorKind::AlreadyExists.into()));
        }
        let directory = open(&path)?;
        Ok(Self {
            path,
            root: root.to_owned(),
            directory,
            made: std::mem::take(&mut made.0),
            uncontrolled,
        })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the cgroup that a process is in, the container's own or one nested in it.
    pub(super) fn of_process(&self, pid: i32) -> Result<OwnedFd> {
        let file = PathBuf::from(format!("/proc/{pid}/cgroup"));
        let text = fs::read_to_string(&file).map_err(failed("read", &file))?;
        let own = self.path.strip_prefix(&self.root).unwrap_or(&self.path);
        // The line of version 2 is `0::/path`, a path from the root of the agent's cgroup namespace; what is nested follows
        // our own part of it.
        let nested = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))
            .and_then(|path| path.split_once(own.to_str()?))
            .map_or("", |(_, nested)| nested.trim_start_matches('/'));
        open(&self.path.join(nested))
    }

    /// Whether limits can't be enforced because the tree has no controllers at all.
    pub(super) fn is_uncontrolled(&self) -> bool {
        self.uncontrolled
    }

    /// Sets limits.
    ///
    /// # Errors
    /// A limit that can't be enforced, except in a tree without any controllers.
    pub(super) fn limit(&self, resources: &LinuxResources) -> Result<()> {
        let writes = limits::writes(resources)?;
        if self.uncontrolled {
            return Ok(());
        }
        for write in writes {
            match self.write(&write.file, &write.content) {
                Ok(()) => {}
                Err(error) if is_missing(&error) && write.vacuous_without_file => {}
                Err(error) if is_missing(&error) => {
                    return Err(Error::NoController {
                        field: write.field,
                        controller: write.controller,
                    });
                }
                Err(error) => {
                    return Err(failed(
                        format!("{}: write {:?} to", write.field, write.content),
                        &self.path.join(&write.file),
                    )(error));
                }
            }
        }
        Ok(())
    }

    /// Limits which devices can be opened.
    ///
    /// A kernel without eBPF for cgroups has no such limit in version 2: there, the virtual machine's devices are the wall.
    pub(super) fn limit_devices(&self, rules: Option<&[LinuxDeviceCgroup]>) -> Result<()> {
        let Some(program) = devices::program(rules)? else {
            return Ok(());
        };
        let usual = USUAL.get().map_or(&[][..], Vec::as_slice);
        let attached = match usual.iter().find(|(usual, _)| *usual == program) {
            Some((_, loaded)) => sys::attach_device_program(self.as_fd(), loaded.as_fd()),
            None => sys::load_device_program(&program)
                .and_then(|loaded| sys::attach_device_program(self.as_fd(), loaded.as_fd())),
        };
        match attached {
            // The same answer as for a program that is wrong, which must not be mistaken for it.
            Err(error)
                if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL))
                    && sys::load_device_program(&devices::ALLOWS_ALL).is_err() =>
            {
                Ok(())
            }
            result => result.map_err(failed("limit the devices of", &self.path)),
        }
    }

    /// Stops all processes, or lets them run again. The order is given at once; the future is only the wait for it.
    pub(super) fn freeze(&self, frozen: bool) -> impl Future<Output = Result<()>> + Send + use<> {
        let (content, what) = match frozen {
            true => ("1", "the container's pause"),
            false => ("0", "the container's resumption"),
        };
        let path = self.path.clone();
        let ordered = self.write("cgroup.freeze", content);
        async move {
            ordered.map_err(failed(format!("write {content} to"), &path.join("cgroup.freeze")))?;
            wait_for(&path, "frozen", content, what, deadlines::FREEZE).await
        }
    }

    /// Whether [`Cgroup::freeze`] stopped it.
    pub(super) fn is_frozen(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.freeze")).is_ok_and(|text| text.trim() == "1")
    }

    /// Pids of all processes, nested cgroups included.
    pub(super) fn pids(&self) -> Vec<u32> {
        pids_below(&self.path)
    }

    /// Sends a signal to every process. SIGKILL reaches also what is forked meanwhile.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        if signal == Signal::SIGKILL && self.write("cgroup.kill", "1").is_ok() {
            return Ok(());
        }
        for pid in self.pids() {
            // One that ended meanwhile needs no signal.
            let _ = kill(Pid::from_raw(pid.cast_signed()), signal);
        }
        Ok(())
    }

    /// Kills what is left, waits until nothing is, and removes the directories that [`Cgroup::create`] made.
    pub(super) async fn delete(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        // A frozen process dies without being thawed by cgroup.kill, but not by the fallback.
        let _ = self.write("cgroup.freeze", "0");
        wait_for(
            &self.path,
            "populated",
            "0",
            "the end of the container's processes",
            deadlines::EMPTY,
        )
        .await?;
        remove_nested(&self.path)?;
        for directory in self.made.iter().rev() {
            match fs::remove_dir(directory) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // Another container lives below a parent that we made.
                Err(_) if *directory != self.path => break,
                Err(error) => return Err(failed("remove", directory)(error)),
            }
        }
        Ok(())
    }

    fn write(&self, file: &str, content: &str) -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .open(self.path.join(file))?
            .write_all(content.as_bytes())
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// The undo of a creation that fails halfway.
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for directory in self.0.iter().rev() {
            let _ = fs::remove_dir(directory);
        }
    }
}

/// Waits until `cgroup.events` says `key value`; the kernel notifies each change of that file.
async fn wait_for(cgroup: &Path, key: &str, value: &str, what: &'static str, limit: Duration) -> Result<()> {
    let limit = patient(limit);
    let path = cgroup.join("cgroup.events");
    let events = File::open(&path).map_err(failed("open", &path))?;
    let wait = async {
        let mut text = String::new();
        let mut watch = None;
        loop {
            text.clear();
            (&events).rewind()?;
            (&events).read_to_string(&mut text)?;
            let reached = text
                .lines()
                .filter_map(|line| line.split_once(' '))
                .any(|(name, state)| name == key && state == value);
            if reached {
                return Ok(());
            }
            // Registered only when there is something to wait for; the file is read once more after that.
            match &watch {
                None => watch = Some(sys::watch(events.as_fd(), Interest::PRIORITY)?),
                Some(watch) => watch.ready(Interest::PRIORITY).await?.clear_ready(),
            }
        }
    };
    tokio::time::timeout(limit, wait)
        .await
        .map_err(|_| Error::Late { what, limit })?
        .map_err(failed("watch", &path))
}

fn open(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed("open", path)(error.into()))
}

fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

/// Enables what can be enabled; a limit that lacks its controller afterwards is reported where it is asked for.
fn enable_controllers(directory: &Path, enable: &[String]) {
    if enable.is_empty() {
        return;
    }
    let control = directory.join("cgroup.subtree_control");
    if fs::write(&control, enable.join(" ")).is_err() {
        // The kernel takes all or nothing: try one by one.
        for controller in enable {
            let _ = fs::write(&control, controller);
        }
    }
}

fn nested(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
}

fn pids_below(directory: &Path) -> Vec<u32> {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
    for child in nested(directory) {
        pids.extend(pids_below(&child));
    }
    pids
}

/// Removes the cgroups that the container made in its own.
fn remove_nested(directory: &Path) -> Result<()> {
    for child in nested(directory) {
        remove_nested(&child)?;
        fs::remove_dir(&child).map_err(failed("remove", &child))?;
    }
    Ok(())
}

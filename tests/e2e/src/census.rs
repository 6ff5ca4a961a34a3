//! What exists in a cell: processes, mounts, sockets, files, network interfaces, and the cgroups that have the cell's tag.
//!
//! A census before and one after a test are to be the same.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::cell::Inside;
use crate::{deadlines, snapshotter, wait};

/// What programs make when they first need it, and keep. Directories count only for what is in them.
const KEPT: &[&str] = &[
    "/run/containerd",
    "/run/containerd/fifo",
    "/run/containerd/runc",
    "/run/containerd/s",
    "/run/docker",
    "/run/docker/plugins",
    "/run/kata",
    // Of the OCI runtime: all containers, and the sockets of their daemons.
    "/run/kata-runtime",
    "/run/kata-runtime/.sandboxes",
    // What the probe of KVM found, which holds until the next boot of the host.
    "/run/kata/accelerator.json",
    "/run/netns",
];

/// A process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Process {
    /// Its id in the cell.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// `R`, `S`, `Z` and so on.
    pub state: char,
    /// The kernel's short name of it.
    pub name: String,
    /// Its command line; empty for a zombie.
    pub command: Vec<String>,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pid,
            parent,
            state,
            name,
            command,
        } = self;
        write!(
            f,
            "process {pid} ({name}, state {state}, child of {parent}) {}",
            command.join(" ")
        )
    }
}

/// Everything that exists, each thing as a line of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeSet<String>);

impl Census {
    /// Lists what exists in this cell. `known` are the processes that do not count.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn take(cell: &Inside, known: &[u32]) -> Result<Self> {
        let mut things = BTreeSet::new();
        things.extend(
            processes()?
                .iter()
                .filter(|process| !known.iter().any(|&pid| i64::from(pid) == i64::from(process.pid)))
                .map(ToString::to_string),
        );
        // The first six fields name the mount and its parent, by numbers, and what is where.
        things.extend(
            lines("/proc/self/mountinfo")?
                .into_iter()
                .map(|line| format!("mount {line}")),
        );
        things.extend(sockets()?.into_iter().map(|path| format!("socket {path}")));
        things.extend(lines("/proc/net/dev")?.iter().skip(2).filter_map(|line| {
            let (name, _) = line.trim().split_once(':')?;
            Some(format!("network interface {name}"))
        }));
        // containerd names a container's directory by its namespace and its id.
        let tasks = format!("io.containerd.runtime.v2.task/{}", cell.tag);
        let kept: Vec<PathBuf> = KEPT
            .iter()
            .map(PathBuf::from)
            .chain([
                PathBuf::from("/run/containerd/runc").join(&cell.tag),
                // Of our OCI runtime, called by containerd's shim.
                PathBuf::from("/run/containerd/runc")
                    .join(&cell.tag)
                    .join(".sandboxes"),
                cell.directory.join("root").join(&tasks),
            ])
            .collect();
        for place in [
            PathBuf::from("/run"),
            "/dev/shm".into(),
            cell.directory.join("root").join(tasks),
        ] {
            for path in walk(&place, |path| path.starts_with(crate::containerd::STATE))? {
                if !kept.contains(&path) {
                    things.insert(format!("file {}", path.display()));
                }
            }
        }
        let namespace = Path::new("/").join(&cell.tag);
        for path in cgroups(&cell.tag)? {
            // Of the namespace's own cgroup, which runc makes and leaves, only what is in it counts.
            if !path.ends_with(namespace.strip_prefix("/")?) {
                things.insert(format!("cgroup {}", path.display()));
            }
        }
        let devices = snapshotter::loop_devices(&cell.directory)?;
        things.extend(
            devices
                .iter()
                .map(|device| format!("loop device {}", device.display())),
        );
        Ok(Self(things))
    }

    /// What is in this one and not in `other`.
    pub fn beyond(&self, other: &Self) -> Vec<String> {
        self.0.difference(&other.0).cloned().collect()
    }

    /// Waits until nothing exists beyond this census.
    ///
    /// # Errors
    /// Something is left at the deadline; the error lists it.
    pub fn wait(&self, cell: &Inside, known: &[u32]) -> Result<()> {
        let mut left = Vec::new();
        let gone = wait::until("nothing is left", deadlines::GONE, || {
            left = Self::take(cell, known)?.beyond(self);
            Ok(left.is_empty().then_some(()))
        });
        if gone.is_err() && !left.is_empty() {
            bail!("{} things are left:\n  {}", left.len(), left.join("\n  "));
        }
        gone
    }
}

/// All processes of the cell, but for this one, its first one, and threads of the kernel.
///
/// # Errors
/// `/proc` can't be read.
pub fn processes() -> Result<Vec<Process>> {
    let own = std::process::id();
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").context("read /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that ends while we look was not there.
        if pid != own
            && pid != 1
            && let Some(mut process) = process(pid)
        {
            if process.command.iter().any(|word| word.starts_with(KEPT_READY)) {
                process.command.extend(taken_by(process.pid));
            }
            processes.push(process);
        }
    }
    processes.sort();
    Ok(processes)
}

/// What the command line of a machine has that was kept ready, and not the name of its sandbox.
const KEPT_READY: &str = "guest=cache-";

/// The sandbox that a machine belongs to, by the record of that.
fn taken_by(pid: i32) -> Option<String> {
    let sandboxes = fs::read_dir("/run/kata").ok()?.flatten();
    sandboxes
        .filter(|sandbox| {
            let record = fs::read(sandbox.path().join("record.json")).unwrap_or_default();
            let record: serde_json::Value = serde_json::from_slice(&record).unwrap_or_default();
            record["vm"]["pid"] == pid
        })
        .find_map(|sandbox| sandbox.file_name().into_string().ok())
}

/// What `/proc` says of a process; nothing if there is none.
pub fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    // The name is in parentheses and may have any character.
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    Some(Process {
        pid: pid.try_into().ok()?,
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        name: name.into(),
        command: command
            .split(|&byte| byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect(),
    })
}

/// Every cgroup, in all hierarchies, whose path has `word` in it.
///
/// # Errors
/// A hierarchy can't be read.
pub fn cgroups(word: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in lines("/proc/self/mountinfo")? {
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let is_hierarchy = after.starts_with("cgroup ") || after.starts_with("cgroup2 ");
        if let Some(root) = before.split(' ').nth(4).filter(|_| is_hierarchy) {
            found.extend(walk(Path::new(root), |_| false)?.into_iter().filter(|path| {
                let relative = path.strip_prefix(root).unwrap_or(path);
                path.is_dir() && relative.to_string_lossy().contains(word)
            }));
        }
    }
    Ok(found)
}

/// Paths of the sockets that are bound to one.
fn sockets() -> Result<BTreeSet<String>> {
    // The path is the eighth field: nothing for most, with a leading `@` where it is no file.
    let path = |line: &String| line.split_whitespace().nth(7).map(str::to_owned);
    Ok(lines("/proc/net/unix")?.iter().skip(1).filter_map(path).collect())
}

fn lines(path: &str) -> Result<Vec<String>> {
    // Names in the kernel's lists need not be text.
    let bytes = fs::read(path).with_context(|| format!("read {path}"))?;
    Ok(String::from_utf8_lossy(&bytes)
        .lines()
        .map(str::to_owned)
        .collect())
}

/// Everything below a directory that is on the same file system. `without` tells what to leave out.
fn walk(root: &Path, without: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let Ok(root_data) = fs::symlink_metadata(root) else {
        return Ok(found);
    };
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // It was there a moment ago.
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(error).with_context(|| format!("read {}", directory.display())),
        };
        for entry in entries {
            let path = entry?.path();
            let Ok(data) = fs::symlink_metadata(&path) else {
                continue;
            };
            if without(&path) {
                continue;
            }
            if data.is_dir() && data.dev() == root_data.dev() {
                directories.push(path.clone());
            }
            found.push(path);
        }
    }
    Ok(found)
}

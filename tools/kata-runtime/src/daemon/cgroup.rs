//! Where stand-ins are on the host: callers find a container's cgroup by the stand-in's pid. That of a sandbox's first container is
//! where the virtual machine's own processes are. Those of the others have cgroups of their own, where their callers name them: so
//! what the machine costs is counted once, and as the first one's.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::task::spawn_blocking;

use crate::deadlines;

const ROOT: &str = "/sys/fs/cgroup";

/// Where version 2 is mounted beside version 1.
const UNIFIED: &str = "unified";

/// The tree of those that do not count as their callers'.
const APART: &str = "kata_overhead";

/// Lists that a new cgroup of version 1 begins without, and without which it takes no process.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// How often a cgroup may be busy though no process is in it that could be waited for.
const LOOKS: usize = 8;

/// A process's cgroup in one hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    /// Where the hierarchy is mounted.
    mount: PathBuf,
    /// Below that.
    path: PathBuf,
}

/// Moves a process into the cgroups that another one is in. Those that it cannot be moved into are named in the error.
///
/// # Errors
/// It is not in all of them.
pub fn follow(leader: u32, follower: u32) -> io::Result<()> {
    let mut failures = Vec::new();
    for place in of(leader)? {
        join(&place.mount.join(&place.path), follower).unwrap_or_else(|error| failures.push(error));
    }
    all_done(&failures)
}

/// Makes a cgroup in every hierarchy in which another process has one, and moves a process there. Answers with the directories that
/// were made, each before those below it.
///
/// # Errors
/// Nothing is made then.
pub fn settle(leader: u32, follower: u32, cgroup: &Path) -> io::Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    let mut failures = Vec::new();
    for Place { mount, path } in of(leader)? {
        let cgroup = match path.starts_with(APART) {
            true => Path::new(APART).join(cgroup),
            false => cgroup.to_owned(),
        };
        let joined = make(&mount, &cgroup, &mut made)
            .map_err(|error| format!("{}: {error}", mount.join(&cgroup).display()))
            .and_then(|()| join(&mount.join(&cgroup), follower));
        joined.unwrap_or_else(|error| failures.push(error));
    }
    all_done(&failures).inspect_err(|_| leave(leader, follower, &made))?;
    Ok(made)
}

/// Takes back what [`settle`] has done, while the process lives.
pub fn leave(leader: u32, follower: u32, made: &[PathBuf]) {
    if !made.is_empty() {
        // A cgroup that is not empty stays.
        let _ = follow(leader, follower);
        remove_empty(made);
    }
}

/// Removes what [`settle`] has made, once the stand-ins in it have ended.
///
/// # Errors
/// Something is left.
pub async fn remove(made: &[PathBuf]) -> io::Result<()> {
    let until = Instant::now() + deadlines::STANDIN;
    let mut result = Ok(());
    for dir in made.iter().rev() {
        // One that stays does not keep those of the other hierarchies.
        let removed = remove_one(dir, until).await;
        result = result.and(removed);
    }
    result
}

async fn remove_one(dir: &Path, until: Instant) -> io::Result<()> {
    let mut looks = 0;
    while let Err(error) = fs::remove_dir(dir) {
        match error.kind() {
            io::ErrorKind::NotFound => break,
            io::ErrorKind::ResourceBusy if Instant::now() < until => {}
            _ => return Err(error),
        }
        let processes = processes(dir)?;
        // Others have made cgroups in it, or are between two of them.
        if processes.is_empty() {
            looks += 1;
            if looks > LOOKS {
                return Err(error);
            }
        }
        let rest = until.saturating_duration_since(Instant::now());
        spawn_blocking(move || all_end(&processes, rest)).await??;
    }
    Ok(())
}

fn all_end(processes: &[OwnedFd], limit: Duration) -> io::Result<()> {
    let until = Instant::now() + limit;
    for process in processes {
        let rest = until.saturating_duration_since(Instant::now());
        let rest = Timespec::try_from(rest).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&rest)) {
            Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
            // The next look tells.
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes those that are empty.
fn remove_empty(made: &[PathBuf]) {
    for dir in made.iter().rev() {
        // One that is not empty is somebody's.
        let _ = fs::remove_dir(dir);
    }
}

fn processes(dir: &Path) -> io::Result<Vec<OwnedFd>> {
    let text = fs::read_to_string(dir.join("cgroup.procs"))?;
    let pids = text
        .lines()
        .filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw));
    Ok(pids
        // One that has ended meanwhile needs no waiting for.
        .filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        .collect())
}

fn make(mount: &Path, cgroup: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    // Version 2 needs no lists, and has them only where somebody has switched their controller on.
    let has_lists = !mount.join("cgroup.controllers").exists();
    let mut dir = mount.to_owned();
    for part in cgroup {
        dir.push(part);
        match fs::create_dir(&dir) {
            Ok(()) => made.push(dir.clone()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(error) => return Err(error),
        }
        for name in CPUSET.iter().filter(|_| has_lists) {
            let above = dir.with_file_name(name);
            if above.exists() {
                fs::write(dir.join(name), fs::read(above)?)?;
            }
        }
    }
    Ok(())
}

fn join(dir: &Path, process: u32) -> Result<(), String> {
    let path = dir.join("cgroup.procs");
    fs::write(&path, process.to_string()).map_err(|error| format!("{}: {error}", path.display()))
}

fn all_done(failures: &[String]) -> io::Result<()> {
    match failures {
        [] => Ok(()),
        _ => Err(io::Error::other(failures.join("; "))),
    }
}

fn of(pid: u32) -> io::Result<Vec<Place>> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(places(&text, Path::new(ROOT)))
}

/// The cgroups in `/proc/<pid>/cgroup`, but for roots, where everybody is who is nowhere else.
fn places(text: &str, root: &Path) -> Vec<Place> {
    let alone = root.join("cgroup.controllers").exists();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let path = path.strip_prefix('/').filter(|path| !path.is_empty())?;
            let mount = match controllers.strip_prefix("name=").unwrap_or(controllers) {
                "" if alone => root.to_owned(),
                "" => root.join(UNIFIED),
                hierarchy => root.join(hierarchy),
            };
            Some(Place {
                mount,
                path: path.into(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_has_its_directory() {
        let root = tempfile::tempdir().unwrap();
        let text = "12:cpu,cpuacct:/a/b\n3:name=systemd:/c:d\n2:memory:/\n0::/u\n";
        let names = |text: &str| -> Vec<String> {
            places(text, root.path())
                .iter()
                .map(|place| place.mount.join(&place.path))
                .map(|dir| dir.strip_prefix(root.path()).unwrap().display().to_string())
                .collect()
        };
        assert_eq!(names(text), ["cpu,cpuacct/a/b", "systemd/c:d", "unified/u"]);
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(names("0::/u\n"), ["u"]);
        assert!(names("nonsense\n").is_empty());
    }

    #[test]
    fn what_was_made_and_no_more_is_removed() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir(mount.path().join("pod")).unwrap();
        fs::write(mount.path().join("pod/cpuset.mems"), "0-1\n").unwrap();
        let mut made = Vec::new();
        make(mount.path(), Path::new("pod/a/b"), &mut made).unwrap();
        let dirs = ["pod/a", "pod/a/b"].map(|dir| mount.path().join(dir));
        assert_eq!(made, dirs);
        assert_eq!(
            fs::read_to_string(dirs[1].join("cpuset.mems")).unwrap(),
            "0-1\n",
            "as above it"
        );
        let mut more = Vec::new();
        make(mount.path(), Path::new("pod/a/b"), &mut more).unwrap();
        assert!(more.is_empty(), "they are there");
        for dir in &dirs {
            // In a cgroup they are no files that keep it.
            fs::remove_file(dir.join("cpuset.mems")).unwrap();
        }
        remove_empty(&made);
        assert!(mount.path().join("pod").exists());
        assert!(!dirs[0].exists());
    }
    #[test]
    fn version_2_has_no_lists_to_be_filled() {
        let mount = tempfile::tempdir().unwrap();
        fs::create_dir(mount.path().join("pod")).unwrap();
        for name in ["cgroup.controllers", "pod/cpuset.mems"] {
            fs::write(mount.path().join(name), "0\n").unwrap();
        }
        make(mount.path(), Path::new("pod/a"), &mut Vec::new()).unwrap();
        assert_eq!(fs::read_dir(mount.path().join("pod/a")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn one_that_stays_does_not_keep_the_others() {
        let mount = tempfile::tempdir().unwrap();
        let dirs = ["cpu", "memory"].map(|name| mount.path().join(name));
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        // Not a cgroup's way to stay, but one.
        fs::write(dirs[1].join("file"), "").unwrap();
        assert!(remove(&dirs).await.is_err());
        assert!(!dirs[0].exists());
    }
}

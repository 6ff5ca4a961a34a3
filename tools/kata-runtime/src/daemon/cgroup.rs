//! Stand-ins are where the virtual machine's own processes are: callers find a container's cgroup by the stand-in's pid.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Where version 2 is mounted beside version 1.
const UNIFIED: &str = "unified";

/// Moves a process into the cgroups that another one is in. Those that it cannot be moved into are named in the error.
///
/// # Errors
/// It is not in all of them.
pub fn follow(leader: u32, follower: u32) -> io::Result<()> {
    let text = fs::read_to_string(format!("/proc/{leader}/cgroup"))?;
    let mut failures = Vec::new();
    for dir in directories(&text, Path::new(ROOT)) {
        let path = dir.join("cgroup.procs");
        if let Err(error) = fs::write(&path, follower.to_string()) {
            failures.push(format!("{}: {error}", path.display()));
        }
    }
    if failures.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(failures.join("; ")))
    }
}

/// The directories of the cgroups in `/proc/<pid>/cgroup`, but for roots, where everybody is who is nowhere else.
fn directories(text: &str, root: &Path) -> Vec<PathBuf> {
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
            Some(mount.join(path))
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
            directories(text, root.path())
                .iter()
                .map(|dir| dir.strip_prefix(root.path()).unwrap().display().to_string())
                .collect()
        };
        assert_eq!(names(text), ["cpu,cpuacct/a/b", "systemd/c:d", "unified/u"]);
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(names("0::/u\n"), ["u"]);
        assert!(names("nonsense\n").is_empty());
    }
}

//! Which hierarchies of cgroups the host has, and where: all that are mounted, of version 1 and 2, from the kernel's list of
//! mounts. Pure.
//!
//! Our own place in them (`/proc/self/cgroup`) is of no interest: callers name places from where a hierarchy is mounted.

use std::path::{Path, PathBuf};

use crate::host::mountinfo::unescaped;

/// A hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount_point: PathBuf,
    /// Numbers of its device, which no other hierarchy has.
    pub(super) device: (u32, u32),
    /// Its cgroups take no process before they have CPUs and memory nodes.
    pub(super) has_cpusets: bool,
}

/// The hierarchies that can be written. Lines that cannot be understood are passed over.
pub(super) fn writable(mountinfo: &[u8]) -> Vec<Hierarchy> {
    let mut found: Vec<(Hierarchy, PathBuf)> = Vec::new();
    for line in mountinfo.split(|&byte| byte == b'\n') {
        let Some((mount_point, mount)) = parse(line) else {
            continue;
        };
        // What is mounted later at the same place hides what was there.
        found.retain(|(earlier, _)| earlier.mount_point != mount_point);
        let Some((hierarchy, root)) = mount else { continue };
        match found
            .iter_mut()
            .find(|(known, _)| known.device == hierarchy.device)
        {
            // Of one that is mounted twice, the mount that shows more of it.
            Some(known) if known.1.components().count() > root.components().count() => {
                *known = (hierarchy, root);
            }
            Some(_) => {}
            None => found.push((hierarchy, root)),
        }
    }
    found.into_iter().map(|(hierarchy, _)| hierarchy).collect()
}

/// Where a line of the list has something mounted; and if that is a hierarchy, this, with the path in it that is mounted.
fn parse(line: &[u8]) -> Option<(PathBuf, Option<(Hierarchy, PathBuf)>)> {
    let mut fields = line.split(|&byte| byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let root = unescaped(fields.next()?);
    let mount_point = unescaped(fields.next()?);
    let options = fields.next()?;
    let mut fields = fields.skip_while(|&field| field != b"-").skip(1);
    let is_cgroup = matches!(fields.next()?, b"cgroup" | b"cgroup2");
    let super_options = fields.nth(1).unwrap_or_default();
    let has = |options: &[u8], wanted: &[u8]| options.split(|&byte| byte == b',').any(|one| one == wanted);
    // Another cgroup namespace has these.
    let is_outside = root.starts_with("/..");
    let is_usable = is_cgroup && !is_outside && !has(options, b"ro") && !has(super_options, b"ro");
    let hierarchy = Hierarchy {
        mount_point: mount_point.clone(),
        device: (major.parse().ok()?, minor.parse().ok()?),
        has_cpusets: has(super_options, b"cpuset"),
    };
    Some((mount_point, is_usable.then_some((hierarchy, root))))
}

/// What of `own` has to be made above it, from the root down. `exists` tells what is there already; `is_apart`: it counts as
/// made by us all the same.
pub(super) fn parents(own: &Path, is_apart: bool, exists: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let mut parents: Vec<PathBuf> = own
        .ancestors()
        .skip(1)
        .filter(|parent| !parent.as_os_str().is_empty() && (is_apart || !exists(parent)))
        .map(Path::to_owned)
        .collect();
    parents.reverse();
    parents
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const VERSION_1: &str = "\
        22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        31 23 0:28 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/systemd rw,relatime shared:10 - cgroup cgroup rw,xattr,name=systemd\n\
        33 31 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct\n\
        34 31 0:31 / /sys/fs/cgroup/cpuset rw,relatime shared:12 - cgroup cgroup rw,cpuset\n";
    const HYBRID: &str = "\
        31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
    const VERSION_2: &str =
        "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    /// Docker's, without a cgroup namespace: the container's own part, read-only but for one that was mounted by hand.
    const CONTAINER: &str = "\
        40 30 0:29 /docker/a /sys/fs/cgroup/cpu ro,relatime master:9 - cgroup cgroup rw,cpu\n\
        41 30 0:30 /docker/a /sys/fs/cgroup/pids rw,relatime master:9 - cgroup cgroup rw,pids\n\
        42 30 0:30 / /mnt/all\\040pids rw,relatime - cgroup cgroup rw,pids\n\
        43 30 0:31 /../b /mnt/outside rw,relatime - cgroup2 cgroup2 rw\n";
    /// A tmpfs hides one, and a hierarchy another.
    const HIDDEN: &str = "\
        40 30 0:29 / /a rw - cgroup cgroup rw,cpu\n\
        41 30 0:30 / /a rw - tmpfs tmpfs rw\n\
        42 30 0:31 / /b rw - cgroup cgroup rw,pids\n\
        43 30 0:32 / /b rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn every_hierarchy_that_can_be_written_is_found_once() {
        type Expected<'a> = &'a [(&'a str, u32, bool)];
        let table: [(&str, &str, Expected<'_>); 6] = [
            (
                "version 1",
                VERSION_1,
                &[
                    ("/sys/fs/cgroup/systemd", 29, false),
                    ("/sys/fs/cgroup/cpu,cpuacct", 30, false),
                    ("/sys/fs/cgroup/cpuset", 31, true),
                ],
            ),
            (
                "hybrid",
                HYBRID,
                &[
                    ("/sys/fs/cgroup/memory", 29, false),
                    ("/sys/fs/cgroup/unified", 38, false),
                ],
            ),
            ("version 2", VERSION_2, &[("/sys/fs/cgroup", 26, false)]),
            ("container", CONTAINER, &[("/mnt/all pids", 30, false)]),
            ("hidden", HIDDEN, &[("/b", 32, false)]),
            ("nothing", "broken\n\n1 2 x:y / /a rw - cgroup2 cgroup2 rw\n", &[]),
        ];
        for (name, text, expected) in table {
            let found = writable(text.as_bytes());
            let found: Vec<_> = found
                .iter()
                .map(|one| (one.mount_point.to_str().unwrap(), one.device.1, one.has_cpusets))
                .collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn only_what_is_not_there_is_ours_above_it() {
        let table: [(&str, bool, &[&str], &[&str]); 5] = [
            ("a/b/c", false, &[], &["a", "a/b"]),
            ("a/b/c", false, &["a"], &["a/b"]),
            ("a/b/c", false, &["a", "a/b"], &[]),
            ("a/b/c", true, &["a", "a/b"], &["a", "a/b"]),
            ("a", false, &[], &[]),
        ];
        for (own, is_apart, there, expected) in table {
            let exists = |path: &Path| there.iter().any(|one| Path::new(one) == path);
            let found = parents(Path::new(own), is_apart, &exists);
            assert_eq!(
                found,
                expected.iter().map(PathBuf::from).collect::<Vec<_>>(),
                "{own}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            writable(&bytes);
        }
    }
}

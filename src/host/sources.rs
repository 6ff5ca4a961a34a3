//! What there is at the paths of the host that a container mounts. Looks, and changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags, fstatfs, statx};

use super::{mount, mountinfo};
use crate::aside::Site;
use crate::error::Result;
use crate::model::{Found, Identity, Medium};

/// Looks at each path. What cannot be looked at is left out: it is mounted later, and refused then with a reason.
///
/// # Errors
/// Nobody waits for it any more.
pub(super) fn look(paths: Vec<PathBuf>, site: &Site) -> Result<BTreeMap<PathBuf, Found>> {
    let mut found = BTreeMap::new();
    if paths.is_empty() {
        return Ok(found);
    }
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    for path in paths {
        site.at(&path)?;
        if let Ok(Some(seen)) = look_at(&path, &mounts) {
            found.insert(path, seen);
        }
    }
    Ok(found)
}

fn look_at(path: &Path, mounts: &[u8]) -> io::Result<Option<Found>> {
    let source = mount::open_source(path)?;
    let status = statx(
        &source,
        c"",
        AtFlags::EMPTY_PATH,
        StatxFlags::INO | StatxFlags::MNT_ID,
    )?;
    if status.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        // A kernel before 5.8 does not tell the mounts apart.
        return Ok(None);
    }
    let mut numbers = vec![status.stx_mnt_id];
    numbers.extend(mountinfo::ids_below(mounts, &real(&source)?));
    Ok(Some(Found {
        identity: Identity {
            device: rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor),
            inode: status.stx_ino,
            mounts: numbers,
        },
        medium: medium(&source)?,
        mode: u32::from(status.stx_mode) & 0o7777,
        uid: status.stx_uid,
        gid: status.stx_gid,
    }))
}

fn medium(source: &OwnedFd) -> io::Result<Medium> {
    let status = fstatfs(source)?;
    // Unsigned on some architectures, signed on others.
    let size = u64::try_from(status.f_bsize).unwrap_or(0);
    Ok(match status.f_type {
        libc::TMPFS_MAGIC => Medium::Memory {
            limit: size.saturating_mul(status.f_blocks),
        },
        libc::HUGETLBFS_MAGIC => Medium::HugePages { size },
        _ => Medium::Disk,
    })
}

/// The path without links.
fn real(source: &OwnedFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", source.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_shows_the_same_files_is_the_same_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a/below", "b"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        symlink("a", path("link")).unwrap();
        let identity = |name: &str| {
            let found = look(vec![path(name)], &Site::default()).unwrap();
            found.get(&path(name)).map(|found| found.identity.clone())
        };
        let before = identity("a");
        assert!(before.is_some());
        assert_eq!(identity("link"), before);
        assert_eq!(identity("b/../a"), before);
        assert_ne!(identity("b"), before);
        assert_eq!(identity("missing"), None);

        let medium = |name: &str| look(vec![path(name)], &Site::default()).unwrap()[&path(name)].medium;
        assert_eq!(
            medium("a/below"),
            Medium::Disk,
            "this test needs TMPDIR on a disk"
        );
        mount::memory(&path("a/below")).unwrap();
        assert!(matches!(medium("a/below"), Medium::Memory { limit } if limit > 0));
        let covered = identity("a");
        assert_ne!(covered, before, "something is mounted below it");
        assert_eq!(identity("a"), covered);
        mount::clear(&path("a/below")).unwrap();
        assert_eq!(identity("a"), before);
    }
}

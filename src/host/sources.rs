//! What there is at the paths of the host that a container mounts. Looks, and changes nothing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, fstat, fstatfs, open, statx};
use rustix::io::Errno;

use super::{mount, mountinfo};
use crate::aside::Site;
use crate::direct::{self, MountInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{DirectVolume, FileKind, Found, Identity, Medium};

/// More than anybody has to say of a volume, bytes.
const MOST_INFO: u64 = 64 << 10;

/// Looks at each path, and in `volumes` at what was said of it. What cannot be looked at is left out: it is mounted later, and
/// refused then with a reason.
///
/// # Errors
/// Nobody waits for it any more; what was said of a path cannot be believed, or understood.
pub(super) fn look(paths: Vec<PathBuf>, volumes: &Path, site: &Site) -> Result<BTreeMap<PathBuf, Found>> {
    let mut found = BTreeMap::new();
    if paths.is_empty() {
        return Ok(found);
    }
    let mounts = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    for path in paths {
        site.at(&path)?;
        if let Ok(Some(mut seen)) = look_at(&path, &mounts) {
            seen.direct = direct_volume(volumes, &path)?;
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
        StatxFlags::BASIC_STATS | StatxFlags::MNT_ID,
    )?;
    if status.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        // A kernel before 5.8 does not tell the mounts apart.
        return Ok(None);
    }
    let kind = FileType::from_raw_mode(status.stx_mode.into());
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
        kind: match kind {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            _ => FileKind::Other,
        },
        block: (kind == FileType::BlockDevice).then_some((status.stx_rdev_major, status.stx_rdev_minor)),
        direct: None,
    }))
}

/// What was said of a path by those who may: the superuser, or whoever we are.
fn direct_volume(volumes: &Path, path: &Path) -> Result<Option<DirectVolume>> {
    let file = direct::directory(volumes, path).join(direct::FILE);
    let refused = |why: &str| {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "what is said of the volume {} in {}: {why}",
                path.display(),
                file.display()
            ),
        )
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = match open(&file, flags, Mode::empty()) {
        // A path can be too long for a name that is made of it, and nothing was said of that.
        Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => return Ok(None),
        Err(errno) => return Err(refused(&errno.to_string())),
        Ok(opened) => File::from(opened),
    };
    let status = fstat(&opened).map_err(|errno| refused(&errno.to_string()))?;
    let is_ours = status.st_uid == 0 || status.st_uid == rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile
        || !is_ours
        || status.st_mode & 0o022 != 0
    {
        return Err(refused(
            "it is not a file that only its owner, the superuser, can write",
        ));
    }
    let mut text = String::new();
    opened
        .take(MOST_INFO)
        .read_to_string(&mut text)
        .map_err(|cause| refused(&cause.to_string()))?;
    let info: MountInfo = serde_json::from_str(&text).map_err(|cause| refused(&cause.to_string()))?;
    Ok(Some(info.into()))
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
            let found = look(vec![path(name)], Path::new("/none"), &Site::default()).unwrap();
            found.get(&path(name)).map(|found| found.identity.clone())
        };
        let before = identity("a");
        assert!(before.is_some());
        assert_eq!(identity("link"), before);
        assert_eq!(identity("b/../a"), before);
        assert_ne!(identity("b"), before);
        assert_eq!(identity("missing"), None);

        let medium = |name: &str| {
            look(vec![path(name)], Path::new("/none"), &Site::default()).unwrap()[&path(name)].medium
        };
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

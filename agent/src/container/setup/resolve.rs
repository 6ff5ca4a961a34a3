//! Paths of a container's root, resolved inside that root whatever links it contains.
//!
//! The root is an image's or another container's work, so no link in it may lead out: every lookup is an `openat2` with
//! RESOLVE_IN_ROOT, and what was found is used by descriptor, never by path again.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Links followed before a path counts as a loop; the kernel's own number.
const MAX_LINKS: usize = 40;
/// A lookup that raced with a rename is tried again; the kernel says so by EAGAIN.
const MAX_RACES: usize = 32;

/// What to make at the end of a path that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// Opens a path inside the root; an absolute path and absolute links start at the root.
pub(super) fn open(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    for _ in 0..MAX_RACES {
        match rustix::fs::openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(Errno::AGAIN) => {}
            result => return Ok(result?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Opens a path inside the root as a place to mount on; what is missing of it is made, through dangling links too
/// (an image's `/etc/resolv.conf` often is one).
pub(super) fn open_or_create(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(root, path, missing),
        result => result,
    }
}

fn create(root: BorrowedFd<'_>, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
    // `done` consists of names that are no links; the kernel still resolves it inside the root each time, so a link put
    // there meanwhile gains nothing.
    let mut done = PathBuf::new();
    let mut todo: VecDeque<OsString> = names(path).collect();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            done.pop();
            continue;
        }
        let parent = open(root, &done, OFlags::PATH | OFlags::DIRECTORY)?;
        match rustix::fs::statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = rustix::fs::readlinkat(&parent, &name, Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    done.clear();
                }
                for name in names(&target).rev() {
                    todo.push_front(name);
                }
                continue;
            }
            Ok(_) => {}
            Err(Errno::NOENT) if todo.is_empty() && missing == Missing::File => {
                rustix::fs::mknodat(
                    &parent,
                    &name,
                    FileType::RegularFile,
                    Mode::from_raw_mode(0o644),
                    0,
                )?;
            }
            Err(Errno::NOENT) => rustix::fs::mkdirat(&parent, &name, Mode::from_raw_mode(0o755))?,
            Err(error) => return Err(error.into()),
        }
        done.push(name);
    }
    open(root, &done, OFlags::PATH | OFlags::NOFOLLOW)
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    /// A tree with the links that an attacker would try; `outside` must never be reached.
    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("root");
        fs::create_dir_all(root.join("real/below")).unwrap();
        fs::create_dir(top.path().join("outside")).unwrap();
        symlink("/", root.join("etc")).unwrap();
        symlink("../../../../outside", root.join("up")).unwrap();
        symlink(top.path().join("outside"), root.join("absolute")).unwrap();
        symlink("../run/file", root.join("real/dangling")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let root = OwnedFd::from(File::open(root).unwrap());
        (top, root)
    }

    fn is_empty(directory: &Path) -> bool {
        fs::read_dir(directory).unwrap().next().is_none()
    }

    #[test]
    fn links_stay_inside_and_missing_parts_are_made() {
        let (top, root) = tree();
        let table = [
            ("/new/deep/dir", Missing::Directory, "new/deep/dir"),
            ("/new/file", Missing::File, "new/file"),
            ("/etc/made", Missing::Directory, "made"),
            ("/up/x", Missing::File, "outside/x"),
            ("/real/dangling", Missing::File, "run/file"),
            ("/real/../../../y", Missing::File, "y"),
        ];
        for (path, missing, made) in table {
            open_or_create(root.as_fd(), Path::new(path), missing).unwrap_or_else(|e| panic!("{path}: {e}"));
            let metadata = fs::symlink_metadata(top.path().join("root").join(made)).unwrap();
            assert_eq!(metadata.is_dir(), missing == Missing::Directory, "{path}");
        }
        open_or_create(root.as_fd(), Path::new("/absolute/z"), Missing::File).unwrap();
        assert!(is_empty(&top.path().join("outside")));
        let looped = open_or_create(root.as_fd(), Path::new("/loop/x"), Missing::File).unwrap_err();
        assert_eq!(looped.raw_os_error(), Some(libc::ELOOP));
    }

    proptest! {
        #[test]
        fn nothing_is_ever_made_outside(path in proptest::collection::vec(
            proptest::sample::select(vec!["etc", "up", "absolute", "real", "dangling", "below", "..", "new", "."]), 1..7)) {
            let (top, root) = tree();
            let _ = open_or_create(root.as_fd(), Path::new(&path.join("/")), Missing::Directory);
            prop_assert!(is_empty(&top.path().join("outside")));
            let mut left: Vec<_> = fs::read_dir(top.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            left.sort();
            prop_assert_eq!(left, ["outside", "root"]);
        }
    }
}

//! Paths that the host names: checked as text first, then walked without ever following a link.
//!
//! The tree below the agent's directory holds file systems that containers write to (and, over virtio-fs, other guests
//! of the same host once did), so a name may turn into a link between two looks at it. Every path is therefore opened
//! component by component, and mounts are made on the descriptor that results.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use agent_protocol::GUEST_DIR;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, fstat, mkdirat, openat, unlinkat};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Longest path from the wire, in bytes (Linux's PATH_MAX with its terminator).
const MAX_PATH: usize = 4095;

/// A path below [`GUEST_DIR`], without `.`, `..`, empty or overlong components. Kept relative to that directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPath(PathBuf);

impl GuestPath {
    /// Checks a path from the wire. `field` names it in the error.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong.
    pub fn parse(field: &'static str, path: &str) -> Result<Self> {
        let refuse = |reason: &str| Err(Error::invalid(field, format!("{path:?} {reason}")));
        if path.len() > MAX_PATH {
            return Err(Error::invalid(field, format!("longer than {MAX_PATH} bytes")));
        }
        let Some(below) = path
            .strip_prefix(GUEST_DIR)
            .and_then(|rest| rest.strip_prefix('/'))
        else {
            return refuse(&format!("is not below {GUEST_DIR}"));
        };
        for component in below.split('/') {
            match component {
                "" => return refuse("has an empty component"),
                "." | ".." => return refuse("has a component that is not a name"),
                name if name.len() > 255 => return refuse("has a component of more than 255 bytes"),
                name if name.contains('\0') => return refuse("has a zero byte"),
                _ => {}
            }
        }
        Ok(Self(PathBuf::from(below)))
    }

    /// As the host knows it.
    pub fn in_guest(&self) -> PathBuf {
        Path::new(GUEST_DIR).join(&self.0)
    }
}

/// What a mount point is to be when it does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Make {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// The agent's directory: [`GUEST_DIR`] in a guest, a directory of its own when the agent is an ordinary process.
#[derive(Debug)]
pub struct Root {
    fd: OwnedFd,
    dir: PathBuf,
}

impl Root {
    /// Opens the directory, made if need be.
    ///
    /// # Errors
    /// When it can't be made or opened.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
        let fd = openat(
            CWD,
            dir,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(Error::file("open", dir))?;
        Ok(Self {
            fd,
            dir: dir.to_owned(),
        })
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a path really is.
    pub fn locate(&self, path: &GuestPath) -> PathBuf {
        self.dir.join(&path.0)
    }

    /// Opens (as `O_PATH`) what is there, mounts included.
    ///
    /// # Errors
    /// [`Error::File`]: ENOENT, or ELOOP and ENOTDIR when a component is a link.
    pub fn resolve(&self, path: &GuestPath) -> Result<OwnedFd> {
        let (parent, name) = self.parent(path, false)?;
        self.child(parent.as_ref(), &name, path)
    }

    /// Like [`Root::resolve`], and makes what is missing. The flag tells whether the last component was made.
    ///
    /// # Errors
    /// [`Error::File`] like [`Root::resolve`]'s, and when something can't be made or is of the wrong type.
    pub fn resolve_or_make(&self, path: &GuestPath, make: Make) -> Result<(OwnedFd, bool)> {
        let (parent, name) = self.parent(path, true)?;
        let dir = parent.as_ref().unwrap_or(&self.fd);
        let made = match make {
            Make::Directory => mkdirat(dir, &name, Mode::from_raw_mode(0o755)),
            Make::File => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(dir, &name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        let made = match made {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(Error::file("create", self.locate(path))(error)),
        };
        Ok((self.child(parent.as_ref(), &name, path)?, made))
    }

    /// Removes a mount point that [`Root::resolve_or_make`] made; one that is in use stays.
    pub fn unmake(&self, path: &GuestPath, make: Make) {
        let Ok((parent, name)) = self.parent(path, false) else {
            return;
        };
        let dir = parent.as_ref().unwrap_or(&self.fd);
        let flags = if make == Make::Directory {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        let _ = unlinkat(dir, &name, flags);
    }

    /// Opens the directory that holds the last component (`None`: it is the root itself), and that component's name.
    fn parent(&self, path: &GuestPath, make: bool) -> Result<(Option<OwnedFd>, OsString)> {
        let mut components: Vec<&OsStr> = path.0.iter().collect();
        let name = components.pop().unwrap_or_default().to_owned();
        let mut parent: Option<OwnedFd> = None;
        for component in components {
            let dir = parent.as_ref().unwrap_or(&self.fd);
            if make {
                match mkdirat(dir, component, Mode::from_raw_mode(0o755)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    // A read-only file system says so even where the directory exists: opening it decides.
                    Err(Errno::ROFS) => {}
                    Err(error) => return Err(Error::file("create", self.locate(path))(error)),
                }
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let next = openat(dir, component, flags, Mode::empty())
                .map_err(Error::file("open", self.locate(path)))?;
            parent = Some(next);
        }
        Ok((parent, name))
    }

    fn child(&self, parent: Option<&OwnedFd>, name: &OsStr, path: &GuestPath) -> Result<OwnedFd> {
        let dir = parent.unwrap_or(&self.fd);
        let fail = |error: Errno| Error::file("open", self.locate(path))(error);
        let fd = openat(
            dir,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(fail)?;
        // With O_PATH the kernel opens a link itself instead of refusing it.
        let stat = fstat(&fd).map_err(fail)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            Err(fail(Errno::LOOP))
        } else {
            Ok(fd)
        }
    }
}

/// A name for an open file that system calls take as a path; valid as long as the descriptor is open.
pub fn name_of(fd: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_plain_paths_below_the_directory_pass() {
        for good in ["/run/kata/a", "/run/kata/shared/c1/rootfs", "/run/kata/..a/b."] {
            GuestPath::parse("mount_point", good).unwrap_or_else(|e| panic!("{good}: {e}"));
        }
        let long = format!("/run/kata/{}", "x".repeat(256));
        let deep = format!("/run/kata{}", "/x".repeat(2100));
        for bad in [
            "",
            "/",
            "/run/kata",
            "/run/kata/",
            "run/kata/a",
            "/run/katalog/a",
            "/run/kata/../a",
            "/run/kata/a/..",
            "/run/kata/./a",
            "/run/kata//a",
            "/run/kata/a/",
            "/run/kata/a\0b",
            &long,
            &deep,
        ] {
            assert!(GuestPath::parse("mount_point", bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_stays_below(path in "(/run/kata)?[/.a]{0,20}") {
            if let Ok(parsed) = GuestPath::parse("p", &path) {
                prop_assert_eq!(parsed.in_guest(), PathBuf::from(&path));
                prop_assert!(!path.split('/').any(|c| c == ".."));
                prop_assert!(parsed.in_guest().starts_with(GUEST_DIR));
            }
        }
    }

    fn guest(below: &str) -> GuestPath {
        GuestPath::parse("p", &format!("{GUEST_DIR}/{below}")).unwrap()
    }

    #[test]
    fn links_are_refused_wherever_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(&dir.path().join("root")).unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir_all(outside.join("below")).unwrap();
        std::os::unix::fs::symlink(&outside, root.dir().join("link")).unwrap();
        std::fs::create_dir(root.dir().join("plain")).unwrap();

        root.resolve(&guest("plain")).unwrap();
        for path in ["link", "link/below", "link/new"] {
            assert!(root.resolve(&guest(path)).is_err(), "{path}");
            assert!(
                root.resolve_or_make(&guest(path), Make::Directory).is_err(),
                "{path}"
            );
            assert!(root.resolve_or_make(&guest(path), Make::File).is_err(), "{path}");
        }
        assert!(!outside.join("new").exists());
    }

    #[test]
    fn what_was_made_can_be_unmade() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path()).unwrap();
        for make in [Make::Directory, Make::File] {
            let path = guest("a/b/c");
            assert!(root.resolve_or_make(&path, make).unwrap().1);
            assert!(!root.resolve_or_make(&path, make).unwrap().1);
            root.unmake(&path, make);
            assert!(!root.locate(&path).exists());
        }
    }
}

//! Files that the host sends along where it shares none: a file system in memory, filled once.
//!
//! It must not know what they are for. Nothing in it leads out of it: each name is made new below a directory that was opened
//! without following a link.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use agent_protocol::{MAX_COPIED_FILES, MAX_COPIED_PATH};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, mkdirat, openat,
    openat2, symlinkat,
};
use rustix::io::Errno;

use super::name_of;
use crate::error::{Error, Result};

const FIELD: &str = "storage.files";

/// A file, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    path: PathBuf,
    what: What,
    mode: Mode,
    owner: (u32, u32),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    File(Vec<u8>),
    Directory,
    Link(OsString),
}

impl Copied {
    /// Checks a file from the wire; the fields are those of the protocol's `CopiedFile`.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong.
    pub fn parse(path: &str, mode: u32, owner: (u32, u32), data: &[u8]) -> Result<Self> {
        let is_name = |name: &str| !matches!(name, "" | "." | "..") && !name.contains('\0');
        if path.len() > MAX_COPIED_PATH || !path.split('/').all(is_name) {
            return Err(Error::invalid(
                FIELD,
                format!("{path:?} is not made of names, or longer than {MAX_COPIED_PATH} bytes"),
            ));
        }
        let what = match FileType::from_raw_mode(mode) {
            FileType::RegularFile => What::File(data.to_owned()),
            FileType::Directory => What::Directory,
            FileType::Symlink if !data.is_empty() && !data.contains(&0) => {
                What::Link(OsString::from_vec(data.to_owned()))
            }
            _ => {
                return Err(Error::invalid(
                    FIELD,
                    format!("{path:?} has mode {mode:o}, of no file, directory or link"),
                ));
            }
        };
        Ok(Self {
            path: path.into(),
            what,
            mode: Mode::from_raw_mode(mode & 0o7777),
            owner,
        })
    }

    /// Makes it below `root`.
    fn make(&self, root: &OwnedFd) -> Result<(), Errno> {
        let above = self.path.parent().filter(|above| !above.as_os_str().is_empty());
        let open = |above: &Path| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            openat2(root, above, flags, Mode::empty(), resolve)
        };
        let parent = above.map(open).transpose()?;
        let parent = parent.as_ref().unwrap_or(root);
        let name = self.path.file_name().unwrap_or_default();
        let (uid, gid) = (Uid::from_raw(self.owner.0), Gid::from_raw(self.owner.1));
        let made = match &self.what {
            What::Link(to) => {
                symlinkat(to, parent, name)?;
                return chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
            }
            What::Directory => {
                mkdirat(parent, name, Mode::RWXU)?;
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(parent, name, flags, Mode::empty())?
            }
            What::File(content) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let mut file = File::from(openat(parent, name, flags, Mode::RUSR)?);
                let written = file.write_all(content);
                written.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                file.into()
            }
        };
        // Whoever it is given to first takes bits away from its mode.
        fchown(&made, Some(uid), Some(gid))?;
        fchmod(&made, self.mode)
    }
}

/// Checks that they are not too many.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check(files: &[Copied]) -> Result<()> {
    match files.len() > MAX_COPIED_FILES {
        true => Err(Error::invalid(FIELD, format!("more than {MAX_COPIED_FILES}"))),
        false => Ok(()),
    }
}

/// Makes all of them in the file system that is mounted here. `shown`: its path, for errors.
///
/// # Errors
/// [`Error::File`] with the kernel's reason.
pub fn fill(files: &[Copied], mounted: &OwnedFd, shown: &Path) -> Result<()> {
    let failed = |path: &Path| Error::file::<Errno>("copy", shown.join(path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, name_of(mounted), flags, Mode::empty()).map_err(failed(Path::new("")))?;
    for file in files {
        file.make(&root).map_err(failed(&file.path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    fn copied(path: &str, mode: u32, data: &str) -> Copied {
        Copied::parse(path, mode, (7, 8), data.as_bytes()).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    #[test]
    fn what_is_no_file_below_is_refused() {
        for (path, mode, data) in [
            ("", 0o100_644, "x"),
            ("/a", 0o100_644, "x"),
            ("a/", 0o100_644, "x"),
            ("../a", 0o100_644, "x"),
            ("a/../b", 0o100_644, "x"),
            ("a//b", 0o100_644, "x"),
            ("a\0", 0o100_644, "x"),
            ("a", 0o644, "x"),
            ("a", 0o020_644, "x"),
            ("a", 0o010_644, "x"),
            ("a", 0o120_777, ""),
            ("a", 0o120_777, "b\0c"),
        ] {
            assert!(
                Copied::parse(path, mode, (0, 0), data.as_bytes()).is_err(),
                "{path:?} {mode:o}"
            );
        }
        let many = vec![copied("a", 0o100_644, ""); MAX_COPIED_FILES + 1];
        assert!(check(&many).is_err() && check(&many[1..]).is_ok());
    }

    #[test]
    fn a_secret_as_the_kubelet_lays_it_out_is_there_with_its_owners_and_links() {
        let dir = tempfile::tempdir().unwrap();
        let root: OwnedFd = File::open(dir.path()).unwrap().into();
        let files = [
            copied("data", 0o040_755, ""),
            copied("data/..2024", 0o040_750, ""),
            copied("data/..2024/token", 0o100_640, "secret"),
            copied("data/..data", 0o120_777, "..2024"),
            copied("data/token", 0o120_777, "..data/token"),
        ];
        fill(&files, &root, dir.path()).expect("this test needs root");
        let path = dir.path().join("data/token");
        assert_eq!(fs::read_to_string(&path).unwrap(), "secret");
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(
            (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()),
            (0o640, 7, 8)
        );
        assert_eq!(fs::symlink_metadata(&path).unwrap().uid(), 7);
        let directory = fs::metadata(dir.path().join("data/..2024")).unwrap();
        assert_eq!(directory.permissions(), Permissions::from_mode(0o040_750));
    }

    #[test]
    fn a_link_leads_nobody_out_and_no_name_is_made_twice() {
        let dir = tempfile::tempdir().unwrap();
        let root: OwnedFd = File::open(dir.path()).unwrap().into();
        let outside = tempfile::tempdir().unwrap();
        let link = copied("link", 0o120_777, outside.path().to_str().unwrap());
        let through = copied("link/file", 0o100_644, "x");
        let error = fill(&[link.clone(), through], &root, dir.path()).unwrap_err();
        assert!(error.to_string().contains("link/file"), "{error}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        for again in [link, copied("link", 0o100_644, "x")] {
            assert!(fill(&[again], &root, dir.path()).is_err());
        }
        assert!(!outside.path().join("file").exists());
    }
}

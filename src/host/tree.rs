//! Removes what is in a directory: never through a link, and never what is mounted there.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::Errno;

/// Deepest tree that is removed. Whoever makes deeper ones in our directories wants us to fail.
const DEEPEST: usize = 64;

/// Removes everything in `dir` but the entries called `but`. Goes on after an error and answers with the first.
pub(super) fn empty(dir: &OwnedFd, but: &[PathBuf]) -> io::Result<()> {
    let mut result = Ok(());
    for name in entries(dir)? {
        let name = OsStr::from_bytes(&name);
        if !but.iter().any(|kept| kept == name) {
            result = result.and(remove(dir, name, DEEPEST));
        }
    }
    result
}

fn remove(dir: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    match unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(named(name, errno)),
    }
    if depth == 0 {
        return Err(named(name, Errno::NAMETOOLONG));
    }
    // The kernel refuses to enter a mount, even one of the same file system.
    let opened = openat2(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV,
    );
    let below = match opened {
        // Somebody else has just removed it.
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::XDEV) => {
            return Err(io::Error::other(format!(
                "{}: something is mounted there",
                name.display()
            )));
        }
        opened => opened.map_err(|errno| named(name, errno))?,
    };
    let mut result = Ok(());
    for entry in entries(&below)? {
        result = result.and(remove(&below, OsStr::from_bytes(&entry), depth - 1));
    }
    result?;
    match unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(named(name, errno)),
    }
}

/// Names in a directory, all before the first is removed.
fn entries(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

fn named(name: &OsStr, errno: Errno) -> io::Error {
    let cause = io::Error::from(errno);
    io::Error::new(cause.kind(), format!("{}: {cause}", name.display()))
}

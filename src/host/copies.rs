//! Small files of the host, read for a guest that shares none of them.
//!
//! It must not know what they are for. A name is looked at once, and never followed where it leads out of the directory that was
//! named: links are copied as links.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd, OwnedFd};

use agent_protocol as p;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, openat, openat2, readlinkat};
use rustix::io::Errno;

use super::mount;
use super::share::{SOURCE, theirs};
use crate::aside::Site;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::DATA;
use crate::model::{ContainerPlan, CopyPlan};

/// The kubelet exchanges what a directory of its own links to: whoever comes between finds it on another look.
const LOOKS: usize = 3;

/// Directories in each other, each of which is open while what is in it is read.
const DEEPEST: usize = 32;

/// Beside what is in a copy, for what is in memory of it, bytes.
const SLACK: usize = 1 << 20;

/// The unit in which memory is counted, bytes.
const PAGE: usize = 4096;

/// Reads everything that a container has copies of into the agent's part of its plan.
///
/// # Errors
/// What cannot be read, or is more than a message has room for.
pub(super) fn fill(plan: &mut ContainerPlan, site: &Site) -> Result<()> {
    let mut room = p::MAX_COPIED.saturating_sub(plan.guest.spec.len());
    for copy in &plan.copies {
        site.at(&copy.source)?;
        let files = look(copy, &mut room, site)?;
        let pages = |file: &p::CopiedFile| file.data.len().div_ceil(PAGE) * PAGE;
        let size = SLACK + files.iter().map(pages).sum::<usize>();
        let storages = &mut plan.guest.storages;
        if let Some(storage) = storages
            .iter_mut()
            .find(|storage| storage.mount_point == copy.mount_point)
        {
            storage.options.push(format!("size={size}"));
            storage.files = files;
        }
    }
    Ok(())
}

fn look(copy: &CopyPlan, room: &mut usize, site: &Site) -> Result<Vec<p::CopiedFile>> {
    let mut looks = 0;
    loop {
        looks += 1;
        let mut reader = Reader {
            room: *room,
            files: Vec::new(),
            resolve: ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
            site,
        };
        if !copy.recursive {
            reader.resolve |= ResolveFlags::NO_XDEV;
        }
        match reader.source(copy) {
            Ok(()) => {
                *room = reader.room;
                return Ok(reader.files);
            }
            Err(Failed::Io(cause)) if cause.kind() == io::ErrorKind::NotFound && looks < LOOKS => {}
            Err(Failed::Io(cause)) => return Err(theirs(SOURCE, &copy.source, cause)),
            Err(Failed::Refused(why)) => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "config.json: mounts[{}].source: {} cannot be copied, and nothing of the host is shared with this guest: \
                         {why}",
                        copy.index,
                        copy.source.display()
                    ),
                ));
            }
            Err(Failed::GivenUp(error)) => return Err(error),
        }
    }
}

/// Why something was not read.
enum Failed {
    Io(io::Error),
    Refused(String),
    GivenUp(Error),
}

impl From<Errno> for Failed {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<io::Error> for Failed {
    fn from(cause: io::Error) -> Self {
        Self::Io(cause)
    }
}

struct Reader<'a> {
    /// Bytes that may yet be read, and what they come with.
    room: usize,
    files: Vec<p::CopiedFile>,
    resolve: ResolveFlags,
    site: &'a Site,
}

impl Reader<'_> {
    /// Of the source itself, links are followed, as those of any mount's source are.
    fn source(&mut self, copy: &CopyPlan) -> Result<(), Failed> {
        let place = mount::open_source(&copy.source)?;
        let status = fstat(&place)?;
        let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        if is_directory != copy.is_directory {
            return Err(Failed::Refused("it is not what it was a moment ago".to_owned()));
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || {
            openat(
                CWD,
                format!("/proc/self/fd/{}", place.as_raw_fd()),
                flags,
                Mode::empty(),
            )
        };
        match FileType::from_raw_mode(status.st_mode) {
            FileType::RegularFile => self.file(DATA.to_owned(), open()?),
            FileType::Directory => self.directory(DATA.to_owned(), open()?),
            _ => Err(Failed::Refused("it is no file or directory".to_owned())),
        }
    }

    fn add(&mut self, path: String, status: &Stat, data: Vec<u8>) -> Result<(), Failed> {
        let takes = path.len() + data.len() + p::COPIED_ENTRY;
        match self.room.checked_sub(takes) {
            Some(left) if self.files.len() < p::MAX_COPIED_FILES => self.room = left,
            _ => {
                return Err(Failed::Refused(format!(
                    "a container can have copies of {} MiB at most, its specification included, and of {} files each; mount less, \
                     or use a hypervisor with shared_fs = \"virtio-fs\"",
                    p::MAX_COPIED >> 20,
                    p::MAX_COPIED_FILES
                )));
            }
        }
        self.files.push(p::CopiedFile {
            path,
            mode: status.st_mode,
            uid: status.st_uid,
            gid: status.st_gid,
            data,
            ..Default::default()
        });
        Ok(())
    }

    fn file(&mut self, path: String, file: OwnedFd) -> Result<(), Failed> {
        let status = fstat(&file)?;
        let mut data = Vec::new();
        // One byte more than there is room for is too much.
        let most = (self.room as u64).saturating_add(1);
        File::from(file).take(most).read_to_end(&mut data)?;
        self.add(path, &status, data)
    }

    fn directory(&mut self, path: String, directory: OwnedFd) -> Result<(), Failed> {
        self.add(path.clone(), &fstat(&directory)?, Vec::new())?;
        let mut names: Vec<_> = Dir::read_from(&directory)?
            .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
            .collect::<Result<_, Errno>>()?;
        // The same request for the same files.
        names.sort_unstable();
        for name in &names {
            if !matches!(name.to_bytes(), b"." | b"..") {
                self.entry(&path, &directory, name)?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, above: &str, directory: &OwnedFd, name: &CStr) -> Result<(), Failed> {
        let refused = |what: &str| {
            let shown = name.to_string_lossy();
            Err(Failed::Refused(format!("{shown:?} in it {what}")))
        };
        let Ok(text) = name.to_str() else {
            return refused("has a name that is not UTF-8");
        };
        let path = format!("{above}/{text}");
        if path.len() > p::MAX_COPIED_PATH || path.matches('/').count() > DEEPEST {
            return refused("is too deep");
        }
        self.site
            .at(std::path::Path::new(&path))
            .map_err(Failed::GivenUp)?;
        let look = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let place = match openat2(directory, name, look, Mode::empty(), self.resolve) {
            Err(Errno::XDEV) => return refused("is a mount of its own; mount it with \"rbind\""),
            Err(Errno::LOOP) => return self.link(path, directory, name),
            place => place?,
        };
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = || {
            openat(
                CWD,
                format!("/proc/self/fd/{}", place.as_raw_fd()),
                flags,
                Mode::empty(),
            )
        };
        match FileType::from_raw_mode(fstat(&place)?.st_mode) {
            FileType::RegularFile => self.file(path, open()?),
            FileType::Directory => self.directory(path, open()?),
            FileType::Symlink => self.link(path, directory, name),
            _ => refused("is no file, directory or link"),
        }
    }

    fn link(&mut self, path: String, directory: &OwnedFd, name: &CStr) -> Result<(), Failed> {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        let status = rustix::fs::statat(directory, name, flags)?;
        let target = readlinkat(directory, name, Vec::new())?;
        self.add(path, &status, target.into_bytes())
    }
}

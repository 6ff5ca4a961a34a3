//! An initramfs: a cpio archive in the "newc" format, uncompressed because the guest would have to unpack it at every boot.
//! Pure: the same entries give the same bytes, whatever the order in which they came.

use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::{Result, bail, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};

/// The entries so far, by path without a leading slash. A directory sorts before what is in it, as the kernel needs it.
#[derive(Debug, Default)]
pub struct Initramfs {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    permissions: u32,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Directory,
    File(Vec<u8>),
    CharacterDevice { major: u32, minor: u32 },
}

impl Content {
    fn is_directory(&self) -> bool {
        matches!(self, Self::Directory)
    }
}

impl Initramfs {
    /// Adds a directory.
    ///
    /// # Errors
    /// Not an absolute path, or one that is taken.
    pub fn directory(&mut self, path: &str) -> Result<()> {
        self.add(path, 0o755, Content::Directory)
    }

    /// Adds a file, and the directories above it.
    ///
    /// # Errors
    /// Not an absolute path, or one that is taken.
    pub fn file(&mut self, path: &str, permissions: u32, bytes: Vec<u8>) -> Result<()> {
        self.add(path, permissions, Content::File(bytes))
    }

    /// Adds a character device, and the directories above it.
    ///
    /// # Errors
    /// Not an absolute path, or one that is taken.
    pub fn character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> Result<()> {
        self.add(path, permissions, Content::CharacterDevice { major, minor })
    }

    fn add(&mut self, path: &str, permissions: u32, content: Content) -> Result<()> {
        let Some(relative) = path.strip_prefix('/') else {
            bail!("{path} is not absolute");
        };
        for (end, _) in relative.match_indices('/') {
            let parent = self.entries.entry(relative[..end].to_owned()).or_insert(Entry {
                permissions: 0o755,
                content: Content::Directory,
            });
            ensure!(parent.content.is_directory(), "{path} is below a file");
        }
        match self.entries.get(relative) {
            None => self
                .entries
                .insert(relative.to_owned(), Entry { permissions, content }),
            Some(old) if old.content.is_directory() && content.is_directory() => None,
            Some(_) => bail!("{path} is there already"),
        };
        Ok(())
    }

    /// The archive. Owners are root, times the epoch.
    ///
    /// # Errors
    /// A file is larger than the format's 4 GiB.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Vec::new();
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            let header = Builder::new(path).ino(number).mode(entry.permissions);
            let (header, bytes) = match &entry.content {
                Content::Directory => (
                    header.nlink(2).set_mode_file_type(ModeFileType::Directory),
                    &[][..],
                ),
                Content::File(bytes) => (header.set_mode_file_type(ModeFileType::Regular), bytes.as_slice()),
                Content::CharacterDevice { major, minor } => {
                    let device = header.rdev_major(*major).rdev_minor(*minor);
                    (device.set_mode_file_type(ModeFileType::Char), &[][..])
                }
            };
            let mut writer = header.write(archive, u32::try_from(bytes.len())?);
            writer.write_all(bytes)?;
            archive = writer.finish()?;
        }
        Ok(trailer(archive)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    /// What `cpio -tv` would show of it.
    fn list(mut archive: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(archive).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                return lines;
            }
            let mut content = String::new();
            reader.read_to_string(&mut content).unwrap();
            assert_eq!((entry.uid(), entry.gid(), entry.mtime()), (0, 0, 0));
            lines.push(format!(
                "{:o} {} {}:{} {content}",
                entry.mode(),
                entry.name(),
                entry.rdev_major(),
                entry.rdev_minor()
            ));
            archive = reader.finish().unwrap();
        }
    }

    #[test]
    fn entries_are_there_with_their_parents() {
        let mut initramfs = Initramfs::default();
        initramfs.file("/init", 0o755, b"agent".to_vec()).unwrap();
        initramfs
            .file("/etc/kata/modules", 0o644, b"/a.ko\n".to_vec())
            .unwrap();
        initramfs.character_device("/dev/console", 0o600, 5, 1).unwrap();
        initramfs.directory("/dev").unwrap();
        assert_eq!(
            list(&initramfs.archive().unwrap()),
            [
                "40755 dev 0:0 ",
                "20600 dev/console 5:1 ",
                "40755 etc 0:0 ",
                "40755 etc/kata 0:0 ",
                "100644 etc/kata/modules 0:0 /a.ko\n",
                "100755 init 0:0 agent",
            ]
        );
    }

    #[test]
    fn the_order_of_additions_leaves_no_trace() {
        let files = [("/b/c", "1"), ("/a", "2"), ("/b/a", "3")];
        let build = |order: &[usize]| {
            let mut initramfs = Initramfs::default();
            for index in order {
                let (path, content) = files[*index];
                initramfs.file(path, 0o644, content.into()).unwrap();
            }
            initramfs.archive().unwrap()
        };
        assert_eq!(build(&[0, 1, 2]), build(&[2, 1, 0]));
    }

    #[test]
    fn a_path_has_one_entry() {
        let mut initramfs = Initramfs::default();
        initramfs.file("/a", 0o644, vec![]).unwrap();
        for refused in [
            initramfs.file("/a", 0o644, vec![]),
            initramfs.directory("/a"),
            initramfs.file("/a/b", 0o644, vec![]),
            initramfs.file("relative", 0o644, vec![]),
        ] {
            assert!(refused.is_err());
        }
    }
}

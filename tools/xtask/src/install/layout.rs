//! Files below a prefix, and the record of them. Must not know what they are.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// Of what was installed, relative to the prefix.
const RECORD: &str = "share/kata/installed.json";

/// A file to install.
#[derive(Debug)]
pub struct File {
    /// Relative to the prefix.
    pub to: PathBuf,
    /// Its mode's lower bits.
    pub permissions: u32,
    /// What it is to contain.
    pub content: Content,
}

/// What a file contains.
#[derive(Debug)]
pub enum Content {
    /// The same as another.
    Copy(PathBuf),
    /// This.
    Text(String),
}

impl File {
    /// A copy of `from`.
    pub fn copy(to: &str, permissions: u32, from: PathBuf) -> Self {
        Self {
            to: to.into(),
            permissions,
            content: Content::Copy(from),
        }
    }

    /// A text that everybody may read.
    pub fn text(to: &str, text: String) -> Self {
        Self {
            to: to.into(),
            permissions: 0o644,
            content: Content::Text(text),
        }
    }
}

/// An installation.
#[derive(Debug)]
pub struct Layout {
    prefix: PathBuf,
    /// The prefix with the directory before it that stands for `/`.
    root: PathBuf,
}

/// Paths relative to the prefix. An ordered set has a directory before what is in it.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    files: BTreeSet<PathBuf>,
    /// Those that were not there before.
    directories: BTreeSet<PathBuf>,
}

impl Layout {
    /// The installation below `prefix`, itself below `destdir` where that is not empty.
    ///
    /// # Errors
    /// The prefix is not absolute.
    pub fn new(prefix: PathBuf, destdir: &Path) -> Result<Self> {
        let relative = prefix.strip_prefix("/");
        let relative =
            relative.with_context(|| format!("the prefix {} is not absolute", prefix.display()))?;
        let root = if destdir.as_os_str().is_empty() {
            prefix.clone()
        } else {
            destdir.join(relative)
        };
        Ok(Self { prefix, root })
    }

    /// What installed programs know as their prefix.
    pub fn prefix(&self) -> &Path {
        &self.prefix
    }

    /// Installs `files` instead of what is installed there. Each is replaced at once: a program that runs keeps its file.
    ///
    /// # Errors
    /// A file can't be read or written. What was written until then is recorded, and can be uninstalled.
    pub fn install(&self, files: &[File]) -> Result<()> {
        fs::create_dir_all(&self.root).with_context(|| format!("create {}", self.root.display()))?;
        let mut record = self.record()?.unwrap_or_default();
        let wanted: BTreeSet<PathBuf> = files.iter().map(|file| file.to.clone()).collect();
        let stale: Vec<PathBuf> = record.files.difference(&wanted).cloned().collect();
        self.make_directories(Path::new(RECORD), &mut record)?;
        for file in files {
            self.make_directories(&file.to, &mut record)?;
        }
        record.files.extend(wanted);
        self.write_record(&record)?;
        for file in files {
            self.write(file)?;
        }
        for path in stale {
            remove_file(&self.root.join(&path))?;
            record.files.remove(&path);
        }
        self.write_record(&record)
    }

    /// Removes what was installed: files, and the directories made for them that nobody else uses.
    ///
    /// # Errors
    /// Nothing is installed there, or a file can't be removed.
    pub fn uninstall(&self) -> Result<Vec<PathBuf>> {
        let record = self.record()?;
        let record =
            record.with_context(|| format!("nothing of ours is installed in {}", self.root.display()))?;
        for path in &record.files {
            remove_file(&self.root.join(path))?;
        }
        remove_file(&self.root.join(RECORD))?;
        for path in record.directories.iter().rev() {
            match fs::remove_dir(self.root.join(path)) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {}
                Err(error) => return Err(error).with_context(|| format!("remove {}", path.display())),
            }
        }
        Ok(record
            .files
            .into_iter()
            .map(|path| self.prefix.join(path))
            .collect())
    }

    /// Makes the directories above `path`, and records those that were not there.
    fn make_directories(&self, path: &Path, record: &mut Record) -> Result<()> {
        let above: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .filter(|path| !path.as_os_str().is_empty())
            .collect();
        for directory in above.into_iter().rev() {
            match fs::create_dir(self.root.join(directory)) {
                Ok(()) => _ = record.directories.insert(directory.to_owned()),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("create {}", directory.display())),
            }
        }
        Ok(())
    }

    fn write(&self, file: &File) -> Result<()> {
        let to = self.root.join(&file.to);
        let mut fresh = to.clone().into_os_string();
        fresh.push(".new");
        let written = match &file.content {
            Content::Copy(from) => fs::copy(from, &fresh)
                .map(drop)
                .with_context(|| format!("copy {}", from.display())),
            Content::Text(text) => fs::write(&fresh, text).map_err(Into::into),
        };
        written
            .and_then(|()| {
                Ok(fs::set_permissions(
                    &fresh,
                    fs::Permissions::from_mode(file.permissions),
                )?)
            })
            .and_then(|()| Ok(fs::rename(&fresh, &to)?))
            .inspect_err(|_| drop(fs::remove_file(&fresh)))
            .with_context(|| format!("install {}", to.display()))
    }

    fn record(&self) -> Result<Option<Record>> {
        let path = self.root.join(RECORD);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        };
        let record: Record =
            serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))?;
        // A record that leads elsewhere would have us remove what is not ours.
        let is_below = |path: &PathBuf| {
            path.components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        ensure!(
            record.files.iter().chain(&record.directories).all(is_below),
            "{}: a path leads out of the prefix",
            path.display()
        );
        Ok(Some(record))
    }

    fn write_record(&self, record: &Record) -> Result<()> {
        let mut text = serde_json::to_string_pretty(record)?;
        text.push('\n');
        self.write(&File::text(RECORD, text))
    }
}

/// Removes a file that may be gone already.
fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// Everything below a directory: `<mode> <path>`, files with their content.
    fn list(directory: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let mode = path.metadata().unwrap().permissions().mode() & 0o777;
            if path.is_dir() {
                lines.extend(list(&path).into_iter().map(|line| {
                    let (mode, rest) = line.split_once(' ').unwrap();
                    format!("{mode} {}/{rest}", path.file_name().unwrap().display())
                }));
                lines.push(format!("{mode:o} {}", path.file_name().unwrap().display()));
            } else {
                lines.push(format!("{mode:o} {}", path.file_name().unwrap().display()));
            }
        }
        lines.sort();
        lines
    }

    fn text(to: &str, text: &str) -> File {
        File::text(to, text.into())
    }

    struct World {
        directory: TempDir,
        layout: Layout,
    }

    impl World {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let layout = Layout::new("/usr/local".into(), directory.path()).unwrap();
            Self { directory, layout }
        }

        fn root(&self) -> PathBuf {
            self.directory.path().join("usr/local")
        }

        fn programs(&self) -> Vec<File> {
            let program = self.directory.path().join("built");
            fs::write(&program, "program").unwrap();
            vec![
                File::copy("bin/shim", 0o755, program),
                text("share/kata/vmlinux", "kernel"),
            ]
        }
    }

    #[test]
    fn what_was_installed_is_removed_and_nothing_else() {
        let world = World::new();
        fs::create_dir_all(world.root().join("bin")).unwrap();
        fs::write(world.root().join("bin/other"), "theirs").unwrap();
        let before = list(&world.root());
        world.layout.install(&world.programs()).unwrap();
        let installed = list(&world.root());
        for line in [
            "755 bin/shim",
            "644 share/kata/vmlinux",
            "644 share/kata/installed.json",
            "644 bin/other",
        ] {
            assert!(
                installed.iter().any(|other| other == line),
                "{line}: {installed:?}"
            );
        }
        let removed = world.layout.uninstall().unwrap();
        assert_eq!(
            removed,
            ["/usr/local/bin/shim", "/usr/local/share/kata/vmlinux"].map(PathBuf::from)
        );
        assert_eq!(list(&world.root()), before);
        assert!(world.layout.uninstall().is_err(), "nothing is left to uninstall");
    }

    #[test]
    fn a_directory_that_others_use_by_then_stays() {
        let world = World::new();
        world.layout.install(&world.programs()).unwrap();
        fs::write(world.root().join("share/theirs"), "").unwrap();
        world.layout.uninstall().unwrap();
        assert_eq!(list(&world.root()), ["644 share/theirs", "755 share"]);
    }

    #[test]
    fn a_second_installation_replaces_the_first() {
        let world = World::new();
        world.layout.install(&world.programs()).unwrap();
        world
            .layout
            .install(&[text("share/kata/vmlinux", "newer"), text("share/new", "")])
            .unwrap();
        assert_eq!(
            fs::read_to_string(world.root().join("share/kata/vmlinux")).unwrap(),
            "newer"
        );
        assert!(
            !world.root().join("bin/shim").exists(),
            "it is no part of the second"
        );
        world.layout.uninstall().unwrap();
        assert_eq!(list(&world.root()), [""; 0]);
    }

    #[test]
    fn a_failed_installation_can_be_undone() {
        let world = World::new();
        let mut files = world.programs();
        files.push(File::copy("bin/missing", 0o755, "/nonexistent".into()));
        let error = world.layout.install(&files).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent"), "{error:#}");
        world.layout.uninstall().unwrap();
        assert_eq!(list(&world.root()), [""; 0]);
    }

    #[test]
    fn a_record_that_leads_elsewhere_is_refused() {
        let world = World::new();
        world.layout.install(&world.programs()).unwrap();
        for path in ["../../etc/passwd", "/etc/passwd"] {
            let record = serde_json::json!({"files": [path], "directories": []});
            fs::write(world.root().join(RECORD), record.to_string()).unwrap();
            assert!(world.layout.uninstall().is_err(), "{path}");
        }
    }

    #[test]
    fn a_prefix_is_absolute() {
        assert!(Layout::new("usr".into(), Path::new("")).is_err());
        assert_eq!(
            Layout::new("/usr".into(), Path::new("")).unwrap().root,
            Path::new("/usr")
        );
    }
}

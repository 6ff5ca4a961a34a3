//! Files that a monitor leaves behind, or needs for a while.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind};

/// Files that are removed when this is dropped, as far as they are there.
#[derive(Debug, Default)]
pub struct Litter(Vec<PathBuf>);

impl Litter {
    /// These.
    pub fn new(files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(files.into_iter().collect())
    }
}

impl Litter {
    /// Removes them now.
    pub fn clear(&mut self) {
        for file in self.0.drain(..) {
            // It was never made, or its directory was removed before.
            let _ = fs::remove_file(file);
        }
    }
}

impl Drop for Litter {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A directory of the user's own, which is removed with all that is in it when this is dropped.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(parent: &Path, name: &str) -> Result<Self, Error> {
        let path = parent.join(name);
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => Ok(Self(path)),
            Err(source) => Err(Error::caused(
                ErrorKind::Internal,
                format!("cannot make {}: {source}", path.display()),
                source,
            )),
        }
    }

    /// Its path.
    pub fn all(&self) -> &Path {
        &self.0
    }

    /// Path of a file in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing could be done about it, and its parent will be removed.
        let _ = fs::remove_dir_all(&self.0);
    }
}

//! Loads the kernel's modules. Which ones, and in which order, was decided when the guest's image was made.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::error::{Error, Result};

/// Paths of the modules that every guest needs, one per line, in the order to load them. A guest without it needs none.
pub const LIST: &str = "/etc/kata/modules";

/// Loads all modules of a list.
///
/// # Errors
/// [`Error::File`] with the first module that the kernel refuses.
pub fn load(list: &str) -> Result<()> {
    let list = match std::fs::read_to_string(list) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", list)(error)),
    };
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .try_for_each(|path| load_one(Path::new(path)))
}

fn load_one(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        // EEXIST: loaded already, or built in.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(Error::file("load module", path)(error)),
    }
}

//! Loads the kernel's modules. Which ones, and in which order, was decided when the guest's image was made.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::error::{Error, Result};

/// Paths of modules, one per line, in the order to load them. A guest without it needs none.
const LIST: &str = "/etc/kata/modules";

/// Loads them all.
///
/// # Errors
/// [`Error::File`] with the first module that the kernel refuses.
pub fn load() -> Result<()> {
    let list = match std::fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::file("read", LIST)(error)),
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

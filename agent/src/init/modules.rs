//! Loads the kernel's modules. Which ones, and in which order, was decided when the guest's image was made.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;

use flate2::read::GzDecoder;
use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module, init_module};

use crate::error::{Error, Result};

/// Paths of the modules that every guest needs, one per line, in the order to load them. A guest without it needs none.
pub const LIST: &str = "/etc/kata/modules";

/// More than any module has, bytes.
const MAX_MODULE: u64 = 64 << 20;

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
    // What few guests load is packed, because every guest's kernel unpacks the image.
    let loaded = match path.extension().is_some_and(|extension| extension == "gz") {
        true => {
            let mut module = Vec::new();
            GzDecoder::new(file)
                .take(MAX_MODULE)
                .read_to_end(&mut module)
                .map_err(Error::file("unpack", path))?;
            init_module(&module, c"")
        }
        false => finit_module(file, c"", ModuleInitFlags::empty()),
    };
    or_there(path, loaded)
}

/// Loads a module from memory.
///
/// # Errors
/// [`Error::File`] with its name.
pub fn load_bytes(name: &str, module: &[u8]) -> Result<()> {
    or_there(Path::new(name), init_module(module, c""))
}

fn or_there(path: &Path, loaded: nix::Result<()>) -> Result<()> {
    match loaded {
        // EEXIST: loaded already, or built in.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(Error::file("load module", path)(error)),
    }
}

//! Finds the program to execute, as a shell would inside the container, with `runc`'s words when there is none.

use std::ffi::{CStr, CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Access, AtFlags, CWD, FileType};
use rustix::io::Errno;

use crate::container::error::{Error, Result};

/// The path to execute for `name`, looked up in the directories of `search` (the value of PATH) unless it has a slash.
///
/// Run as the container's user inside its root.
pub(super) fn find(name: &CStr, search: Option<&[u8]>) -> Result<CString> {
    let shown = name.to_string_lossy();
    if name.to_bytes().contains(&b'/') {
        return match check(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(Errno::NOENT) => Err(Error::Program(format!(
                "exec: \"{shown}\": stat {shown}: no such file or directory"
            ))),
            Err(error) => Err(Error::Program(format!("exec: \"{shown}\": {}", words(error)))),
        };
    }
    for directory in search.unwrap_or_default().split(|&byte| byte == b':') {
        // An empty entry is the current directory.
        let directory = if directory.is_empty() { b"." } else { directory };
        let path = [directory, b"/", name.to_bytes()].concat();
        if let Ok(path) = CString::new(path)
            && check(&path).is_ok()
        {
            return Ok(path);
        }
    }
    Err(Error::Program(format!(
        "exec: \"{shown}\": executable file not found in $PATH"
    )))
}

/// The error of an execution that the kernel refused.
pub(super) fn refused(path: &CStr, errno: Errno) -> Error {
    Error::Program(format!(
        "exec {}: {}",
        OsStr::from_bytes(path.to_bytes()).display(),
        words(errno)
    ))
}

/// Whether the user may execute the file.
fn check(path: &CStr) -> Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    // Root's rights do not make a file without any x bit a program.
    if stat.st_mode & 0o111 == 0 {
        return Err(Errno::ACCESS);
    }
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// The kernel's words as Go has them: without a capital.
fn words(errno: Errno) -> String {
    let words = nix::errno::Errno::from_raw(errno.raw_os_error()).desc();
    let mut letters = words.chars();
    letters
        .next()
        .map(|first| first.to_lowercase().chain(letters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn programs_are_found_and_missing_ones_named_as_runc_does() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name).to_str().unwrap().to_owned();
        fs::create_dir(at("directory")).unwrap();
        for (name, mode) in [("program", 0o755), ("data", 0o644)] {
            fs::write(at(name), "").unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let search = format!("/nonexistent:{}", at(""));
        let find = |name: &str| {
            find(&CString::new(name).unwrap(), Some(search.as_bytes()))
                .map(|path| path.into_string().unwrap())
                .map_err(|error| error.to_string())
        };
        let absolute = at("program");
        assert_eq!(find(&absolute), Ok(absolute.clone()));
        assert_eq!(find("program"), Ok(format!("{}/program", at(""))));
        let missing = "executable file not found in $PATH";
        let table = [
            ("foo", format!("exec: \"foo\": {missing}")),
            ("data", format!("exec: \"data\": {missing}")),
            ("directory", format!("exec: \"directory\": {missing}")),
            (
                "/nope",
                "exec: \"/nope\": stat /nope: no such file or directory".to_owned(),
            ),
            (
                &at("data"),
                format!("exec: \"{}\": permission denied", at("data")),
            ),
            (
                &at("directory"),
                format!("exec: \"{}\": is a directory", at("directory")),
            ),
        ];
        for (name, error) in table {
            assert_eq!(find(name), Err(error), "{name}");
        }
    }
}

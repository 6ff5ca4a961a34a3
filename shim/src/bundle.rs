//! The files of a bundle that a shim writes, for the caller and for its own `delete` action.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The server's address: containerd and CRI-O find it here after a restart of theirs.
const ADDRESS: &str = "address";
/// The server's pid, for people.
const PID: &str = "shim.pid";
/// Our own note.
const NOTE: &str = "kata.json";
/// Present when the guest's kernel has killed a process for memory: CRI-O looks for it.
const OOM: &str = "oom";

/// What `delete` has to know when everything else is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Id of the sandbox.
    pub sandbox: String,
    /// The configuration file that the caller's options name.
    #[serde(default)]
    pub configuration: Option<PathBuf>,
    /// Where the sandbox's own directory is, once it is known: the configuration may be another one by then.
    #[serde(default)]
    pub run_dir: Option<PathBuf>,
    /// What callers were shown as the container's pid, once there is one.
    #[serde(default)]
    pub pid: Option<u32>,
}

/// Writes the server's address.
///
/// # Errors
/// The file cannot be written.
pub fn write_address(bundle: &Path, address: &str) -> Result<()> {
    replace(bundle, ADDRESS, address.as_bytes())
}

/// The server's address, if it was written.
pub fn read_address(bundle: &Path) -> Option<String> {
    let address = fs::read_to_string(bundle.join(ADDRESS)).ok()?;
    Some(address.trim().to_owned()).filter(|address| !address.is_empty())
}

/// Writes the server's pid.
///
/// # Errors
/// The file cannot be written.
pub fn write_pid(bundle: &Path, pid: u32) -> Result<()> {
    replace(bundle, PID, pid.to_string().as_bytes())
}

/// Writes the note.
///
/// # Errors
/// The file cannot be written.
pub fn write_note(bundle: &Path, note: &Note) -> Result<()> {
    let text = serde_json::to_vec(note).context("cannot write the note")?;
    replace(bundle, NOTE, &text)
}

/// The note, if it is there and whole.
pub fn read_note(bundle: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(bundle.join(NOTE)).ok()?).ok()
}

/// Leaves the mark of a killed process.
///
/// # Errors
/// The file cannot be created.
pub fn mark_oom(bundle: &Path) -> io::Result<()> {
    fs::File::create(bundle.join(OOM)).map(drop)
}

/// Writes a file so that a reader sees all of it or nothing.
fn replace(bundle: &Path, name: &str, content: &[u8]) -> Result<()> {
    let path = bundle.join(name);
    let hidden = bundle.join(format!(".{name}"));
    let write = || {
        let mut file = fs::File::create(&hidden)?;
        file.write_all(content)?;
        fs::rename(&hidden, &path)
    };
    write().with_context(|| {
        // It may not have been created.
        let _ = fs::remove_file(&hidden);
        format!("cannot write {}", path.display())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_again() {
        let bundle = tempfile::tempdir().unwrap();
        let bundle = bundle.path();
        assert_eq!((read_address(bundle), read_note(bundle)), (None, None));
        let note = Note {
            sandbox: "s".into(),
            configuration: Some("/etc/k.toml".into()),
            run_dir: Some("/run/k".into()),
            pid: Some(7),
        };
        write_note(bundle, &note).unwrap();
        for address in ["unix:///a", "unix:///b"] {
            write_address(bundle, address).unwrap();
            assert_eq!(read_address(bundle).as_deref(), Some(address));
        }
        assert_eq!(read_note(bundle), Some(note));
        write_pid(bundle, 42).unwrap();
        mark_oom(bundle).unwrap();
        let mut names: Vec<_> = fs::read_dir(bundle)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["address", "kata.json", "oom", "shim.pid"]);
    }

    #[test]
    fn a_damaged_note_is_no_note() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("kata.json"), "{\"sandbox\":").unwrap();
        assert_eq!(read_note(bundle.path()), None);
        let error = write_pid(&bundle.path().join("missing"), 1).unwrap_err();
        assert!(format!("{error:#}").contains("missing/shim.pid"), "{error:#}");
    }
}

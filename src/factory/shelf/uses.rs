//! How often a start was a copy and how often it was not, and why not: a small file that all starts update in turn. Figures for
//! people: a file that makes no sense begins anew.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(super) const FILE: &str = "uses.json";

/// Characters of a reason that are kept.
const REASON: usize = 250;

/// Longest file that is read, bytes.
const MAX: u64 = 16 * 1024;

/// What became of a start.
#[derive(Debug, Clone, Copy)]
pub(in crate::factory) enum Use<'a> {
    /// It was a copy.
    Hit,
    /// It was not, because of this.
    Miss(&'a str),
}

/// What became of all starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uses {
    /// Those that were copies.
    pub hits: u64,
    /// Those that were not.
    pub misses: u64,
    /// Why the last one was not.
    pub last_miss: Option<String>,
}

/// Begins to count, unless that was done.
pub(super) fn begin(shelf: impl AsFd) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(shelf, FILE, flags, Mode::from_raw_mode(0o600))?;
    Ok(())
}

/// Notes one, where they are counted.
pub(super) fn note(shelf: &OwnedFd, one: Use<'_>) -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = File::from(openat(shelf, FILE, flags, Mode::empty())?);
    // The others need microseconds. It is given up with the descriptor, which only a child that is just being started has too.
    flock(&file, FlockOperation::LockExclusive)?;
    let mut uses = parse(&file)?;
    match one {
        Use::Hit => uses.hits = uses.hits.saturating_add(1),
        Use::Miss(why) => {
            uses.misses = uses.misses.saturating_add(1);
            uses.last_miss = Some(why.chars().take(REASON).collect());
        }
    }
    let text = serde_json::to_vec(&uses)?;
    file.set_len(0)?;
    file.write_all_at(&text, 0)?;
    flock(&file, FlockOperation::Unlock)?;
    Ok(())
}

/// Reads them.
pub(super) fn read(shelf: &OwnedFd) -> io::Result<Uses> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(shelf, FILE, flags, Mode::empty()) {
        Ok(file) => {
            let file = File::from(file);
            flock(&file, FlockOperation::LockShared)?;
            let uses = parse(&file);
            flock(&file, FlockOperation::Unlock)?;
            uses
        }
        Err(Errno::NOENT) => Ok(Uses::default()),
        Err(error) => Err(error.into()),
    }
}

fn parse(file: &File) -> io::Result<Uses> {
    let mut text = Vec::new();
    file.take(MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text).unwrap_or_default())
}

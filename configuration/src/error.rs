//! Why a configuration cannot be used. Every text is one line that names the place, the cause and the remedy.

use std::fmt;

/// What is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no configuration file, or not the one that was named.
    NotFound,
    /// A file is there and cannot be read: no permission, not a regular file, too large.
    Unreadable,
    /// A file says something that cannot be used.
    Invalid,
    /// An annotation of a pod asks for something unknown, not allowed or wrong.
    Annotation,
}

/// Why a configuration cannot be used. `Display` prints the first problem, on one line, and how many others there are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// What is at fault.
    pub kind: ErrorKind,
    /// Never empty.
    problems: Vec<String>,
    /// Those that were only counted.
    uncounted: usize,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, problem: impl Into<String>) -> Self {
        Self {
            kind,
            problems: vec![one_line(&problem.into())],
            uncounted: 0,
        }
    }

    /// Every problem, one line each, in the order in which the files were read (at most 100).
    pub fn problems(&self) -> impl Iterator<Item = &str> {
        self.problems.iter().map(String::as_str)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.problems.first().map_or("unknown problem", String::as_str))?;
        match self.problems.len().saturating_sub(1) + self.uncounted {
            0 => Ok(()),
            1 => f.write_str(" (and 1 more problem)"),
            more => write!(f, " (and {more} more problems)"),
        }
    }
}

/// Problems are collected, so that somebody who brings a large file sees all of them at once.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    found: Vec<(Rank, String)>,
    uncounted: usize,
}

/// Order of a problem: of its file among the files, of its line.
pub(crate) type Rank = (usize, usize);

/// More are counted only: a file of nonsense must not cost memory and time.
const KEPT: usize = 100;

impl Problems {
    pub(crate) fn add(&mut self, rank: Rank, problem: impl FnOnce() -> String) {
        if self.is_full() {
            self.uncounted += 1;
        } else {
            self.found.push((rank, one_line(&problem())));
        }
    }

    /// Whether more would be counted only.
    pub(crate) fn is_full(&self) -> bool {
        self.found.len() >= KEPT
    }

    /// Nothing, or all of them as one error.
    pub(crate) fn end(mut self, kind: ErrorKind) -> Result<(), Error> {
        if self.found.is_empty() {
            return Ok(());
        }
        self.found.sort_by_key(|(rank, _)| *rank);
        Err(Error {
            kind,
            problems: self.found.into_iter().map(|(_, problem)| problem).collect(),
            uncounted: self.uncounted,
        })
    }
}

/// Control characters are escaped: names and paths in a text are not ours.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
    line
}

/// The beginning of a text of unknown length, as a message shows it.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

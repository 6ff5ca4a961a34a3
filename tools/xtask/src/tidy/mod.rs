//! `cargo xtask tidy`: the project's own rules, those that no other tool checks. `cargo test` runs it as well.

mod edges;
mod rules;
mod source;
mod text;

use std::fmt;
use std::process::ExitCode;

use anyhow::Result;

use crate::Workspace;
use crate::program::Program;
use source::Source;

/// Check the project's own rules: crate edges, pure modules, unsafe code, sizes, names, sleeps, paths.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Checks them all, and prints what breaks one.
///
/// # Errors
/// The workspace can't be read.
pub fn run(_: Args) -> Result<ExitCode> {
    let violations = violations(&Workspace::here())?;
    for violation in &violations {
        println!("{violation}");
    }
    Ok(if violations.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    /// Relative to the workspace.
    pub path: String,
    /// From 1; 0: the file as a whole.
    pub line: usize,
    /// What is wrong, and what to do.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.message),
            line => write!(f, "{}:{line}: {}", self.path, self.message),
        }
    }
}

/// Everything in the workspace that breaks a rule, ordered by place.
///
/// # Errors
/// The workspace can't be read.
pub fn violations(workspace: &Workspace) -> Result<Vec<Violation>> {
    let metadata = Program::cargo()
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .dir(workspace.root())
        .read()?;
    let mut violations = edges::check(&metadata)?;
    let files = text::files(workspace.root())?;
    for (path, text) in &files {
        violations.extend(text::check(path, text));
    }
    for source in Source::parse_all(&files)? {
        violations.extend(rules::check(&source));
    }
    violations.sort();
    Ok(violations)
}

//! `cargo xtask check`: everything that can be said of the code without running it.

use std::process::ExitCode;

use anyhow::Result;

use crate::deps::{self, Purpose, Tool};
use crate::program::Program;
use crate::{Workspace, tidy};

/// Check formatting, lints, documentation, the project's rules, licences and advisories.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs every check, also after one has failed, and says at the end which did.
///
/// # Errors
/// A tool is missing and can't be installed.
pub fn run(_: Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    deps::packages(&[Purpose::Build])?;
    deps::tools(&workspace, &[Tool::CARGO_DENY])?;
    let mut results = Vec::new();
    for (name, args, rustdoc_flags) in [
        ("format", &["fmt", "--all", "--check"][..], ""),
        (
            "clippy",
            &["clippy", "--workspace", "--all-targets", "--", "-Dwarnings"],
            "",
        ),
        (
            "documentation",
            &["doc", "--workspace", "--no-deps"],
            "-Dwarnings",
        ),
    ] {
        eprintln!("check: {name}");
        let cargo = Program::cargo()
            .args(args)
            .env("RUSTDOCFLAGS", rustdoc_flags)
            .dir(workspace.root());
        results.push((name, cargo.run().is_ok()));
    }
    eprintln!("check: tidy");
    let violations = tidy::violations(&workspace)?;
    violations.iter().for_each(|violation| println!("{violation}"));
    results.push(("tidy", violations.is_empty()));
    results.push(("dependencies", dependencies(&workspace)));
    let failed: Vec<_> = results
        .iter()
        .filter(|(_, passed)| !passed)
        .map(|(name, _)| *name)
        .collect();
    if failed.is_empty() {
        eprintln!("check: all passed");
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("check: failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

/// Licences, sources and bans of what we depend on; and advisories, where their database can be had.
fn dependencies(workspace: &Workspace) -> bool {
    let deny = || Program::new(workspace.tools().join("bin/cargo-deny")).dir(workspace.root());
    let mut checks = vec!["bans", "licenses", "sources"];
    if deny().args(["fetch", "db"]).run().is_ok() {
        checks.push("advisories");
    } else {
        eprintln!("check: the database of advisories is out of reach: advisories are NOT checked");
    }
    eprintln!("check: dependencies ({})", checks.join(", "));
    deny()
        .args(["check", "--hide-inclusion-graph"])
        .args(checks)
        .run()
        .is_ok()
}

//! Programs for guests and containers: static, so that they need nothing of where they run, and the same bytes wherever they are built.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::Workspace;
use crate::program::Program;

/// Named even though it is the host's: with it, flags do not reach build scripts and macros, which can't be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds `program` of `package`, with these variables for the build scripts. Answers where it is.
///
/// # Errors
/// It does not build.
pub fn build(
    workspace: &Workspace,
    package: &str,
    program: &str,
    variables: &[(&str, OsString)],
) -> Result<PathBuf> {
    let mut cargo = Program::cargo()
        .args(["build", "--profile", "guest", "--package", package])
        .args(["--bin", program, "--target", TARGET])
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(workspace)?.join("\x1f"))
        .dir(workspace.root());
    for (name, value) in variables {
        cargo = cargo.env(name, value);
    }
    cargo.run()?;
    Ok(workspace.target().join(TARGET).join("guest").join(program))
}

fn rust_flags(workspace: &Workspace) -> Result<Vec<String>> {
    let root = workspace.root().canonicalize().context("find the workspace")?;
    let cargo = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => std::env::home_dir()
            .context("find the home directory")?
            .join(".cargo"),
    };
    Ok(vec![
        "-Ctarget-feature=+crt-static".into(),
        // A program that is loaded where it was linked needs no relocation at its start.
        "-Crelocation-model=static".into(),
        // Panic messages name source files.
        format!("--remap-path-prefix={}=kata", root.display()),
        format!("--remap-path-prefix={}=cargo", cargo.display()),
    ])
}

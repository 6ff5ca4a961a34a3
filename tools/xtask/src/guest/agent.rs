//! The agent as the guest's init: one static program, the same bytes wherever it is built.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::Workspace;
use crate::program::Program;

/// Named even though it is the host's: with it, flags do not reach build scripts and macros, which can't be static.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the agent, and answers where it is.
///
/// # Errors
/// It does not build.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    Program::cargo()
        .args([
            "build",
            "--profile",
            "guest",
            "--package",
            "agent",
            "--bin",
            "kata-agent",
            "--target",
            TARGET,
        ])
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags(workspace)?.join("\x1f"))
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", static_library_directory("libseccomp.a")?)
        .dir(workspace.root())
        .run()?;
    Ok(workspace.target().join(TARGET).join("guest/kata-agent"))
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

/// Where the C compiler finds this archive.
fn static_library_directory(archive: &str) -> Result<PathBuf> {
    let answer = Program::new("cc")
        .args([format!("-print-file-name={archive}")])
        .read()?;
    let path = PathBuf::from(answer.trim());
    match path.parent() {
        // It echoes the name of what it does not find.
        Some(directory) if path.is_absolute() => Ok(directory.canonicalize()?),
        _ => bail!("{archive} is missing: `cargo xtask deps` installs it"),
    }
}

//! The agent as the guest's init.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::alone;
use crate::Workspace;
use crate::program::Program;

/// Builds the agent, and answers where it is.
///
/// # Errors
/// It does not build.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    alone::build(
        workspace,
        "agent",
        "kata-agent",
        &[
            ("LIBSECCOMP_LINK_TYPE", "static".into()),
            (
                "LIBSECCOMP_LIB_PATH",
                static_library_directory("libseccomp.a")?.into(),
            ),
        ],
    )
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

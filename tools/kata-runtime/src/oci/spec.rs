//! `spec`: a specification to begin with.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use oci_spec::runtime::Spec;

/// Write a config.json to begin with.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the container.
    #[arg(short, long, default_value = ".")]
    bundle: PathBuf,
}

/// Writes it.
///
/// # Errors
/// There is one already, or it cannot be written.
pub fn run(args: &Args) -> Result<ExitCode> {
    let path = args.bundle.join("config.json");
    let text = serde_json::to_string_pretty(&Spec::default())?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .and_then(|mut file| writeln!(file, "{text}"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ExitCode::SUCCESS)
}

//! `cargo xtask uninstall`: removes what `install` wrote, and nothing else.

use std::process::ExitCode;

use anyhow::Result;

use crate::install::Place;

/// Remove what was installed below a prefix.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// Removes it, and prints the files that are gone.
///
/// # Errors
/// Nothing is installed there, or a file can't be removed.
pub fn run(args: Args) -> Result<ExitCode> {
    for path in args.place.layout()?.uninstall()? {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

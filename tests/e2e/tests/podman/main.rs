//! Debian's podman, which calls an OCI runtime through conmon, as a user of it does.
//!
//! Each case is run with runc first, which proves the case, and then with our `kata-runtime`; what is left of it is counted. All of
//! them live in one cell, with an empty storage of their own.

mod bed;
mod cases;
mod suite;

use std::env;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use e2e::cell::{self, Cell, Place};
use e2e::parts::Target;
use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let result = cell::enter().and_then(|place| match place {
        Place::Outside => outside(),
        Place::Inside(inside) => suite::run(Some(inside)),
        Place::Done(code) => Ok(code),
    });
    result.unwrap_or_else(|error| {
        eprintln!("podman: {error:#}");
        ExitCode::FAILURE
    })
}

/// Runs this program again, in a cell.
fn outside() -> Result<ExitCode> {
    if Arguments::from_args().list {
        return suite::run(None);
    }
    let cell = Cell::new(&Target::here().cache())?;
    let status = cell
        .command()?
        .args(env::args_os().skip(1))
        .status()
        .context("start a cell: unshare")?;
    cell.close()?;
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

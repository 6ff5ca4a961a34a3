//! Pods: a client of the CRI, as the kubelet is one, on a containerd of our own with a network of its own.
//!
//! Each case is run with runc first, which proves the case, and then with our runtime. What a virtual machine can't do as
//! a process on the host does is a case of one runtime alone, with the reason beside its name. At the end is a table.

mod bed;
mod cases;
mod container;
mod cri;
mod left;
mod log;
mod network;
mod pod;
mod stream;
mod suite;
mod table;
mod world;

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
        eprintln!("cri: {error:#}");
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

//! The end-to-end tests: Debian's containerd, called by `ctr`, with our runtime, and with runc to prove the tests.
//!
//! Each case is run in a cell (see `e2e::cell`) of which a census is taken before and after. A cell serves many cases, one
//! after the other; as many cells as there may be virtual machines on this machine work at the same time.

mod bed;
mod cases;
mod pool;
mod worker;

use std::process::ExitCode;

use e2e::cell::{self, Place};

fn main() -> ExitCode {
    let result = cell::enter().and_then(|place| match place {
        Place::Outside => pool::run(),
        Place::Inside(inside) => worker::run(inside),
        Place::Done(code) => Ok(code),
    });
    result.unwrap_or_else(|error| {
        eprintln!("e2e: {error:#}");
        ExitCode::FAILURE
    })
}

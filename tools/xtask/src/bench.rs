//! `cargo xtask bench`: how fast and how large we are beside others, in one run on this machine (see the crate `bench`).
//!
//! containerd is a private one in a cell, as for `cargo xtask run`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use bench::Amount;
use bench::bounds::FEWEST;
use e2e::cell::{self, Inside, Place};
use e2e::parts::Target;

use crate::deps::Purpose;
use crate::stage::{self, Choice};
use crate::steps::Steps;
use crate::{Workspace, guest};

/// Measure ours against runc, bare QEMU and the Go shim, and write target/bench/results.json and a table.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A few samples each, to see that everything works.
    #[arg(long)]
    quick: bool,

    /// Samples of each thing that starts a virtual machine. Without it: 15.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    cold: Option<u16>,

    #[command(flatten)]
    choice: Choice,

    /// Fail if a figure is worse than it must be.
    #[arg(long, conflicts_with = "quick")]
    check: bool,

    /// Figures to measure, like B5. Without any: all.
    #[arg(value_name = "ID")]
    ids: Vec<String>,
}

/// Builds and measures. It fails if something could not be measured.
///
/// # Errors
/// Something can't be installed, built or started.
pub fn run(args: Args) -> Result<ExitCode> {
    match cell::enter()? {
        Place::Outside => {
            guest::alone::build(&Workspace::here(), "random-reads", "random-reads", &[])?;
            stage::set(
                &Steps::of("bench"),
                &[Purpose::Build, Purpose::Run, Purpose::Test],
                "containerd, image, measurements",
            )
        }
        Place::Inside(cell) => inside(&args, cell),
        Place::Done(code) => Ok(code),
    }
}

fn inside(args: &Args, cell: Inside) -> Result<ExitCode> {
    let steps = Steps::of("bench");
    let mut amount = if args.quick { Amount::QUICK } else { Amount::FULL };
    if let Some(cold) = args.cold {
        amount.cold = cold.into();
    }
    ensure!(
        !args.check || amount.cold >= FEWEST,
        "--check needs --cold of at least {FEWEST}: fewer samples are not judged"
    );
    let configuration = args.choice.configuration(&Target::here());
    let results = bench::run(cell, configuration, &amount, &args.ids, |what| steps.next(what))?;
    let path = directory()?.join("results.json");
    let json = serde_json::to_string_pretty(&results)?;
    fs::write(&path, json + "\n").with_context(|| format!("write {}", path.display()))?;
    let table = results.table();
    fs::write(path.with_extension("txt"), &table).context("write the table")?;
    print!("{table}");
    eprintln!("bench: {}", path.display());
    let failed: Vec<_> = results.failed().iter().map(|figure| figure.id.as_str()).collect();
    if args.check && !failed.is_empty() {
        eprintln!("bench: worse than they must be: {}", failed.join(", "));
        return Ok(ExitCode::FAILURE);
    }
    Ok(if results.missing.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn directory() -> Result<PathBuf> {
    let directory = Workspace::here().target().join("bench");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    Ok(directory)
}

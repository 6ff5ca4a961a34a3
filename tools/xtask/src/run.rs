//! `cargo xtask run`: a container in a virtual machine of its own, from nothing but this repository, and where its time went; and what
//! it takes where the machine is a copy, or was kept ready.
//!
//! containerd is a private one in a cell (see `e2e::cell`): the system's is left alone, and nothing stays.

mod beside;
mod report;

use std::fs;
use std::io::{IsTerminal as _, stdin, stdout};
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use e2e::cell::{self, Inside, Place};
use e2e::census::Census;
use e2e::containerd::Containerd;
use e2e::image;
use e2e::parts::Target;
use e2e::trace::Trace;

use crate::deps::Purpose;
use crate::stage::{self, Choice};
use crate::steps::Steps;

/// Build everything, run a container in a virtual machine with a private containerd, and show where the time went.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    choice: Choice,

    /// What to run in the container, of busybox's programs. Interactive on a terminal.
    #[arg(last = true)]
    command: Vec<String>,
}

/// What is run where nothing is asked for.
const COMMAND: &[&str] = &["uname", "-a"];

/// For the shim's last words to come through containerd's log.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Builds and runs. The exit code is that of the command in the container.
///
/// # Errors
/// Something can't be installed, built or started, or something is left afterwards.
pub fn run(args: Args) -> Result<ExitCode> {
    match cell::enter()? {
        Place::Outside => stage::set(
            &Steps::of("run"),
            &[Purpose::Build, Purpose::Run],
            "containerd, image, container",
        ),
        Place::Inside(cell) => inside(&args, &cell),
        Place::Done(code) => Ok(code),
    }
}

/// Runs the container, and tells what is known of it.
fn inside(args: &Args, cell: &Inside) -> Result<ExitCode> {
    let target = Target::here();
    let configuration = cell.directory.join("configuration.toml");
    args.choice.configuration(&target).write(&configuration)?;
    let mut containerd = Containerd::start(cell, &target.programs(), Vec::new())?;
    let image = cell.directory.join("busybox.tar");
    image::write_busybox(&image)?;
    containerd.import(&image)?;
    let known: Vec<u32> = containerd.pid().into_iter().collect();
    let before = Census::take(cell, &known)?;

    let is_interactive = !args.command.is_empty() && stdin().is_terminal() && stdout().is_terminal();
    let mut ctr = containerd
        .ctr(["run", "--rm", "--runtime", "io.containerd.kata.v2"])
        .args(["--runtime-config-path".as_ref(), configuration.as_os_str()])
        .args(is_interactive.then_some("--tty"))
        .args([image::BUSYBOX, "run"])
        .args(if args.command.is_empty() {
            COMMAND.iter().map(ToString::to_string).collect()
        } else {
            args.command.clone()
        })
        .into_command();
    ctr.stdin(Stdio::inherit());
    let begin = Instant::now();
    let status = ctr.status().context("start ctr")?;
    let whole = begin.elapsed();

    // Not there where the container did not start; `ctr` has said why.
    let told = |log: &str| Trace::read(log).filter(|trace| trace.first_output.is_some());
    let trace = e2e::wait::until("the shim's report", LAST_WORDS, || {
        Ok(told(&containerd.log_since(0)?))
    });
    let log = containerd.log_since(0)?;
    match trace.ok().or_else(|| Trace::read(&log)) {
        Some(trace) => eprint!("{}", report::table(&trace, &host_kernel()?, whole)),
        None => eprintln!("the runtime told nothing; containerd and the shim logged:\n{log}"),
    }
    if args.command.is_empty() && status.success() && args.choice.can_be_saved() {
        beside::show(cell, &containerd, &args.choice.configuration(&target))?;
    }
    before.wait(cell, &known).context("after the container's end")?;
    containerd.stop()?;
    Ok(match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => ExitCode::from(code),
        None => bail!("ctr ended with {status}"),
    })
}

fn host_kernel() -> Result<String> {
    let release =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("read the host's kernel release")?;
    Ok(release.trim().to_owned())
}

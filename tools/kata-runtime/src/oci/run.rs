//! `run`: create and start, and stay until the end unless asked not to.

use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use standin::Life;

use super::create::{How, Plan};
use super::terminal::Raw;
use super::{Context, delete};
use crate::launch::{self, Draft, Streams};
use crate::wire::Ask;

/// Create a container, start it, wait for its end and delete it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do not wait, and do not delete it.
    #[arg(short, long)]
    detach: bool,
    /// Do not delete it at its end.
    #[arg(long)]
    keep: bool,
    /// Accepted: what a container starts is in its virtual machine, which ends with it.
    #[arg(long)]
    no_subreaper: bool,
    #[command(flatten)]
    pub how: How,
}

/// Runs one. The exit status is the container's.
///
/// # Errors
/// It did not start; nothing is left then.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode> {
    let plan = Plan::new(&args.how, context)?;
    if let Some(socket) = &args.how.console_socket
        && !plan.terminal
    {
        bail!(
            "--console-socket {} is for a container with a terminal (process.terminal)",
            socket.display()
        );
    }
    launch::keep_descriptors()?;
    if args.detach || args.how.console_socket.is_some() {
        return detached(args, &plan, context);
    }
    let mut own = None;
    plan.create(context, &args.how, |plan| {
        let (draft, ours) = Draft::attached(Streams::own(plan.terminal)?)?;
        own = Some(ours);
        Ok(draft)
    })?;
    let daemon = own.context("the connection of the container is lost")?;
    let id = plan.id.as_str();
    let terminal = io::stdin();
    let raw = plan.terminal.then(|| Raw::set(&terminal)).flatten();
    let life = Life::begin(daemon, raw.is_some().then_some(terminal.as_fd()), None)
        .context("signals cannot be passed on")?;
    if let Err(error) = context.ask(id, Ask::Start) {
        drop(raw);
        // The first error is the one to tell.
        let _ = delete::delete(context, id, true);
        return Err(error);
    }
    let status = life.live();
    drop(raw);
    if !args.keep {
        delete::delete(context, id, true)?;
    }
    Ok(ExitCode::from(status))
}

fn detached(args: &Args, plan: &Plan, context: &Context) -> Result<ExitCode> {
    plan.create(context, &args.how, |plan| {
        let streams = match (&args.how.console_socket, plan.terminal) {
            (Some(socket), _) => Streams::console(socket)?,
            (None, false) => Streams::own(false)?,
            (None, true) => {
                bail!("--detach: the container has a terminal: --console-socket must say who gets it")
            }
        };
        Draft::detached(streams, &plan.guise)
    })?;
    let id = plan.id.as_str();
    if let Err(error) = context.ask(id, Ask::Start) {
        // The first error is the one to tell.
        let _ = delete::delete(context, id, true);
        return Err(error);
    }
    Ok(ExitCode::SUCCESS)
}

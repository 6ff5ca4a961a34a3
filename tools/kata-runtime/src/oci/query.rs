//! The verbs that print: `state`, `ps`, `events`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use runtime::admin::Survey;
use runtime::oci::OCI_VERSION;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};

use super::simple::Named;
use super::{Context, Target, others};
use crate::admin;
use crate::client::Refusal;
use crate::wire::{Answer, Ask, Kind, Shown};

/// Print the state of a container, as the OCI runtime specification has it.
#[derive(Debug, clap::Args)]
pub struct State {
    #[command(flatten)]
    named: Named,
}

/// Form of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Print the processes of a container: for people their pids in the virtual machine, for programs those of the host that stand for
/// them.
#[derive(Debug, clap::Args)]
pub struct Ps {
    /// How they are printed.
    #[arg(short, long, value_enum, default_value = "table")]
    format: Form,
    /// Name of the container.
    id: String,
    /// Accepted, for callers that pass options of ps(1).
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _options: Vec<String>,
}

impl Ps {
    /// The name.
    pub fn name(&self) -> &str {
        &self.id
    }

    /// The name, if no container of this root has it.
    pub fn unknown(&self, context: &Context) -> Option<&str> {
        matches!(context.find(&self.id), Ok(None) | Err(_)).then_some(&self.id)
    }

    /// How the processes are printed.
    pub fn form(&self) -> admin::Form {
        match self.format {
            Form::Table => admin::Form::Table,
            Form::Json => admin::Form::Json,
        }
    }
}

/// Print figures of a container, as runc does.
#[derive(Debug, clap::Args)]
pub struct Events {
    /// Once, and not again and again.
    #[arg(long)]
    stats: bool,
    /// Time between two, in seconds, as 5s.
    #[arg(long, default_value = "5s")]
    interval: String,
    /// Name of the container.
    id: String,
}

/// A container as its daemon knows it, or as it was known when that died.
///
/// # Errors
/// The daemon's.
pub fn shown(target: &Target) -> Result<Shown> {
    let record = &target.record;
    let known = |status: &str| Shown {
        id: record.id.clone(),
        status: status.to_owned(),
        pid: 0,
        bundle: record.bundle.clone(),
        created: record.created.clone(),
        annotations: record.annotations.clone(),
    };
    if target.daemon.is_none() {
        return Ok(known("stopped"));
    }
    match target.ask(Ask::State) {
        Ok(Answer::State(shown)) => Ok(shown),
        Ok(_) => bail!("the sandbox's daemon is of another version"),
        Err(error) => match error.downcast_ref::<Refusal>().map(|refusal| refusal.kind) {
            // Being created.
            Some(Kind::FailedPrecondition) if record.pid == 0 => Ok(known("creating")),
            Some(_) => Err(error),
            // It has died just now.
            None => Ok(known("stopped")),
        },
    }
}

/// Prints the state.
///
/// # Errors
/// There is no such container.
pub fn state(args: &State, context: &Context, survey: impl FnOnce() -> Option<Survey>) -> Result<ExitCode> {
    let id = &args.named.id;
    let shown = match context.find(id)? {
        Some(target) => shown(&target)?,
        None => {
            let other = match survey() {
                Some(survey) => others::find(id, &survey, &context.root.scope()?)?,
                None => None,
            };
            match other {
                Some(other) => other.shown,
                None => bail!("container {id} does not exist"),
            }
        }
    };
    let mut state = json!({
        "ociVersion": OCI_VERSION,
        "id": shown.id,
        "status": shown.status,
        "pid": shown.pid,
        "bundle": shown.bundle,
        "rootfs": shown.bundle.join("rootfs"),
        "created": shown.created,
        "owner": "",
    });
    if !shown.annotations.is_empty() {
        state["annotations"] = json!(shown.annotations);
    }
    println!("{state:#}");
    Ok(ExitCode::SUCCESS)
}

/// Prints the pids.
///
/// # Errors
/// The daemon's.
pub fn ps(args: &Ps, context: &Context) -> Result<ExitCode> {
    // Who reads JSON looks for them on this host, where one of the guest's pids may be anybody's.
    let ask = match args.format {
        Form::Json => Ask::Standins,
        Form::Table => Ask::Processes,
    };
    let Answer::Processes(pids) = context.ask(&args.id, ask)? else {
        bail!("the sandbox's daemon is of another version");
    };
    match args.format {
        Form::Json => println!("{}", json!(pids)),
        Form::Table => {
            println!("PID");
            for pid in pids {
                println!("{pid}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints figures, until the container has ended.
///
/// # Errors
/// The daemon's.
pub fn events(args: &Events, context: &Context) -> Result<ExitCode> {
    let interval: Duration = humantime::parse_duration(&args.interval)?;
    let figures = || -> Result<Value> {
        match context.ask(&args.id, Ask::Stats)? {
            Answer::Stats(figures) => Ok(figures),
            _ => bail!("the sandbox's daemon is of another version"),
        }
    };
    println!("{}", figures()?);
    if args.stats {
        return Ok(ExitCode::SUCCESS);
    }
    while wait(context.target(&args.id)?.record.pid, interval)? {
        println!("{}", figures()?);
    }
    Ok(ExitCode::SUCCESS)
}

/// Waits for the end of a stand-in. Whether it lives on.
fn wait(pid: u32, limit: Duration) -> Result<bool> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let Some(standin) = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
        return Ok(false);
    };
    let limit = Timespec::try_from(limit)?;
    let ended = poll(&mut [PollFd::new(&standin, PollFlags::IN)], Some(&limit))?;
    Ok(ended == 0)
}

//! What the subcommands that run containers begin with: everything built, and this program again in a cell.

use std::env;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use e2e::cell::{self, Cell};
use e2e::configuration::Configuration;
use e2e::parts::Target;

use crate::deps::{self, Purpose};
use crate::steps::Steps;
use crate::{Workspace, guest};

/// What of the runtime's configuration can be said on the command line.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// QEMU's machine. Without it: the configuration's default.
    #[arg(long)]
    machine: Option<Machine>,

    /// How host and guest talk. Without it: the best that this host has.
    #[arg(long)]
    channel: Option<Channel>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Machine {
    Q35,
    Microvm,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Channel {
    Vsock,
    VhostUserVsock,
    VirtioSerial,
}

impl Choice {
    /// Whether machines can be copies, and be kept ready.
    pub fn can_be_saved(&self) -> bool {
        !matches!(self.machine, Some(Machine::Microvm))
            && matches!(self.channel, None | Some(Channel::VirtioSerial))
    }

    /// A configuration that says the same.
    pub fn configuration(&self, target: &Target) -> Configuration {
        let mut configuration = Configuration::new(target);
        if let Some(machine) = &self.machine {
            configuration = configuration.hypervisor("machine_type", &name(machine));
        }
        if let Some(channel) = &self.channel {
            configuration = configuration.agent("channel", &name(channel));
        }
        configuration
    }
}

/// The name of a value on the command line, which is the configuration's as well.
fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Builds what is not up to date, and does the same subcommand in a cell. The exit code is the one that it has there.
///
/// # Errors
/// Something can't be installed, built or started.
pub fn set(steps: &Steps, purposes: &[Purpose], then: &str) -> Result<ExitCode> {
    let workspace = Workspace::here();
    steps.next("packages and tools");
    deps::packages(purposes)?;
    deps::tools(&workspace, deps::DAEMONS)?;
    steps.next("guest image");
    guest::build(&workspace, None, false)?;
    steps.next("programs");
    workspace.build_programs()?;
    steps.next(then);
    cell::outlive_interrupt()?;
    let cell = Cell::new(&Target::here().cache())?;
    let status = cell
        .command()?
        .args(env::args_os().skip(1))
        .status()
        .context("start a cell: setpriv, unshare");
    cell.close()?;
    let code = status?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

//! `inspect`: all that is known of a sandbox.

use std::process::ExitCode;
use std::time::UNIX_EPOCH;

use anyhow::Result;
use runtime::admin::client::Client;
use runtime::admin::{Found, Survey};
use serde_json::{Value, json};

use super::{Place, block_on, find, told};

/// Print what is known of a sandbox as JSON: its state, configuration, virtual machine, processes with their arguments, versions,
/// the phases of its start, its containers.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Sandbox, or a container in it: its name, or a beginning that is no other's.
    id: String,
}

/// Prints.
///
/// # Errors
/// There is no such sandbox, or it does not answer.
pub fn run(args: &Args, survey: &Survey) -> Result<ExitCode> {
    let inspected = block_on(async {
        let found = find::target(survey, &args.id).await?.sandbox;
        match found.alive {
            true => Client::new(&found).map_err(told)?.inspect().await.map_err(told),
            false => Ok(of_dead(&found)),
        }
    })?;
    println!("{inspected:#}");
    Ok(ExitCode::SUCCESS)
}

/// What its record says.
fn of_dead(found: &Found) -> Value {
    let created = found.created.duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({
        "id": found.id.as_str(),
        "scope": found.scope.as_str(),
        "state": "dead",
        "directory": found.dir,
        "created_unix": created.as_secs(),
    })
}

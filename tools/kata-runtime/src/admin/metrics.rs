//! `metrics`: figures for Prometheus.

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use runtime::admin::client::Client;
use runtime::admin::{Found, Survey, prometheus};

use super::{Place, block_on, find, told};

/// Print figures in Prometheus's text format: of one sandbox, or of all that run, told apart by the label `sandbox_id`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Sandbox, or a container in it. Without it: all.
    id: Option<String>,
}

/// Prints.
///
/// # Errors
/// There is no such sandbox, or it does not answer.
pub fn run(args: &Args, survey: &Survey) -> Result<ExitCode> {
    let text = block_on(async {
        match &args.id {
            Some(id) => {
                let found = find::target(survey, id).await?.sandbox;
                Client::new(&found).map_err(told)?.metrics().await.map_err(told)
            }
            None => Ok(of_all(survey).await),
        }
    })?;
    // Not print!, which panics when nobody reads any more.
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot print the figures")?;
    Ok(ExitCode::SUCCESS)
}

/// Those that do not answer are counted, and do not keep the others' from being told.
async fn of_all(survey: &Survey) -> String {
    let (mut texts, mut failed) = (Vec::new(), 0);
    let alive = || survey.sandboxes.iter().filter(|found| found.alive);
    // Ids are unique within a scope.
    let name = |found: &Found| match alive().filter(|other| other.id == found.id).count() {
        1 => found.id.to_string(),
        _ => found.full_name(),
    };
    for found in alive() {
        let asked = async { Client::new(found)?.metrics().await };
        match asked.await {
            Ok(text) => texts.push((name(found), text)),
            Err(_) => failed += 1,
        }
    }
    let mut text = prometheus::merged(texts.iter().map(|(id, text)| (id.as_str(), text.as_str())));
    for (name, help, value) in [
        (
            "kata_monitor_running_shim_count",
            "Sandboxes whose owner lives.",
            texts.len() + failed,
        ),
        (
            "kata_monitor_scrape_failed_count",
            "Those of them that did not answer this time.",
            failed,
        ),
    ] {
        text += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
    text
}

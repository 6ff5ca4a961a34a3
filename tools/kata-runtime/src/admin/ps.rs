//! `ps`: the processes of a sandbox's containers, as the guest has them.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use runtime::admin::client::Client;
use runtime::admin::{Processes, Survey};
use serde_json::json;

use super::{Form, block_on, find, told};
use crate::table;

/// Prints them.
///
/// # Errors
/// There is no such sandbox, or it does not answer.
pub fn run(id: &str, form: Form, survey: &Survey) -> Result<ExitCode> {
    let all = block_on(async {
        let target = find::target(survey, id).await?;
        let mut all = Client::new(&target.sandbox)
            .map_err(told)?
            .processes()
            .await
            .map_err(told)?;
        if let Some(container) = &target.container {
            all.retain(|processes| processes.container == *container);
        }
        Ok(all)
    })?;
    match form {
        Form::Json => println!("{:#}", json!(all)),
        Form::Table => print!("{}", printed(&all)),
    }
    Ok(ExitCode::SUCCESS)
}

fn printed(all: &[Processes]) -> String {
    let rows: Vec<_> = all
        .iter()
        .flat_map(|of| of.processes.iter().map(|process| (&of.container, process)))
        .map(|(container, process)| {
            [
                container.clone(),
                process.pid.to_string(),
                process.parent.to_string(),
                process.uid.to_string(),
                process.state.clone(),
                humantime::format_duration(Duration::from_millis(process.cpu_ms)).to_string(),
                table::bytes(process.resident_bytes),
                process.command.clone(),
            ]
        })
        .collect();
    let titles = [
        "CONTAINER",
        "PID",
        "PARENT",
        "UID",
        "STATE",
        "CPU",
        "MEMORY",
        "COMMAND",
    ];
    table::table(titles, &rows)
}

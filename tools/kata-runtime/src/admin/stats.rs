//! `stats`: what sandboxes use, again and again.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::future::join_all;
use runtime::admin::client::Client;
use runtime::admin::{Figures, Survey};
use serde::Serialize;
use tokio::time::{MissedTickBehavior, interval};

use super::{Form, Place, block_on, find, told};
use crate::table;

/// Goes to the top of a terminal and clears it.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Over which the load of a processor is measured when it is printed once.
const SHORT: Duration = Duration::from_millis(500);

/// Show what sandboxes and their containers use, again and again.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Once, and not again and again.
    #[arg(long)]
    no_stream: bool,
    /// Time between two, as 2s.
    #[arg(short, long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// How it is shown: JSON is an array on a line each time.
    #[arg(long, value_enum, default_value = "table")]
    format: Form,
    /// Sandboxes, or containers in them. Without any: all that run.
    ids: Vec<String>,
}

/// One line: a sandbox with all that it costs the host, or a container in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Row {
    scope: String,
    sandbox: String,
    /// `None`: the sandbox itself.
    container: Option<String>,
    /// Of one processor.
    cpu_percent: f64,
    memory_bytes: u64,
    memory_limit: u64,
    network_received_bytes: Option<u64>,
    network_sent_bytes: Option<u64>,
    read_bytes: Option<u64>,
    written_bytes: Option<u64>,
    pids: u64,
}

/// Shows them.
///
/// # Errors
/// There is no such sandbox, or none of those that were named answers any more.
pub fn run(args: &Args, survey: impl Fn() -> Result<Survey>) -> Result<ExitCode> {
    ensure!(!args.interval.is_zero(), "--interval 0s: it takes more than that");
    block_on(async {
        let mut before = gather(args, &survey()?).await?;
        let pause = if args.no_stream { SHORT } else { args.interval };
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once.
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let after = gather(args, &survey()?).await?;
            show(args, &rows(&before, &after))?;
            if args.no_stream {
                return Ok(ExitCode::SUCCESS);
            }
            before = after;
        }
    })
}

/// Figures of those that are meant. Without names, one that does not answer is left out.
async fn gather(args: &Args, survey: &Survey) -> Result<Vec<(Figures, Option<String>)>> {
    let mut targets = Vec::new();
    if args.ids.is_empty() {
        targets.extend(
            survey
                .sandboxes
                .iter()
                .filter(|found| found.alive)
                .map(|found| (found.clone(), None)),
        );
    }
    for id in &args.ids {
        let target = find::target(survey, id).await?;
        targets.push((target.sandbox, target.container));
    }
    let asked = targets.iter().map(async |(found, container)| {
        let figures = Client::new(found)?.figures().await?;
        Ok((figures, container.clone()))
    });
    let answers: Vec<runtime::error::Result<_>> = join_all(asked).await;
    let mut all = Vec::new();
    for answer in answers {
        match answer {
            Ok(figures) => all.push(figures),
            Err(_) if args.ids.is_empty() => {}
            Err(error) => bail!(told(error)),
        }
    }
    Ok(all)
}

/// Lines of two gatherings: the load is what has changed between them. Pure.
fn rows(before: &[(Figures, Option<String>)], after: &[(Figures, Option<String>)]) -> Vec<Row> {
    let mut rows = Vec::new();
    for (figures, only) in after {
        let earlier = before.iter().map(|(figures, _)| figures);
        let earlier = earlier
            .into_iter()
            .find(|earlier| (&earlier.scope, &earlier.id) == (&figures.scope, &figures.id));
        if only.is_none() {
            rows.push(of_sandbox(figures, earlier));
        }
        for container in &figures.containers {
            if only.as_ref().is_some_and(|only| *only != container.id) {
                continue;
            }
            let then = earlier.and_then(|earlier| {
                let mut containers = earlier.containers.iter();
                containers.find(|earlier| earlier.id == container.id)
            });
            let limit = match container.memory_limit {
                // The guest has no more.
                0 => figures.memory_bytes,
                limit => limit.min(figures.memory_bytes),
            };
            rows.push(Row {
                scope: figures.scope.clone(),
                sandbox: figures.id.clone(),
                container: Some(container.id.clone()),
                cpu_percent: load(figures, earlier, container.cpu_ns, then.map(|then| then.cpu_ns)),
                memory_bytes: container.memory_bytes,
                memory_limit: limit,
                network_received_bytes: None,
                network_sent_bytes: None,
                read_bytes: Some(container.read_bytes),
                written_bytes: Some(container.written_bytes),
                pids: container.pids,
            });
        }
    }
    rows
}

fn of_sandbox(figures: &Figures, earlier: Option<&Figures>) -> Row {
    let cpu = |figures: &Figures| -> u64 { figures.processes.iter().map(|process| process.cpu_ns).sum() };
    Row {
        scope: figures.scope.clone(),
        sandbox: figures.id.clone(),
        container: None,
        cpu_percent: load(figures, earlier, cpu(figures), earlier.map(cpu)),
        memory_bytes: figures
            .processes
            .iter()
            .map(|process| process.resident_bytes)
            .sum(),
        memory_limit: figures.memory_bytes,
        network_received_bytes: figures.network.map(|(received, _)| received),
        network_sent_bytes: figures.network.map(|(_, sent)| sent),
        read_bytes: None,
        written_bytes: None,
        pids: figures.containers.iter().map(|container| container.pids).sum(),
    }
}

/// Percent of one processor. What was not there before has used nothing yet that is known.
fn load(now: &Figures, before: Option<&Figures>, used: u64, used_before: Option<u64>) -> f64 {
    let (Some(before), Some(used_before)) = (before, used_before) else {
        return 0.0;
    };
    let time = now.at_ns.saturating_sub(before.at_ns);
    match time {
        0 => 0.0,
        time => used.saturating_sub(used_before) as f64 * 100.0 / time as f64,
    }
}

fn show(args: &Args, rows: &[Row]) -> Result<()> {
    let text = match args.format {
        Form::Json => serde_json::to_string(rows).context("encode the answer")? + "\n",
        Form::Table => printed(rows),
    };
    let mut out = std::io::stdout().lock();
    let clear = args.format == Form::Table && !args.no_stream && out.is_terminal();
    let clear = if clear { CLEAR } else { "" };
    write!(out, "{clear}{text}")
        .and_then(|()| out.flush())
        .context("cannot print")
}

fn printed(rows: &[Row]) -> String {
    let pair = |one: Option<u64>, other: Option<u64>| match (one, other) {
        (Some(one), Some(other)) => format!("{} / {}", table::bytes(one), table::bytes(other)),
        _ => "-".to_owned(),
    };
    let cells: Vec<_> = rows
        .iter()
        .map(|row| {
            [
                row.sandbox.clone(),
                row.container.clone().unwrap_or_else(|| "-".to_owned()),
                format!("{:.1}%", row.cpu_percent),
                pair(Some(row.memory_bytes), Some(row.memory_limit)),
                pair(row.network_received_bytes, row.network_sent_bytes),
                pair(row.read_bytes, row.written_bytes),
                row.pids.to_string(),
            ]
        })
        .collect();
    let titles = [
        "SANDBOX",
        "CONTAINER",
        "CPU",
        "MEMORY / LIMIT",
        "NETWORK IN / OUT",
        "DISK IN / OUT",
        "PIDS",
    ];
    table::table(titles, &cells)
}

#[cfg(test)]
mod tests {
    use runtime::admin::{ContainerFigures, ProcessFigures};

    use super::*;

    fn figures(at_ns: u64, vmm: u64, container: u64) -> Figures {
        let process = |name: &str, cpu_ns| ProcessFigures {
            name: name.into(),
            pid: 1,
            cpu_ns,
            resident_bytes: 100 << 20,
        };
        Figures {
            id: "s".into(),
            scope: "k8s.io".into(),
            at_ns,
            vcpus: 1,
            memory_bytes: 1 << 30,
            processes: vec![process("vmm", vmm), process("virtiofsd", 0)],
            network: Some((1 << 10, 2 << 10)),
            containers: vec![ContainerFigures {
                id: "c".into(),
                cpu_ns: container,
                memory_bytes: 5 << 20,
                pids: 3,
                ..Default::default()
            }],
        }
    }

    #[test]
    fn the_load_is_what_has_changed() {
        let second = 1_000_000_000;
        let before = [(figures(0, 0, 0), None)];
        let after = [(figures(2 * second, second, second / 2), None)];
        let shown = rows(&before, &after);
        assert_eq!((shown[0].cpu_percent, shown[1].cpu_percent), (50.0, 25.0));
        assert_eq!(shown[0].memory_bytes, 200 << 20, "all its processes'");
        assert_eq!(shown[1].memory_limit, 1 << 30, "the guest has no more");
        assert_eq!(rows(&[], &after)[0].cpu_percent, 0.0, "it was not there before");
        assert_eq!(rows(&after, &after)[0].cpu_percent, 0.0, "no time has passed");
    }

    #[test]
    fn a_container_is_shown_alone_if_it_is_meant() {
        let after = [(figures(1, 0, 0), Some("c".to_owned()))];
        let shown = rows(&[], &after);
        assert_eq!(shown.len(), 1);
        assert_eq!(shown[0].container.as_deref(), Some("c"));
    }

    #[test]
    fn the_table_has_a_line_for_each() {
        let text = printed(&rows(&[], &[(figures(1, 0, 0), None)]));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[1].contains("200 MiB / 1.00 GiB"), "{text}");
        assert!(lines[1].contains("1.00 KiB / 2.00 KiB"), "{text}");
        assert!(lines[2].contains("5.00 MiB / 1.00 GiB"), "{text}");
    }
}

//! `factory`: the virtual machine that sandboxes are copies of.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Subcommand;
use configuration::Config;
use hypervisor::Hypervisor;
use runtime::factory::{self, Kept, Made, Status};
use slog::{Discard, Logger, o};

use crate::admin::{block_on, told};

/// Make, show or remove the virtual machine that sandboxes are copies of (`[factory]` of the configuration).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boot it once and save it, unless that was done already.
    Init,
    /// Print what is saved, and what became of the starts.
    Status,
    /// Remove everything that is saved.
    Destroy,
}

/// Does it.
///
/// # Errors
/// The factory's.
pub fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    match args.verb {
        Verb::Init => match block_on(async {
            factory::init(config, &driver(config)?, &silent())
                .await
                .map_err(told)
        })? {
            Made::New { key, bytes } => {
                println!("vm factory initialized: template {key}, {} MiB", mib(bytes))
            }
            Made::There { key } => println!("vm factory is initialized already: template {key}"),
        },
        Verb::Status if !config.factory.enable_template => println!("vm factory not enabled"),
        Verb::Status => print!(
            "{}",
            shown(&factory::status(config, &*driver(config)?).map_err(told)?)
        ),
        Verb::Destroy => {
            block_on(async { factory::destroy(config).await.map_err(told) })?;
            println!("vm factory destroyed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn driver(config: &Config) -> Result<Arc<dyn Hypervisor>> {
    Ok(hypervisor::registry::driver(
        &config.hypervisor,
        &config.runtime.run_dir,
        silent(),
    )?)
}

fn silent() -> Logger {
    Logger::root(Discard, o!())
}

fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn shown(status: &Status) -> String {
    let is_on = |one: &Kept| one.key == status.key && one.problem.is_none();
    let mut text = match status.kept.iter().any(is_on) {
        true => format!("vm factory is on: template {}\n", status.key),
        false => format!(
            "vm factory is off: there is no template {}; make it with `kata-runtime factory init`\n",
            status.key
        ),
    };
    for one in &status.kept {
        let problem = match &one.problem {
            Some(problem) => format!(", unusable: {problem}"),
            None if one.key != status.key => ", of another configuration".to_owned(),
            None => String::new(),
        };
        text.push_str(&format!(
            "template {}: VM of {} MiB, {} MiB saved, made {}{problem}\n",
            one.key,
            one.memory_mib,
            mib(one.bytes),
            ago(one.created_at)
        ));
    }
    let uses = &status.uses;
    text.push_str(&format!("starts: {} copied, {} booted\n", uses.hits, uses.misses));
    if let Some(why) = &uses.last_miss {
        text.push_str(&format!("the last one was booted because: {why}\n"));
    }
    text
}

fn ago(seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let age = Duration::from_secs(now.as_secs().saturating_sub(seconds));
    format!("{} ago", humantime::format_duration(age))
}

#[cfg(test)]
mod tests {
    use runtime::factory::Uses;

    use super::*;

    fn kept(key: &str, problem: Option<&str>) -> Kept {
        Kept {
            key: key.into(),
            created_at: u64::MAX,
            memory_mib: 256,
            bytes: (40 << 20) - 1,
            problem: problem.map(Into::into),
        }
    }

    #[test]
    fn the_status_says_whether_sandboxes_are_copied_and_why_not() {
        let status = |kept| Status {
            key: "a1".into(),
            kept,
            uses: Uses {
                hits: 3,
                misses: 1,
                last_miss: Some("no reason".into()),
            },
        };
        let on = shown(&status(vec![kept("b2", None), kept("a1", None)]));
        assert_eq!(
            on,
            "vm factory is on: template a1\n\
             template b2: VM of 256 MiB, 40 MiB saved, made 0s ago, of another configuration\n\
             template a1: VM of 256 MiB, 40 MiB saved, made 0s ago\n\
             starts: 3 copied, 1 booted\n\
             the last one was booted because: no reason\n"
        );
        let off = shown(&status(vec![kept("a1", Some("it is broken"))]));
        assert!(
            off.starts_with("vm factory is off: there is no template a1;"),
            "{off}"
        );
        assert!(off.contains("unusable: it is broken\n"), "{off}");
    }
}

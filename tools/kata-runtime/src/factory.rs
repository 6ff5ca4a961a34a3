//! `factory`: the virtual machine that sandboxes are copies of, and who keeps some ready.

use std::env;
use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use configuration::Config;
use hypervisor::Hypervisor;
use runtime::factory::cache::{self, Answered, Place};
use runtime::factory::{self, Kept, Made, Status};
use slog::{Discard, Logger, o};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::{block_on, told};
use crate::daemon;

/// Make, show or remove the virtual machine that sandboxes are copies of, and those that are kept ready (`[factory]` of the
/// configuration).
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Boot it once and save it, and begin to keep some ready, unless that was done already.
    Init,
    /// Print what is saved and kept ready, and what became of the starts.
    Status,
    /// End those that are kept ready, and remove everything that is saved.
    Destroy,
    /// Keep virtual machines ready. For this program itself.
    #[command(hide = true)]
    Serve,
}

/// Does it. `named`: the file of the configuration, if somebody has named it.
///
/// # Errors
/// The factory's.
pub fn run(args: &Args, config: Config, named: Option<&Path>) -> Result<ExitCode> {
    let wanted = &config.factory;
    match args.verb {
        Verb::Serve => return serve(config),
        Verb::Init if !wanted.is_on() => {
            bail!("there is nothing to do: set enable_template = true or vm_cache_number in [factory]")
        }
        Verb::Init => init(&config, named)?,
        Verb::Status if !wanted.is_on() => println!("vm factory not enabled"),
        Verb::Status => print!("{}", status(&config)?),
        Verb::Destroy => {
            // Also what another configuration has wanted.
            block_on(async { cache::quit(&config).await.map_err(told) })?;
            block_on(async { factory::destroy(&config).await.map_err(told) })?;
            println!("vm factory destroyed");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn init(config: &Config, named: Option<&Path>) -> Result<()> {
    if config.factory.enable_template {
        match block_on(async {
            factory::init(config, &driver(config, silent())?, &silent())
                .await
                .map_err(told)
        })? {
            Made::New { key, bytes } => {
                println!("vm factory initialized: template {key}, {} MiB", mib(bytes))
            }
            Made::There { key } => println!("vm factory is initialized already: template {key}"),
        }
    }
    if config.factory.vm_cache_number == 0 {
        return Ok(());
    }
    let key = cache::key(config, &*driver(config, silent())?).map_err(told)?;
    let place = Place::of(config);
    let begun = block_on(async {
        let begun = place.begin(|listener| start(&place, listener, named));
        begun.await.map_err(told)
    })?;
    let Answered::Somebody(there) = block_on(async { cache::status(config).await.map_err(told) })? else {
        bail!(
            "who is to keep virtual machines ready has ended; see {}",
            place.log().display()
        );
    };
    if there.key != key || there.number != config.factory.vm_cache_number {
        bail!(
            "{} virtual machines of another configuration are kept ready at {} ({}, and not {key}); end that with \
             `kata-runtime factory destroy`",
            there.number,
            config.factory.vm_cache_endpoint.display(),
            there.key
        );
    }
    match block_on(async { cache::settle(config).await.map_err(told) }) {
        Ok(()) => {}
        // It goes on to try; whoever has begun is told.
        Err(error) => return Err(error.context("no virtual machines are kept ready yet")),
    }
    let was = if begun.is_some() {
        "initialized"
    } else {
        "is initialized already"
    };
    println!(
        "vm factory {was}: {} virtual machines are kept ready",
        there.number
    );
    println!("VM cache server pid = {}", there.pid);
    Ok(())
}

/// Starts who keeps them, with its socket as the standard input. It is this program again.
fn start(place: &Place, listener: UnixListener, named: Option<&Path>) -> Result<(), runtime::Error> {
    let spawned = || -> Result<()> {
        let program = env::current_exe().context("cannot find this program's file")?;
        let path = place.log();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let mut command = Command::new(&program);
        if let Some(named) = named {
            command.arg("--config").arg(named.canonicalize()?);
        }
        command
            .args(["factory", "serve"])
            .current_dir("/")
            .process_group(0)
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(log);
        command
            .spawn()
            .map(drop)
            .with_context(|| format!("cannot start {}", program.display()))
    };
    spawned().map_err(|error| runtime::Error::new(runtime::ErrorKind::Internal, format!("{error:#}")))
}

fn serve(config: Config) -> Result<ExitCode> {
    let listener = daemon::take_listener()?;
    daemon::detach();
    let log = daemon::logger(false);
    block_on(async {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
        let stop = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let driver = driver(&config, log.clone())?;
        cache::serve(config, driver, listener, stop, log)
            .await
            .map_err(told)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What there is, for people.
fn status(config: &Config) -> Result<String> {
    let mut text = String::new();
    if config.factory.enable_template {
        let status = factory::status(config, &*driver(config, silent())?).map_err(told)?;
        text.push_str(&shown(&status));
    }
    if config.factory.vm_cache_number > 0 {
        let key = cache::key(config, &*driver(config, silent())?).map_err(told)?;
        let answered = block_on(async { cache::status(config).await.map_err(told) })?;
        text.push_str(&kept(&answered, &key));
    }
    Ok(text)
}

/// What is kept ready.
fn kept(answered: &Answered, key: &str) -> String {
    let Answered::Somebody(status) = answered else {
        return "VM cache is off: nobody keeps virtual machines ready; start that with `kata-runtime factory init`\n".to_owned();
    };
    let mut text = match status.key == key {
        true => format!(
            "VM cache is on: {} of {} ready\n",
            status.kept.len(),
            status.number
        ),
        false => format!(
            "VM cache is off: what is kept ready is of another configuration ({}, and not {key})\n",
            status.key
        ),
    };
    text.push_str(&format!("VM cache server pid = {}\n", status.pid));
    for vm in &status.kept {
        text.push_str(&format!(
            "VM pid = {} Cpu = {} Memory = {}MiB, {}, ready {}\n",
            vm.pid,
            vm.vcpus,
            vm.memory_mib,
            if vm.is_copy { "a copy" } else { "booted" },
            ago(vm.ready_at)
        ));
    }
    if let Some(why) = &status.short {
        text.push_str(&format!("there are not more because: {why}\n"));
    }
    text.push_str(&format!(
        "taken: {} hits, {} misses\n",
        status.hits, status.misses
    ));
    if let Some(why) = &status.last_miss {
        text.push_str(&format!("the last one was missed because: {why}\n"));
    }
    text
}

fn driver(config: &Config, log: Logger) -> Result<Arc<dyn Hypervisor>> {
    Ok(hypervisor::registry::driver(
        &config.hypervisor,
        &config.runtime.run_dir,
        log,
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

//! `delete`: what is left of a container goes, also when its daemon is dead.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use configuration::{Accelerator, Config};
use hypervisor::Hypervisor;
use runtime::Sandbox;

use super::{Context, Target};
use crate::client::Refusal;
use crate::daemon;
use crate::wire::{Ask, Kind};

/// Remove a container that has ended.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Kill it if it runs. What does not exist is removed already.
    #[arg(short, long)]
    force: bool,
    /// Name of the container.
    id: String,
}

/// Removes one.
///
/// # Errors
/// It stays.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode> {
    delete(context, &args.id, args.force)?;
    Ok(ExitCode::SUCCESS)
}

/// Removes one; its sandbox goes with the last one.
///
/// # Errors
/// It stays.
pub fn delete(context: &Context, id: &str, force: bool) -> Result<()> {
    let Some(target) = context.find(id)? else {
        if force {
            return Ok(());
        }
        bail!("container {id} does not exist");
    };
    if target.daemon.is_some() {
        match target.ask(Ask::Delete { force }) {
            Ok(_) => return Ok(()),
            Err(error) => match error.downcast_ref::<Refusal>() {
                // It is known, but not to its daemon: whoever created it has died over it.
                Some(refusal) if refusal.kind == Kind::NotFound => return context.root.forget(&target.id),
                Some(_) => return Err(error),
                // It has died just now.
                None if context.root.connect(&target.sandbox)?.is_none() => {}
                None => return Err(error),
            },
        }
    }
    clean_up(context, &target)
}

/// Removes what a dead daemon has left. Its virtual machine has died with it.
fn clean_up(context: &Context, target: &Target) -> Result<()> {
    let (config, hypervisor) = parts(target)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    runtime.block_on(Sandbox::clean_up_dead(
        &config,
        &*hypervisor,
        &context.root.scope()?,
        &target.sandbox,
    ))?;
    context.root.remove_socket(&target.sandbox)?;
    // Its stand-ins end with the daemon, if they have not yet.
    if let Err(error) = runtime.block_on(daemon::remove_cgroups(&target.record.cgroups)) {
        eprintln!(
            "kata-runtime: a cgroup of container {} is left: {error}",
            target.id
        );
    }
    // It may have had none.
    let _ = std::fs::remove_file(daemon::log_path(&context.root, &target.sandbox));
    context.root.forget(&target.id)
}

/// The configuration that the sandbox was created with, as far as a clean-up needs it: where its directory is. It may have been
/// changed or broken since; then the built-in one does.
fn parts(target: &Target) -> Result<(Config, Arc<dyn Hypervisor>)> {
    let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    let usable = |mut config: Config| {
        if let Some(run_dir) = &target.record.run_dir {
            config.runtime.run_dir = run_dir.clone();
        }
        // Nothing is started: no need to find out what could be.
        config.hypervisor.accelerator = Accelerator::Tcg;
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let hypervisor = hypervisor::registry::driver(&config.hypervisor, &config.runtime.run_dir, log)?;
        anyhow::Ok((config, hypervisor))
    };
    let loaded = Config::load(target.record.config.as_deref(), environment.as_deref());
    match loaded.map_err(anyhow::Error::from).and_then(usable) {
        Ok(parts) => Ok(parts),
        Err(_) => usable(Config::defaults()?),
    }
}

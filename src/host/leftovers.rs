//! Cleans up after an owner that died, from what it has left on disk alone.

use configuration::Config;
use futures::future::{FutureExt, join, join_all};
use hypervisor::{Hypervisor, VmRecord, process};

use super::cgroup;
use super::home::Home;
use super::mount;
use super::network;
use super::release::clear;
use crate::SandboxId;
use crate::error::{Error, Result};
use crate::store::{DaemonRecord, Record};

/// Cleans up what is left of a sandbox, if anything is.
///
/// # Errors
/// Its owner lives, or something cannot be given back; the rest is, then.
pub(crate) async fn clean_up_dead(
    config: &Config,
    hypervisor: &dyn Hypervisor,
    scope: &SandboxId,
    id: &SandboxId,
) -> Result<()> {
    match Home::inherit(&config.runtime.run_dir, scope, id).await? {
        Some(home) => clear_dead(home, hypervisor).await,
        None => Ok(()),
    }
}

/// Ends the processes of a dead owner, which mostly have died with it, and gives everything back. Goes on after an error and
/// answers with the first.
pub(super) async fn clear_dead(home: Home, hypervisor: &dyn Hypervisor) -> Result<()> {
    // A record that cannot be read names processes that cannot be found. The rest can go.
    let record = Record::read(home.dir());
    let mut result = Ok(());
    if let Ok(Some(record)) = &record {
        let daemons: Vec<_> = record.daemons.iter().rev().map(identity).collect();
        let mut ends = Vec::new();
        if let Some(vm) = &record.vm {
            ends.push(hypervisor.reap(vm));
        }
        ends.extend(daemons.iter().map(|daemon| process::reap(daemon).boxed()));
        // Every process is killed before the first one is waited for, and mounts go meanwhile: the end of a large guest takes
        // longer than we may have.
        let mounts = async { mount::clear_below(home.dir()) };
        // What cannot be taken away now is tried again, and told, at the end.
        let (ended, _) = join(join_all(ends), mounts).await;
        for ended in ended {
            result = result.and(ended.map_err(Error::from));
        }
        if let Some(network) = &record.network {
            result = result.and(network::clean_up_dead(network).await);
        }
        if let Some(cgroup) = &record.cgroup {
            result = result.and(cgroup::remove(cgroup).await);
        }
    }
    record.map(drop).and(result).and(clear(&home))
}

/// A daemon as what it is to a reaper: a process.
fn identity(daemon: &DaemonRecord) -> VmRecord {
    VmRecord {
        driver: daemon.name.clone(),
        pid: daemon.pid,
        start_time: daemon.start_time,
        run_dir: Default::default(),
    }
}

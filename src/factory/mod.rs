//! Where virtual machines come from: booted from their kernel, copied from one that was booted once and saved, or taken from those
//! that are kept ready.
//!
//! A template is saved when its agent has greeted and nobody has spoken to it: it has no container, no name, no network, no
//! secret, and not even a boot id. What a sandbox needs that can't be saved is plugged into its copy before that runs.
//!
//! It must not know containers, nor any hypervisor driver.

pub mod cache;
mod direct;
mod key;
mod lock;
mod make;
mod shelf;
mod template;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use async_trait::async_trait;
use configuration::Config;
use hypervisor::{Hypervisor, Size, Vm, VmSpec};
use slog::Logger;
use tokio::net::UnixStream;

use crate::error::Result;
use crate::model::TemplatePlan;
use crate::sandbox::Wanted;

use cache::{Cached, Claimed};
use direct::Direct;
pub use make::{Made, init};
use shelf::Shelf;
pub use shelf::{Kept, Uses};
use template::Template;

/// Gives virtual machines.
#[async_trait]
pub(crate) trait VmFactory: Send + Sync {
    /// A virtual machine that runs. On an error nothing is left of it.
    async fn acquire(&self, spec: VmSpec, template: Option<TemplatePlan>) -> Result<Obtained>;

    /// A virtual machine that somebody keeps ready and gives away, if it is what is wanted. It dies if it is not taken.
    async fn claim(&self, wanted: Result<Wanted, String>, log: &Logger) -> Option<Claimed> {
        drop((wanted, log));
        None
    }

    /// Has one that was claimed be this sandbox's, or another one if it is of no use.
    async fn take(&self, claimed: Claimed, spec: VmSpec, template: Option<TemplatePlan>) -> Result<Obtained> {
        drop(claimed);
        self.acquire(spec, template).await
    }

    /// Whether guests are executed by an emulator, and take their time.
    fn emulated(&self) -> bool;
}

/// A virtual machine that runs.
pub(crate) struct Obtained {
    pub(crate) vm: Box<dyn Vm>,
    /// What it has, which can be less than it was to have: it can grow.
    pub(crate) size: Size,
    /// The connection to its agent, which has greeted, if it is there already.
    pub(crate) agent: Option<UnixStream>,
}

/// The factory that this configuration wants.
pub(crate) fn of(config: &Config, hypervisor: &Arc<dyn Hypervisor>, log: &Logger) -> Box<dyn VmFactory> {
    let direct = Direct::new(Arc::clone(hypervisor));
    let made: Box<dyn VmFactory> = match config.factory.enable_template {
        false => Box::new(direct),
        true => {
            let shelf = Shelf::new(&config.factory.template_path);
            Box::new(Template::new(shelf, Arc::clone(hypervisor), direct, log.clone()))
        }
    };
    match config.factory.vm_cache_number {
        0 => made,
        _ => {
            let endpoint = config.factory.vm_cache_endpoint.clone();
            Box::new(Cached::new(endpoint, Arc::clone(hypervisor), made, log.clone()))
        }
    }
}

/// What is saved for this configuration, and for others.
#[derive(Debug)]
pub struct Status {
    /// The one that sandboxes of this configuration are copies of; it may not be there.
    pub key: String,
    /// Everything that is there, with what is wrong with it.
    pub kept: Vec<Kept>,
    /// What became of the starts.
    pub uses: Uses,
}

/// Looks at what is saved.
///
/// # Errors
/// What this configuration wants cannot be saved at all; the directory cannot be read or is not to be trusted.
pub fn status(config: &Config, hypervisor: &dyn Hypervisor) -> Result<Status> {
    let shelf = Shelf::new(&config.factory.template_path);
    let key = key::of(hypervisor, &make::spec(config, &hypervisor.capabilities()))?;
    Ok(Status {
        key,
        kept: shelf.list()?,
        uses: shelf.uses()?,
    })
}

/// Removes everything that is saved. Copies that run are not touched: what they use stays until their end. Nothing there is
/// success.
///
/// # Errors
/// What cannot be removed, or is somebody else's.
pub async fn destroy(config: &Config) -> Result<()> {
    Shelf::new(&config.factory.template_path).clear().await
}

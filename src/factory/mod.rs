//! Where virtual machines come from: booted from their kernel, or copied from one that was booted once and saved.
//!
//! A template is saved when its agent has greeted and nobody has spoken to it: it has no container, no name, no network, no
//! secret, and not even a boot id. What a sandbox needs that can't be saved is plugged into its copy before that runs.
//!
//! It must not know containers, nor any hypervisor driver.

mod direct;
mod key;
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

use crate::error::Result;
use crate::model::TemplatePlan;

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

    /// Whether guests are executed by an emulator, and take their time.
    fn emulated(&self) -> bool;
}

/// A virtual machine that runs.
pub(crate) struct Obtained {
    pub(crate) vm: Box<dyn Vm>,
    /// What it has, which can be less than it was to have: it can grow.
    pub(crate) size: Size,
}

/// The factory that this configuration wants.
pub(crate) fn of(config: &Config, hypervisor: &Arc<dyn Hypervisor>, log: &Logger) -> Box<dyn VmFactory> {
    let direct = Direct::new(Arc::clone(hypervisor));
    match config.factory.enable_template {
        false => Box::new(direct),
        true => {
            let shelf = Shelf::new(&config.factory.template_path);
            Box::new(Template::new(shelf, Arc::clone(hypervisor), direct, log.clone()))
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

//! The one place that knows all drivers. Programs call it; the runtime only sees the trait.

use std::path::Path;
use std::sync::Arc;

use configuration::{HypervisorConfig, HypervisorKind};
use slog::Logger;

use crate::fake::Fake;
use crate::qemu::Qemu;
use crate::{Error, Hypervisor};

/// The driver that `config` asks for.
///
/// `run_dir` is where the runtime keeps its records ([`configuration::RuntimeConfig::run_dir`]); the verdict on KVM is
/// remembered there until the next boot. Fails if the configured accelerator cannot be used here.
pub fn driver(config: &HypervisorConfig, run_dir: &Path, log: Logger) -> Result<Arc<dyn Hypervisor>, Error> {
    Ok(match config.kind {
        HypervisorKind::Qemu => Arc::new(Qemu::new(config, run_dir, log)?),
        HypervisorKind::Fake => Arc::new(Fake::new(config.path.clone(), log)),
    })
}

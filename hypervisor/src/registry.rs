//! The one place that knows all drivers. Programs call it; the runtime only sees the trait.

use std::path::Path;
use std::sync::Arc;

use configuration::{HypervisorConfig, HypervisorKind};
use slog::Logger;

use crate::cloud_hypervisor::CloudHypervisor;
use crate::fake::Fake;
use crate::firecracker::Firecracker;
use crate::qemu::Qemu;
use crate::{Error, Hypervisor, cloud_hypervisor, firecracker};

/// The driver that `config` asks for.
///
/// `run_dir` is where the runtime keeps its records ([`configuration::RuntimeConfig::run_dir`]); the verdict on KVM is
/// remembered there until the next boot. Fails if the configured accelerator cannot be used here.
pub fn driver(config: &HypervisorConfig, run_dir: &Path, log: Logger) -> Result<Arc<dyn Hypervisor>, Error> {
    Ok(match config.kind {
        HypervisorKind::Qemu => Arc::new(Qemu::new(config, run_dir, log)?),
        HypervisorKind::CloudHypervisor => Arc::new(CloudHypervisor::new(config, run_dir, log)?),
        HypervisorKind::Firecracker => Arc::new(Firecracker::new(config, run_dir, log)?),
        HypervisorKind::Fake => Arc::new(Fake::new(config.path.clone(), log)),
    })
}

/// Every request that the driver can send to a monitor's REST API: its method, and its path as the description of the API has it.
/// A test that claims to have tried them all has to know them.
pub fn requests(kind: HypervisorKind) -> impl Iterator<Item = (&'static str, &'static str)> {
    let calls = match kind {
        HypervisorKind::CloudHypervisor => cloud_hypervisor::CALLS,
        HypervisorKind::Firecracker => firecracker::CALLS,
        HypervisorKind::Qemu | HypervisorKind::Fake => &[],
    };
    calls.iter().map(|call| (call.method, call.path))
}

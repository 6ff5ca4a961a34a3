//! The QEMU driver: machines `q35` and `microvm`.

use std::path::Path;

use async_trait::async_trait;
use configuration::HypervisorConfig;
use slog::Logger;

use crate::{Boot, Capabilities, Error, ErrorKind, Hypervisor, Vm, VmRecord, VmSpec, process};

/// Starts QEMU.
#[derive(Debug)]
pub struct Qemu {}

impl Qemu {
    /// A driver with these settings.
    pub fn new(_config: &HypervisorConfig, _run_dir: &Path, _log: Logger) -> Result<Self, Error> {
        Ok(Self {})
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            vsock_kernel: false,
            vhost_user: true,
            vsock_hybrid: false,
            serial_port: true,
            fs_sharing: true,
            block: true,
            hotplug: false,
            resize: false,
            snapshots: false,
            guest_is_process: false,
        }
    }

    fn check_host(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn launch(&self, _spec: VmSpec, _boot: Boot) -> Result<Box<dyn Vm>, Error> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "the QEMU driver cannot launch yet",
        ))
    }

    async fn reap(&self, record: &VmRecord) -> Result<(), Error> {
        process::reap(record).await
    }
}

//! How directories of the host reach the guest. Pure.

use std::path::Path;

use configuration::{HypervisorConfig, SharedFs, VirtioFsCache};
use hypervisor::Capabilities;

use crate::error::{Error, ErrorKind, Result};
use crate::model::SharePlan;

/// The configured way. A root file system has no other one yet, so that there must be one.
pub(super) fn choose(
    config: &HypervisorConfig,
    abilities: &Capabilities,
    exists: &dyn Fn(&Path) -> bool,
) -> Result<SharePlan> {
    if config.shared_fs == SharedFs::None {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "shared_fs = \"none\": the container's root file system reaches the guest through a shared file system only; \
             use shared_fs = \"virtio-fs\"",
        ));
    }
    if abilities.guest_is_process {
        return Ok(SharePlan::Process);
    }
    if !abilities.vhost_user || !abilities.fs_sharing {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "shared_fs = \"virtio-fs\": this hypervisor cannot share a file system; use another hypervisor",
        ));
    }
    let daemon = &config.virtio_fs_daemon;
    if !exists(daemon) {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "shared_fs = \"virtio-fs\": there is no program {}; install virtiofsd, or correct virtio_fs_daemon",
                daemon.display()
            ),
        ));
    }
    Ok(SharePlan::VirtioFs {
        daemon: daemon.clone(),
        cache: match config.virtio_fs_cache {
            VirtioFsCache::Never => "never",
            VirtioFsCache::Metadata => "metadata",
            VirtioFsCache::Auto => "auto",
            VirtioFsCache::Always => "always",
        },
    })
}

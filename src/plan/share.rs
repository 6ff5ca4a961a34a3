//! How directories of the host reach the guest. Pure.

use std::path::Path;

use configuration::{HypervisorConfig, SharedFs, VirtioFsCache};
use hypervisor::Capabilities;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{DisksPlan, SharePlan};

/// The configured way, or none where root file systems can be on block devices.
pub(super) fn choose(
    config: &HypervisorConfig,
    abilities: &Capabilities,
    disks: DisksPlan,
    exists: &dyn Fn(&Path) -> bool,
) -> Result<SharePlan> {
    if config.shared_fs == SharedFs::None {
        return match disks {
            DisksPlan::Plugged => Ok(SharePlan::Nothing),
            DisksPlan::Mounted | DisksPlan::Impossible => Err(Error::new(
                ErrorKind::Unsupported,
                "shared_fs = \"none\": a container's root file system reaches this guest through a shared file system only; \
                 use shared_fs = \"virtio-fs\"",
            )),
        };
    }
    if abilities.guest_is_process {
        return Ok(SharePlan::Process);
    }
    if !abilities.vhost_user || !abilities.fs_sharing {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "shared_fs = \"virtio-fs\": this hypervisor cannot share a file system; use shared_fs = \"none\" and a \
             snapshotter that gives block devices (devmapper, blockfile), or another hypervisor",
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

//! Volumes that the guest has mounted from a disk: how full one is, and how what the disk has on top is taken into use.
//!
//! Must not know who asks.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_client::Agent;
use agent_protocol as p;
use rustix::fs::{CWD, Mode, OFlags, SeekFrom, openat, seek};

use super::Sandbox;
use super::custody::Custody;
use crate::aside::aside;
use crate::error::{Error, ErrorKind, Result};
use crate::{deadlines, guest};

/// A disk that stands for a volume.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    /// What pods call it: paths of the host.
    pub(crate) paths: Vec<PathBuf>,
    /// Name of the disk.
    pub(crate) disk: String,
    /// Where its bytes are: a descriptor that only says which file or device is meant, and does not use it (`O_PATH`).
    pub(crate) place: Arc<OwnedFd>,
    /// Nobody writes to it.
    pub(crate) readonly: bool,
}

/// A volume, and who can be asked about it.
pub(super) struct Access {
    pub(super) volume: Volume,
    pub(super) vm: Custody,
    pub(super) agent: Arc<dyn Agent>,
    pub(super) limit: std::time::Duration,
}

impl Sandbox {
    /// How full a volume is, as the guest has it.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: no container has it; the agent's.
    pub(crate) async fn volume_stats(&self, path: &Path) -> Result<p::VolumeStats> {
        let access = self.access(path).await?;
        let request = p::VolumeRequest {
            mount_point: guest::disk(&access.volume.disk),
            ..Default::default()
        };
        Ok(access.agent.get_volume_stats(request, Some(access.limit)).await?)
    }

    /// Has the guest use a volume's whole disk, which somebody has made larger: it has at least `size` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: no container has it; [`ErrorKind::FailedPrecondition`]: it is smaller, or nobody may write to it; the
    /// driver's, the agent's.
    pub(crate) async fn grow_volume(&self, path: &Path, size: u64) -> Result<p::VolumeStats> {
        let access = self.access(path).await?;
        let refused = |why: String| {
            Error::new(
                ErrorKind::FailedPrecondition,
                format!("the volume {} cannot grow: {why}", path.display()),
            )
        };
        if access.volume.readonly {
            return Err(refused("it is mounted read-only".to_owned()));
        }
        let place = Arc::clone(&access.volume.place);
        let has = aside(access.limit, move |_| bytes(&place)).await?;
        if has < size {
            return Err(refused(format!(
                "its disk has {has} bytes, and not {size}; make the block device or the file larger first"
            )));
        }
        access.vm.grow_disk(access.volume.disk.clone(), has).await?;
        let request = p::ResizeVolumeRequest {
            mount_point: guest::disk(&access.volume.disk),
            size: has,
            ..Default::default()
        };
        let limit = access.limit.max(deadlines::ADMIN_WORK);
        Ok(access.agent.resize_volume(request, Some(limit)).await?)
    }

    async fn access(&self, path: &Path) -> Result<Access> {
        let path = path.to_owned();
        self.ask(move |owner, reply| drop(reply.send(owner.volume(&path))))
            .await
    }
}

/// What there is now of a file or device. Whoever uses it alone keeps nobody from asking.
fn bytes(place: &OwnedFd) -> Result<u64> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    let told = openat(CWD, path, flags, Mode::empty()).and_then(|file| seek(&file, SeekFrom::End(0)));
    told.map_err(|errno| {
        Error::caused(
            ErrorKind::Internal,
            "the size of a volume's disk cannot be told",
            errno,
        )
    })
}

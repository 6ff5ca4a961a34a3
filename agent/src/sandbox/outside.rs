//! What the host asks of the guest outside of its containers: the file systems of disks, and the packet filter. Beside the sandbox's
//! task, because it may take its time.

use std::sync::Arc;

use super::Sandbox;
use super::handle::{Handle, completed};
use crate::error::{Error, Result};
use crate::iptables::{Filter, FilterRequest};
use crate::storage::{GuestPath, Room, Volume};

impl Sandbox {
    /// The file system of a disk that was mounted for a container.
    fn volume(&self, mount_point: &GuestPath) -> Result<Volume> {
        self.ready()?;
        let mounter = &self.workshop.mounter;
        let mut mounts = self.containers.values().flat_map(|entry| &entry.mounts);
        mounts
            .find_map(|mounted| mounter.volume(mounted, mount_point))
            .ok_or_else(|| Error::NoVolume(mount_point.in_guest()))
    }

    fn filter(&self) -> Result<Arc<Filter>> {
        self.ready()?;
        match self.owns_network {
            true => Ok(Arc::clone(&self.filter)),
            false => Err(Error::Unsupported(
                "a packet filter (the agent is a process in its host's network)".to_owned(),
            )),
        }
    }
}

impl Handle {
    /// How full the file system of a disk is.
    ///
    /// # Errors
    /// [`Error::NoVolume`]; the kernel's.
    pub async fn room(&self, mount_point: GuestPath) -> Result<Room> {
        self.call(move |sandbox| sandbox.volume(&mount_point))
            .await?
            .room()
    }

    /// Takes into use what a disk has on top, once it has at least `size` bytes.
    ///
    /// # Errors
    /// [`Error::NoVolume`]; see [`Volume::grow`].
    pub async fn grow_volume(&self, mount_point: GuestPath, size: u64) -> Result<Room> {
        let volume = self.call(move |sandbox| sandbox.volume(&mount_point)).await?;
        completed(async move { volume.grow(size).await }).await
    }

    /// Prints or replaces the rules of the packet filter. `None`: a kit is wanted for it.
    ///
    /// # Errors
    /// See [`Filter::ask`].
    pub async fn filter(&self, request: FilterRequest) -> Result<Option<Vec<u8>>> {
        let filter = self.call(|sandbox| sandbox.filter()).await?;
        completed(async move { filter.ask(request).await }).await
    }
}

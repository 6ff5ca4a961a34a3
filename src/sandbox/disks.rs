//! Which disks are plugged for which container.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use hypervisor::{Device, Disk};

use super::custody::Custody;
use super::volumes::Volume;
use crate::ContainerId;
use crate::error::Result;

/// Names of disks that are plugged for containers, or may be.
#[derive(Debug, Default)]
pub(super) struct Disks {
    of: BTreeMap<ContainerId, Vec<String>>,
    /// Those that stand for volumes.
    volumes: BTreeMap<ContainerId, Vec<Volume>>,
    /// Those of containers that did not come about, which the guest has not let go of.
    left: Arc<Mutex<Vec<String>>>,
}

impl Disks {
    /// Plugs a container's disks. On an error some may be.
    pub(super) fn plug(
        &mut self,
        vm: &Custody,
        id: &ContainerId,
        disks: Vec<Disk>,
    ) -> BoxFuture<'static, Result<()>> {
        // Before they are: one that may be there is unplugged.
        let names = disks.iter().map(|disk| disk.id.clone()).collect();
        self.of.insert(id.clone(), names);
        let (vm, left) = (vm.clone(), Arc::clone(&self.left));
        Box::pin(async move {
            // What they are is in use as long as they are there, and may be what is wanted now.
            let names = std::mem::take(&mut *names_in(&left));
            for name in names {
                if vm.unplug(name.clone()).await.is_err() {
                    names_in(&left).push(name);
                }
            }
            for disk in disks {
                vm.plug(Device::Block(disk)).await?;
            }
            Ok(())
        })
    }

    /// These disks of a container stand for volumes.
    pub(super) fn know(&mut self, id: &ContainerId, volumes: Vec<Volume>) {
        self.volumes.insert(id.clone(), volumes);
    }

    /// The disk that stands for a volume, for whichever container.
    pub(super) fn volume(&self, path: &Path) -> Option<&Volume> {
        let mut volumes = self.volumes.values().flatten();
        volumes.find(|volume| volume.paths.iter().any(|known| known == path))
    }

    /// Unplugs a container's disks, of which the guest has let go. Every one is tried; the first error is told.
    pub(super) fn unplug(&self, vm: &Custody, id: &ContainerId) -> BoxFuture<'static, Result<()>> {
        let names = self.of.get(id).cloned().unwrap_or_default();
        let vm = vm.clone();
        Box::pin(async move {
            let mut result = Ok(());
            for name in names {
                let unplugged = vm.unplug(name).await;
                result = result.and(unplugged);
            }
            result
        })
    }

    /// Not all of a container that did not come about could be unplugged: it is tried again with the next one's.
    pub(super) fn leave(&mut self, id: &ContainerId) {
        let names = self.of.remove(id).unwrap_or_default();
        names_in(&self.left).extend(names);
    }

    /// Nothing is left of a container.
    pub(super) fn forget(&mut self, id: &ContainerId) {
        self.of.remove(id);
        self.volumes.remove(id);
    }
}

fn names_in(left: &Mutex<Vec<String>>) -> MutexGuard<'_, Vec<String>> {
    // Nothing panics while it holds them.
    left.lock().unwrap_or_else(PoisonError::into_inner)
}

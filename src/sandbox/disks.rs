//! Which disks are plugged for which container.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use hypervisor::{Device, Disk};

use super::custody::Custody;
use crate::ContainerId;
use crate::error::Result;

/// Names of disks that are plugged for containers, or may be.
#[derive(Debug, Default)]
pub(super) struct Disks(BTreeMap<ContainerId, Vec<String>>);

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
        self.0.insert(id.clone(), names);
        let vm = vm.clone();
        Box::pin(async move {
            for disk in disks {
                vm.plug(Device::Block(disk)).await?;
            }
            Ok(())
        })
    }

    /// Unplugs a container's disks, of which the guest has let go. Every one is tried; the first error is told.
    pub(super) fn unplug(&self, vm: &Custody, id: &ContainerId) -> BoxFuture<'static, Result<()>> {
        let names = self.0.get(id).cloned().unwrap_or_default();
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

    /// Nothing is left of a container.
    pub(super) fn forget(&mut self, id: &ContainerId) {
        self.0.remove(id);
    }
}

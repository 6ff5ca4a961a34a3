//! Virtual machines are copied where what is saved fits, and booted where it does not. Why not is said once for each start, and
//! kept.

use std::sync::Arc;

use async_trait::async_trait;
use hypervisor::{Boot, Device, Hypervisor, Saved, VmSpec, Vsock};
use slog::{Logger, info, warn};

use super::direct::Direct;
use super::key;
use super::shelf::{Found, Shelf, Use};
use super::{Obtained, VmFactory};
use crate::error::{Error, Result};
use crate::model::TemplatePlan;

/// Copies.
pub(super) struct Template {
    shelf: Shelf,
    hypervisor: Arc<dyn Hypervisor>,
    otherwise: Direct,
    log: Logger,
}

impl Template {
    pub(super) fn new(shelf: Shelf, hypervisor: Arc<dyn Hypervisor>, otherwise: Direct, log: Logger) -> Self {
        Self {
            shelf,
            hypervisor,
            otherwise,
            log,
        }
    }

    /// A copy of what is saved, if that is there and can be trusted.
    async fn copy(&self, spec: &VmSpec, plan: &TemplatePlan) -> Result<Obtained, String> {
        let told = |error: Error| error.chain();
        let template = key::template(spec, plan);
        let key = key::of(&*self.hypervisor, &template).map_err(told)?;
        let Found { memory, state } = match self.shelf.find(&key).map_err(told)? {
            Some(found) => found,
            None => {
                return Err(format!(
                    "there is no template {key}; make it with `kata-runtime factory init`"
                ));
            }
        };
        let (ports, devices) = spec.devices.iter().cloned().partition(|device| {
            matches!(
                device,
                Device::SerialPort(_) | Device::Vsock(Vsock::Hybrid { .. })
            )
        });
        let mut copy = VmSpec {
            devices: ports,
            vcpus: template.vcpus,
            max_vcpus: template.max_vcpus,
            memory: template.memory,
            ..spec.clone()
        };
        copy.memory.backing = spec.memory.backing;
        let saved = Saved {
            memory,
            state,
            devices,
        };
        let launched = self.hypervisor.launch(copy, Boot::Clone(saved)).await;
        let vm = launched.map_err(|error| format!("template {key}: {}", told(error.into())))?;
        info!(self.log, "the virtual machine is a copy"; "template" => &key);
        Ok(Obtained {
            vm,
            size: plan.size,
            agent: None,
        })
    }
}

#[async_trait]
impl VmFactory for Template {
    async fn acquire(&self, spec: VmSpec, template: Option<TemplatePlan>) -> Result<Obtained> {
        let copied = match &template {
            Some(plan) => self.copy(&spec, plan).await,
            None => Err("virtual machines of this hypervisor cannot be saved".to_owned()),
        };
        let used = match &copied {
            Ok(_) => Use::Hit,
            Err(why) => Use::Miss(why),
        };
        // It is for people, and no reason to fail.
        self.shelf.note(used);
        match copied {
            Ok(obtained) => Ok(obtained),
            Err(why) => {
                warn!(self.log, "the virtual machine is booted, and not copied"; "reason" => &why);
                let booted = self.otherwise.acquire(spec, None).await;
                booted.map_err(|error| Error {
                    context: format!("{} (no copy was tried or made before: {why})", error.context),
                    ..error
                })
            }
        }
    }

    fn emulated(&self) -> bool {
        self.hypervisor.capabilities().emulated
    }
}

//! Every virtual machine is booted.

use std::sync::Arc;

use async_trait::async_trait;
use hypervisor::{Boot, Hypervisor, Size, VmSpec};

use super::{Obtained, VmFactory};
use crate::error::Result;
use crate::model::TemplatePlan;

/// Boots.
pub(super) struct Direct {
    hypervisor: Arc<dyn Hypervisor>,
}

impl Direct {
    pub(super) fn new(hypervisor: Arc<dyn Hypervisor>) -> Self {
        Self { hypervisor }
    }
}

#[async_trait]
impl VmFactory for Direct {
    async fn acquire(&self, spec: VmSpec, _: Option<TemplatePlan>) -> Result<Obtained> {
        let size = Size {
            vcpus: spec.vcpus,
            memory_mib: spec.memory.size_mib,
        };
        let vm = self.hypervisor.launch(spec, Boot::Cold).await?;
        Ok(Obtained {
            vm,
            size,
            agent: None,
        })
    }

    fn emulated(&self) -> bool {
        self.hypervisor.capabilities().emulated
    }
}

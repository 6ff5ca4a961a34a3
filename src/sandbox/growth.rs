//! The virtual machine grows with what its containers may use. Nothing is ever taken away: a guest gives memory back when it
//! likes, and what a later container needs is then there already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use agent_client::Agent;
use agent_protocol as p;
use hypervisor::Size;
use oci_spec::runtime::LinuxResources;
use slog::{Logger, info};

use super::custody::Custody;
use crate::ContainerId;
use crate::container::{Container, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::model::{GrowthPlan, Resources};
use crate::oci::Limits;
use crate::plan;

/// What the containers may use, and what the guest has for it.
pub(super) struct Growth {
    plan: GrowthPlan,
    limits: BTreeMap<ContainerId, Limits>,
    /// In use in the guest, as far as it has said so.
    taken: Size,
}

impl Growth {
    /// A virtual machine that has this by now.
    pub(super) fn new(plan: GrowthPlan, taken: Size) -> Self {
        Self {
            taken,
            plan,
            limits: BTreeMap::new(),
        }
    }

    /// A container that is to be created.
    pub(super) fn add(&mut self, id: ContainerId, limits: Limits) {
        self.limits.insert(id, limits);
    }

    /// A container that is gone. What it has made the virtual machine grow by stays.
    pub(super) fn remove(&mut self, id: &ContainerId) {
        self.limits.remove(id);
    }

    /// New limits of a container.
    pub(super) fn update(&mut self, id: &ContainerId, change: &LinuxResources) -> Result<()> {
        if let Some(limits) = self.limits.get_mut(id) {
            *limits = limits.changed(change)?;
        }
        Ok(())
    }

    /// Remembers what the guest has.
    pub(super) fn took(&mut self, size: Size) {
        self.taken.vcpus = self.taken.vcpus.max(size.vcpus);
        self.taken.memory_mib = self.taken.memory_mib.max(size.memory_mib);
    }

    /// What there is to do now. `containers` are the handles to those that exist already.
    pub(super) fn job(&self, containers: &BTreeMap<ContainerId, Option<Container>>) -> Job {
        let consumers = self.limits.iter().map(|(id, limits)| {
            let container = containers.get(id).cloned().flatten();
            (container, limits.workload())
        });
        Job {
            plan: self.plan,
            consumers: consumers.collect(),
            taken: self.taken,
        }
    }
}

/// A growth of the virtual machine, if one is needed.
pub(super) struct Job {
    plan: GrowthPlan,
    consumers: Vec<(Option<Container>, Resources)>,
    taken: Size,
}

impl Job {
    /// Adds what is missing and has the guest take it into use. Answers with what the guest has.
    ///
    /// Two at a time do no harm: each asks for as much as there shall be, and not for more.
    pub(super) async fn run(
        self,
        vm: Custody,
        agent: Arc<dyn Agent>,
        deadline: Duration,
        log: Logger,
    ) -> Result<Size> {
        let mut workloads = Vec::with_capacity(self.consumers.len());
        for (container, workload) in self.consumers {
            if !has_ended(container).await {
                workloads.push(workload);
            }
        }
        let wanted = plan::grown(&self.plan, workloads);
        if wanted.vcpus <= self.taken.vcpus && wanted.memory_mib <= self.taken.memory_mib {
            return Ok(self.taken);
        }
        enlarge(&vm, &*agent, self.plan.started, wanted, deadline, &log)
            .await
            .map_err(failed)
    }
}

/// Has a virtual machine that was started with `started` get what is `wanted`, and the guest take it into use. Answers with what
/// there is then.
pub(super) async fn enlarge(
    vm: &Custody,
    agent: &dyn Agent,
    started: Size,
    wanted: Size,
    deadline: Duration,
    log: &Logger,
) -> Result<Size> {
    info!(log, "the virtual machine grows"; "vcpus" => wanted.vcpus, "memory_mib" => wanted.memory_mib);
    let offered = vm.grow(wanted).await?;
    let request = p::GrowthRequest {
        vcpus: offered.vcpus,
        added_mib: offered.memory_mib.saturating_sub(started.memory_mib),
        ..Default::default()
    };
    let answer = agent.take_growth(request, Some(deadline)).await?;
    // Whatever it says, it has no more than it was given.
    let added = started.memory_mib.saturating_add(answer.added_mib);
    let there = Size {
        vcpus: answer.vcpus.min(offered.vcpus),
        memory_mib: added.min(offered.memory_mib),
    };
    if there != offered {
        return Err(Error::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "the guest uses {} of {} vCPUs and {} of {} MiB of memory, and has not taken the rest in time; its kernel \
                 needs CPU hotplug and virtio_mem",
                there.vcpus, offered.vcpus, there.memory_mib, offered.memory_mib
            ),
        ));
    }
    Ok(there)
}

/// Init containers that are done stay until their pod goes; they use nothing any more.
async fn has_ended(container: Option<Container>) -> bool {
    match container {
        None => false,
        Some(container) => match container.state(None).await {
            Ok(state) => state.status == Status::Stopped,
            Err(error) => error.kind == ErrorKind::NotFound,
        },
    }
}

fn failed(error: Error) -> Error {
    error.while_doing("the virtual machine does not grow with its containers")
}

//! The virtual machine grows with what its containers may use. An update that makes them smaller takes vCPUs out again; memory is
//! never taken away: a guest gives it back when it likes, and what a later container needs is then there already.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent_client::Agent;
use agent_protocol as p;
use hypervisor::Size;
use oci_spec::runtime::LinuxResources;
use slog::{Logger, info, warn};
use tokio::sync::Mutex;

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
    turns: Arc<Turns>,
}

/// One job after the other: what one takes out another may just have counted on.
struct Turns {
    /// Number of the newest job. It alone knows all containers, so that only it may take something out.
    newest: AtomicU64,
    /// What is in use in the guest, as far as it has said so. Whoever holds it is at work.
    taken: Mutex<Size>,
}

impl Growth {
    /// A virtual machine that has this by now.
    pub(super) fn new(plan: GrowthPlan, taken: Size) -> Self {
        Self {
            plan,
            limits: BTreeMap::new(),
            turns: Arc::new(Turns {
                newest: AtomicU64::new(0),
                taken: Mutex::new(taken),
            }),
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

    /// What there is to do now; `shrinks`: also if that is to take something out. `containers` are the handles to those that exist
    /// already.
    pub(super) fn job(&self, containers: &BTreeMap<ContainerId, Option<Container>>, shrinks: bool) -> Job {
        let consumers = self.limits.iter().map(|(id, limits)| {
            let container = containers.get(id).cloned().flatten();
            (container, limits.workload())
        });
        Job {
            plan: self.plan,
            consumers: consumers.collect(),
            number: self.turns.newest.fetch_add(1, Ordering::Relaxed) + 1,
            turns: Arc::clone(&self.turns),
            shrinks,
        }
    }
}

/// A growth of the virtual machine, if one is needed.
pub(super) struct Job {
    plan: GrowthPlan,
    consumers: Vec<(Option<Container>, Resources)>,
    number: u64,
    turns: Arc<Turns>,
    shrinks: bool,
}

impl Job {
    /// Adds what is missing and has the guest take it into use. Takes out what is too much, where that is wanted; that a guest keeps
    /// it is no error, because its limits hold all the same.
    pub(super) async fn run(
        self,
        vm: Custody,
        agent: Arc<dyn Agent>,
        deadline: Duration,
        log: Logger,
    ) -> Result<()> {
        let mut taken = self.turns.taken.lock().await;
        let mut workloads = Vec::with_capacity(self.consumers.len());
        for (container, workload) in self.consumers {
            if !has_ended(container).await {
                workloads.push(workload);
            }
        }
        let wanted = plan::grown(&self.plan, workloads);
        if wanted.vcpus > taken.vcpus || wanted.memory_mib > taken.memory_mib {
            let there = enlarge(&vm, &*agent, self.plan.started, wanted, deadline, &log)
                .await
                .map_err(failed)?;
            taken.vcpus = taken.vcpus.max(there.vcpus);
            taken.memory_mib = taken.memory_mib.max(there.memory_mib);
        }
        let is_newest = self.turns.newest.load(Ordering::Relaxed) == self.number;
        if self.shrinks && is_newest && wanted.vcpus < taken.vcpus {
            reduce(&vm, wanted.vcpus, &mut taken, &log).await;
        }
        Ok(())
    }
}

/// Takes out vCPUs that nobody may use any more.
async fn reduce(vm: &Custody, vcpus: u32, taken: &mut Size, log: &Logger) {
    let Ok((there, shrunk)) = vm.shrink(vcpus).await else {
        // It has ended, or keeps its size.
        return;
    };
    if there.vcpus < taken.vcpus {
        info!(log, "the virtual machine shrinks, and keeps its memory"; "vcpus" => there.vcpus, "memory_mib" => there.memory_mib);
        taken.vcpus = there.vcpus;
    }
    if let Err(error) = shrunk {
        warn!(log, "the guest keeps vCPUs that its containers may not use"; "vcpus" => there.vcpus, "wanted" => vcpus, "error" => error.chain());
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

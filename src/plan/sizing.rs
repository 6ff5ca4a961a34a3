//! vCPUs and memory of a virtual machine. Pure.
//!
//! The rule is Kata's: what the configuration gives every sandbox, for the guest itself, and on top of it what the workload
//! may use, as far as that is known when the sandbox starts (vCPUs rounded up to whole ones), at most the configured maximum.
//! A limit beyond it is no error, as a limit beyond the host's memory is none for `runc`.

use configuration::Config;
use hypervisor::{Capabilities, Size};

use crate::model::{GrowthPlan, Resources};

/// Memory sizes are multiples of this, in MiB: x86 maps 2 MiB at once.
const GRAIN_MIB: u64 = 2;

const MIB: u64 = 1 << 20;

/// What a virtual machine is started with, and how it grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizing {
    pub(super) started: Size,
    pub(super) growth: Option<GrowthPlan>,
}

/// Sizes a virtual machine. It can grow only where the hypervisor can do it and the administrator wants it.
pub(super) fn size(config: &Config, abilities: &Capabilities, workload: Resources) -> Sizing {
    let (base, most) = bounds(config);
    let started = sized(base, most, workload);
    let grows = abilities.resize && !config.runtime.static_sandbox_resource_mgmt;
    Sizing {
        started,
        growth: grows.then_some(GrowthPlan {
            base,
            started,
            most,
            counted: workload,
        }),
    }
}

/// What every sandbox gets, and the most that one can get.
fn bounds(config: &Config) -> (Size, Size) {
    let hypervisor = &config.hypervisor;
    let base = Size {
        vcpus: hypervisor.default_vcpus,
        memory_mib: hypervisor.default_memory_mib,
    };
    // The default may be above the maximum: then it is the maximum.
    let most = Size {
        vcpus: hypervisor.default_maxvcpus.max(hypervisor.default_vcpus).max(1),
        memory_mib: hypervisor
            .default_maxmemory_mib
            .max(hypervisor.default_memory_mib)
            .next_multiple_of(GRAIN_MIB),
    };
    (base, most)
}

/// What a virtual machine has that is saved for whoever comes, and the most that its copies can have.
pub(super) fn saved(config: &Config) -> (Size, Size) {
    let (base, most) = bounds(config);
    (sized(base, most, Resources::default()), most)
}

/// What a virtual machine is to have for these containers: what was counted at its start is for all of them, so only what
/// they may use beyond it comes on top.
pub(super) fn grown(plan: &GrowthPlan, containers: impl IntoIterator<Item = Resources>) -> Size {
    let mut sum = Resources::default();
    for container in containers {
        sum = Resources {
            cpu_millis: added(sum.cpu_millis, container.cpu_millis),
            memory_bytes: added(sum.memory_bytes, container.memory_bytes),
        };
    }
    let workload = Resources {
        cpu_millis: sum.cpu_millis.max(plan.counted.cpu_millis),
        memory_bytes: sum.memory_bytes.max(plan.counted.memory_bytes),
    };
    sized(plan.base, plan.most, workload)
}

fn added(sum: Option<u64>, more: Option<u64>) -> Option<u64> {
    match (sum, more) {
        (None, more) => more,
        (sum, None) => sum,
        (Some(sum), Some(more)) => Some(sum.saturating_add(more)),
    }
}

fn sized(base: Size, most: Size, workload: Resources) -> Size {
    let vcpus = workload.cpu_millis.unwrap_or(0).div_ceil(1000);
    let vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
    let memory_mib = workload.memory_bytes.unwrap_or(0).div_ceil(MIB);
    Size {
        vcpus: base.vcpus.saturating_add(vcpus).clamp(1, most.vcpus),
        memory_mib: base
            .memory_mib
            .saturating_add(memory_mib)
            .min(most.memory_mib)
            .next_multiple_of(GRAIN_MIB),
    }
}

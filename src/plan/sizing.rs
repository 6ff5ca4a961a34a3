//! vCPUs and memory of a virtual machine. Pure.
//!
//! The rule is Kata's: what the configuration gives every sandbox, for the guest itself, and on top of it what the workload
//! may use, as far as that is known when the sandbox starts (vCPUs rounded up to whole ones), at most the configured maximum.
//! A limit beyond it is no error, as a limit beyond the host's memory is none for `runc`.

use configuration::Config;
use hypervisor::Capabilities;

use crate::model::Resources;

/// Memory sizes are multiples of this, in MiB: x86 maps 2 MiB at once.
const GRAIN_MIB: u64 = 2;

const MIB: u64 = 1 << 20;

/// What a virtual machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) vcpus: u32,
    pub(super) max_vcpus: u32,
    pub(super) memory_mib: u64,
    pub(super) max_memory_mib: u64,
}

/// Sizes a virtual machine. It can grow only where the hypervisor can do it and the administrator wants it.
pub(super) fn size(config: &Config, abilities: &Capabilities, workload: Resources) -> Size {
    let hypervisor = &config.hypervisor;
    // The default may be above the maximum: then it is the maximum.
    let most_vcpus = hypervisor.default_maxvcpus.max(hypervisor.default_vcpus).max(1);
    let wanted = workload.cpu_millis.unwrap_or(0).div_ceil(1000);
    let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
    let vcpus = hypervisor
        .default_vcpus
        .saturating_add(wanted)
        .clamp(1, most_vcpus);

    let most_mib = hypervisor
        .default_maxmemory_mib
        .max(hypervisor.default_memory_mib);
    let wanted = workload.memory_bytes.unwrap_or(0).div_ceil(MIB);
    let memory_mib = hypervisor
        .default_memory_mib
        .saturating_add(wanted)
        .min(most_mib)
        .next_multiple_of(GRAIN_MIB);

    let grows = abilities.resize && !config.runtime.static_sandbox_resource_mgmt;
    Size {
        vcpus,
        max_vcpus: if grows { most_vcpus } else { vcpus },
        memory_mib,
        max_memory_mib: if grows {
            most_mib.max(memory_mib)
        } else {
            memory_mib
        },
    }
}

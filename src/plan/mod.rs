//! Configuration, model and abilities become a plan, or the reason why they can't. Pure: unsupported combinations end here,
//! before any side effect.

mod cgroup;
mod channel;
mod container;
mod copies;
mod devices;
mod disks;
mod hooks;
mod limits;
mod memory;
mod mounts;
mod namespaces;
mod share;
mod sizing;
#[cfg(test)]
mod tests;
mod volumes;

use std::path::{Path, PathBuf};

use configuration::{Config, NetworkModel, SharedFs};
use hypervisor::{Capabilities, Memory, MemoryBacking, Size};
use oci_spec::runtime::LinuxResources;

pub use volumes::Volumes;

use crate::error::{Error, ErrorKind, Result};
use crate::guest;
use crate::model::{
    ChannelPlan, ContainerConfig, ContainerPlan, ContainerType, GrowthPlan, HostLabels, NetworkNamespace,
    NetworkPlan, Resources, SandboxConfig, SandboxPlan, SharePlan, TemplatePlan,
};
use sizing::Sizing;

/// Plans a sandbox. `exists` tells whether a program of the configuration is there, so that what is missing is passed over
/// where there is a choice, and named where there is none.
///
/// # Errors
/// The combination cannot work; the error names the keys and the remedy.
pub fn sandbox(
    config: &Config,
    sandbox: &SandboxConfig,
    abilities: &Capabilities,
    exists: &dyn Fn(&Path) -> bool,
) -> Result<SandboxPlan> {
    let hypervisor = &config.hypervisor;
    let disks = disks::choose(hypervisor, abilities);
    let share = share::choose(hypervisor, abilities, disks, exists)?;
    let channel = channel::choose(config, abilities, exists)?;
    let Sizing { started, growth } = sizing::size(config, abilities, sandbox.resources);
    let most = growth.map_or(started, |growth| growth.most);
    let template = (config.factory.is_on() && abilities.snapshots).then(|| template(config, abilities));
    let grows = growth.is_some() || template.is_some_and(|template| template.size != started);
    // vhost-user daemons map the guest's memory too.
    let is_shared =
        matches!(share, SharePlan::VirtioFs { .. }) || matches!(channel, ChannelPlan::DaemonVsock(_));
    let guest = guest::create_sandbox(sandbox, share != SharePlan::Nothing, grows);
    Ok(SandboxPlan {
        id: sandbox.id.clone(),
        kernel: hypervisor.kernel.clone(),
        initrd: hypervisor.initrd.clone(),
        kernel_params: kernel_params(config, abilities),
        vcpus: started.vcpus,
        max_vcpus: most.vcpus,
        memory: Memory {
            size_mib: started.memory_mib,
            max_mib: most.memory_mib,
            backing: if is_shared {
                MemoryBacking::Shared
            } else {
                MemoryBacking::Private
            },
        },
        growth,
        template,
        channel,
        share,
        disks,
        network: network(config, sandbox, abilities, started.vcpus)?,
        cgroup: cgroup::choose(config, sandbox),
        labels: labels(config, sandbox),
        is_alone: sandbox.is_alone,
        guest,
    })
}

/// Plans the virtual machine that is saved, for every sandbox to be a copy of.
pub fn template(config: &Config, abilities: &Capabilities) -> TemplatePlan {
    let (size, most) = sizing::saved(config);
    TemplatePlan {
        size,
        most,
        shares: abilities.saves_shares && config.hypervisor.shared_fs != SharedFs::None,
    }
}

/// Parameters of the guest's kernel, but for the channel to the agent.
pub(crate) fn kernel_params(config: &Config, abilities: &Capabilities) -> Vec<String> {
    let mut params = Vec::new();
    if abilities.emulated {
        // The configuration may name another factor: the last one counts.
        params.push(guest::AGENT_PATIENCE.to_owned());
    }
    params.extend_from_slice(&config.hypervisor.kernel_params);
    if config.agent.enable_debug {
        params.push(guest::AGENT_DEBUG.to_owned());
    }
    params
}

/// Labels of the processes on the host.
fn labels(config: &Config, sandbox: &SandboxConfig) -> HostLabels {
    let mut labels = sandbox.labels.clone();
    if config.hypervisor.disable_selinux {
        labels.selinux.clear();
    }
    labels
}

/// Plans the network, where the pod has one of its own and the administrator lets it have it. A single container that has the host's gets none; but a pod that asks for
/// the host's relies on it: its containers serve there, or configure it.
fn network(
    config: &Config,
    sandbox: &SandboxConfig,
    abilities: &Capabilities,
    vcpus: u32,
) -> Result<Option<NetworkPlan>> {
    let is_new = sandbox.network_namespace == NetworkNamespace::New;
    let namespace = match &sandbox.network_namespace {
        NetworkNamespace::Host
            if sandbox.container_type == ContainerType::PodSandbox && !abilities.guest_is_process =>
        {
            return Err(unsupported(
                "linux.namespaces",
                "the pod asks for the host's network (hostNetwork: true), which a virtual machine cannot share; \
                 leave that out, or run the pod with another runtime class, such as runc's",
            ));
        }
        _ if config.runtime.disable_new_netns => return Ok(None),
        NetworkNamespace::Host => return Ok(None),
        NetworkNamespace::New => None,
        NetworkNamespace::Existing(path) => Some(path.clone()),
    };
    Ok(Some(NetworkPlan {
        namespace,
        // A guest that is a process of the host has the pod's network by being in its namespace.
        model: if abilities.guest_is_process {
            NetworkModel::None
        } else {
            config.runtime.internetworking_model
        },
        queues: if abilities.multiqueue { vcpus } else { 1 },
        localhost: !abilities.guest_is_process,
        // Nobody else puts interfaces into a namespace that is there already once its pod is created.
        late: is_new || sandbox.network_may_change,
    }))
}

/// Plans a container in a sandbox that shares this already.
///
/// # Errors
/// The container cannot run there; the error names the field.
pub fn container(
    config: &Config,
    sandbox: &SandboxPlan,
    container: &ContainerConfig,
    volumes: &Volumes,
) -> Result<ContainerPlan> {
    container::plan(config, sandbox, container, volumes)
}

/// The paths of the host that a container mounts: where to look before it is planned.
///
/// # Errors
/// Mounts that cannot be planned whatever is there.
pub fn sources(container: &ContainerConfig) -> Result<Vec<PathBuf>> {
    mounts::sources(container)
}

/// What a virtual machine is to have for containers with these limits.
pub(crate) fn grown(plan: &GrowthPlan, containers: impl IntoIterator<Item = Resources>) -> Size {
    sizing::grown(plan, containers)
}

/// The limits of an update as the guest is to apply them. What a guest has no counterpart of is left out, as at creation.
pub fn update(limits: &LinuxResources) -> LinuxResources {
    limits::for_guest(limits)
}

/// A field asks for what a guest cannot give.
fn unsupported(field: impl std::fmt::Display, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Unsupported, format!("config.json: {field}: {what}"))
}

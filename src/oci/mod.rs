//! An OCI bundle's specification becomes what the planner understands. Pure.
//!
//! Must not know what the host or a driver can do.

mod cgroup;
mod check;
mod container_type;
mod dns;
mod env;
#[cfg(test)]
mod fuzzed;
mod kernel;
mod load;
mod pod;
mod resources;
mod state;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

pub use container_type::{
    Annotations, CRI_CONTAINER_TYPE_KEYS, CRI_CONTAINER_TYPES, CRI_SANDBOX_NAME_KEYS, container_type,
    sandbox_id,
};
pub(crate) use env::variables;
pub use env::{EnvVar, env_vars};
pub use kernel::{KERNEL_MODULES_SEPARATOR, SANDBOX_CONFIG_PATH_KEY, add_kernel_param, sandbox_config_path};
pub use load::{MAX_BYTES, MAX_MOUNTS, annotations, load, process, resources};
pub use pod::pod;
pub(crate) use resources::Limits;
pub use state::{
    ContainerStatus, OCI_VERSION, State, get_oci_config, state_to_oci_state, status_to_oci_state,
};
/// Kata's names of the two conversions.
pub use {container as container_config, sandbox as sandbox_config};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{ContainerConfig, ContainerType, HostCgroup, HostLabels, NetworkNamespace, SandboxConfig};
use crate::sandbox::RootfsMount;
use crate::{ContainerId, SandboxId};

/// What a sandbox's first specification says of the sandbox. `resolv_conf` is the text of the file that it mounts over
/// `/etc/resolv.conf`, where it mounts one.
///
/// Its sysctls are all the sandbox's: the virtual machine's kernel is the sandbox's own, and has one namespace of each
/// kind that sysctls belong to, which every container shares that does not ask for its own.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn sandbox(id: &SandboxId, spec: &Spec, resolv_conf: Option<&str>) -> Result<SandboxConfig> {
    let annotations = annotations_of(spec);
    let container_type = match container_type(&annotations)? {
        // One of a pod that nothing holds together but its name: podman's `pod create --infra=false`.
        ContainerType::PodContainer => ContainerType::SingleContainer,
        container_type => container_type,
    };
    let linux = spec.linux().as_ref();
    Ok(SandboxConfig {
        id: id.clone(),
        container_type,
        is_alone: false,
        hostname: spec.hostname().clone().unwrap_or_default(),
        dns: resolv_conf.map(dns::parse).unwrap_or_default(),
        shm_size: resources::shm_size(spec)?,
        sysctls: linux
            .and_then(|linux| linux.sysctl().clone())
            .unwrap_or_default()
            .into_iter()
            .collect(),
        resources: resources::of_sandbox(spec, container_type, &annotations)?,
        network_namespace: network_namespace(spec),
        cgroup: cgroup(spec)?,
        network_may_change: network_may_change(spec),
        labels: labels(spec),
        annotations,
    })
}

/// Where a container's cgroup on the host is to be; `None`: its caller names none.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`]: `linux.cgroupsPath` is no place for one.
pub fn cgroup(spec: &Spec) -> Result<Option<HostCgroup>> {
    match spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref())
    {
        Some(path) => cgroup::parse(path),
        None => Ok(None),
    }
}

/// One container of its caller's request. `bundle` is absolute.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn container(
    id: &ContainerId,
    spec: Spec,
    bundle: PathBuf,
    rootfs: Vec<RootfsMount>,
) -> Result<ContainerConfig> {
    if !bundle.is_absolute() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "bundle {} of container {id} is not an absolute path",
                bundle.display()
            ),
        ));
    }
    Ok(ContainerConfig {
        id: id.clone(),
        directory: id.to_string(),
        container_type: container_type(&annotations_of(&spec))?,
        spec,
        bundle,
        rootfs,
        found: BTreeMap::new(),
        number: 0,
    })
}

fn annotations_of(spec: &Spec) -> Annotations {
    spec.annotations()
        .iter()
        .flatten()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn labels(spec: &Spec) -> HostLabels {
    let process = spec.process().as_ref();
    let said = |label: Option<&Option<String>>| label.cloned().flatten().unwrap_or_default();
    HostLabels {
        selinux: said(process.map(|process| process.selinux_label())),
        apparmor: said(process.map(|process| process.apparmor_profile())),
    }
}

/// Docker names `/proc/0/ns/net` for a namespace that does not exist yet.
fn network_namespace(spec: &Spec) -> NetworkNamespace {
    let namespaces = spec.linux().iter().flat_map(|linux| linux.namespaces());
    let network = namespaces
        .flatten()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network);
    match network.map(|namespace| namespace.path().clone().unwrap_or_default()) {
        None => NetworkNamespace::Host,
        Some(path) if path.as_os_str().is_empty() || path.as_os_str() == "/proc/0/ns/net" => {
            NetworkNamespace::New
        }
        Some(path) => NetworkNamespace::Existing(path),
    }
}

/// Whether hooks run between a sandbox's start and its first container's.
fn network_may_change(spec: &Spec) -> bool {
    let hooks = spec.hooks().iter();
    hooks
        .flat_map(|hooks| [hooks.prestart(), hooks.create_runtime(), hooks.create_container()])
        .any(|list| list.iter().flatten().next().is_some())
}

/// An error about a field of `config.json`.
fn invalid(field: impl std::fmt::Display, what: impl std::fmt::Display) -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        format!("config.json: {field}: {what}"),
    )
}

/// A text of a caller's, quoted and short enough for an error.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 120;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

//! An OCI bundle's specification becomes what the planner understands. Pure.
//!
//! Must not know what the host or a driver can do.

mod check;
mod container_type;
mod dns;
mod load;
mod resources;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespaceType, Spec};

pub use container_type::{
    Annotations, CRI_CONTAINER_TYPE_KEYS, CRI_CONTAINER_TYPES, CRI_SANDBOX_NAME_KEYS, container_type,
    sandbox_id,
};
pub use load::{MAX_BYTES, MAX_MOUNTS, annotations, load};

use crate::error::{Error, ErrorKind, Result};
use crate::model::{ContainerConfig, SandboxConfig};
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
    let none = Annotations::new();
    let annotations = spec.annotations().as_ref().unwrap_or(&none);
    let container_type = container_type(annotations)?;
    let linux = spec.linux().as_ref();
    Ok(SandboxConfig {
        id: id.clone(),
        container_type,
        hostname: spec.hostname().clone().unwrap_or_default(),
        dns: resolv_conf.map(dns::parse).unwrap_or_default(),
        shm_size: resources::shm_size(spec)?,
        sysctls: linux
            .and_then(|linux| linux.sysctl().clone())
            .unwrap_or_default()
            .into_iter()
            .collect(),
        resources: resources::of_sandbox(spec, container_type, annotations)?,
        network_namespace: network_namespace(spec),
        annotations: annotations.clone().into_iter().collect(),
    })
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
    let container_type = match spec.annotations() {
        Some(annotations) => container_type(annotations)?,
        None => crate::model::ContainerType::SingleContainer,
    };
    Ok(ContainerConfig {
        id: id.clone(),
        container_type,
        spec,
        bundle,
        rootfs,
    })
}

/// The network namespace that somebody prepared. Docker names `/proc/0/ns/net` for one that does not exist yet.
fn network_namespace(spec: &Spec) -> Option<PathBuf> {
    spec.linux()
        .as_ref()?
        .namespaces()
        .iter()
        .flatten()
        .find(|namespace| namespace.typ() == LinuxNamespaceType::Network)?
        .path()
        .clone()
        .filter(|path| !path.as_os_str().is_empty() && path.as_os_str() != "/proc/0/ns/net")
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

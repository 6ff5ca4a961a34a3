//! An OCI bundle's specification becomes what the planner understands. Pure.
//!
//! Must not know what the host or a driver can do.

use std::path::PathBuf;

use oci_spec::runtime::Spec;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{ContainerConfig, SandboxConfig};
use crate::sandbox::RootfsMount;
use crate::{ContainerId, SandboxId};

/// Reads a specification.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn load(_config_json: &[u8]) -> Result<Spec> {
    Err(Error::new(ErrorKind::Unsupported, "not built"))
}

/// What a sandbox's first specification says of the sandbox. `resolv_conf` is the text of the file that it mounts over
/// `/etc/resolv.conf`, where it mounts one.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn sandbox(_id: &SandboxId, _spec: &Spec, _resolv_conf: Option<&str>) -> Result<SandboxConfig> {
    Err(Error::new(ErrorKind::Unsupported, "not built"))
}

/// One container of its caller's request. `bundle` is absolute.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], naming the field.
pub fn container(
    _id: &ContainerId,
    _spec: Spec,
    _bundle: PathBuf,
    _rootfs: Vec<RootfsMount>,
) -> Result<ContainerConfig> {
    Err(Error::new(ErrorKind::Unsupported, "not built"))
}

//! Configuration, model and abilities become a plan, or the reason why they can't. Pure: unsupported combinations end here,
//! before any side effect.

use configuration::Config;
use hypervisor::Capabilities;

use crate::error::{Error, ErrorKind, Result};
use crate::model::{ContainerConfig, ContainerPlan, SandboxConfig, SandboxPlan};

/// Plans a sandbox. `exists` tells whether a program of the configuration is there, so that what is missing is passed over
/// where there is a choice, and named where there is none.
///
/// # Errors
/// The combination cannot work; the error names the keys and the remedy.
pub fn sandbox(
    _config: &Config,
    _sandbox: &SandboxConfig,
    _abilities: &Capabilities,
    _exists: &dyn Fn(&std::path::Path) -> bool,
) -> Result<SandboxPlan> {
    Err(Error::new(ErrorKind::Unsupported, "not built"))
}

/// Plans a container in a sandbox.
///
/// # Errors
/// The container cannot run there; the error names the field.
pub fn container(
    _config: &Config,
    _sandbox: &SandboxPlan,
    _container: &ContainerConfig,
) -> Result<ContainerPlan> {
    Err(Error::new(ErrorKind::Unsupported, "not built"))
}

//! Which hooks of a specification run where. Pure.
//!
//! Those of the runtime's namespaces run on the host, around the virtual machine; those of the container's namespaces whose
//! program is the container's own run in the guest. A `createContainer` hook is a program of the host that acts in the
//! container's namespaces. With two kernels it has those that the host knows: the container's mounts and its network.

use std::path::PathBuf;
use std::time::Duration;

use oci_spec::runtime::{Hook, Hooks, HooksBuilder, Spec};

use super::unsupported;
use crate::error::{Error, ErrorKind, Result};
use crate::model::{ContainerConfig, HookPlan, HooksPlan};
use crate::oci;

/// The host's. `on_disk`: the root file system is the guest's to mount, and nowhere on the host.
///
/// # Errors
/// A hook that cannot run anywhere, or whose environment is none.
pub(super) fn on_host(container: &ContainerConfig, on_disk: bool) -> Result<HooksPlan> {
    let spec = &container.spec;
    let none = Hooks::default();
    let hooks = spec.hooks().as_ref().unwrap_or(&none);
    if on_disk && let Some(hook) = hooks.create_container().iter().flatten().next() {
        return Err(unsupported(
            "hooks.createContainer[0]",
            format_args!(
                "{}: it acts in the container's root file system, which is on a block device that only the guest mounts; use \
                 startContainer, which runs a program of the container's, or have the host mount the device and share it \
                 (disable_block_device_use = true)",
                oci::shown(&hook.path().to_string_lossy())
            ),
        ));
    }
    let mut create = list("prestart", hooks.prestart())?;
    create.extend(list("createRuntime", hooks.create_runtime())?);
    let annotations = spec.annotations().iter().flatten();
    Ok(HooksPlan {
        create,
        container: list("createContainer", hooks.create_container())?,
        poststart: list("poststart", hooks.poststart())?,
        poststop: list("poststop", hooks.poststop())?,
        version: spec.version().clone(),
        bundle: container.bundle.clone(),
        annotations: annotations
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect(),
    })
}

/// The guest's.
pub(super) fn in_guest(spec: &Spec) -> Result<Option<Hooks>> {
    let Some(hooks) = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.start_container().clone())
    else {
        return Ok(None);
    };
    let hooks = HooksBuilder::default().start_container(hooks).build();
    hooks
        .map(Some)
        .map_err(|cause| Error::caused(ErrorKind::Internal, "hooks for the guest", cause))
}

fn list(kind: &str, hooks: &Option<Vec<Hook>>) -> Result<Vec<HookPlan>> {
    let hooks = hooks.iter().flatten().enumerate();
    hooks
        .map(|(index, hook)| {
            let name = format!("hooks.{kind}[{index}]");
            let env = oci::variables(&format!("{name}.env"), hook.env().iter().flatten())?;
            Ok(HookPlan {
                path: PathBuf::clone(hook.path()),
                args: hook.args().clone().unwrap_or_default(),
                env,
                timeout: hook
                    .timeout()
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map(Duration::from_secs),
                name,
            })
        })
        .collect()
}

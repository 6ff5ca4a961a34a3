//! The cgroup of a sandbox's processes on the host. Pure.
//!
//! No limit is planned: those of a pod are on the directories above, where whoever made the pod has put them, and those of
//! each container are the guest's to keep.

use std::path::Path;

use configuration::Config;

use crate::model::{CgroupPlan, SandboxConfig};

/// Where sandboxes are that do not count as their pods'.
const APART: &str = "kata_overhead";

/// Chooses it. `None`: the caller names no cgroup, and what it does not ask for is not made.
///
/// `sandbox_cgroup_only` means that what the virtual machine and its daemons cost is the pod's. Without it they are in a tree
/// of their own, under the name that the pod has in the other one, and no limit of the pod's holds for them.
///
/// The processes are not in the directory that is named but below it: others may be named the same one, version 2 wants no
/// processes where directories are, and what runs in a sandbox's own can be ended without a thought of others.
pub(super) fn choose(config: &Config, sandbox: &SandboxConfig) -> Option<CgroupPlan> {
    // systemd is not asked to make one.
    let asked = sandbox.cgroup.as_ref()?.directory();
    let is_apart = !config.runtime.sandbox_cgroup_only;
    Some(CgroupPlan {
        path: match is_apart {
            true => Path::new(APART).join(asked),
            false => asked,
        },
        name: format!("kata_{}", sandbox.id),
        is_apart,
    })
}

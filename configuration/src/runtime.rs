//! `[runtime]`: what the shim does on the host.

use std::path::PathBuf;

use crate::hypervisor::HypervisorKind;
use crate::kinds::{Flag, HostPath, Kind, OneOf, Shape, Word};
use crate::settings::settings;
use crate::tree::Value;

/// The dotted name of the table.
pub(crate) const TABLE: &str = "runtime";

/// How the pod's network reaches the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkModel {
    /// tc filters mirror packets between the pod's interface and a tap.
    TcFilter,
    /// A macvtap on top of the pod's interface.
    Macvtap,
    /// The guest gets no interface.
    None,
}

impl Word for NetworkModel {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("tcfilter", Self::TcFilter),
        ("macvtap", Self::Macvtap),
        ("none", Self::None),
    ];
}

settings! {
    /// What of `[runtime]` decides how the rest is read.
    pub(crate) struct Selection() {
        /// Which hypervisor to use if there are tables of several. "": the one that has a table, else `qemu`.
        hypervisor_name: HypervisorName = "" => hypervisor: Option<HypervisorKind>;
    }
}

settings! {
    /// `[runtime]`, validated.
    pub struct RuntimeConfig() {
        /// Log at debug level.
        enable_debug: Flag = false => enable_debug: bool, pod "runtime.enable_debug";

        /// How the pod's network reaches the guest. `tcfilter`: tc filters mirror packets between the pod's interface and
        /// a tap. `macvtap`: a macvtap on top of the pod's interface. `none`: the guest gets no interface.
        internetworking_model: OneOf<NetworkModel> = "tcfilter" => internetworking_model: NetworkModel,
            pod "runtime.internetworking_model";

        /// Drop the seccomp profiles of containers instead of applying them in the guest.
        disable_guest_seccomp: Flag = false => disable_guest_seccomp: bool, pod "runtime.disable_guest_seccomp";

        /// Put the VMM and its daemons into the pod's cgroup, so that what the sandbox costs counts as the pod's and the
        /// pod's limits hold for it: they have to leave room for a VM. Else it is in a cgroup below `kata_overhead`, where
        /// nothing limits it.
        sandbox_cgroup_only: Flag = true => sandbox_cgroup_only: bool, pod "runtime.sandbox_cgroup_only";

        /// Size the VM once, at its creation, from the limits that are known then; else it grows with its containers and
        /// their updates, up to `default_maxvcpus` and `default_maxmemory`, which needs a machine with hotplug.
        static_sandbox_resource_mgmt: Flag = true => static_sandbox_resource_mgmt: bool,
            pod "runtime.static_sandbox_resource_mgmt";

        /// Where records, sockets and shared directories of sandboxes are. A short path: those of sockets are limited.
        run_dir: HostPath = "/run/kata" => run_dir: PathBuf;
    }
}

/// A hypervisor's name, or none.
pub(crate) struct HypervisorName;

impl Kind for HypervisorName {
    type Value = Option<HypervisorKind>;
    const SHAPE: Shape = Shape::Text;
    fn takes() -> String {
        format!("{}, or \"\" for the only one", OneOf::<HypervisorKind>::takes())
    }
    fn read(value: &Value) -> Result<Self::Value, String> {
        match value {
            Value::Text(text) if text.is_empty() => Ok(None),
            _ => OneOf::<HypervisorKind>::read(value).map(Some),
        }
    }
}

//! `[runtime]`: what the shim does on the host.

use std::path::PathBuf;

use crate::hypervisor::HypervisorKind;
use crate::kinds::{Features, Flag, HostPath, Kind, Number, OneOf, Shape, Word};
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

/// A feature that is not ready for everybody, and is there for whoever names it. There is none at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Experiment {}

impl Word for Experiment {
    const WORDS: &'static [(&'static str, Self)] = &[];
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

        /// Make no network namespace, and leave the VMM in the host's, whatever namespace the sandbox is given: then whoever
        /// gets out of a guest has the host's network. Only with `internetworking_model = "none"`; the guest
        /// has no network, and ports of it cannot be forwarded.
        disable_new_netns: Flag = false => disable_new_netns: bool, pod "runtime.disable_new_netns";

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

        /// Let a container that has `KATA_AGENT_PIDNS=true` in its environment see and signal every process of the guest, the agent
        /// among them: it has the agent's pid namespace. Only for finding out what is wrong with a guest, because such a
        /// container can do to its pod whatever the agent can.
        enable_agent_pidns: Flag = false => enable_agent_pidns: bool;

        /// Features that are not ready for everybody and are wanted all the same.
        experimental: Features<Experiment> = [] => experimental: Vec<Experiment>;

        /// Write what is done for each sandbox, and how long it takes, into a file of `trace_directory`: spans, in the form that
        /// OpenTelemetry's collector reads (`otlpjsonfile`).
        enable_tracing: Flag = false => enable_tracing: bool;

        /// Where traces are, a file for each sandbox, made if it is not there. Nobody else removes them.
        trace_directory: HostPath = "/var/log/kata/traces" => trace_directory: PathBuf;

        /// The most that the trace of a sandbox takes, in MiB. What comes later is left out and counted.
        trace_max_size: Number<1, 4096, u64> = 8 => trace_max_size_mib: u64;

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

//! The validated configuration: what the rest of the program sees. No strings that still need parsing, no invalid
//! combination. Built only by this crate's loader.

use std::path::PathBuf;
use std::time::Duration;

/// Everything an administrator can set, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The files it was read from, in the order they were merged.
    pub sources: Vec<PathBuf>,
    /// `[hypervisor.<name>]` of the hypervisor in use.
    pub hypervisor: HypervisorConfig,
    /// `[agent.kata]`.
    pub agent: AgentConfig,
    /// `[runtime]`.
    pub runtime: RuntimeConfig,
}

/// Which virtual machine monitor runs the sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HypervisorKind {
    /// QEMU (`[hypervisor.qemu]`).
    Qemu,
    /// No virtual machine: the agent runs as a process on the host (`[hypervisor.fake]`; for tests only, isolates nothing).
    Fake,
}

/// QEMU machine types that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineType {
    /// PCI Express machine; devices, vCPUs and memory can be plugged while it runs.
    Q35,
    /// Minimal machine with virtio-mmio devices; boots faster, no hotplug.
    Microvm,
}

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// KVM if a probe shows that it really runs guest code at speed, else TCG.
    Auto,
    /// Hardware virtualization; an error where it does not work.
    Kvm,
    /// QEMU's translator; works everywhere, slower.
    Tcg,
}

/// How directories of the host reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedFs {
    /// virtio-fs, by a virtiofsd process per sandbox.
    VirtioFs,
    /// Nothing is shared.
    None,
}

/// virtiofsd's `--cache` policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtioFsCache {
    /// Nothing is cached in the guest.
    Never,
    /// Only metadata.
    Metadata,
    /// Metadata and, while files are open, data.
    Auto,
    /// Everything, as if nobody else changed the files.
    Always,
}

/// The byte stream between host and agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChannel {
    /// The best one that the host has: kernel vsock, else vhost-user vsock, else virtio-serial.
    Auto,
    /// Kernel vhost-vsock (`/dev/vhost-vsock`).
    Vsock,
    /// vsock by the `vhost-device-vsock` daemon; needs shared guest memory.
    VhostUserVsock,
    /// A virtio-serial port; needs nothing of the host.
    VirtioSerial,
}

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

/// `[hypervisor.<name>]`, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct HypervisorConfig {
    /// Which one.
    pub kind: HypervisorKind,
    /// The VMM's program (for `fake`: the agent's program).
    pub path: PathBuf,
    /// Guest kernel: an uncompressed PVH `vmlinux` or a bzImage.
    pub kernel: PathBuf,
    /// Guest initramfs with the agent as `/init`.
    pub initrd: PathBuf,
    /// Appended to our own kernel parameters.
    pub kernel_params: Vec<String>,
    /// QEMU's machine.
    pub machine_type: MachineType,
    /// How guest code is executed.
    pub accelerator: Accelerator,
    /// Appended to QEMU's `-cpu` model (`pmu=off` …).
    pub cpu_features: Vec<String>,
    /// vCPUs of a sandbox without limits.
    pub default_vcpus: u32,
    /// Upper bound for hotplug.
    pub default_maxvcpus: u32,
    /// Memory of a sandbox without limits, MiB.
    pub default_memory_mib: u64,
    /// Upper bound for hotplug, MiB.
    pub default_maxmemory_mib: u64,
    /// How directories reach the guest.
    pub shared_fs: SharedFs,
    /// virtiofsd's program.
    pub virtio_fs_daemon: PathBuf,
    /// virtiofsd's cache policy.
    pub virtio_fs_cache: VirtioFsCache,
    /// Program of the vhost-user vsock daemon.
    pub vhost_user_vsock_daemon: PathBuf,
    /// QEMU's `-sandbox` is on unless the administrator turned it off.
    pub seccomp_sandbox: bool,
    /// Guest console and VMM messages are logged at debug level too.
    pub enable_debug: bool,
    /// Annotations (without the prefix `io.katacontainers.config.hypervisor.`) that a pod may set.
    pub enable_annotations: Vec<String>,
}

/// `[agent.kata]`, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// Which channel to use.
    pub channel: AgentChannel,
    /// How long the guest may take from VMM start to the agent's greeting.
    pub dial_timeout: Duration,
    /// How long an ordinary request may take.
    pub request_timeout: Duration,
    /// How long creating a container in the guest may take.
    pub create_container_timeout: Duration,
    /// Agent logs at debug level.
    pub enable_debug: bool,
}

/// `[runtime]`, validated.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeConfig {
    /// Our own logs at debug level.
    pub enable_debug: bool,
    /// How the pod's network reaches the guest.
    pub internetworking_model: NetworkModel,
    /// Drop seccomp profiles instead of applying them in the guest.
    pub disable_guest_seccomp: bool,
    /// All our host processes in the pod's cgroup.
    pub sandbox_cgroup_only: bool,
    /// The VM is sized once, at creation.
    pub static_sandbox_resource_mgmt: bool,
    /// Where records, sockets and shares of sandboxes live.
    pub run_dir: PathBuf,
}

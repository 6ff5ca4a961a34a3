//! `[hypervisor.<name>]`: the virtual machine, and the host programs around it. Must not know how a monitor is called.

use std::path::PathBuf;

use crate::kinds::{
    AnnotationNames, CpuFeatures, Flag, HostPath, HostPathOrNone, HostPaths, KernelParams, MOST_VCPUS,
    Memory, MostMemory, MostVcpus, Not, OneOf, Rate, Vcpus, Word,
};
use crate::settings::settings;

/// Which virtual machine monitor runs the sandboxes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HypervisorKind {
    /// QEMU (`[hypervisor.qemu]`).
    Qemu,
    /// Cloud Hypervisor (`[hypervisor.clh]`), 50.1 or later.
    CloudHypervisor,
    /// Firecracker (`[hypervisor.firecracker]`), 1.7 or later.
    Firecracker,
    /// No virtual machine: the agent runs as a process on the host (`[hypervisor.fake]`; for tests only, isolates nothing).
    Fake,
}

impl Word for HypervisorKind {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("qemu", Self::Qemu),
        ("clh", Self::CloudHypervisor),
        ("firecracker", Self::Firecracker),
        ("fake", Self::Fake),
    ];
}

impl HypervisorKind {
    /// The name of its table, and of `runtime.hypervisor_name`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::CloudHypervisor => "clh",
            Self::Firecracker => "firecracker",
            Self::Fake => "fake",
        }
    }

    /// The dotted name of its table.
    pub(crate) fn table(self) -> &'static str {
        match self {
            Self::Qemu => "hypervisor.qemu",
            Self::CloudHypervisor => "hypervisor.clh",
            Self::Firecracker => "hypervisor.firecracker",
            Self::Fake => "hypervisor.fake",
        }
    }

    /// Keys whose default is QEMU's alone, and what it is here, in TOML; `None` where it has to be set.
    pub(crate) fn own_defaults(self) -> &'static [(&'static str, Option<&'static str>)] {
        match self {
            Self::Qemu => &[],
            Self::CloudHypervisor => &[("path", Some("\"/usr/bin/cloud-hypervisor\""))],
            Self::Firecracker => &[
                ("path", Some("\"/usr/bin/firecracker\"")),
                ("shared_fs", Some("\"none\"")),
            ],
            Self::Fake => &[("path", None)],
        }
    }

    /// Most vCPUs of a machine.
    pub(crate) fn most_vcpus(self) -> u32 {
        match self {
            Self::Firecracker => 32,
            Self::Qemu | Self::CloudHypervisor | Self::Fake => MOST_VCPUS,
        }
    }
}

/// QEMU machine types that are supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MachineType {
    /// PCI Express machine; devices, vCPUs and memory can be plugged while it runs.
    Q35,
    /// Minimal machine with virtio-mmio devices; boots faster, no hotplug.
    Microvm,
}

impl Word for MachineType {
    const WORDS: &'static [(&'static str, Self)] = &[("q35", Self::Q35), ("microvm", Self::Microvm)];
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

impl Word for Accelerator {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("kvm", Self::Kvm), ("tcg", Self::Tcg)];
}

/// How directories of the host reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SharedFs {
    /// virtio-fs, by a virtiofsd process per sandbox.
    VirtioFs,
    /// Nothing is shared.
    None,
}

impl Word for SharedFs {
    const WORDS: &'static [(&'static str, Self)] = &[("virtio-fs", Self::VirtioFs), ("none", Self::None)];
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

impl Word for VirtioFsCache {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("never", Self::Never),
        ("metadata", Self::Metadata),
        ("auto", Self::Auto),
        ("always", Self::Always),
    ];
}

settings! {
    /// `[hypervisor.<name>]`, validated.
    pub struct HypervisorConfig(
        /// Which one.
        kind: HypervisorKind
    ) {
        /// The VMM's program (for `fake`: the agent's program). Without it `clh` is `/usr/bin/cloud-hypervisor` and
        /// `firecracker` is `/usr/bin/firecracker`.
        path: HostPath = "/usr/bin/qemu-system-x86_64" => path: PathBuf, pod "hypervisor.path";

        /// Firecracker's jailer: with it Firecracker sees no other files than the virtual machine's. Empty: none.
        jailer_path: HostPathOrNone = "" => jailer_path: PathBuf;

        /// Guest kernel: an uncompressed PVH `vmlinux`, which boots faster, or a bzImage.
        kernel: HostPath = "/usr/share/kata/vmlinux" => kernel: PathBuf;

        /// Guest initramfs with the agent as `/init`.
        initrd: HostPath = "/usr/share/kata/initrd.img" => initrd: PathBuf;

        /// Kernel parameters that are appended to our own, as on a kernel command line: separated by white space, double
        /// quotes around a value with white space. Of two that contradict each other the kernel takes the later.
        kernel_params: KernelParams = "" => kernel_params: Vec<String>, pod "hypervisor.kernel_params";

        /// QEMU's machine. `q35` has PCI Express and takes devices while it runs; `microvm` boots faster and does not.
        machine_type: OneOf<MachineType> = "q35" => machine_type: MachineType, pod "hypervisor.machine_type";

        /// How guest code is executed. `kvm`: hardware virtualization, an error where it does not work. `tcg`: QEMU's
        /// translator, works everywhere, slower. `auto`: KVM if a probe shows that it really runs guest code, else TCG.
        /// `clh` and `firecracker` have only KVM, and with `auto` they take it as it is.
        accelerator: OneOf<Accelerator> = "auto" => accelerator: Accelerator;

        /// Features that are appended to QEMU's CPU model, separated by commas.
        cpu_features: CpuFeatures = "pmu=off" => cpu_features: Vec<String>, pod "hypervisor.cpu_features";

        /// vCPUs of a sandbox without CPU limits. 0 is 1, a negative number is all CPUs of the host, and more than the
        /// host has are as many as it has.
        default_vcpus: Vcpus = 1 => default_vcpus: u32, pod "hypervisor.default_vcpus";

        /// Most vCPUs a sandbox can get. 0, or more than the host has: as many as the host has.
        default_maxvcpus: MostVcpus = 0 => default_maxvcpus: u32, pod "hypervisor.default_max_vcpus";

        /// Memory of a sandbox without memory limit, in MiB. Debian's kernel and our initramfs start with 96.
        default_memory: Memory = 2048 => default_memory_mib: u64, pod "hypervisor.default_memory";

        /// Most memory a sandbox can get, in MiB. 0, or more than the host has: as much as the host has.
        default_maxmemory: MostMemory = 0 => default_maxmemory_mib: u64;

        /// How directories of the host reach the guest. `virtio-fs`: by a virtiofsd process per sandbox. `none`: nothing is
        /// shared, root file systems have to be on block devices, and containers have copies of the files that they only read.
        /// `firecracker` has only `none`, which it is there without being set.
        shared_fs: OneOf<SharedFs> = "virtio-fs" => shared_fs: SharedFs, pod "hypervisor.shared_fs";

        /// virtiofsd's program.
        virtio_fs_daemon: HostPathOrNone = "/usr/libexec/kata/virtiofsd" => virtio_fs_daemon: PathBuf,
            pod "hypervisor.virtio_fs_daemon";

        /// What the guest may cache of shared directories. `never`: nothing. `metadata`: names and attributes. `auto`:
        /// also data, while files are open. `always`: everything, as if nobody else changed the files.
        virtio_fs_cache: OneOf<VirtioFsCache> = "auto" => virtio_fs_cache: VirtioFsCache,
            pod "hypervisor.virtio_fs_cache";

        /// Block devices that a snapshotter gives for root file systems (devicemapper, blockfile) do not become disks of the
        /// guest: the host mounts what is on them, and shares it. Slower, and the host's kernel reads what an image made.
        disable_block_device_use: Flag = false => disable_block_device_use: bool;

        /// Program of the vhost-user vsock daemon, for hosts without `/dev/vhost-vsock`.
        vhost_user_vsock_daemon: HostPathOrNone = "/usr/libexec/kata/vhost-device-vsock" => vhost_user_vsock_daemon: PathBuf;

        /// Bits per second that each block device may move, with `clh` and `firecracker`. 0: any number.
        disk_rate_limiter_bw_max_rate: Rate = 0 => disk_rate_limiter_bw_max_rate: u64;

        /// Bits that it may move on top of that, once.
        disk_rate_limiter_bw_one_time_burst: Rate = 0 => disk_rate_limiter_bw_one_time_burst: u64;

        /// Operations per second of each block device, with `clh` and `firecracker`. 0: any number.
        disk_rate_limiter_ops_max_rate: Rate = 0 => disk_rate_limiter_ops_max_rate: u64;

        /// Operations that it may do on top of that, once.
        disk_rate_limiter_ops_one_time_burst: Rate = 0 => disk_rate_limiter_ops_one_time_burst: u64;

        /// Bits per second that each network device may move in each direction, with `clh` and `firecracker`. 0: any number.
        net_rate_limiter_bw_max_rate: Rate = 0 => net_rate_limiter_bw_max_rate: u64;

        /// Bits that it may move on top of that, once.
        net_rate_limiter_bw_one_time_burst: Rate = 0 => net_rate_limiter_bw_one_time_burst: u64;

        /// Packets per second of each network device in each direction, with `clh` and `firecracker`. 0: any number.
        net_rate_limiter_ops_max_rate: Rate = 0 => net_rate_limiter_ops_max_rate: u64;

        /// Packets that it may move on top of that, once.
        net_rate_limiter_ops_one_time_burst: Rate = 0 => net_rate_limiter_ops_one_time_burst: u64;

        /// Run the VMM without its own seccomp filter (QEMU's `-sandbox`). Only for finding out whether the filter is
        /// what stops it.
        disable_seccomp: Not = false => seccomp_sandbox: bool;

        /// Start the VMM and virtiofsd without the SELinux label that the caller asks for. A host without SELinux gives none.
        disable_selinux: Flag = false => disable_selinux: bool;

        /// Log what the guest's console and the VMM say at debug level too.
        enable_debug: Flag = false => enable_debug: bool, pod "hypervisor.enable_debug";

        /// Annotations that a pod may set, by exact name: without `io.katacontainers.config.`, and those of this table
        /// also without `hypervisor.`.
        enable_annotations: AnnotationNames = ["default_memory", "default_vcpus"]
            => enable_annotations: Vec<String>;

        /// Programs that a pod may choose as `path`, if `enable_annotations` has `path`.
        valid_hypervisor_paths: HostPaths = [] => valid_hypervisor_paths: Vec<PathBuf>;

        /// Programs that a pod may choose as `virtio_fs_daemon`, if `enable_annotations` has `virtio_fs_daemon`.
        valid_virtio_fs_daemon_paths: HostPaths = [] => valid_virtio_fs_daemon_paths: Vec<PathBuf>;
    }
}

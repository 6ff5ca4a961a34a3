//! What a bundle asks for and what is planned for it: plain data between the pure functions and the edges.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use agent_protocol as p;
use configuration::NetworkModel;
use hypervisor::{Memory, Size};
use oci_spec::runtime::Spec;

use crate::oci::EnvVar;
use crate::sandbox::RootfsMount;
use crate::{ContainerId, SandboxId};

/// The place of a container among others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContainerType {
    /// The first container of a pod, which stands for the pod.
    PodSandbox,
    /// A later container of a pod.
    PodContainer,
    /// A container alone in its sandbox.
    SingleContainer,
}

/// What the first container's bundle says of the sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxConfig {
    /// Its id.
    pub id: SandboxId,
    /// Where the request comes from.
    pub container_type: ContainerType,
    /// No container stands for it: what its caller would have put into files for the others is the sandbox's to give.
    pub is_alone: bool,
    /// Host name of the guest; empty where the bundle gives none.
    pub hostname: String,
    /// Name resolution.
    pub dns: Dns,
    /// Size of the pod's `/dev/shm`, bytes (0: the agent's default).
    pub shm_size: u64,
    /// Sysctls that belong to the sandbox.
    pub sysctls: BTreeMap<String, String>,
    /// What its workload may use; sizes the virtual machine.
    pub resources: Resources,
    /// The pod's network namespace on the host.
    pub network_namespace: NetworkNamespace,
    /// Where the first container's cgroup would be on the host: the virtual machine has it.
    pub cgroup: Option<HostCgroup>,
    /// Hooks of the first container may still change the network when the virtual machine runs.
    pub network_may_change: bool,
    /// What its first container's process would be to the host's security modules: the virtual machine is it.
    pub labels: HostLabels,
    /// Annotations of the first container.
    pub annotations: BTreeMap<String, String>,
}

/// What a process is to the host's security modules. Empty: whatever we are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLabels {
    /// SELinux's context.
    pub selinux: String,
    /// AppArmor's profile.
    pub apparmor: String,
}

/// A pod that no container stands for, as its caller tells of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodConfig {
    /// Host name of the guest; may be empty.
    pub hostname: String,
    /// Name resolution.
    pub dns: Dns,
    /// Sysctls of the pod.
    pub sysctls: BTreeMap<String, String>,
    /// Its network namespace on the host. `None`: the host's own.
    pub network_namespace: Option<PathBuf>,
    /// Cgroup on the host that its processes belong below: a path, or a slice of systemd's; may be empty.
    pub cgroup_parent: String,
    /// The sum of its containers' limits, as far as it is known.
    pub limits: PodLimits,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Limits of a pod. 0: none is told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// Microseconds of a period.
    pub cpu_quota: i64,
    /// Microseconds; 0: the kernel's default.
    pub cpu_period: u64,
    /// 1024 are a CPU.
    pub cpu_shares: u64,
    /// Bytes.
    pub memory: i64,
}

/// A cgroup of the host, below the root of its tree: relative paths without `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostCgroup {
    /// A directory.
    Path(PathBuf),
    /// A unit of systemd's.
    Systemd {
        /// Directory of its slice; empty for the root slice.
        slice: PathBuf,
        /// Name of its scope.
        unit: String,
    },
}

impl HostCgroup {
    /// The directory: of a unit, where systemd has it.
    pub fn directory(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Systemd { slice, unit } => slice.join(unit),
        }
    }
}

/// A network namespace on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum NetworkNamespace {
    /// The host's own, which a virtual machine cannot share.
    #[default]
    Host,
    /// One that is still to be made. Interfaces may appear in it until a container starts.
    New,
    /// One that somebody has made, and mostly has put interfaces into.
    Existing(PathBuf),
}

/// What `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Limits that size a virtual machine. `None`: no limit is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Resources {
    /// Thousandths of a CPU.
    pub cpu_millis: Option<u64>,
    /// Bytes.
    pub memory_bytes: Option<u64>,
}

/// How a virtual machine grows with its containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GrowthPlan {
    /// What it has without any workload.
    pub base: Size,
    /// What it was started with.
    pub started: Size,
    /// The most that it can have.
    pub most: Size,
    /// The workload that `started` was made for: of all containers together, those included that are still to come.
    pub counted: Resources,
}

/// What the virtual machine has that sandboxes are copies of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplatePlan {
    /// When it is saved.
    pub size: Size,
    /// The most that a copy can be made to have.
    pub most: Size,
    /// It has the device of a shared file system already, behind which each copy puts its own.
    pub shares: bool,
}

/// One container, from its bundle and its caller.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerConfig {
    /// Its id.
    pub id: ContainerId,
    /// Name of its directory in the share: its id, unless the host has another one.
    pub directory: String,
    /// Its place.
    pub container_type: ContainerType,
    /// The specification as the caller wrote it.
    pub spec: Spec,
    /// Absolute path of the bundle.
    pub bundle: PathBuf,
    /// Mounts that make the root file system. Empty: `root.path` is there already.
    pub rootfs: Vec<RootfsMount>,
    /// What there is at the sources of its mounts, as far as it is known.
    pub found: BTreeMap<PathBuf, Found>,
    /// How many containers its sandbox has had before it.
    pub number: u64,
}

/// What there is at a path of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Which file or directory it is.
    pub identity: Identity,
    /// What it is made of.
    pub medium: Medium,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What it is.
    pub kind: FileKind,
    /// Major and minor number, if it is a block device.
    pub block: Option<(u32, u32)>,
    /// What is to be mounted in its place, as somebody has said with `kata-runtime direct-volume`.
    pub direct: Option<DirectVolume>,
}

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A file with content.
    File,
    /// A directory.
    Directory,
    /// A device, socket or pipe.
    Other,
}

/// A volume that the guest mounts, and nobody on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectVolume {
    /// What kind it is, in Kata's words.
    pub volume_type: String,
    /// Path of the block device, or of a file with a disk's content.
    pub device: PathBuf,
    /// Its file system.
    pub fs_type: String,
    /// Mount options.
    pub options: Vec<String>,
    /// What else was said of it.
    pub metadata: BTreeMap<String, String>,
}

/// What the files of a directory are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Whatever can be shared.
    Disk,
    /// Memory of the host's kernel: at most so many bytes (0: no limit).
    Memory {
        /// Bytes.
        limit: u64,
    },
    /// Huge pages of the host's kernel.
    HugePages {
        /// Bytes of a page.
        size: u64,
    },
}

/// A file or directory of the host with all that is mounted below it. Paths that have the same one show the same files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its file system's number.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// The numbers of its mount and of those below it.
    pub mounts: Vec<u64>,
}

/// Everything that is decided about a sandbox before anything is acquired.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxPlan {
    /// Its id.
    pub id: SandboxId,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initrd: PathBuf,
    /// Kernel parameters, but for the one that names the agent's channel.
    pub kernel_params: Vec<String>,
    /// vCPUs at start.
    pub vcpus: u32,
    /// vCPUs that can be reached.
    pub max_vcpus: u32,
    /// Guest memory; its backing follows from the devices.
    pub memory: Memory,
    /// How both grow. `None`: they stay what they are.
    pub growth: Option<GrowthPlan>,
    /// What it is a copy of, if it is to be one and what is saved fits.
    pub template: Option<TemplatePlan>,
    /// The byte stream to the agent.
    pub channel: ChannelPlan,
    /// Directories of the host in the guest.
    pub share: SharePlan,
    /// Block devices of the host in the guest.
    pub disks: DisksPlan,
    /// The pod's network namespace, and what of it reaches the guest. `None`: it has the host's, and the guest has no network.
    pub network: Option<NetworkPlan>,
    /// The cgroup of its processes on the host. `None`: they stay where we are.
    pub cgroup: Option<CgroupPlan>,
    /// What its processes are to the host's security modules.
    pub labels: HostLabels,
    /// See [`SandboxConfig::is_alone`].
    pub is_alone: bool,
    /// The sandbox's part of the conversation with the agent, but for clock and entropy.
    pub guest: p::CreateSandboxRequest,
}

/// The cgroup of a sandbox's processes on the host, in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupPlan {
    /// A directory below the root of a hierarchy: not absolute, without `.` and `..`. Others may have it, and be in it.
    pub path: PathBuf,
    /// Name of the sandbox's own below it. Where it is taken, it gets a number.
    pub name: String,
    /// All directories above are this runtime's own, whichever of its sandboxes has made them.
    pub is_apart: bool,
}

/// The pod's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkPlan {
    /// Its network namespace on the host, in which the VMM runs. `None`: a new one.
    pub namespace: Option<PathBuf>,
    /// How the interfaces in it reach the guest.
    pub model: NetworkModel,
    /// Queues of each interface.
    pub queues: u32,
    /// Connections to localhost in the namespace are carried into the guest.
    pub localhost: bool,
    /// Interfaces may appear when the virtual machine runs already.
    pub late: bool,
}

/// The byte stream to the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChannelPlan {
    /// The VMM's own hybrid vsock.
    HybridVsock,
    /// Kernel vhost-vsock.
    KernelVsock,
    /// vsock by this vhost-user daemon.
    DaemonVsock(PathBuf),
    /// A virtio-serial port (for an agent that is a process: its unix socket).
    Serial,
}

/// Directories of the host in the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SharePlan {
    /// None: root file systems are on block devices, and the guest has copies of small files.
    Nothing,
    /// virtio-fs.
    VirtioFs {
        /// virtiofsd's program.
        daemon: PathBuf,
        /// Value of its `--cache` option.
        cache: &'static str,
    },
    /// The guest is a process of the host and sees the directory itself.
    Process,
}

/// How block devices of the host reach the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DisksPlan {
    /// As disks, plugged in while the virtual machine runs.
    Plugged,
    /// Not at all: the host mounts what is on them, and shares that.
    Mounted,
    /// Not at all, and it is not wanted that the host mounts what is on them.
    Impossible,
}

/// Everything that is decided about a container before anything is acquired.
#[derive(Debug, Clone, PartialEq)]
pub struct ContainerPlan {
    /// Its id.
    pub id: ContainerId,
    /// Name of its directory in the share.
    pub directory: String,
    /// Where its root file system comes from.
    pub root: RootPlan,
    /// Host files and directories that it mounts.
    pub binds: Vec<BindPlan>,
    /// Host files and directories that it has copies of, in storages of the agent's part that have yet to be filled.
    pub copies: Vec<CopyPlan>,
    /// Block devices of the host that it has.
    pub disks: Vec<DiskPlan>,
    /// It has the pid namespace of the guest's agent.
    pub has_agents_pids: bool,
    /// Programs of the host's that are told of its life.
    pub hooks: HooksPlan,
    /// Where those of them act that change its files. `None`: there are none.
    pub stage: Option<StagePlan>,
    /// The agent's part, but for the streams: guest paths name what the share will contain.
    pub guest: p::CreateContainerRequest,
}

/// Hooks that run on the host, in their order, and what they are told of the container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HooksPlan {
    /// Before it is created in the guest; each of them may refuse that.
    pub create: Vec<HookPlan>,
    /// After those, on its [`StagePlan`]; each of them may refuse as well.
    pub container: Vec<HookPlan>,
    /// Once its program executes.
    pub poststart: Vec<HookPlan>,
    /// When nothing is left of it.
    pub poststop: Vec<HookPlan>,
    /// Version of its specification.
    pub version: String,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

impl HooksPlan {
    /// Whether some are told of a process that is there.
    pub fn look_at_the_pid(&self) -> bool {
        !self.create.is_empty() || !self.poststart.is_empty()
    }
}

/// A container's files on the host, as hooks of its namespaces find them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagePlan {
    /// Where its root file system stands, as its specification says: an absolute path.
    pub root: PathBuf,
    /// What is mounted in it, in this order.
    pub mounts: Vec<StageMount>,
}

/// A mount below the root of a [`StagePlan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageMount {
    /// Number of the mount in the specification.
    pub index: usize,
    /// Absolute path on the host. `None`: an empty directory in memory, because the guest mounts one of its own.
    pub source: Option<PathBuf>,
    /// Path in the container.
    pub destination: PathBuf,
    /// Nobody writes to it by this mount.
    pub readonly: bool,
    /// Mounts below the source come along.
    pub recursive: bool,
}

/// A hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookPlan {
    /// Its field of the specification: `hooks.prestart[0]`.
    pub name: String,
    /// Absolute path of its program.
    pub path: PathBuf,
    /// Arguments, the program's name first. Empty: its path alone.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<EnvVar>,
    /// `None`: the caller sets none.
    pub timeout: Option<Duration>,
}

/// Where a root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootPlan {
    /// These mounts make it, one over the other.
    Mounts(Vec<RootfsMount>),
    /// It is in this directory of the host.
    Directory(PathBuf),
    /// It is on a disk of the container's, which the guest mounts.
    Disk,
}

/// A block device, or file with the content of one, that becomes a disk of the guest for one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Its name, which no other disk of the sandbox's has, ever.
    pub id: String,
    /// What it is.
    pub source: DiskSource,
    /// Nobody writes to it, whatever the guest does.
    pub readonly: bool,
    /// The file system that has to be on it. `None`: it is the container's business.
    pub fs_type: Option<DiskFs>,
    /// Paths of the host for which it stands: those of direct volumes.
    pub volumes: Vec<PathBuf>,
}

/// Where a disk's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskSource {
    /// The block device at this path.
    Device(PathBuf),
    /// The file at this path.
    File(PathBuf),
    /// Either.
    DeviceOrFile(PathBuf),
    /// The block device with these numbers.
    Numbers(u32, u32),
}

impl std::fmt::Display for DiskSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(path) | Self::File(path) | Self::DeviceOrFile(path) => {
                write!(f, "{}", path.display())
            }
            Self::Numbers(major, minor) => write!(f, "the block device {major}:{minor}"),
        }
    }
}

/// A file system that the guest mounts from a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFs {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
    /// EROFS, which is never written.
    Erofs,
}

impl DiskFs {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Erofs];

    /// The kernel's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Erofs => "erofs",
        }
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fs| fs.name() == name)
    }
}

/// A file, or directory with small ones, of the host that a container has a copy of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyPlan {
    /// Number of the mount in the specification.
    pub index: usize,
    /// Absolute path on the host.
    pub source: PathBuf,
    /// Whether a directory was found there.
    pub is_directory: bool,
    /// Mounts below the source come along.
    pub recursive: bool,
    /// Mount point of the storage in which it is, under the name `data`.
    pub mount_point: String,
}

/// A file or directory of the host that becomes visible in the guest, for all containers of the sandbox that mount it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindPlan {
    /// A name of our own making, that of its directory in the share: it is `<share>/<name>/data`. Several containers that name
    /// the same one share it.
    pub name: String,
    /// Absolute path on the host.
    pub source: PathBuf,
    /// The guest cannot write, whatever it does.
    pub readonly: bool,
    /// Mounts below the source come along.
    pub recursive: bool,
    /// What was found at the source. `None`: not looked for.
    pub identity: Option<Identity>,
}

//! What a virtual machine is to be: plain data that every driver understands. No driver's words, no side effects.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::process::Label;
use crate::{Error, ErrorKind};

/// A virtual machine before it exists.
#[derive(Debug, Clone)]
pub struct VmSpec {
    /// Sandbox id; appears in process names and logs.
    pub id: String,
    /// Directory, private to this VM, for the driver's sockets. Exists; removed by its owner, not by the driver.
    pub run_dir: PathBuf,
    /// Guest kernel.
    pub kernel: PathBuf,
    /// Guest initramfs.
    pub initrd: PathBuf,
    /// Parameters added after the driver's own (console, reboot behaviour): the administrator's and the agent's. The
    /// driver adds none from the configuration by itself.
    pub kernel_params: Vec<String>,
    /// vCPUs at start.
    pub vcpus: u32,
    /// vCPUs that can be reached by hotplug.
    pub max_vcpus: u32,
    /// Guest memory.
    pub memory: Memory,
    /// Devices present at start, in a stable order.
    pub devices: Vec<Device>,
    /// Network namespace that the VMM's process is in; `None`: the caller's. Its network devices are where their taps are,
    /// whatever this is.
    pub network_namespace: Option<Arc<OwnedFd>>,
    /// `cgroup.procs` of the cgroups that the VMM's process is in, opened for writing: one of each hierarchy. Of the others,
    /// the caller's.
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// What the VMM's process tells the host's security modules of itself before it executes.
    pub labels: Vec<Label>,
}

impl VmSpec {
    /// Checks what no machine can have. Pure.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`], with what it is.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let refuse = |problem: String| Err(Error::new(ErrorKind::InvalidArgument, problem));
        if self.vcpus == 0 {
            return refuse("a VM needs at least one vCPU".into());
        }
        // The bound keeps the size in bytes within a monitor's 63 bits.
        if self.memory.size_mib == 0 || self.memory.size_mib > 1 << 40 {
            return refuse(format!("a VM cannot have {} MiB of memory", self.memory.size_mib));
        }
        if self.memory.max_mib > 1 << 40 {
            return refuse(format!(
                "a VM cannot grow to {} MiB of memory",
                self.memory.max_mib
            ));
        }
        // Monitors run in `/`.
        for path in [&self.kernel, &self.initrd] {
            if !path.is_absolute() {
                return refuse(format!("the path {} is not absolute", path.display()));
            }
        }
        Ok(())
    }
}

/// Guest memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Size at start, MiB.
    pub size_mib: u64,
    /// Size that can be reached by hotplug, MiB.
    pub max_mib: u64,
    /// Who else maps it.
    pub backing: MemoryBacking,
}

impl Memory {
    /// Memory is added in multiples of this, MiB: Linux' blocks, which it announces as it takes them.
    pub(crate) fn grain(&self) -> u64 {
        /// From this size on, MiB, Linux counts memory in larger blocks.
        const LARGE_MIB: u64 = 64 << 10;
        if self.size_mib < LARGE_MIB { 128 } else { 2048 }
    }

    /// What can be added, MiB: whole blocks up to the limit.
    pub(crate) fn addable(&self) -> u64 {
        let addable = self.max_mib.saturating_sub(self.size_mib);
        addable.next_multiple_of(self.grain())
    }

    /// What is there when at least `mib` MiB are to be: whole blocks are added. `None` beyond the limit.
    pub(crate) fn grown_to(&self, mib: u64) -> Option<u64> {
        let added = mib.saturating_sub(self.size_mib).next_multiple_of(self.grain());
        (mib <= self.max_mib).then_some(self.size_mib + added)
    }
}

/// vCPUs and memory of a VM that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// vCPUs.
    pub vcpus: u32,
    /// Memory, MiB.
    pub memory_mib: u64,
}

/// How guest memory is mapped on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Only the VMM maps it. Fastest; a template clone needs it.
    Private,
    /// A memfd mapped shared, for vhost-user devices (virtiofsd, vhost-device-vsock). A copy need not have that, if its driver can
    /// serve these devices otherwise.
    Shared,
}

/// A device of the VM.
#[derive(Debug, Clone)]
pub enum Device {
    /// A vsock device.
    Vsock(Vsock),
    /// A virtio-serial port; the VMM connects to the unix socket when it starts.
    SerialPort(SerialPort),
    /// A virtio-fs device served by a daemon that listens already.
    VirtioFs(VirtioFs),
    /// A virtio-net device on an open tap.
    Net {
        /// Name for control and logs; unique in the VM.
        id: String,
        /// One tap descriptor per queue pair.
        taps: Vec<Arc<OwnedFd>>,
        /// MAC address, `aa:bb:cc:dd:ee:ff`.
        mac: String,
    },
    /// A virtio-blk device.
    Block(Disk),
}

impl Device {
    /// The name by which `unplug` finds it again.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Vsock(_) => "vsock",
            Self::SerialPort(port) => &port.name,
            Self::VirtioFs(fs) => &fs.tag,
            Self::Net { id, .. } => id,
            Self::Block(disk) => &disk.id,
        }
    }
}

/// A name as every monitor takes it for an id.
pub(crate) fn checked(name: &str) -> Result<&str, Error> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if !name.is_empty() && name.len() <= 64 && name.bytes().all(fine) {
        return Ok(name);
    }
    Err(Error::new(
        ErrorKind::InvalidArgument,
        format!("{name:?} cannot name a device: 1 to 64 letters, digits, '-', '.' and '_' are possible"),
    ))
}

/// A path as text: JSON knows nothing else.
pub(crate) fn text(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidArgument,
            format!("the path {} is not UTF-8", path.display()),
        )
    })
}

/// A virtio-blk device on an open file or block device of the host's, whose bytes it shows as they are: no format is ever
/// looked for in them.
///
/// A driver gives its VMM the descriptor. One whose VMM takes only paths names it by `/proc/self/fd/<number>` or by a bind mount
/// of it: the path it was opened by may lead elsewhere by now.
#[derive(Debug, Clone)]
pub struct Disk {
    /// Name for control and logs, unique in the VM: 1 to 20 ASCII letters, digits, `-`, `.` and `_`. The serial number that the
    /// guest sees, unless the driver says otherwise ([`Hypervisor::serial`](crate::Hypervisor::serial)).
    pub id: String,
    /// Opened read-only where `readonly`, else for reading and writing.
    pub file: Arc<OwnedFd>,
    /// The VMM refuses what the guest writes.
    pub readonly: bool,
}

/// The three forms of vsock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vsock {
    /// Kernel vhost-vsock with this guest CID.
    Kernel {
        /// Guest CID, host-wide unique, at least 3.
        cid: u32,
    },
    /// A vhost-user daemon at this socket.
    VhostUser {
        /// The daemon's vhost-user socket.
        socket: PathBuf,
    },
    /// The VMM's own hybrid vsock over a unix socket.
    Hybrid {
        /// Guest CID; local to the VMM.
        cid: u32,
        /// Base path of the unix sockets.
        uds: PathBuf,
    },
}

/// A virtio-serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SerialPort {
    /// Name that the guest sees in `/sys/class/virtio-ports/*/name`.
    pub name: String,
    /// A unix socket that is listened on already.
    pub socket: PathBuf,
}

/// A virtio-fs device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VirtioFs {
    /// Mount tag in the guest.
    pub tag: String,
    /// The daemon's vhost-user socket.
    pub socket: PathBuf,
    /// The directory that is served (the fake driver hands it to the agent; real drivers do not need it).
    pub directory: PathBuf,
}

/// What a driver can do on this host with its configuration. Known without starting anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// Kernel vhost-vsock works.
    pub vsock_kernel: bool,
    /// vhost-user devices work (virtio-fs, vsock daemon), given shared memory.
    pub vhost_user: bool,
    /// The VMM has its own hybrid vsock.
    pub vsock_hybrid: bool,
    /// virtio-serial ports work.
    pub serial_port: bool,
    /// Directories of the host can be shared with the guest.
    pub fs_sharing: bool,
    /// Block devices can be given at start.
    pub block: bool,
    /// Devices of every kind can be added while the VM runs, and removed.
    pub hotplug: bool,
    /// Block devices can, if only because there are placeholders for them.
    pub block_hotplug: bool,
    /// A network card can have a tap for each queue.
    pub multiqueue: bool,
    /// vCPUs and memory can be added while the VM runs.
    pub resize: bool,
    /// Pause, save and restore work.
    pub snapshots: bool,
    /// A VM that is saved can have the device of a shared file system: each copy gives it a process of its own.
    pub saves_shares: bool,
    /// A VM can be kept by one process and become another one's.
    pub transfer: bool,
    /// The guest's code is translated and not executed by the processor: a boot takes several times as long.
    pub emulated: bool,
    /// The guest is a process on the host: paths of the host need no sharing device (fake driver only).
    pub guest_is_process: bool,
}

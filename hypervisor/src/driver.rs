//! The traits every driver implements, and the values they speak in.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Capabilities, Device, Disk, Error, ErrorKind, Size, VmSpec};

/// A virtual machine monitor that can start VMs on this host. Cheap to keep; holds no VM.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Short name, as in `[hypervisor.<name>]`.
    fn name(&self) -> &'static str;

    /// What VMs of this driver can do here. Reads the host (devices, cached probe), starts nothing.
    fn capabilities(&self) -> Capabilities;

    /// Checks that the programs, kernel and image are there and usable; names what is missing and the remedy.
    /// Cheap (a few `stat`s): it runs before every start.
    fn check_host(&self) -> Result<(), Error>;

    /// Starts the VMM. Returns when the guest's CPUs run; on an error nothing is left behind.
    async fn launch(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error>;

    /// Starts a VM for another process, as [`Hypervisor::launch`] does: [`Vm::transfer`] hands it over. It is killed when neither
    /// this process nor another one has it. Needs [`Capabilities::transfer`].
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where that cannot be; as for a launch.
    async fn launch_for_another(&self, spec: VmSpec, boot: Boot) -> Result<Box<dyn Vm>, Error> {
        drop((spec, boot));
        Err(no_transfer())
    }

    /// Takes over a VM that another process has offered, gives it these devices and has it run. `spec` is what it was started
    /// with, but for what is the sandbox's own: id, directory, sockets and cgroups, which it is moved to.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where that cannot be; it has ended, or does not answer. Nothing
    /// is left of it then.
    async fn take_over(
        &self,
        offer: Offer,
        spec: VmSpec,
        devices: Vec<Device>,
    ) -> Result<Box<dyn Vm>, Error> {
        drop((offer, spec, devices));
        Err(no_transfer())
    }

    /// Everything that a VM saved of `spec` depends on, as one text: its VMM, that one's arguments, kernel and image. One that
    /// was saved while this was another text must not be copied. Reads the host, starts nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) if VMs cannot be saved; what cannot be read.
    fn fingerprint(&self, spec: &VmSpec) -> Result<String, Error>;

    /// The serial number by which a guest finds this disk, up to 20 ASCII characters.
    ///
    /// # Errors
    /// Where the VMM makes it of the file, and that cannot be examined.
    fn serial(&self, disk: &Disk) -> Result<String, Error> {
        Ok(disk.id.clone())
    }

    /// Kills what is left of a VM whose owner died, from its record alone. Nothing left is success.
    async fn reap(&self, record: &VmRecord) -> Result<(), Error>;
}

/// How a VM comes to life.
#[derive(Debug)]
pub enum Boot {
    /// From its kernel.
    Cold,
    /// From its kernel, to be saved with [`Vm::save`]. Needs [`Capabilities::snapshots`].
    ToSave,
    /// As a copy of one that was saved with the same specification, but for its id, its directory, the sockets of its serial
    /// ports and whose memory it is. Needs [`Capabilities::snapshots`].
    Clone(Saved),
}

/// A saved VM, and what is to be different before its copy runs.
#[derive(Debug)]
pub struct Saved {
    /// Its memory. Read only, as far as it is not mapped.
    pub memory: OwnedFd,
    /// The state of its devices, at its beginning. A description of the caller's own: it is read to its end.
    pub state: OwnedFd,
    /// Devices that the copy has in addition, from its first instruction on.
    pub devices: Vec<Device>,
}

/// Where a VM is saved.
#[derive(Debug)]
pub struct SaveTo {
    /// For its memory: an empty file. What is zero takes no room in it.
    pub memory: OwnedFd,
    /// For the state of its devices: an empty file.
    pub state: Arc<OwnedFd>,
}

/// A running virtual machine. Dropping it kills the VMM (best effort); [`Vm::stop`] does it orderly.
#[async_trait]
pub trait Vm: Send {
    /// Pid of the VMM's process; containerd shows it and namespaces paths are built from it.
    fn pid(&self) -> u32;

    /// What is needed to reap the VM after a crash of its owner.
    fn record(&self) -> VmRecord;

    /// What runs and why, for people.
    fn report(&self) -> VmReport;

    /// Becomes `Some` when the VMM has ended, whatever the cause.
    fn exited(&self) -> watch::Receiver<Option<Exit>>;

    /// Ends the VMM and reaps it. Idempotent.
    async fn stop(&mut self) -> Result<(), Error>;

    /// Adding and removing devices, if this VM can: if its driver says [`Capabilities::hotplug`] or, where only block devices
    /// can come and go, [`Capabilities::block_hotplug`].
    fn hotplug(&mut self) -> Option<&mut dyn Hotplug>;

    /// Adding vCPUs and memory, if this VM can: if its driver says [`Capabilities::resize`].
    fn resize(&mut self) -> Option<&mut dyn Resize>;

    /// Handing it over to another process, if it was started for that.
    fn transfer(&mut self) -> Option<&mut dyn Transfer> {
        None
    }

    /// Stops the guest for good and saves it. The other ends of its serial ports are to be hung up before: it is saved when
    /// the guest has opened them anew, and waits for somebody.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) unless it was started with [`Boot::ToSave`];
    /// [`ErrorKind::DeadlineExceeded`](crate::ErrorKind::DeadlineExceeded) for a guest that does not come back to its ports;
    /// the VMM's, and what cannot be written.
    async fn save(&mut self, to: SaveTo) -> Result<(), Error>;
}

fn no_transfer() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "virtual machines of this hypervisor cannot be kept for others; use hypervisor = \"qemu\"",
    )
}

/// A VM that can become another process's.
#[async_trait]
pub trait Transfer: Send {
    /// Stops the guest's CPUs, and the time that it sees, until somebody takes the VM over.
    async fn pause(&mut self) -> Result<(), Error>;

    /// Copies of all that is needed to have it, and what says that it was taken. Nothing changes by it: if the offer is dropped,
    /// wherever it is, the VM is ours as before.
    ///
    /// # Errors
    /// It has ended; the kernel's.
    fn offer(&self) -> Result<(Offer, Deed), Error>;

    /// From now on it is whoever's who has the offer. What remains for this process is to reap it, if it still runs then.
    fn give_away(&mut self, deed: Deed);
}

/// A VM that a process offers another one. Whoever holds it keeps the VM alive.
#[derive(Debug)]
pub struct Offer {
    /// What is to be said about it: one line of text, of the driver's own.
    pub about: String,
    /// What goes with it, in an order of the driver's own.
    pub fds: Vec<OwnedFd>,
}

/// What makes an [`Offer`] final.
#[derive(Debug)]
pub struct Deed(pub OwnedFd);

/// Devices can come and go while the VM runs.
#[async_trait]
pub trait Hotplug: Send {
    /// Adds a device; returns when the guest can see it (or the VMM accepted it, where it can't know).
    async fn plug(&mut self, device: Device) -> Result<(), Error>;

    /// Removes a device by its id; returns when the guest has let go of it.
    async fn unplug(&mut self, id: &str) -> Result<(), Error>;

    /// Tells the guest that a disk, by its id, has `bytes` now: what it is made of has grown.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound); [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) where guests
    /// cannot be told; the VMM's.
    async fn grow_disk(&mut self, id: &str, bytes: u64) -> Result<(), Error> {
        let _ = (id, bytes);
        Err(Error::new(
            crate::ErrorKind::Unsupported,
            "this virtual machine monitor does not tell its guest that a disk has grown; start the pod again",
        ))
    }
}

/// vCPUs and memory can be added while the VM runs. Nothing is ever taken away.
///
/// What is added is offered to the guest, which has yet to take it into use.
#[async_trait]
pub trait Resize: Send {
    /// What the VM has now, in use or not.
    fn size(&self) -> Size;

    /// Adds vCPUs until there are `vcpus`; that there are more already is success. What was added before an error stays.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) beyond [`VmSpec::max_vcpus`]; the VMM's.
    async fn grow_vcpus(&mut self, vcpus: u32) -> Result<(), Error>;

    /// Adds memory until there are `mib` MiB, or as little more as the VMM can add; that there is more already is success.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`](crate::ErrorKind::InvalidArgument) beyond [`Memory::max_mib`](crate::Memory::max_mib);
    /// the VMM's.
    async fn grow_memory(&mut self, mib: u64) -> Result<(), Error>;
}

/// The end of a VMM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Why.
    pub reason: ExitReason,
    /// The last lines of the guest's console (and of the VMM's stderr), oldest first; bounded, control characters removed.
    pub console: Vec<String>,
}

/// Why a VMM ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// We asked it to.
    Stopped,
    /// The guest powered off.
    GuestShutdown,
    /// The guest's kernel panicked or reset.
    GuestPanic,
    /// The VMM exited by itself with this code.
    VmmExited(i32),
    /// The VMM was killed by this signal.
    VmmKilled(i32),
    /// The VMM has ended, and who could have said how has before.
    VmmEnded,
}

impl std::fmt::Display for ExitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => write!(f, "the VM was stopped"),
            Self::GuestShutdown => write!(f, "the guest powered off"),
            Self::GuestPanic => write!(f, "the guest kernel panicked"),
            Self::VmmExited(code) => write!(f, "the VMM exited with code {code}"),
            Self::VmmKilled(signal) => write!(f, "the VMM was killed by signal {signal}"),
            Self::VmmEnded => write!(f, "the VMM has ended, and nobody is left who can say how"),
        }
    }
}

/// Enough to find and kill a VMM without its owner. Serialised in the sandbox's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmRecord {
    /// Driver's name.
    pub driver: String,
    /// The VMM's process.
    pub pid: u32,
    /// Start time of that process (field 22 of `/proc/<pid>/stat`), so that a reused pid is never killed.
    pub start_time: u64,
    /// The driver's private directory.
    pub run_dir: PathBuf,
}

/// What runs and why, for people and logs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmReport {
    /// VMM and version, e.g. "QEMU 7.2.22".
    pub vmm: String,
    /// Machine type, e.g. "q35".
    pub machine: String,
    /// "kvm" or "tcg".
    pub accelerator: String,
    /// Why this accelerator, in one sentence.
    pub reason: String,
    /// Whether it was booted or is a copy.
    pub origin: Origin,
}

/// How a VM has come to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// From its kernel.
    Boot,
    /// As a copy of a saved VM.
    Clone,
    /// It was kept ready by another process.
    Cache,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Boot => "boot",
            Self::Clone => "clone",
            Self::Cache => "cache",
        })
    }
}

//! From a specification to Firecracker's words: every request that is sent, and what it says. Pure: nothing is opened or sent
//! here.

use serde_json::{Value, json};

use crate::rest::{Call, RateLimit, calls};
use crate::{Device, Error, ErrorKind, MemoryBacking, VmSpec, Vsock};

// Firecracker's metadata service is none of them: it stays off.
calls! {
    /// Asks for the version.
    VERSION = Call::get("/version");
    /// vCPUs and memory.
    MACHINE = Call::put("/machine-config");
    /// Kernel and initramfs.
    BOOT_SOURCE = Call::put("/boot-source");
    /// A disk, before the machine is started.
    DRIVE = Call::put("/drives/{drive_id}");
    /// Another file behind a disk.
    EXCHANGE = Call::patch("/drives/{drive_id}");
    /// A network card.
    NET = Call::put("/network-interfaces/{iface_id}");
    /// The vsock device.
    VSOCK = Call::put("/vsock");
    /// The guest's source of entropy.
    ENTROPY = Call::put("/entropy");
    /// The device by which the guest can give memory back.
    BALLOON = Call::put("/balloon");
    /// Starts the machine.
    START = Call::put("/actions").slow();
    /// Stops the vCPUs, or lets them go on.
    STATE = Call::patch("/vm");
    /// Writes a paused machine to files.
    SAVE = Call::put("/snapshot/create").slow();
    /// Makes a machine of such files.
    LOAD = Call::put("/snapshot/load").slow();
}

/// Most vCPUs of a machine.
pub const MOST_VCPUS: u32 = 32;

/// What the administrator decided, once for all VMs of a driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// It filters its own system calls.
    pub seccomp: bool,
    /// How much a disk may do.
    pub disk_limit: RateLimit,
    /// How much a network card may do, in each direction.
    pub net_limit: RateLimit,
}

/// Checks what Firecracker cannot do.
///
/// # Errors
/// [`ErrorKind::Unsupported`], in one sentence with the alternative; [`ErrorKind::InvalidArgument`].
pub fn check(spec: &VmSpec) -> Result<(), Error> {
    spec.check()?;
    let unsupported = |problem: &str| Err(Error::new(ErrorKind::Unsupported, problem));
    if spec.vcpus > MOST_VCPUS {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("Firecracker has {MOST_VCPUS} vCPUs at most, not {}", spec.vcpus),
        ));
    }
    if spec.max_vcpus > spec.vcpus || spec.memory.max_mib > spec.memory.size_mib {
        return unsupported(
            "Firecracker's machines keep the vCPUs and the memory they start with; \
             set static_sandbox_resource_mgmt = true, or use hypervisor_name = \"qemu\" or \"clh\"",
        );
    }
    if spec.memory.backing == MemoryBacking::Shared {
        return unsupported("Firecracker shares guest memory with nobody, as daemons of vhost-user need it");
    }
    let mut vsocks = 0;
    for device in &spec.devices {
        match device {
            Device::Vsock(Vsock::Hybrid { .. }) => vsocks += 1,
            Device::Net { taps, .. } if taps.len() == 1 => {}
            Device::Net { id, taps, .. } => {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "Firecracker's network card {id:?} has one queue, and is given {}",
                        taps.len()
                    ),
                ));
            }
            Device::Block(_) => {}
            other => return Err(lacking(other)),
        }
    }
    match vsocks {
        0 | 1 => Ok(()),
        _ => Err(Error::new(
            ErrorKind::InvalidArgument,
            "a VM has one vsock device at most",
        )),
    }
}

/// The error of a device that there is not.
pub fn lacking(device: &Device) -> Error {
    let what = match device {
        Device::VirtioFs(_) => {
            "Firecracker has no shared file systems; give its containers block devices (a snapshotter such as devmapper or \
             blockfile), or use hypervisor_name = \"qemu\" or \"clh\""
        }
        Device::SerialPort(_) => {
            "Firecracker has no virtio-serial ports; its agents are reached by hybrid vsock"
        }
        Device::Vsock(_) => "Firecracker has its own hybrid vsock and no other",
        Device::Net { .. } => {
            "Firecracker takes network cards only at the start; have the pod's network made before it, or use \
             hypervisor_name = \"qemu\" or \"clh\""
        }
        Device::Block(_) => "Firecracker has no more disks than it starts with",
    };
    Error::new(ErrorKind::Unsupported, what)
}

/// The machine.
pub fn machine(spec: &VmSpec) -> Value {
    json!({
        "vcpu_count": spec.vcpus,
        "mem_size_mib": spec.memory.size_mib,
        "smt": false,
        "track_dirty_pages": false,
    })
}

/// What it starts.
pub fn boot_source(kernel: &str, initrd: &str, params: &[String]) -> Value {
    // A panic ends in a reset at once (panic=-1), by the keyboard controller (reboot=k), which ends Firecracker. There is no
    // other way for a guest to end, and no PCI to look for.
    let ours = ["console=ttyS0", "quiet", "panic=-1", "reboot=k", "pci=off"];
    let params: Vec<&str> = ours
        .into_iter()
        .chain(params.iter().map(String::as_str))
        .collect();
    json!({
        "kernel_image_path": kernel,
        "initrd_path": initrd,
        "boot_args": params.join(" "),
    })
}

/// A disk.
pub fn drive(settings: &Settings, id: &str, path: &str, readonly: bool) -> Value {
    let mut drive = json!({
        "drive_id": id,
        "path_on_host": path,
        "is_root_device": false,
        "is_read_only": readonly,
        // What the guest has flushed is to be on the disk.
        "cache_type": "Writeback",
    });
    if let Some(limiter) = settings.disk_limit.limiter() {
        drive["rate_limiter"] = limiter;
    }
    drive
}

/// Another file behind a disk.
pub fn exchange(id: &str, path: &str) -> Value {
    json!({"drive_id": id, "path_on_host": path})
}

/// A network card on the tap of this name.
pub fn net(settings: &Settings, id: &str, tap: &str, mac: &str) -> Value {
    let mut card = json!({"iface_id": id, "host_dev_name": tap, "guest_mac": mac});
    if let Some(limiter) = settings.net_limit.limiter() {
        card["rx_rate_limiter"] = limiter.clone();
        card["tx_rate_limiter"] = limiter;
    }
    card
}

/// The vsock device.
pub fn vsock(cid: u32, uds: &str) -> Value {
    json!({"guest_cid": cid, "uds_path": uds})
}

/// The guest's source of entropy.
pub fn entropy() -> Value {
    json!({})
}

/// A balloon that takes nothing by itself.
pub fn balloon() -> Value {
    json!({"amount_mib": 0, "deflate_on_oom": true})
}

/// Starts the machine.
pub fn start() -> Value {
    json!({"action_type": "InstanceStart"})
}

/// Stops the vCPUs.
pub fn paused() -> Value {
    json!({"state": "Paused"})
}

/// Lets them go on.
pub fn resumed() -> Value {
    json!({"state": "Resumed"})
}

/// A machine that is written to these files.
pub fn save(state: &str, memory: &str) -> Value {
    json!({"snapshot_type": "Full", "snapshot_path": state, "mem_file_path": memory})
}

/// A machine that is in these files, with its vsock at `uds` where that is another one now.
pub fn load(state: &str, memory: &str, uds: Option<&str>) -> Value {
    let mut body = json!({
        "snapshot_path": state,
        "mem_backend": {"backend_type": "File", "backend_path": memory},
        "resume_vm": false,
    });
    if let Some(uds) = uds {
        body["vsock_override"] = json!({"uds_path": uds});
    }
    body
}

//! From a specification to Cloud Hypervisor's words: every request that is sent, and what it says. Pure: nothing is opened or
//! sent here.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::rest::{Call, RateLimit, calls};
use crate::spec::{checked, text};
use crate::{Device, Disk, Error, ErrorKind, MemoryBacking, VirtioFs, VmSpec, Vsock};

/// Where the API begins.
pub const BASE: &str = "/api/v1";

calls! {
    /// Asks who answers.
    PING = Call::get("/vmm.ping");
    /// Describes the machine.
    CREATE = Call::put("/vm.create");
    /// Starts it.
    BOOT = Call::put("/vm.boot").slow();
    /// Adds a network card on descriptors, also before the machine is started.
    ADD_NET = Call::put("/vm.add-net");
    /// Adds a disk.
    ADD_DISK = Call::put("/vm.add-disk");
    /// Adds a virtio-fs device.
    ADD_FS = Call::put("/vm.add-fs");
    /// Asks the guest to let go of a device.
    REMOVE = Call::put("/vm.remove-device");
    /// Changes the number of vCPUs.
    RESIZE = Call::put("/vm.resize");
    /// Changes the size of a memory zone.
    RESIZE_ZONE = Call::put("/vm.resize-zone");
    /// Stops the vCPUs.
    PAUSE = Call::put("/vm.pause");
    /// Lets them go on.
    RESUME = Call::put("/vm.resume");
    /// Writes a paused machine to a directory.
    SNAPSHOT = Call::put("/vm.snapshot").slow();
    /// Makes a machine of such a directory.
    RESTORE = Call::put("/vm.restore").slow();
    /// Ends machine and monitor.
    SHUTDOWN = Call::put("/vmm.shutdown");
}

/// Id of the one memory zone, which is all of the memory.
const ZONE: &str = "ram";

/// What the administrator decided, once for all VMs of a driver.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// It filters its own system calls.
    pub seccomp: bool,
    /// It may touch no other files than it is told of.
    pub landlock: bool,
    /// How much a disk may do.
    pub disk_limit: RateLimit,
    /// How much a network card may do, in each direction.
    pub net_limit: RateLimit,
}

/// A machine as it is created, without its network cards, which come after it with their descriptors. What it finds open is put
/// into `inherited`.
pub fn machine(
    settings: &Settings,
    spec: &VmSpec,
    inherited: &mut Vec<Arc<OwnedFd>>,
) -> Result<Value, Error> {
    check(spec)?;
    let (mut disks, mut shares) = (Vec::new(), Vec::new());
    let mut config = json!({
        "cpus": {"boot_vcpus": spec.vcpus, "max_vcpus": spec.max_vcpus.max(spec.vcpus)},
        "memory": memory(spec),
        "payload": {
            "kernel": text(&spec.kernel)?,
            "initramfs": text(&spec.initrd)?,
            "cmdline": kernel_command_line(&spec.kernel_params),
        },
        "rng": {"src": "/dev/urandom"},
        // The guest gives back what it has freed.
        "balloon": {"size": 0, "deflate_on_oom": true, "free_page_reporting": true},
        // The guest's console is what the monitor prints.
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
    });
    for device in &spec.devices {
        match device {
            Device::Vsock(vsock) => config["vsock"] = self::vsock(vsock)?,
            Device::Block(disk) => {
                inherited.push(Arc::clone(&disk.file));
                let path = format!("/proc/self/fd/{}", disk.file.as_raw_fd());
                disks.push(self::disk(settings, disk, &path)?);
            }
            Device::VirtioFs(fs) => shares.push(share(fs)?),
            Device::Net { .. } => {}
            Device::SerialPort(_) => return Err(no_serial_port()),
        }
    }
    if !disks.is_empty() {
        config["disks"] = json!(disks);
    }
    if !shares.is_empty() {
        config["fs"] = json!(shares);
    }
    if settings.landlock {
        config["landlock_enable"] = json!(true);
        config["landlock_rules"] = landlock_rules(&spec.run_dir)?;
    }
    Ok(config)
}

fn check(spec: &VmSpec) -> Result<(), Error> {
    spec.check()?;
    let refuse = |problem: String| Err(Error::new(ErrorKind::InvalidArgument, problem));
    let count = |wanted: fn(&Device) -> bool| spec.devices.iter().filter(|device| wanted(device)).count();
    if count(|device| matches!(device, Device::Vsock(_))) > 1 {
        return refuse("a VM has one vsock device at most".into());
    }
    if spec.memory.backing == MemoryBacking::Private
        && let Some(device) = spec
            .devices
            .iter()
            .find(|device| matches!(device, Device::VirtioFs(_)))
    {
        return refuse(format!(
            "the device {:?} is served by another process and needs shared guest memory",
            device.name()
        ));
    }
    Ok(())
}

/// The error of a device that there is not.
pub fn no_serial_port() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "Cloud Hypervisor has no virtio-serial ports; its agents are reached by hybrid vsock",
    )
}

/// One zone: what can be added to it is a virtio-mem device, which is one region for whoever else maps the memory.
fn memory(spec: &VmSpec) -> Value {
    let mut zone = json!({
        "id": ZONE,
        "size": spec.memory.size_mib << 20,
        "shared": spec.memory.backing == MemoryBacking::Shared,
    });
    match spec.memory.addable() {
        0 => {}
        addable => zone["hotplug_size"] = json!(addable << 20),
    }
    json!({"size": 0, "hotplug_method": "VirtioMem", "zones": [zone]})
}

/// Its control socket's directory is where hybrid vsock's and virtiofsd's are, and what is saved.
pub fn landlock_rules(run_dir: &Path) -> Result<Value, Error> {
    Ok(json!([{"path": text(run_dir)?, "access": "rw"}]))
}

/// Our kernel parameters, then `others`: of two that contradict each other the kernel takes the later.
fn kernel_command_line(others: &[String]) -> String {
    // A panic ends in a reset at once (panic=-1), by the keyboard controller (reboot=k), which the monitor has and reports.
    let ours = ["console=ttyS0", "quiet", "panic=-1", "reboot=k"];
    let params: Vec<&str> = ours
        .into_iter()
        .chain(others.iter().map(String::as_str))
        .collect();
    params.join(" ")
}

/// The vsock device.
pub fn vsock(vsock: &Vsock) -> Result<Value, Error> {
    match vsock {
        Vsock::Hybrid { cid, uds } => Ok(json!({"cid": cid, "socket": text(uds)?, "id": "vsock"})),
        Vsock::Kernel { .. } | Vsock::VhostUser { .. } => Err(Error::new(
            ErrorKind::Unsupported,
            "Cloud Hypervisor has its own hybrid vsock and no other",
        )),
    }
}

/// A virtio-fs device.
pub fn share(fs: &VirtioFs) -> Result<Value, Error> {
    Ok(json!({
        "id": share_id(&fs.tag)?,
        "tag": fs.tag,
        "socket": text(&fs.socket)?,
        "num_queues": 1,
        "queue_size": 1024,
    }))
}

/// A disk that the monitor opens by `path`.
pub fn disk(settings: &Settings, disk: &Disk, path: &str) -> Result<Value, Error> {
    let mut config = json!({
        "id": disk_id(&disk.id)?,
        "serial": disk.id,
        "path": path,
        "readonly": disk.readonly,
        // Nothing is looked for in what a guest may have written.
        "image_type": "Raw",
    });
    if let Some(limit) = settings.disk_limit.limiter() {
        config["rate_limiter_config"] = limit;
    }
    Ok(config)
}

/// A network card, whose taps are passed beside it.
pub fn net(settings: &Settings, id: &str, queues: usize, mac: &str) -> Result<Value, Error> {
    let mut config = json!({
        "id": net_id(id)?,
        "mac": mac,
        // Two for each tap: one for each direction.
        "num_queues": 2 * queues,
    });
    if let Some(limit) = settings.net_limit.limiter() {
        config["rate_limiter_config"] = limit;
    }
    Ok(config)
}

/// The id of a device, by its name.
pub fn id(device: &Device) -> Result<String, Error> {
    match device {
        Device::Block(disk) => disk_id(&disk.id),
        Device::VirtioFs(fs) => share_id(&fs.tag),
        Device::Net { id, .. } => net_id(id),
        Device::Vsock(_) => Ok("vsock".into()),
        Device::SerialPort(_) => Err(no_serial_port()),
    }
}

fn disk_id(name: &str) -> Result<String, Error> {
    checked(name).map(|name| format!("disk-{name}"))
}

fn share_id(name: &str) -> Result<String, Error> {
    checked(name).map(|name| format!("fs-{name}"))
}

fn net_id(name: &str) -> Result<String, Error> {
    checked(name).map(|name| format!("net-{name}"))
}

/// A device to be let go of.
pub fn removal(id: &str) -> Value {
    json!({"id": id})
}

/// So many vCPUs.
pub fn vcpus(count: u32) -> Value {
    json!({"desired_vcpus": count})
}

/// So much memory, MiB.
pub fn zone(mib: u64) -> Value {
    json!({"id": ZONE, "desired_ram": mib << 20})
}

/// A machine that is written to `directory`.
pub fn snapshot(directory: &Path) -> Result<Value, Error> {
    Ok(json!({"destination_url": format!("file://{}", text(directory)?)}))
}

/// A machine that is in `directory`.
pub fn restore(directory: &Path) -> Result<Value, Error> {
    Ok(json!({"source_url": format!("file://{}", text(directory)?)}))
}

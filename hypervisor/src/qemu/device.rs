//! A device of ours in QEMU's words: the same description serves the command line and hotplug. Pure, but for a look at
//! what kind of file a block device's descriptor is.

use std::os::fd::AsFd;

use configuration::MachineType;
use rustix::fs::{FileType, fstat};
use serde_json::{Value, json};

use crate::spec::{checked, text};
use crate::{Device, Disk, Error, ErrorKind, SerialPort, VirtioFs, Vsock};

/// Bus of the virtio-serial controller, which is there if a machine has a port.
pub const SERIAL_BUS: &str = "serial";

/// Bus of the disks that are plugged.
pub const DISK_BUS: &str = "disks";

/// Its slots: the first is the bus's own.
pub const DISK_SLOTS: std::ops::Range<usize> = 1..32;

/// What stands behind a device on the host's side.
#[derive(Debug, Clone, PartialEq)]
pub enum Backend {
    /// Nothing to set up.
    None,
    /// A chardev that connects to a unix socket.
    Socket {
        /// Its id.
        id: String,
        /// Path of the socket.
        path: String,
    },
    /// A netdev on taps.
    Taps {
        /// Its id.
        id: String,
    },
    /// A block node on a descriptor.
    Node {
        /// Its name.
        name: String,
        /// QEMU's driver for this kind of file.
        driver: &'static str,
        /// Never opened for writing.
        readonly: bool,
    },
}

/// A device as QEMU is told of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Frontend {
    /// The device's id in QEMU.
    pub id: String,
    /// Properties, `driver` and `id` included.
    pub properties: Value,
    /// What it needs first.
    pub backend: Backend,
}

/// QEMU's description of `device` on `machine`, with hardware virtualization or (`kvm` false) without.
pub fn describe(device: &Device, machine: MachineType, kvm: bool) -> Result<Frontend, Error> {
    let kind = match device {
        Device::Vsock(_) => "virtio",
        Device::SerialPort(_) => "port",
        Device::VirtioFs(_) => "fs",
        Device::Net { .. } => "net",
        Device::Block(_) => "block",
    };
    let id = format!("{kind}-{}", checked(device.name())?);
    let backend_id = format!("{id}-backend");
    let virtio = |model: &str| virtio_driver(model, machine);
    let (properties, backend) = match device {
        Device::Vsock(Vsock::Kernel { cid }) => (
            json!({"driver": virtio("vhost-vsock"), "guest-cid": cid}),
            Backend::None,
        ),
        Device::Vsock(Vsock::VhostUser { socket }) => (
            json!({"driver": virtio("vhost-user-vsock"), "chardev": backend_id}),
            Backend::Socket {
                id: backend_id,
                path: text(socket)?,
            },
        ),
        Device::Vsock(Vsock::Hybrid { .. }) => {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "QEMU has no hybrid vsock of its own; it needs the vhost-user vsock daemon",
            ));
        }
        Device::SerialPort(SerialPort { name, socket }) => (
            json!({"driver": "virtserialport", "bus": format!("{SERIAL_BUS}.0"), "chardev": backend_id, "name": name}),
            Backend::Socket {
                id: backend_id,
                path: text(socket)?,
            },
        ),
        Device::VirtioFs(VirtioFs { tag, socket, .. }) => (
            json!({"driver": virtio("vhost-user-fs"), "chardev": backend_id, "tag": tag, "queue-size": 1024}),
            Backend::Socket {
                id: backend_id,
                path: text(socket)?,
            },
        ),
        Device::Net { taps, mac, .. } => (
            net(&backend_id, taps.len(), mac, machine),
            Backend::Taps { id: backend_id },
        ),
        Device::Block(Disk { id, file, readonly }) => (
            block(&backend_id, id, machine, kvm),
            Backend::Node {
                name: backend_id,
                driver: file_driver(file)?,
                readonly: *readonly,
            },
        ),
    };
    let mut properties = properties;
    properties["id"] = json!(id);
    Ok(Frontend {
        id,
        properties,
        backend,
    })
}

/// The virtio controller for `SerialPort`s. Port 0 is reserved for a console, so a machine with one port has two.
pub fn serial_controller(ports: usize, machine: MachineType) -> Value {
    json!({"driver": virtio_driver("virtio-serial", machine), "id": SERIAL_BUS, "max_ports": ports + 1})
}

/// Where disks are plugged: one bus has room for the containers and volumes of a pod, where a port is for one device and a boot takes longer with each.
pub fn disk_bus() -> Value {
    json!({"driver": "pcie-pci-bridge", "id": DISK_BUS})
}

/// The guest's source of entropy.
pub fn rng(machine: MachineType) -> Value {
    json!({"driver": virtio_driver("virtio-rng", machine), "rng": "entropy"})
}

/// Tells a guest's kernel when it has become another machine. Each has an id of its own.
pub fn generation() -> Value {
    json!({"driver": "vmgenid", "id": "generation", "guid": "auto"})
}

/// The block node of a [`Backend::Node`] whose descriptor is in the descriptor set `set`.
pub fn block_node(name: &str, driver: &str, readonly: bool, set: u64) -> Value {
    json!({
        "driver": driver,
        "node-name": name,
        "filename": format!("/dev/fdset/{set}"),
        "read-only": readonly,
        "discard": "unmap",
    })
}

/// q35 has virtio on PCI, microvm on MMIO.
fn virtio_driver(model: &str, machine: MachineType) -> String {
    match machine {
        MachineType::Q35 => format!("{model}-pci"),
        MachineType::Microvm => format!("{model}-device"),
    }
}

fn net(backend_id: &str, queues: usize, mac: &str, machine: MachineType) -> Value {
    let mut properties =
        json!({"driver": virtio_driver("virtio-net", machine), "netdev": backend_id, "mac": mac});
    if machine == MachineType::Q35 {
        // No network boot: its option ROM is megabytes that nobody runs.
        properties["romfile"] = json!("");
    }
    if queues > 1 {
        properties["mq"] = json!(true);
        if machine == MachineType::Q35 {
            // One for each direction of each queue, one for control, one for configuration changes.
            properties["vectors"] = json!(2 * queues + 2);
        }
    }
    properties
}

fn block(backend_id: &str, serial: &str, machine: MachineType, kvm: bool) -> Value {
    let mut properties =
        json!({"driver": virtio_driver("virtio-blk", machine), "drive": backend_id, "serial": serial});
    if !kvm && machine == MachineType::Q35 {
        // The thread that executes the guest is in QEMU already when the guest notifies it of a read, and reads itself what the host has
        // in memory: to wake another thread and be woken by it costs as much as the read. With KVM that would be a way out of the
        // kernel first, while the guest stands still. (A microvm's bus does so by itself.)
        properties["ioeventfd"] = json!(false);
        // A read's list of buffers stands in the queue itself, and not in a page that the guest allocates for it and frees: a twentieth
        // of what it executes for a read of 4 KiB. Fewer large requests fit into the queue at a time; those of 1 MiB take as long.
        properties["indirect_desc"] = json!(false);
    }
    properties
}

fn file_driver(file: impl AsFd) -> Result<&'static str, Error> {
    let stat = fstat(file).map_err(|source| {
        Error::caused(
            ErrorKind::Internal,
            "cannot examine a block device's descriptor",
            source,
        )
    })?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => Ok("host_device"),
        FileType::RegularFile => Ok("file"),
        other => Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("a block device must be a file or a block device of the host, not {other:?}"),
        )),
    }
}

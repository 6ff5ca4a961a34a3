//! Devices that come and go on a running q35: disks on a bus of theirs, any other in a root port that waits for it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::slice;
use std::sync::Arc;

use configuration::MachineType;
use serde_json::{Value, json};
use slog::{Logger, warn};
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::argv::port_id;
use super::device::{self, Backend, DISK_BUS, DISK_SLOTS, Frontend};
use super::dormant::{self, Dormant, Hush};
use super::registers::Registers;
use super::vhost;
use crate::between;
use crate::qmp::{Client, Events};
use crate::saved::failed;
use crate::{Device, Error, ErrorKind, deadlines};

/// Where devices can be plugged, and what is there.
#[derive(Debug)]
pub struct Slots {
    /// The root ports.
    ports: Vec<Option<Plugged>>,
    /// The slots of the bus of disks.
    disks: Vec<Option<Plugged>>,
    /// There is hardware virtualization: network cards are vhost-net's where that is to be had.
    kvm: bool,
    /// The memory of QEMU's process, where that may be looked into.
    memory: Option<File>,
    /// Nobody but QEMU maps the guest's memory.
    is_private: bool,
    /// What the guest has and QEMU has not.
    dormant: Vec<Dormant>,
    /// How that is taken out and put in.
    registers: Option<Registers>,
    log: Logger,
}

#[derive(Debug)]
struct Plugged {
    name: String,
    device_id: String,
    backend: Prepared,
    presence: Presence,
}

/// What a guest knows of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    /// It was told that it came.
    Told,
    /// It has always had it, and does not know whether QEMU has. Nobody is at its other end.
    Vacant,
    /// The same, and somebody is.
    Constant,
}

/// What has been learned of a VM whose devices were another process's affair before.
#[derive(Debug, Default)]
pub struct Inherited {
    /// See [`between::memory_of`].
    pub memory: Option<File>,
    /// Nobody but QEMU maps the guest's memory.
    pub is_private: bool,
    /// What the guest has and QEMU has not.
    pub dormant: Vec<Dormant>,
    /// A connection to the machine's registers, if there is one.
    pub registers: Option<Registers>,
}

/// A backend that exists in QEMU, and how to remove it.
#[derive(Debug)]
enum Prepared {
    None,
    Chardev(String),
    Netdev(String),
    Node { name: String, set: u64 },
}

/// The error of a machine without hotplug.
pub fn absent() -> Error {
    Error::new(ErrorKind::Unsupported, "this machine has no hotplug")
}

impl Slots {
    /// So many ports, and all are empty but for those of devices that are only in the guest's mind.
    pub fn new(ports: usize, kvm: bool, inherited: Inherited, log: Logger) -> Self {
        let Inherited {
            memory,
            is_private,
            dormant,
            registers,
        } = inherited;
        Self {
            ports: std::iter::repeat_with(|| None).take(ports).collect(),
            disks: DISK_SLOTS.map(|_| None).collect(),
            kvm,
            memory,
            is_private,
            dormant,
            registers,
            log,
        }
    }

    /// The first ports have these devices from the VM's start, and nobody is at their other ends.
    pub fn vacate(&mut self, devices: &[Device]) -> Result<(), Error> {
        for (port, device) in self.ports.iter_mut().zip(vacant(devices)) {
            let frontend = device::describe(device, MachineType::Q35, self.kvm)?;
            let Backend::Socket { id: backend, .. } = frontend.backend else {
                continue;
            };
            *port = Some(Plugged {
                name: device.name().to_owned(),
                device_id: frontend.id,
                backend: Prepared::Chardev(backend),
                presence: Presence::Vacant,
            });
        }
        Ok(())
    }

    /// The guest has these, and QEMU has not.
    pub fn remember(&mut self, dormant: Vec<Dormant>) {
        self.dormant = dormant;
    }

    /// Whether the guest has such a device, and is not told when it comes or goes: it must stand still then.
    pub fn is_constant(&self, name: &str) -> bool {
        self.dormant.iter().any(|dormant| dormant.name == name)
            || self
                .plugged()
                .any(|plugged| plugged.name == name && plugged.presence != Presence::Told)
    }

    /// Puts a device into a free place.
    pub async fn plug(&mut self, client: &Client, device: Device) -> Result<(), Error> {
        if let Device::Vsock(_) | Device::SerialPort(_) = device {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "only virtio-fs, block and network devices can be plugged",
            ));
        }
        let name = device.name().to_owned();
        if self.is_constant(&name) {
            return self.wake(client, device).await;
        }
        if self.plugged().any(|plugged| plugged.name == name) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("a device {name:?} is plugged already"),
            ));
        }
        let is_disk = matches!(device, Device::Block(_));
        let (places, what) = match is_disk {
            true => (&self.disks, "slots for disks"),
            false => (&self.ports, "ports for plugged devices"),
        };
        let is_taken = |place: &usize| !is_disk && self.dormant.iter().any(|dormant| dormant.port == *place);
        let mut empty = (0..)
            .zip(places)
            .filter(|(_, held)| held.is_none())
            .map(|(place, _)| place);
        let Some(place) = empty.find(|place| !is_taken(place)) else {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("all {} {what} are in use", places.len()),
            ));
        };
        let Frontend {
            id,
            mut properties,
            backend,
        } = device::describe(&device, MachineType::Q35, self.kvm)?;
        match is_disk {
            true => {
                properties["bus"] = json!(DISK_BUS);
                properties["addr"] = json!(format!("{:#x}", DISK_SLOTS.start + place));
            }
            false => properties["bus"] = json!(port_id(place)),
        }
        let backend = match backend {
            Backend::Socket { id, path } if self.is_private => self.carry(client, id, &path).await?,
            backend => prepare(client, &device, backend, self.kvm).await?,
        };
        if let Err(error) = client.execute("device_add", properties).await {
            self.remove(client, backend).await;
            return Err(error);
        }
        let places = match is_disk {
            true => &mut self.disks,
            false => &mut self.ports,
        };
        places[place] = Some(Plugged {
            name,
            device_id: id,
            backend,
            presence: Presence::Told,
        });
        Ok(())
    }

    /// Puts a device in that the guest has had all the time, with its process at the other end. The guest stands still.
    async fn wake(&mut self, client: &Client, device: Device) -> Result<(), Error> {
        let name = device.name().to_owned();
        if let Some(index) = self.vacant(&name) {
            self.withdraw(client, index).await?;
        }
        let index = self.dormant.iter().position(|dormant| dormant.name == name);
        let dormant = index.and_then(|index| self.dormant.get(index)).cloned();
        let Some(dormant) = dormant else {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("a device {name:?} is plugged already"),
            ));
        };
        let Frontend {
            id,
            mut properties,
            backend,
        } = device::describe(&device, MachineType::Q35, self.kvm)?;
        properties["bus"] = json!(port_id(dormant.port));
        let backend = match backend {
            // Where its queues are is what the guest's memory tells, and no process asks that.
            Backend::Socket { id, path } if self.is_private || dormant.was_used => {
                self.carry(client, id, &path).await?
            }
            backend => prepare(client, &device, backend, self.kvm).await?,
        };
        if let Err(error) = self.put(client, properties, &dormant).await {
            self.remove(client, backend).await;
            return Err(error);
        }
        self.dormant.retain(|dormant| dormant.name != name);
        let Some(port) = self.ports.get_mut(dormant.port) else {
            return Err(missing(&name));
        };
        *port = Some(Plugged {
            name,
            device_id: id,
            backend,
            presence: Presence::Constant,
        });
        Ok(())
    }

    async fn put(&mut self, client: &Client, properties: Value, dormant: &Dormant) -> Result<(), Error> {
        let registers = registers(&mut self.registers, client).await?;
        let hush = Hush::begin(registers).await?;
        let added = client.execute("device_add", properties).await;
        hush.end(registers, dormant).await?;
        added?;
        dormant.wake(registers).await
    }

    /// The number of the port with a device of that name that nobody serves.
    fn vacant(&self, name: &str) -> Option<usize> {
        let is_it = |plugged: &Plugged| plugged.name == name && plugged.presence == Presence::Vacant;
        self.ports
            .iter()
            .position(|port| port.as_ref().is_some_and(is_it))
    }

    /// Takes the device in a port out, which the guest goes on having. It stands still.
    async fn withdraw(&mut self, client: &Client, index: usize) -> Result<(), Error> {
        let Some(plugged) = self.ports.get(index).and_then(Option::as_ref) else {
            return Err(missing(&port_id(index)));
        };
        let registers = registers(&mut self.registers, client).await?;
        let mut events = client.events().ok_or_else(gone)?;
        let which = (plugged.name.as_str(), plugged.device_id.as_str());
        let was_used = plugged.presence == Presence::Constant;
        let dormant = dormant::withdraw(client, registers, which, index, was_used).await?;
        finished(&mut events, &plugged.device_id).await?;
        if let Some(plugged) = self.ports.get_mut(index).and_then(Option::take) {
            self.remove(client, plugged.backend).await;
        }
        self.dormant.push(dormant);
        Ok(())
    }

    /// Takes all out that nobody serves, of a machine that stands still: what the guest has afterwards, and QEMU has not.
    pub async fn sleep(&mut self, client: &Client) -> Result<&[Dormant], Error> {
        let is_vacant = |port: &Option<Plugged>| {
            port.as_ref()
                .is_some_and(|plugged| plugged.presence == Presence::Vacant)
        };
        while let Some(index) = self.ports.iter().position(is_vacant) {
            self.withdraw(client, index).await?;
        }
        Ok(&self.dormant)
    }

    /// Whether nobody but QEMU maps the guest's memory.
    pub fn is_private(&self) -> bool {
        self.is_private
    }

    /// What the guest has and QEMU has not.
    pub fn dormant(&self) -> &[Dormant] {
        &self.dormant
    }

    /// The connection to the machine's registers, if there was need of one.
    pub fn registers(&self) -> Option<&Registers> {
        self.registers.as_ref()
    }

    /// The machine's registers are the guest's from here on.
    pub fn hang_up(&mut self) {
        self.registers = None;
    }

    /// Has what passes between QEMU and the process that listens at this path be carried.
    async fn carry(&self, client: &Client, id: String, path: &str) -> Result<Prepared, Error> {
        let memory = self.memory.as_ref().ok_or_else(|| {
            Error::new(
                ErrorKind::Unsupported,
                "QEMU's process is not to be looked into: that takes the capability CAP_SYS_PTRACE",
            )
        })?;
        let begun = memory
            .try_clone()
            .and_then(|memory| between::start(memory, Path::new(path), self.log.clone()));
        let socket = begun.map_err(failed(
            "cannot carry between a VM and the process behind a device",
        ))?;
        let named = json!({"fdname": id});
        client
            .execute_with_fd("getfd", named.clone(), Arc::new(socket))
            .await?;
        let address = json!({"type": "fd", "data": {"str": id}});
        let socket = json!({"type": "socket", "data": {"addr": address, "server": false}});
        let arguments = json!({"id": id, "backend": socket});
        match client.execute("chardev-add", arguments).await {
            Ok(_) => Ok(Prepared::Chardev(id)),
            Err(error) => {
                // The error that counts is the first.
                let _ = client.execute("closefd", named).await;
                Err(error)
            }
        }
    }

    fn plugged(&self) -> impl Iterator<Item = &Plugged> {
        self.ports.iter().chain(&self.disks).flatten()
    }

    /// Takes a device out; returns when the guest has let go of it. If the guest does not, it stays and can be unplugged
    /// again.
    pub async fn unplug(&mut self, client: &Client, name: &str) -> Result<(), Error> {
        let is_constant = |plugged: &Plugged| plugged.name == name && plugged.presence == Presence::Constant;
        let ports = &mut self.ports.iter();
        if let Some(index) = ports.position(|port| port.as_ref().is_some_and(is_constant)) {
            return self.withdraw(client, index).await;
        }
        let found = self
            .ports
            .iter_mut()
            .chain(&mut self.disks)
            .find(|port| port.as_ref().is_some_and(|plugged| plugged.name == name));
        let Some(port) = found else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no device {name:?} was plugged"),
            ));
        };
        if let Some(plugged) = port {
            release(client, &plugged.device_id).await?;
        }
        if let Some(plugged) = port.take() {
            self.remove(client, plugged.backend).await;
        }
        Ok(())
    }

    /// Has a disk's node look how much there is, and the guest be told. Of a file, `bytes` is what it has already: QEMU would make it
    /// so.
    pub async fn grow_disk(&self, client: &Client, name: &str, bytes: u64) -> Result<(), Error> {
        let found = self.plugged().find(|plugged| plugged.name == name);
        let Some(Prepared::Node { name: node, .. }) = found.map(|plugged| &plugged.backend) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no disk {name:?} was plugged"),
            ));
        };
        let arguments = json!({"node-name": node, "size": bytes});
        client.execute("block_resize", arguments).await.map(drop)
    }

    /// Removes what stood behind a device that is gone. A failure costs QEMU some memory and nothing else.
    async fn remove(&self, client: &Client, backend: Prepared) {
        let steps: Vec<(&'static str, Value)> = match backend {
            Prepared::None => vec![],
            Prepared::Chardev(id) => vec![("chardev-remove", json!({"id": id}))],
            Prepared::Netdev(id) => vec![("netdev_del", json!({"id": id}))],
            Prepared::Node { name, set } => vec![
                ("blockdev-del", json!({"node-name": name})),
                ("remove-fd", json!({"fdset-id": set})),
            ],
        };
        for (command, arguments) in steps {
            if let Err(error) = client.execute(command, arguments).await {
                warn!(self.log, "a plugged device left something behind"; "error" => %error);
            }
        }
    }
}

/// Asks the guest to let go of the device, and waits until it has.
async fn release(client: &Client, device_id: &str) -> Result<(), Error> {
    let mut events = client.events().ok_or_else(gone)?;
    match client.execute("device_del", json!({"id": device_id})).await {
        Ok(_) => {}
        // It went away since an earlier attempt that nobody waited for long enough.
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    finished(&mut events, device_id).await
}

/// The connection to the machine's registers, which is made when it is needed.
async fn registers<'a>(
    registers: &'a mut Option<Registers>,
    client: &Client,
) -> Result<&'a mut Registers, Error> {
    match registers {
        Some(registers) => Ok(registers),
        none => Ok(none.insert(Registers::open(client).await?)),
    }
}

fn gone() -> Error {
    Error::new(ErrorKind::Unavailable, "QEMU has closed its control socket")
}

fn missing(name: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("there is no port for {name:?}"))
}

/// Whether a machine that is to be saved has a device without anybody at its other end.
pub fn is_vacant(device: &Device) -> bool {
    matches!(device, Device::VirtioFs(_))
}

/// Those of these devices.
pub fn vacant(devices: &[Device]) -> impl Iterator<Item = &Device> {
    devices.iter().filter(|device| is_vacant(device))
}

/// Waits until a device is no more.
async fn finished(events: &mut Events, device_id: &str) -> Result<(), Error> {
    match timeout(deadlines::UNPLUG, deleted(events, device_id)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(())) => Err(gone()),
        Err(_) => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "the guest did not let go of {device_id} within {:?}",
                deadlines::UNPLUG
            ),
        )),
    }
}

async fn deleted(events: &mut Events, device_id: &str) -> Result<(), ()> {
    loop {
        match events.recv().await {
            Ok(event) if event.name == "DEVICE_DELETED" && event.text("device") == Some(device_id) => {
                return Ok(());
            }
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return Err(()),
        }
    }
}

async fn prepare(client: &Client, device: &Device, backend: Backend, kvm: bool) -> Result<Prepared, Error> {
    match (backend, device) {
        (Backend::Socket { id, path }, _) => {
            let address = json!({"type": "unix", "data": {"path": path}});
            let socket = json!({"type": "socket", "data": {"addr": address, "server": false}});
            client
                .execute("chardev-add", json!({"id": id, "backend": socket}))
                .await?;
            Ok(Prepared::Chardev(id))
        }
        (Backend::Taps { id }, Device::Net { taps, .. }) => {
            let mut netdev = json!({"type": "tap", "id": id});
            netdev["fds"] = json!(hand_over(client, &id, taps).await?);
            let node = Path::new(vhost::NODE);
            // Without it QEMU moves the frames.
            if let Some(vhost) = kvm
                .then(|| vhost::open(node, slice::from_ref(device)).ok())
                .flatten()
            {
                netdev["vhost"] = json!(true);
                match hand_over(client, &format!("{id}-vhost"), &vhost).await {
                    Ok(names) => netdev["vhostfds"] = json!(names),
                    Err(error) => {
                        take_back(client, &id, taps.len()).await;
                        return Err(error);
                    }
                }
            }
            client.execute("netdev_add", netdev).await?;
            Ok(Prepared::Netdev(id))
        }
        (
            Backend::Node {
                name,
                driver,
                readonly,
            },
            Device::Block(disk),
        ) => {
            let added = client
                .execute_with_fd("add-fd", json!({}), Arc::clone(&disk.file))
                .await?;
            let set = added["fdset-id"].as_u64().ok_or_else(|| {
                Error::new(
                    ErrorKind::Internal,
                    "QEMU's answer to add-fd does not name the descriptor set",
                )
            })?;
            let node = device::block_node(&name, driver, readonly, set);
            // By io_uring, where QEMU and the host's kernel have it: a read is not handed to another thread and back.
            let mut quick = node.clone();
            quick["aio"] = json!("io_uring");
            let added = match client.execute("blockdev-add", quick).await {
                Err(error) if error.kind != ErrorKind::Unavailable => {
                    client.execute("blockdev-add", node).await
                }
                added => added,
            };
            if let Err(error) = added {
                // The error that counts is the first.
                let _ = client.execute("remove-fd", json!({"fdset-id": set})).await;
                return Err(error);
            }
            Ok(Prepared::Node { name, set })
        }
        _ => Ok(Prepared::None),
    }
}

/// Gives QEMU the descriptors of a card's queues under names; returns the names as `netdev_add` wants them.
async fn hand_over(client: &Client, id: &str, fds: &[Arc<OwnedFd>]) -> Result<String, Error> {
    let mut names = Vec::with_capacity(fds.len());
    for (queue, fd) in fds.iter().enumerate() {
        let name = queue_name(id, queue);
        if let Err(error) = client
            .execute_with_fd("getfd", json!({"fdname": name}), Arc::clone(fd))
            .await
        {
            take_back(client, id, queue).await;
            return Err(error);
        }
        names.push(name);
    }
    Ok(names.join(":"))
}

/// Lets QEMU close descriptors that no netdev uses.
async fn take_back(client: &Client, id: &str, count: usize) {
    for queue in 0..count {
        // The error that counts is the first.
        let _ = client
            .execute("closefd", json!({"fdname": queue_name(id, queue)}))
            .await;
    }
}

fn queue_name(id: &str, queue: usize) -> String {
    format!("{id}-{queue}")
}

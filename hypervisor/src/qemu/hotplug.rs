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
    /// The memory of QEMU's process, where nobody else maps the guest's.
    private: Option<File>,
    log: Logger,
}

#[derive(Debug)]
struct Plugged {
    name: String,
    device_id: String,
    backend: Prepared,
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
    /// So many ports, and all are empty. `private`: see [`between::memory_of`].
    pub fn new(ports: usize, kvm: bool, private: Option<File>, log: Logger) -> Self {
        Self {
            ports: std::iter::repeat_with(|| None).take(ports).collect(),
            disks: DISK_SLOTS.map(|_| None).collect(),
            kvm,
            private,
            log,
        }
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
        let Some(place) = places.iter().position(Option::is_none) else {
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
        let backend = match (backend, &self.private) {
            (Backend::Socket { id, path }, Some(memory)) => self.carry(client, id, &path, memory).await?,
            (backend, _) => prepare(client, &device, backend, self.kvm).await?,
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
        });
        Ok(())
    }

    /// Whether nobody but QEMU maps the guest's memory.
    pub fn is_private(&self) -> bool {
        self.private.is_some()
    }

    /// Has what passes between QEMU and the process that listens at this path be carried.
    async fn carry(&self, client: &Client, id: String, path: &str, memory: &File) -> Result<Prepared, Error> {
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
    let gone = |_| Error::new(ErrorKind::Unavailable, "QEMU has closed its control socket");
    let mut events = client.events().ok_or(()).map_err(gone)?;
    match client.execute("device_del", json!({"id": device_id})).await {
        Ok(_) => {}
        // It went away since an earlier attempt that nobody waited for long enough.
        Err(error) if error.kind == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    match timeout(deadlines::UNPLUG, deleted(&mut events, device_id)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(())) => Err(gone(())),
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

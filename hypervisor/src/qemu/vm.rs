//! A running QEMU.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use configuration::MachineType;
use serde_json::json;
use tokio::sync::{broadcast, watch};

use super::hotplug::Slots;
use super::resize::Grown;
use super::transfer::Hand;
use super::{NAME, Reported, snapshot};
use crate::qmp::{Client, Events};
use crate::supervisor::{Announcement, Supervised};
use crate::{Device, Error, ErrorKind, Exit, Hotplug, Resize, SaveTo, Transfer, Vm, VmRecord, VmReport};

/// A running QEMU. Dropping it kills the process.
#[derive(Debug)]
pub struct QemuVm {
    pub(super) supervised: Supervised,
    pub(super) client: Client,
    pub(super) run_dir: PathBuf,
    pub(super) reported: Reported,
    /// `None` on a machine without hotplug.
    pub(super) slots: Option<Slots>,
    /// `None` on a machine that keeps its size.
    pub(super) grown: Option<Grown>,
    /// Its serial ports.
    pub(super) ports: usize,
    /// How often its guest has opened one.
    pub(super) openings: watch::Receiver<usize>,
    /// What is handed over with it, if it can be.
    pub(super) hand: Option<Hand>,
    /// What its life depends on, if it was taken over.
    pub(super) _lifeline: Option<OwnedFd>,
    /// Its memory, if it can be saved.
    pub(super) saveable: Option<Arc<OwnedFd>>,
}

#[async_trait]
impl Vm for QemuVm {
    fn pid(&self) -> u32 {
        self.supervised.pid()
    }

    fn record(&self) -> VmRecord {
        self.supervised.record(NAME, &self.run_dir)
    }

    fn report(&self) -> VmReport {
        let Reported {
            version,
            machine,
            accelerator,
            reason,
            origin,
        } = self.reported.clone();
        let machine = match machine {
            MachineType::Q35 => "q35",
            MachineType::Microvm => "microvm",
        };
        VmReport {
            vmm: format!("QEMU {version}"),
            machine: machine.into(),
            accelerator: accelerator.into(),
            reason,
            origin,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.supervised.exited()
    }

    async fn stop(&mut self) -> Result<(), Error> {
        // It keeps nothing that it would have to write yet: what a guest has had its disks flush is the kernel's.
        self.supervised.kill().await.map(drop)
    }

    fn hotplug(&mut self) -> Option<&mut dyn Hotplug> {
        match self.slots {
            Some(_) => Some(self),
            None => None,
        }
    }

    fn resize(&mut self) -> Option<&mut dyn Resize> {
        self.grown.as_mut().map(|grown| grown as &mut dyn Resize)
    }

    fn transfer(&mut self) -> Option<&mut dyn Transfer> {
        match self.hand {
            Some(_) => Some(self),
            None => None,
        }
    }

    async fn save(&mut self, to: SaveTo) -> Result<(), Error> {
        match self.saveable.clone() {
            Some(memory) => snapshot::save(self, &memory, to).await,
            None => Err(Error::new(
                ErrorKind::Unsupported,
                "this VM was not started to be saved",
            )),
        }
    }
}

#[async_trait]
impl Hotplug for QemuVm {
    async fn plug(&mut self, device: Device) -> Result<(), Error> {
        let name = device.name().to_owned();
        self.still_for(&name).await?;
        let Some(slots) = &mut self.slots else {
            return Err(super::hotplug::absent());
        };
        slots.plug(&self.client, device).await?;
        self.on_with(&name).await
    }

    async fn unplug(&mut self, id: &str) -> Result<(), Error> {
        self.still_for(id).await?;
        let Some(slots) = &mut self.slots else {
            return Err(super::hotplug::absent());
        };
        slots.unplug(&self.client, id).await?;
        self.on_with(id).await
    }

    async fn grow_disk(&mut self, id: &str, bytes: u64) -> Result<(), Error> {
        match &self.slots {
            Some(slots) => slots.grow_disk(&self.client, id, bytes).await,
            None => Err(super::hotplug::absent()),
        }
    }
}

impl QemuVm {
    fn has_constant(&self, name: &str) -> bool {
        self.slots.as_ref().is_some_and(|slots| slots.is_constant(name))
    }

    /// The guest stands still, if it must not see that this device comes or goes.
    async fn still_for(&self, name: &str) -> Result<(), Error> {
        match self.has_constant(name) {
            true => self.client.execute("stop", json!({})).await.map(drop),
            false => Ok(()),
        }
    }

    /// The guest goes on, if it was made to stand still. It does not after an error: nobody can tell what it would see.
    async fn on_with(&self, name: &str) -> Result<(), Error> {
        match self.has_constant(name) {
            true => self.client.execute("cont", json!({})).await.map(drop),
            false => Ok(()),
        }
    }
}

/// What QEMU tells by itself, while it is connected.
#[derive(Debug)]
pub struct News {
    /// Its coming end.
    pub announcement: watch::Receiver<Option<Announcement>>,
    /// How often its guest has opened a serial port.
    pub openings: watch::Receiver<usize>,
}

/// Listens for what QEMU says, until the connection closes.
pub fn listen(mut events: Events) -> News {
    let (announce, announcement) = watch::channel(None);
    let (opened, openings) = watch::channel(0);
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "SHUTDOWN" => {
                    announce.send_replace(event.text("reason").and_then(announcement_of));
                }
                Ok(event) if event.name == "VSERPORT_CHANGE" && event.flag("open") => {
                    opened.send_modify(|count| *count += 1);
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    News {
        announcement,
        openings,
    }
}

/// The reasons of QEMU's `ShutdownCause` (qapi/run-state.json) that are the guest's doing. With `-no-reboot` a reset is
/// a shutdown, and a reset is how our guests' kernels end a panic.
fn announcement_of(reason: &str) -> Option<Announcement> {
    match reason {
        "guest-shutdown" => Some(Announcement::Shutdown),
        "guest-reset" | "guest-panic" => Some(Announcement::Panic),
        _ => None,
    }
}

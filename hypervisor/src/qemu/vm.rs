//! A running QEMU.

use std::path::PathBuf;

use async_trait::async_trait;
use configuration::MachineType;
use serde_json::json;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;

use super::hotplug::Slots;
use super::resize::Grown;
use super::{NAME, Reported};
use crate::qmp::{Client, Events};
use crate::supervisor::{Announcement, Supervised};
use crate::{Device, Error, Exit, Hotplug, Resize, Vm, VmRecord, VmReport, deadlines};

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
}

#[async_trait]
impl Vm for QemuVm {
    fn pid(&self) -> u32 {
        self.supervised.pid()
    }

    fn record(&self) -> VmRecord {
        VmRecord {
            driver: NAME.into(),
            pid: self.supervised.pid(),
            start_time: self.supervised.start_time(),
            run_dir: self.run_dir.clone(),
        }
    }

    fn report(&self) -> VmReport {
        let Reported {
            version,
            machine,
            accelerator,
            reason,
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
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.supervised.exited()
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.supervised.expect_end();
        let orderly = async {
            // The answer does not matter: a QEMU that has ended gives none.
            let _ = self.client.execute("quit", json!({})).await;
            self.supervised.end_within(deadlines::QUIT).await
        };
        match timeout(deadlines::QUIT, orderly).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => self.supervised.kill().await.map(drop),
        }
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
}

#[async_trait]
impl Hotplug for QemuVm {
    async fn plug(&mut self, device: Device) -> Result<(), Error> {
        match &mut self.slots {
            Some(slots) => slots.plug(&self.client, device).await,
            None => Err(super::hotplug::absent()),
        }
    }

    async fn unplug(&mut self, id: &str) -> Result<(), Error> {
        match &mut self.slots {
            Some(slots) => slots.unplug(&self.client, id).await,
            None => Err(super::hotplug::absent()),
        }
    }
}

/// Listens for what QEMU says of its coming end, until the connection closes.
pub fn announcements(mut events: Events) -> watch::Receiver<Option<Announcement>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "SHUTDOWN" => {
                    sender.send_replace(event.text("reason").and_then(announcement));
                }
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            }
        }
    });
    receiver
}

/// The reasons of QEMU's `ShutdownCause` (qapi/run-state.json) that are the guest's doing. With `-no-reboot` a reset is
/// a shutdown, and a reset is how our guests' kernels end a panic.
fn announcement(reason: &str) -> Option<Announcement> {
    match reason {
        "guest-shutdown" => Some(Announcement::Shutdown),
        "guest-reset" | "guest-panic" => Some(Announcement::Panic),
        _ => None,
    }
}

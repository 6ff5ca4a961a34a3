//! A running Firecracker.

use std::path::PathBuf;

use async_trait::async_trait;
use tokio::sync::watch;

use super::drives::Drives;
use super::place::Place;
use super::{NAME, Reported, VMM, snapshot};
use crate::process::Status;
use crate::rest::Client;
use crate::supervisor::{Announcement, Supervised};
use crate::{Device, Error, ErrorKind, Exit, Hotplug, Resize, SaveTo, Vm, VmRecord, VmReport};

/// A running Firecracker. Dropping it kills the process.
#[derive(Debug)]
pub struct FirecrackerVm {
    pub(super) supervised: Supervised,
    pub(super) client: Client,
    pub(super) run_dir: PathBuf,
    pub(super) reported: Reported,
    pub(super) drives: Drives,
    pub(super) saveable: bool,
    pub(super) place: Place,
}

#[async_trait]
impl Vm for FirecrackerVm {
    fn pid(&self) -> u32 {
        self.supervised.pid()
    }

    fn record(&self) -> VmRecord {
        self.supervised.record(NAME, &self.run_dir)
    }

    fn report(&self) -> VmReport {
        VmReport {
            vmm: format!("{VMM} {}", self.reported.version),
            machine: match self.place {
                Place::Open { .. } => "mmio".into(),
                Place::Jail(_) => "mmio, jailed".into(),
            },
            accelerator: "kvm".into(),
            reason: self.reported.reason.clone(),
            origin: self.reported.origin,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.supervised.exited()
    }

    async fn stop(&mut self) -> Result<(), Error> {
        // It can be asked for nothing but a key press that no guest of ours listens for, and leaves nothing that is not ours.
        let stopped = self.supervised.kill().await.map(drop);
        self.drives.clear();
        self.place.clear();
        stopped
    }

    fn hotplug(&mut self) -> Option<&mut dyn Hotplug> {
        Some(self)
    }

    fn resize(&mut self) -> Option<&mut dyn Resize> {
        None
    }

    async fn save(&mut self, to: SaveTo) -> Result<(), Error> {
        match self.saveable {
            true => snapshot::save(&self.client, &self.place, to).await,
            false => Err(Error::new(
                ErrorKind::Unsupported,
                "this VM was not started to be saved",
            )),
        }
    }
}

#[async_trait]
impl Hotplug for FirecrackerVm {
    async fn plug(&mut self, device: Device) -> Result<(), Error> {
        self.drives.plug(&self.client, &self.place, device).await
    }

    async fn unplug(&mut self, id: &str) -> Result<(), Error> {
        self.drives.unplug(&self.client, &self.place, id).await
    }
}

/// What the end of a Firecracker says of its guest. It ends well when the guest resets, whatever for, and tells nothing of it.
pub fn verdict(status: Status, lines: &[String]) -> Option<Announcement> {
    if status != Status::Exited(0) {
        return None;
    }
    // The guest can make it up, to its own harm only.
    match lines.iter().any(|line| line.contains("Kernel panic")) {
        true => Some(Announcement::Panic),
        false => Some(Announcement::Shutdown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_good_end_is_the_guests() {
        let lines = |text: &str| vec!["x".to_owned(), text.to_owned()];
        let panic = lines("[1.0] Kernel panic - not syncing: no init");
        let table = [
            (Status::Exited(0), &panic, Some(Announcement::Panic)),
            (Status::Exited(0), &lines(""), Some(Announcement::Shutdown)),
            (Status::Exited(1), &panic, None),
            (Status::Killed(9), &panic, None),
        ];
        for (status, lines, expected) in table {
            assert_eq!(verdict(status, lines), expected, "{status:?} {lines:?}");
        }
    }
}

//! A running Cloud Hypervisor.

use std::path::PathBuf;

use async_trait::async_trait;
use slog::{Logger, warn};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::events::{Events, News};
use super::hotplug::{Plugged, Removals};
use super::{NAME, Reported, VMM, request, snapshot};
use crate::rest::Client;
use crate::supervisor::{Announcement, Killer, Supervised};
use crate::{
    Device, Error, ErrorKind, Exit, Hotplug, Memory, Resize, SaveTo, Size, Vm, VmRecord, VmReport, deadlines,
};

/// A running Cloud Hypervisor. Dropping it kills the process.
#[derive(Debug)]
pub struct CloudHypervisorVm {
    pub(super) supervised: Supervised,
    pub(super) client: Client,
    pub(super) run_dir: PathBuf,
    pub(super) reported: Reported,
    pub(super) plugged: Plugged,
    pub(super) size: Size,
    pub(super) max_vcpus: u32,
    /// What it was started with.
    pub(super) memory: Memory,
    pub(super) saveable: bool,
}

#[async_trait]
impl Vm for CloudHypervisorVm {
    fn pid(&self) -> u32 {
        self.supervised.pid()
    }

    fn record(&self) -> VmRecord {
        self.supervised.record(NAME, &self.run_dir)
    }

    fn report(&self) -> VmReport {
        VmReport {
            vmm: format!("{VMM} {}", self.reported.version),
            machine: "pci".into(),
            accelerator: "kvm".into(),
            reason: self.reported.reason.clone(),
            origin: self.reported.origin,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.supervised.exited()
    }

    async fn stop(&mut self) -> Result<(), Error> {
        self.supervised.expect_end();
        let orderly = async {
            // The answer does not matter: a monitor that has ended gives none.
            let _ = self.client.send(request::SHUTDOWN, None).await;
            self.supervised.end_within(deadlines::QUIT).await
        };
        let stopped = match timeout(deadlines::QUIT, orderly).await {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => self.supervised.kill().await.map(drop),
        };
        self.plugged.clear();
        stopped
    }

    fn hotplug(&mut self) -> Option<&mut dyn Hotplug> {
        Some(self)
    }

    fn resize(&mut self) -> Option<&mut dyn Resize> {
        Some(self)
    }

    async fn save(&mut self, to: SaveTo) -> Result<(), Error> {
        match self.saveable {
            true => snapshot::save(&self.client, &self.run_dir, to).await,
            false => Err(Error::new(
                ErrorKind::Unsupported,
                "this VM was not started to be saved",
            )),
        }
    }
}

#[async_trait]
impl Hotplug for CloudHypervisorVm {
    async fn plug(&mut self, device: Device) -> Result<(), Error> {
        if let Device::VirtioFs(fs) = &device
            && self.memory.backing == crate::MemoryBacking::Private
        {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "the device {:?} is served by another process, and the VM was started without shared memory",
                    fs.tag
                ),
            ));
        }
        self.plugged.plug(&self.client, device).await
    }

    async fn unplug(&mut self, id: &str) -> Result<(), Error> {
        self.plugged.unplug(&self.client, id).await
    }
}

#[async_trait]
impl Resize for CloudHypervisorVm {
    fn size(&self) -> Size {
        self.size
    }

    async fn grow_vcpus(&mut self, vcpus: u32) -> Result<(), Error> {
        if vcpus <= self.size.vcpus {
            return Ok(());
        }
        if vcpus > self.max_vcpus {
            return Err(Error::no_room(format!("{vcpus} vCPUs"), self.max_vcpus));
        }
        self.client
            .send(request::RESIZE, Some(request::vcpus(vcpus)))
            .await?;
        self.size.vcpus = vcpus;
        Ok(())
    }

    async fn grow_memory(&mut self, mib: u64) -> Result<(), Error> {
        if mib <= self.size.memory_mib {
            return Ok(());
        }
        let Some(grown) = self.memory.grown_to(mib) else {
            return Err(Error::no_room(
                format!("{mib} MiB of memory"),
                self.memory.max_mib,
            ));
        };
        self.client
            .send(request::RESIZE_ZONE, Some(request::zone(grown)))
            .await?;
        self.size.memory_mib = grown;
        Ok(())
    }
}

/// What Cloud Hypervisor tells by itself, while it lives.
pub struct Heard {
    /// Its coming end.
    pub announcement: watch::Receiver<Option<Announcement>>,
    /// What guests have let go of.
    pub removals: Removals,
}

/// Listens for what Cloud Hypervisor says, until its end. The second is sent to when the guest has reset.
pub fn listen(mut pipe: pipe::Receiver, log: Logger) -> (Heard, oneshot::Receiver<()>) {
    let (announce, announcement) = watch::channel(None);
    let (removed, removals) = Removals::new();
    let (reset, was_reset) = oneshot::channel();
    tokio::spawn(async move {
        let mut reset = Some(reset);
        let mut events = Events::default();
        let mut buffer = [0; 1024];
        // The first of its words about its end is the cause, and the others follow from it.
        let tell = |end| announce.send_if_modified(|told| told.is_none() && told.replace(end).is_none());
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let heard = events.push(&buffer[..count], |event| match event.news() {
                Some(News::Shutdown) => drop(tell(Announcement::Shutdown)),
                Some(News::Reset) => {
                    tell(Announcement::Panic);
                    if let Some(reset) = reset.take() {
                        // Nobody wants to know any more.
                        let _ = reset.send(());
                    }
                }
                Some(News::Removed(id)) => removed.send_modify(|ids| ids.extend([id])),
                None => {}
            });
            if heard.is_err() {
                warn!(
                    log,
                    "what Cloud Hypervisor tells cannot be read; no more of it is"
                );
                return;
            }
        }
    });
    (
        Heard {
            announcement,
            removals,
        },
        was_reset,
    )
}

/// A guest that resets would be booted once more, and its containers are gone.
pub fn kill_after_reset(was_reset: oneshot::Receiver<()>, killer: Killer) {
    tokio::spawn(async move {
        if was_reset.await.is_ok() {
            killer.kill();
        }
    });
}

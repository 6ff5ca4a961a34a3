//! Devices that come and go on a running machine.
//!
//! A network card's taps are passed as descriptors. A disk can only be named by a path, and where Landlock confines the monitor
//! only by one below the VM's own directory: a bind mount of the very file there.

use std::collections::HashMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use slog::{Logger, warn};
use tokio::sync::broadcast;
use tokio::time::timeout;

use super::request::{self, Settings};
use super::vm::Removals;
use crate::rest::{Client, Mounted};
use crate::spec::text;
use crate::{Device, Error, ErrorKind, deadlines};

/// Directory of the plugged disks' mounts, below the VM's own.
const DISKS: &str = "disks";

/// What was plugged.
#[derive(Debug)]
pub struct Plugged {
    devices: HashMap<String, Entry>,
    disks: PathBuf,
    settings: Settings,
    removed: Removals,
    log: Logger,
}

#[derive(Debug)]
struct Entry {
    /// The device's id in the monitor.
    id: String,
    /// Where its file is mounted.
    _mount: Option<Mounted>,
}

impl Plugged {
    /// Nothing yet.
    pub fn new(run_dir: &Path, settings: Settings, removed: Removals, log: Logger) -> Self {
        Self {
            devices: HashMap::new(),
            disks: run_dir.join(DISKS),
            settings,
            removed,
            log,
        }
    }

    /// Adds a device.
    pub async fn plug(&mut self, client: &Client, device: Device) -> Result<(), Error> {
        let name = device.name().to_owned();
        if self.devices.contains_key(&name) {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("a device {name:?} is plugged already"),
            ));
        }
        let id = request::id(&device)?;
        let mut mount = None;
        match device {
            Device::VirtioFs(fs) => {
                let body = request::share(&fs)?;
                client.send(request::ADD_FS, Some(body)).await?;
            }
            Device::Net { id, taps, mac } => {
                let body = request::net(&self.settings, &id, taps.len(), &mac)?;
                client.send_with_fds(request::ADD_NET, body, taps).await?;
            }
            Device::Block(disk) => {
                fs::create_dir_all(&self.disks).map_err(|source| {
                    Error::caused(
                        ErrorKind::Internal,
                        format!("cannot make {}: {source}", self.disks.display()),
                        source,
                    )
                })?;
                let path = self.disks.join(&id);
                let body = request::disk(&self.settings, &disk, &text(&path)?)?;
                let mounted = Mounted::new(path, disk.file.as_fd())?;
                client.send(request::ADD_DISK, Some(body)).await?;
                mount = Some(mounted);
            }
            Device::Vsock(_) | Device::SerialPort(_) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "only virtio-fs, block and network devices can be plugged",
                ));
            }
        }
        self.devices.insert(name, Entry { id, _mount: mount });
        Ok(())
    }

    /// Takes a device out; returns when the guest has let go of it. If the guest does not, it stays and can be unplugged again.
    pub async fn unplug(&mut self, client: &Client, name: &str) -> Result<(), Error> {
        let Some(entry) = self.devices.get(name) else {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!("no device {name:?} was plugged"),
            ));
        };
        let gone = || Error::new(ErrorKind::Unavailable, "Cloud Hypervisor has ended");
        let mut removals = self.removed.upgrade().ok_or_else(gone)?.subscribe();
        let id = entry.id.as_str();
        match client.send(request::REMOVE, Some(request::removal(id))).await {
            Ok(_) => match timeout(deadlines::UNPLUG, removed(&mut removals, id)).await {
                Ok(true) => {}
                Ok(false) => return Err(gone()),
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::DeadlineExceeded,
                        format!("the guest did not let go of {id} within {:?}", deadlines::UNPLUG),
                    ));
                }
            },
            // It went away since an earlier attempt that nobody waited for long enough.
            Err(error) if error.kind == ErrorKind::NotFound => {
                warn!(self.log, "a device was let go of before"; "device" => id);
            }
            Err(error) => return Err(error),
        }
        self.devices.remove(name);
        Ok(())
    }

    /// The machine is gone, and needs no files any more.
    pub fn clear(&mut self) {
        self.devices.clear();
        // It may never have been made.
        let _ = fs::remove_dir(&self.disks);
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Unmounts the disks of a VM whose owner is dead, if there are any.
pub fn clear_dead(run_dir: &Path) {
    let directory = run_dir.join(DISKS);
    for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
        drop(Mounted::of_dead(entry.path()));
    }
    let _ = fs::remove_dir(&directory);
}

async fn removed(removals: &mut broadcast::Receiver<String>, id: &str) -> bool {
    loop {
        match removals.recv().await {
            Ok(removed) if removed == id => return true,
            Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return false,
        }
    }
}

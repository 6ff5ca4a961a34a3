//! A VM is saved, and copies of what was saved come to life.
//!
//! Firecracker saves to two files, and maps the one with the memory into each copy, privately: copies have in common what they
//! have not written to. The file is made without its zero pages.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::JAILED_ONLY;
use super::place::Place;
use super::request::{self, Settings};
use super::vm::FirecrackerVm;
use crate::rest::{Client, Litter};
use crate::saved::{check_size, done, unreadable, written};
use crate::version::Version;
use crate::{Device, Error, ErrorKind, Hotplug, SaveTo, Saved, VmSpec, Vsock, files, pages};

/// Files that Firecracker writes, in its own directory.
const STATE: &str = "saved-state";
const MEMORY: &str = "saved-memory";

/// What is to be done with a VM before it runs.
#[derive(Debug)]
pub struct Revival {
    state: String,
    memory: String,
    vsock: Option<String>,
    devices: Vec<Device>,
    _held: [Arc<OwnedFd>; 2],
}

impl Revival {
    /// Lays out a copy of `saved` in its place.
    pub fn begin(
        spec: &VmSpec,
        saved: Saved,
        place: &mut Place,
        inherited: &mut Vec<Arc<OwnedFd>>,
    ) -> Result<Self, Error> {
        check_size(&saved.memory, spec)?;
        let (memory, state) = (Arc::new(saved.memory), Arc::new(saved.state));
        let mut vsock = None;
        for device in &spec.devices {
            if let Device::Vsock(Vsock::Hybrid { uds, .. }) = device {
                vsock = Some(place.vsock(uds)?);
            }
        }
        Ok(Self {
            state: place.descriptor(STATE, &state, inherited)?,
            memory: place.descriptor(MEMORY, &memory, inherited)?,
            vsock,
            devices: saved.devices,
            _held: [memory, state],
        })
    }

    /// Has the monitor take it in. It does not run yet.
    pub async fn load(&self, client: &Client, place: &Place, version: Version) -> Result<(), Error> {
        // In a jail it is where it was.
        let moved = match (&self.vsock, place.is_like_any_other()) {
            (Some(uds), false) => Some(uds.as_str()),
            _ => None,
        };
        if moved.is_some() && version < JAILED_ONLY {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "Firecracker {version} cannot give a copy sockets of its own; install {JAILED_ONLY} or later, or set \
                     `jailer_path`"
                ),
            ));
        }
        let body = request::load(&self.state, &self.memory, moved);
        let taken = client.send(request::LOAD, Some(body)).await;
        taken.map(drop).map_err(unreadable)
    }

    /// Gives it what it has in addition, and lets it run.
    pub async fn finish(self, vm: &mut FirecrackerVm) -> Result<(), Error> {
        for device in self.devices {
            vm.plug(device).await?;
        }
        let resumed = vm.client.send(request::STATE, Some(request::resumed())).await;
        resumed.map(drop)
    }
}

/// Saves a machine, which does not go on after that.
pub async fn save(client: &Client, place: &Place, to: SaveTo) -> Result<(), Error> {
    client.send(request::STATE, Some(request::paused())).await?;
    let paths = [STATE, MEMORY].map(|name| place.directory().join(name));
    let litter = Litter::new(paths.clone());
    let body = request::save(&place.seen(STATE)?, &place.seen(MEMORY)?);
    client.send(request::SAVE, Some(body)).await?;
    let taking = spawn_blocking(move || {
        let [state, memory] = paths;
        let mut kept = File::from(to.state.try_clone()?);
        io::copy(&mut written(&state)?, &mut kept)?;
        pages::copy_nonzero(written(&memory)?.into(), to.memory)
    });
    let taken = done(taking, "cannot save a VM").await;
    drop(litter);
    taken.map(drop)
}

/// What a saved VM depends on: see [`crate::Hypervisor::fingerprint`].
pub fn fingerprint(programs: &[&Path], settings: &Settings, spec: &VmSpec) -> Result<String, Error> {
    request::check(spec)?;
    let machine = request::machine(spec);
    let [kernel, initrd] = [&spec.kernel, &spec.initrd].map(|path| path.to_string_lossy());
    let source = request::boot_source(&kernel, &initrd, &spec.kernel_params);
    let drive = request::drive(settings, "", "", false);
    let mut text = format!("{machine}\n{source}\n{drive}\n{} vsock\n", spec.devices.len());
    for path in programs.iter().copied().chain([&*spec.kernel, &*spec.initrd]) {
        text.push_str(&files::identity(path)?);
        text.push('\n');
    }
    text.push_str(&files::processor()?);
    Ok(text)
}

//! A VM is saved, and copies of what was saved come to life.
//!
//! QEMU's migration carries the state of the devices, to and from a file. Memory is none of its business: it is a file that
//! a VM is started on, the same one for all copies; only where devices cannot do without sharing it, a copy of the pages that were
//! in use. Devices that have a process at their other end cannot be migrated: they are plugged before the copy runs.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use configuration::MachineType;
use rustix::fs::fstatfs;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

use super::argv::{self, Channels, Life, Settings};
use super::dormant::Dormant;
use super::hotplug;
use super::vm::QemuVm;
use crate::qmp::{Client, Events};
use crate::saved::{check_size, done, failed};
use crate::{
    Device, Error, ErrorKind, MemoryBacking, SaveTo, Saved, VmSpec, Vsock, deadlines, files, pages, process,
};

/// Name under which QEMU is given the file for the state of the devices.
const STATE: &str = "state";

/// Bytes per second: no limit.
const BANDWIDTH: u64 = 1 << 40;

/// What is to be done with a VM before it runs.
#[derive(Debug)]
pub struct Revival {
    /// Its memory is being filled.
    copying: Option<JoinHandle<io::Result<()>>>,
    state: Arc<OwnedFd>,
    dormant: Vec<Dormant>,
    devices: Vec<Device>,
}

/// What the file for the state of the devices begins with; then comes the length of what follows of ours, in four bytes, least first.
const MAGIC: &[u8; 8] = b"kata-vm\x01";

/// Most bytes of that.
const MOST: u32 = 1 << 20;

/// Makes memory for a VM that can be saved.
pub fn new_memory(spec: &VmSpec) -> Result<Arc<OwnedFd>, Error> {
    let memory = pages::new(spec.memory.size_mib);
    memory
        .map(Arc::new)
        .map_err(failed("cannot make the memory of a VM"))
}

/// Whether copies can have the saved memory in common. The first look at a page that was not saved takes one of the file's file
/// system: of the host's cache if it is one on a disk, but of its room if it is in memory, and a VM dies if there is none.
pub fn can_be_common(saved: &Saved) -> bool {
    /// linux/magic.h, `RAMFS_MAGIC`, which the crate has not.
    const RAMFS_MAGIC: libc::c_long = 0x8584_58f6;
    let in_memory = [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC, RAMFS_MAGIC];
    fstatfs(&saved.memory).is_ok_and(|found| !in_memory.contains(&found.f_type))
}

impl Revival {
    /// Begins with the memory of a copy of `saved`: that, and what is to be done once QEMU runs.
    pub fn begin(spec: &VmSpec, saved: Saved) -> Result<(Arc<OwnedFd>, Self), Error> {
        let Saved {
            memory,
            state,
            mut devices,
        } = saved;
        // Now, as long as another VM can still be given them.
        if devices.len() > argv::EMPTY_PORTS_OF_COPIES {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "a copy has {} ports, and is to have {} devices",
                    argv::EMPTY_PORTS_OF_COPIES,
                    devices.len()
                ),
            ));
        }
        sort(&mut devices);
        check_size(&memory, spec)?;
        let mut state = File::from(state);
        let dormant = read_dormant(&mut state).map_err(|cause| {
            Error::caused(
                ErrorKind::FailedPrecondition,
                format!("the state of a VM cannot be read: {cause}"),
                cause,
            )
        })?;
        let (memory, copying) = match spec.memory.backing {
            MemoryBacking::Private => (Arc::new(memory), None),
            MemoryBacking::Shared => {
                let own = new_memory(spec)?;
                let (to, cgroups) = (Arc::clone(&own), spec.cgroups.clone());
                let copying = spawn_blocking(move || process::copy_memory(&memory, &to, cgroups));
                (own, Some(copying))
            }
        };
        let revival = Self {
            copying,
            state: Arc::new(state.into()),
            dormant,
            devices,
        };
        Ok((memory, revival))
    }

    /// Has a VM that was started on the memory become what was saved, with everything that is different, and run.
    pub async fn finish(self, vm: &mut QemuVm) -> Result<(), Error> {
        let mut events = prepare(&vm.client, Arc::clone(&self.state)).await?;
        if let Some(copying) = self.copying {
            done(copying, "cannot copy the memory of a saved VM").await?;
        }
        let uri = json!({"uri": format!("fd:{STATE}")});
        vm.client.execute("migrate-incoming", uri).await?;
        migrated(&mut events, "read").await?;
        if let Some(slots) = &mut vm.slots {
            slots.remember(self.dormant);
            for device in self.devices {
                slots.plug(&vm.client, device).await?;
            }
            if vm.hand.is_none() {
                slots.hang_up();
            }
        }
        vm.client.execute("cont", json!({})).await.map(drop)
    }
}

/// Puts devices in the order in which they are plugged. Daemons serve whoever connects first, and nobody after: what may fail comes
/// before.
pub fn sort(devices: &mut [Device]) {
    devices.sort_by_key(|device| {
        matches!(
            device,
            Device::VirtioFs(_) | Device::Vsock(Vsock::VhostUser { .. })
        )
    });
}

/// Saves a VM that was started on `memory`.
pub async fn save(vm: &mut QemuVm, memory: &Arc<OwnedFd>, to: SaveTo) -> Result<(), Error> {
    // Each port was opened once before the other end was hung up, and is opened again when the guest has found that out.
    let wanted = 2 * vm.ports;
    let settled = timeout(deadlines::SETTLED, vm.openings.wait_for(|count| *count >= wanted));
    match settled.await.map(|found| found.is_ok()) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "QEMU has ended before it was saved",
            ));
        }
        Err(_) => {
            return Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "the guest did not come back to its serial ports within {:?}",
                    deadlines::SETTLED
                ),
            ));
        }
    }
    vm.client.execute("stop", json!({})).await?;
    let dormant = match &mut vm.slots {
        Some(slots) => slots.sleep(&vm.client).await?,
        None => &[],
    };
    // QEMU writes behind it.
    write_dormant(&to.state, dormant).map_err(failed("cannot save the state of a VM"))?;
    let limits = json!({"max-bandwidth": BANDWIDTH});
    vm.client.execute("migrate-set-parameters", limits).await?;
    let mut events = prepare(&vm.client, to.state).await?;
    let uri = json!({"uri": format!("fd:{STATE}")});
    vm.client.execute("migrate", uri).await?;
    migrated(&mut events, "written").await?;
    let from = memory
        .try_clone()
        .map_err(failed("cannot save the memory of a VM"))?;
    let copying = spawn_blocking(move || pages::copy_nonzero(from, to.memory));
    done(copying, "cannot save the memory of a VM").await.map(drop)
}

fn write_dormant(state: &OwnedFd, dormant: &[Dormant]) -> io::Result<()> {
    let text = serde_json::to_vec(dormant)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    let mut file = File::from(state.try_clone()?);
    file.write_all(&[&MAGIC[..], &length.to_le_bytes(), &text].concat())
}

fn read_dormant(state: &mut File) -> io::Result<Vec<Dormant>> {
    let (mut magic, mut length) = ([0; MAGIC.len()], [0; 4]);
    state.read_exact(&mut magic)?;
    state.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length);
    if &magic != MAGIC || length > MOST {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is not one of ours",
        ));
    }
    let mut text = vec![0; length as usize];
    state.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

/// Gives QEMU the file for the state, and has it leave memory alone.
async fn prepare(client: &Client, state: Arc<OwnedFd>) -> Result<Events, Error> {
    let capabilities: Vec<_> = ["x-ignore-shared", "events"]
        .map(|name| json!({"capability": name, "state": true}))
        .into();
    // Neither depends on the other's answer.
    let (capable, named) = tokio::join!(
        client.execute("migrate-set-capabilities", json!({"capabilities": capabilities})),
        client.execute_with_fd("getfd", json!({"fdname": STATE}), state),
    );
    capable.and(named)?;
    client
        .events()
        .ok_or_else(|| Error::new(ErrorKind::Unavailable, "QEMU has closed its control socket"))
}

/// Waits until a migration is done.
async fn migrated(events: &mut Events, what: &str) -> Result<(), Error> {
    let status = async {
        loop {
            match events.recv().await {
                Ok(event) if event.name == "MIGRATION" => match event.text("status") {
                    Some("completed") => return Ok(()),
                    Some(status @ ("failed" | "cancelled")) => return Err(status.to_owned()),
                    _ => {}
                },
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Err("QEMU has ended".to_owned()),
            }
        }
    };
    let refused = |kind, why: String| Error::new(kind, format!("the state of a VM cannot be {what}: {why}"));
    match timeout(deadlines::MIGRATION, status).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(why)) => Err(refused(ErrorKind::FailedPrecondition, why)),
        Err(_) => {
            let why = format!("QEMU was not done within {:?}", deadlines::MIGRATION);
            Err(refused(ErrorKind::DeadlineExceeded, why))
        }
    }
}

/// What a saved VM depends on: see [`crate::Hypervisor::fingerprint`].
pub fn fingerprint(settings: &Settings, spec: &VmSpec) -> Result<String, Error> {
    let opened = fs::File::open("/dev/null").map_err(failed("cannot open /dev/null"))?;
    let null: Arc<OwnedFd> = Arc::new(opened.into());
    let channels = Channels {
        control: Arc::clone(&null),
        console: Arc::clone(&null),
        transfer: None,
        vacant: hotplug::vacant(&spec.devices)
            .map(|_| Arc::clone(&null))
            .collect(),
        vhost_net: Vec::new(),
    };
    let number = null.as_raw_fd();
    // The one that is saved has all arguments of its copies, and those of its kernel.
    let line = argv::build(settings, spec, &channels, &Life::ToSave(null))?;
    let mut text = String::new();
    for argument in &line.args {
        let mut argument = argument.to_string_lossy().into_owned();
        // The number of the descriptor is any.
        for prefix in ["fd=", "fd/"] {
            argument = argument.replace(&format!("{prefix}{number}"), prefix);
        }
        text.push_str(&argument);
        text.push('\n');
    }
    for path in [&settings.program, &spec.kernel, &spec.initrd] {
        text.push_str(&files::identity(path)?);
        text.push('\n');
    }
    if settings.kvm {
        text.push_str(&files::processor()?);
    }
    Ok(text)
}

/// How many serial ports a VM has.
pub fn ports(spec: &VmSpec) -> usize {
    let is_port = |device: &&Device| matches!(device, Device::SerialPort(_));
    spec.devices.iter().filter(is_port).count()
}

/// Whether machines of this kind can be saved.
pub fn is_possible(machine: MachineType) -> bool {
    machine == MachineType::Q35
}

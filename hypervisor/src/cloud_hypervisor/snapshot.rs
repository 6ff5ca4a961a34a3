//! A VM is saved, and copies of what was saved come to life.
//!
//! Cloud Hypervisor saves to a directory and restores from one: the machine's configuration, the state of its devices, its
//! memory. Here the first two are one file, and memory is the other, without its zero pages. In a copy's configuration is
//! changed what is its own: its sockets, and who maps its memory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::spawn_blocking;

use super::request::{self, Settings};
use super::vm::CloudHypervisorVm;
use crate::rest::{Client, Directory};
use crate::saved::{check_size, done, failed, unreadable, written};
use crate::{Device, Error, ErrorKind, Hotplug, SaveTo, Saved, VmSpec, files, pages};

/// Directory of what is being saved or restored, below the VM's own.
const DIRECTORY: &str = "saved";

/// Cloud Hypervisor's files in it.
const CONFIG: &str = "config.json";
const STATE: &str = "state.json";
const MEMORY: &str = "memory-ranges";

/// Most bytes of a saved machine's configuration and state. Both together have some 100 KiB.
const MAX_STATE: u64 = 64 << 20;

/// All of a saved machine but its memory.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    config: Value,
    state: Value,
}

/// What is to be done with a VM before it runs.
#[derive(Debug)]
pub struct Revival {
    directory: Directory,
    devices: Vec<Device>,
    memory: Arc<OwnedFd>,
}

impl Revival {
    /// Lays out a copy of `saved` that is `machine` in what is its own. Its memory is put into `inherited`.
    pub fn begin(
        spec: &VmSpec,
        saved: Saved,
        machine: &Value,
        inherited: &mut Vec<Arc<OwnedFd>>,
    ) -> Result<Self, Error> {
        check_size(&saved.memory, spec)?;
        let State { mut config, state } = read(saved.state)?;
        own(&mut config, machine)?;
        let directory = Directory::new(&spec.run_dir, DIRECTORY)?;
        let write = |name: &str, value: &Value| fs::write(directory.path(name), value.to_string());
        let memory = Arc::new(saved.memory);
        let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
        write(CONFIG, &config)
            .and_then(|()| write(STATE, &state))
            .and_then(|()| symlink(path, directory.path(MEMORY)))
            .map_err(failed("cannot lay out a saved VM"))?;
        inherited.push(Arc::clone(&memory));
        Ok(Self {
            directory,
            devices: saved.devices,
            memory,
        })
    }

    /// Has the monitor take it in. It does not run yet.
    pub async fn restore(&self, client: &Client) -> Result<(), Error> {
        let body = request::restore(self.directory.all())?;
        let taken = client.send(request::RESTORE, Some(body)).await;
        taken.map(drop).map_err(unreadable)
    }

    /// Gives it what it has in addition, and lets it run.
    pub async fn finish(self, vm: &mut CloudHypervisorVm) -> Result<(), Error> {
        for device in self.devices {
            vm.plug(device).await?;
        }
        vm.client.send(request::RESUME, None).await?;
        // It was needed until here.
        drop(self.memory);
        Ok(())
    }
}

/// Puts what is a copy's own into the configuration that was saved: sockets, who maps the memory, which directory may be
/// touched. What else may differ between two VMs of a specification cannot be saved.
fn own(config: &mut Value, machine: &Value) -> Result<(), Error> {
    let damaged = || {
        Error::new(
            ErrorKind::FailedPrecondition,
            "the state of a VM cannot be read: it has no configuration of a machine",
        )
    };
    let fields = config.as_object_mut().ok_or_else(damaged)?;
    for (name, key) in [("vsock", "socket"), ("landlock_rules", "")] {
        match (key, machine.get(name), fields.get_mut(name)) {
            ("", Some(ours), _) => drop(fields.insert(name.into(), ours.clone())),
            (key, Some(ours), Some(saved)) => saved[key] = ours[key].clone(),
            (_, Some(_), None) => return Err(damaged()),
            (_, None, _) => {}
        }
    }
    let shared = &machine["memory"]["zones"][0]["shared"];
    match config.pointer_mut("/memory/zones/0") {
        Some(Value::Object(zone)) => drop(zone.insert("shared".into(), shared.clone())),
        _ => return Err(damaged()),
    }
    Ok(())
}

fn read(state: OwnedFd) -> Result<State, Error> {
    let mut text = String::new();
    File::from(state)
        .take(MAX_STATE)
        .read_to_string(&mut text)
        .and_then(|_| serde_json::from_str(&text).map_err(io::Error::from))
        .map_err(|source| {
            Error::caused(
                ErrorKind::FailedPrecondition,
                format!("the state of a VM cannot be read: {source}"),
                source,
            )
        })
}

/// Saves a machine, which does not go on after that.
pub async fn save(client: &Client, run_dir: &Path, to: SaveTo) -> Result<(), Error> {
    client.send(request::PAUSE, None).await?;
    let directory = Directory::new(run_dir, DIRECTORY)?;
    let body = request::snapshot(directory.all())?;
    client.send(request::SNAPSHOT, Some(body)).await?;
    done(spawn_blocking(move || take(&directory, to)), "cannot save a VM").await
}

/// Moves what the monitor has written to where it is wanted.
fn take(directory: &Directory, to: SaveTo) -> io::Result<()> {
    let value = |name: &str| -> io::Result<Value> {
        let mut text = Vec::new();
        written(&directory.path(name))?
            .take(MAX_STATE)
            .read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    };
    let state = State {
        config: value(CONFIG)?,
        state: value(STATE)?,
    };
    let mut file = File::from(to.state.try_clone()?);
    file.write_all(&serde_json::to_vec(&state)?)?;
    let from = written(&directory.path(MEMORY))?;
    pages::copy_nonzero(from.into(), to.memory).map(drop)
}

/// What a saved VM depends on: see [`crate::Hypervisor::fingerprint`].
pub fn fingerprint(program: &Path, settings: &Settings, spec: &VmSpec) -> Result<String, Error> {
    let anybodys = VmSpec {
        run_dir: "/".into(),
        devices: Vec::new(),
        ..spec.clone()
    };
    let mut machine = request::machine(settings, &anybodys, &mut Vec::new())?;
    // A copy's may be either.
    machine["memory"]["zones"][0]["shared"] = Value::Null;
    let mut text = format!("{machine}\n{} vsock\n", spec.devices.len());
    for path in [program, &spec.kernel, &spec.initrd] {
        text.push_str(&files::identity(path)?);
        text.push('\n');
    }
    text.push_str(&files::processor()?);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_has_its_own_sockets_and_memory_and_all_else_as_it_was() {
        let mut saved = json!({
            "cpus": {"boot_vcpus": 2, "kvm_hyperv": false},
            "memory": {"size": 0, "zones": [{"id": "ram", "size": 1, "shared": false, "prefault": false}]},
            "vsock": {"cid": 3, "socket": "/template/vsock", "id": "vsock", "iommu": false},
            "landlock_enable": true,
            "landlock_rules": [{"path": "/template", "access": "rw"}],
        });
        let machine = json!({
            "memory": {"zones": [{"shared": true}]},
            "vsock": {"cid": 3, "socket": "/copy/vsock"},
            "landlock_rules": [{"path": "/copy", "access": "rw"}],
        });
        own(&mut saved, &machine).unwrap();
        assert_eq!(
            saved,
            json!({
                "cpus": {"boot_vcpus": 2, "kvm_hyperv": false},
                "memory": {"size": 0, "zones": [{"id": "ram", "size": 1, "shared": true, "prefault": false}]},
                "vsock": {"cid": 3, "socket": "/copy/vsock", "id": "vsock", "iommu": false},
                "landlock_enable": true,
                "landlock_rules": [{"path": "/copy", "access": "rw"}],
            })
        );
        for damaged in [
            json!(null),
            json!({}),
            json!({"vsock": {}, "memory": {"zones": []}}),
        ] {
            let error = own(&mut damaged.clone(), &machine).unwrap_err();
            assert!(error.to_string().contains("cannot be read"), "{damaged}: {error}");
        }
    }
}

//! A template is made: booted until its agent greets, and saved.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_client::{Channel, Listener};
use agent_protocol as p;
use configuration::Config;
use hypervisor::{
    Boot, Capabilities, Device, Hypervisor, Memory, MemoryBacking, SaveTo, SerialPort, Vm, VmSpec, Vsock,
};
use slog::{Logger, info};

use super::key;
use super::shelf::{Shelf, Unfinished};
use crate::error::{Error, ErrorKind, Result};
use crate::guest::LOCAL_CID;
use crate::{deadlines, guest, plan};

/// What came of the wish for a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It was made.
    New {
        /// Its key.
        key: String,
        /// What its files take, bytes.
        bytes: u64,
    },
    /// It is there already, and as it should be.
    There {
        /// Its key.
        key: String,
    },
}

/// The virtual machine that sandboxes of this configuration are copies of. Pure.
pub(super) fn spec(config: &Config, abilities: &Capabilities) -> VmSpec {
    let template = plan::template(config, abilities);
    let mut kernel_params = plan::kernel_params(config, abilities);
    // As sandboxes have it (`plan::channel`): what can be saved.
    let (channel, device) = match abilities.vsock_hybrid {
        true => (
            guest::vsock_channel(),
            Device::Vsock(Vsock::Hybrid {
                cid: LOCAL_CID,
                uds: Default::default(),
            }),
        ),
        false => (
            guest::serial_channel(),
            Device::SerialPort(SerialPort {
                name: p::SERIAL_PORT_NAME.to_owned(),
                socket: Default::default(),
            }),
        ),
    };
    kernel_params.push(channel);
    let sandbox = VmSpec {
        id: String::new(),
        run_dir: Default::default(),
        kernel: config.hypervisor.kernel.clone(),
        initrd: config.hypervisor.initrd.clone(),
        kernel_params,
        vcpus: template.size.vcpus,
        max_vcpus: template.most.vcpus,
        memory: Memory {
            size_mib: template.size.memory_mib,
            max_mib: template.most.memory_mib,
            backing: MemoryBacking::Shared,
        },
        devices: vec![device],
        network_namespace: None,
        cgroups: Vec::new(),
        labels: Vec::new(),
    };
    key::template(&sandbox, &template)
}

/// Makes the template that this configuration wants, unless it is there. Two at once make one.
///
/// # Errors
/// Templates are not enabled, or this hypervisor has none; the guest does not start; the files cannot be written. Nothing is
/// left of what was begun.
pub async fn init(config: &Config, hypervisor: &Arc<dyn Hypervisor>, log: &Logger) -> Result<Made> {
    if !config.factory.enable_template {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            "there is nothing to make a template for: set enable_template = true in [factory]",
        ));
    }
    hypervisor.check_host()?;
    let template = spec(config, &hypervisor.capabilities());
    let key = key::of(&**hypervisor, &template)?;
    let shelf = Shelf::new(&config.factory.template_path);
    let locked = shelf.lock().await?;
    // What is there and wrong is made anew.
    if let Ok(Some(_)) = shelf.find(&key) {
        return Ok(Made::There { key });
    }
    let unfinished = locked.begin(&key)?;
    let bytes = match fill(config, &**hypervisor, template, &unfinished).await {
        Ok(()) => unfinished.finish(hypervisor.name())?,
        Err(error) => {
            return Err(match unfinished.abandon() {
                Ok(()) => error,
                Err(second) => error.and(&second),
            });
        }
    };
    info!(log, "a template is made"; "key" => &key, "bytes" => bytes);
    Ok(Made::New { key, bytes })
}

/// Boots the template and saves it.
async fn fill(
    config: &Config,
    hypervisor: &dyn Hypervisor,
    mut template: VmSpec,
    unfinished: &Unfinished,
) -> Result<()> {
    let socket = unfinished.dir().join("agent.sock");
    let by_vsock = hypervisor.capabilities().vsock_hybrid;
    let listener = Listener::bind(&match by_vsock {
        true => Channel::HybridVsock { uds: socket.clone() },
        false => Channel::Unix { path: socket.clone() },
    })?;
    template.run_dir = unfinished.dir().to_owned();
    template.devices = with_socket(template.devices, &socket);
    let mut vm = hypervisor.launch(template, Boot::ToSave).await?;
    let limit = deadlines::dial(&config.agent, || hypervisor.capabilities().emulated);
    let saved = save(limit, by_vsock, &mut *vm, listener, unfinished).await;
    let stopped = vm.stop().await.map_err(Error::from);
    saved.and(stopped)
}

async fn save(
    limit: Duration,
    by_vsock: bool,
    vm: &mut dyn Vm,
    listener: Listener,
    unfinished: &Unfinished,
) -> Result<()> {
    let mut exited = vm.exited();
    tokio::select! {
        away = listener.turn_away(limit) => away?,
        ended = exited.wait_for(Option::is_some) => {
            let exit = ended.ok().and_then(|exit| exit.clone());
            let (reason, console) = exit.map_or_else(Default::default, |exit| {
                (exit.reason.to_string(), exit.console.join("\n"))
            });
            return Err(Error::new(
                ErrorKind::Unavailable,
                format!("the guest of the template did not start: {reason}; its console:\n{console}"),
            ));
        }
    }
    if by_vsock {
        // Nobody else sees that it dials again, and by then has done what is done once. A serial port is watched by its VMM.
        listener.turn_away(limit).await?;
    }
    // Who dials again over vsock finds nobody, and is saved as one who dials. A connection would be lost in the copies.
    drop(listener);
    let (memory, state) = unfinished.files()?;
    let to = SaveTo {
        memory,
        state: Arc::new(state),
    };
    Ok(vm.save(to).await?)
}

/// The devices of a template, with its agent's connection at this path.
pub(super) fn with_socket(devices: Vec<Device>, socket: &Path) -> Vec<Device> {
    let placed = |device| match device {
        Device::SerialPort(port) => Device::SerialPort(SerialPort {
            socket: socket.to_owned(),
            ..port
        }),
        Device::Vsock(Vsock::Hybrid { cid, .. }) => Device::Vsock(Vsock::Hybrid {
            cid,
            uds: socket.to_owned(),
        }),
        other => other,
    };
    devices.into_iter().map(placed).collect()
}

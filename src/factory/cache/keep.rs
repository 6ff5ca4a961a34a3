//! One virtual machine is made ready for somebody who is not known yet: started, its agent reached, practised, and paused.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use agent_client::{Channel, Listener};
use configuration::Config;
use hypervisor::{Boot, Device, Hypervisor, Saved, Vm, VmSpec};
use slog::{Logger, info};
use tokio::net::UnixStream;
use tokio::sync::watch;

use super::super::key;
use super::super::make;
use super::super::shelf::{Found, Shelf};
use super::{Kept, practice};
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::host::network;

/// What the directory of one begins with.
pub(super) const DIRECTORY: &str = ".kata-cache-vm-";

/// One that is ready. It ends with this value, unless it was given away.
pub(super) struct Ready {
    pub(super) vm: Box<dyn Vm>,
    /// The agent has greeted on it, and nothing is under way.
    pub(super) agent: UnixStream,
    pub(super) namespace: Arc<OwnedFd>,
    pub(super) about: Kept,
}

/// Makes them.
pub(super) struct Maker {
    pub(super) config: Config,
    pub(super) hypervisor: Arc<dyn Hypervisor>,
    /// Of all that are made: what the configuration wanted, and the host had, when this began.
    pub(super) key: String,
    /// Where their directories are, while they are made.
    pub(super) dir: PathBuf,
    pub(super) log: Logger,
}

impl Maker {
    /// Makes one; `number` is nobody else's. On an error, and when it is not wanted any more, nothing is left of it.
    pub(super) async fn make(&self, number: u64, unwanted: watch::Receiver<bool>) -> Result<Ready> {
        let dir = self.dir.join(format!("{DIRECTORY}{number}"));
        let failed = |cause: io::Error| {
            let what = format!("cannot make the directory {}", dir.display());
            Error::caused(ErrorKind::Internal, what, cause)
        };
        DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        let made = self.make_in(&dir, number, unwanted).await;
        // It has all its sockets open.
        let removed = fs::remove_dir_all(&dir).map_err(|cause| {
            let what = format!("cannot remove the directory {}", dir.display());
            Error::caused(ErrorKind::Internal, what, cause)
        });
        let ready = made?;
        removed?;
        info!(self.log, "a virtual machine is ready"; "pid" => ready.about.pid, "copy" => ready.about.is_copy);
        Ok(ready)
    }

    async fn make_in(&self, dir: &Path, number: u64, mut unwanted: watch::Receiver<bool>) -> Result<Ready> {
        let spec = make::spec(&self.config, &self.hypervisor.capabilities());
        self.check_key(&spec)?;
        let socket = dir.join("agent.sock");
        let listener = Listener::bind(&Channel::Unix { path: socket.clone() })?;
        let namespace = network::apart().await?;
        let saved = self.template()?;
        let is_copy = saved.is_some();
        let boot = match saved {
            Some(Found { memory, state }) => Boot::Clone(Saved {
                memory,
                state,
                devices: Vec::new(),
            }),
            // As a template is booted: what can be saved can be given devices later, and is of the same key.
            None => Boot::ToSave,
        };
        let mut with_devices = make::with_socket(spec.devices.clone(), &socket);
        if is_copy {
            // The others are in what was saved.
            with_devices.retain(|device| matches!(device, Device::SerialPort(_)));
        }
        let size = (spec.vcpus, spec.memory.size_mib);
        let mut vm = self
            .hypervisor
            .launch_for_another(
                VmSpec {
                    id: format!("cache-{number}"),
                    run_dir: dir.to_owned(),
                    devices: with_devices,
                    network_namespace: Some(Arc::clone(&namespace)),
                    ..spec.clone()
                },
                boot,
            )
            .await?;
        let prepared = tokio::select! {
            prepared = self.prepare(&mut *vm, &listener, dir) => prepared,
            _ = unwanted.wait_for(|unwanted| *unwanted) => {
                Err(Error::new(ErrorKind::Unavailable, "nobody wants it any more"))
            }
        };
        // What was started meanwhile may be another one's.
        let agent = match prepared.and_then(|agent| self.check_key(&spec).map(|()| agent)) {
            Ok(agent) => agent,
            Err(error) => {
                return Err(match vm.stop().await {
                    Ok(()) => error,
                    Err(second) => error.and(&second.into()),
                });
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Ready {
            about: Kept {
                pid: vm.pid(),
                vcpus: size.0,
                memory_mib: size.1,
                ready_at: now.as_secs(),
                is_copy,
            },
            vm,
            agent,
            namespace,
        })
    }

    /// That everything it depends on is as it was when this began.
    fn check_key(&self, spec: &VmSpec) -> Result<()> {
        match key::of(&*self.hypervisor, spec)? == self.key {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::FailedPrecondition,
                "its parts have changed since virtual machines are kept; start that anew with `kata-runtime factory destroy` \
                 and `init`",
            )),
        }
    }

    /// What it is to be a copy of, if there is something.
    fn template(&self) -> Result<Option<Found>> {
        match self.config.factory.enable_template {
            true => Shelf::new(&self.config.factory.template_path).find(&self.key),
            false => Ok(None),
        }
    }

    /// Waits for its agent, has it practise, and pauses it.
    async fn prepare(&self, vm: &mut dyn Vm, listener: &Listener, dir: &Path) -> Result<UnixStream> {
        let abilities = self.hypervisor.capabilities();
        let limit = deadlines::dial(&self.config.agent, || abilities.emulated);
        let mut exited = vm.exited();
        let mut agent = tokio::select! {
            agent = listener.accept_for_another(limit) => agent?,
            ended = exited.wait_for(Option::is_some) => {
                let exit = ended.ok().and_then(|exit| exit.clone());
                let (reason, console) = exit.map_or_else(Default::default, |exit| {
                    (exit.reason.to_string(), exit.console.join("\n"))
                });
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("its guest did not start: {reason}; its console:\n{console}"),
                ));
            }
        };
        practice::run(&self.config, &abilities, vm, &mut agent, dir, &self.log)
            .await
            .map_err(|error| {
                error.while_doing("the practice of a virtual machine that is to be kept ready")
            })?;
        match vm.transfer() {
            Some(transfer) => transfer.pause().await?,
            None => return Err(Error::new(ErrorKind::Unsupported, "it cannot be handed over")),
        }
        Ok(agent)
    }
}

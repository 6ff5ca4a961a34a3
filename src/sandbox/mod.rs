//! A sandbox: one virtual machine and the containers in it. [`Sandbox`] is a cheap handle to the task that owns it.

mod phases;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use configuration::Config;
use hypervisor::{Hypervisor, VmReport};
use tokio::sync::mpsc;

pub(crate) use phases::Phases;

use crate::container::{Container, ContainerRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::{ContainerId, Event, SandboxId};

/// What is needed to create a sandbox.
pub struct SandboxRequest {
    /// Its id.
    pub id: SandboxId,
    /// OCI bundle of its first container; the sandbox's own properties (hostname, resources, network) come from there.
    pub bundle: PathBuf,
    /// Validated configuration.
    pub config: Arc<Config>,
    /// The driver that `config` names.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Where events go. A full channel drops OOM notices, never anything else.
    pub events: mpsc::Sender<Event>,
    /// Logger of the program.
    pub log: slog::Logger,
}

/// A mount that makes a container's root file system, as the snapshotter gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootfsMount {
    /// "overlay", "bind", "ext4" …
    pub fs_type: String,
    /// Source of the mount.
    pub source: String,
    /// Options in fstab form.
    pub options: Vec<String>,
}

/// The end of a sandbox's virtual machine, or of anything it can't live without: the same event for all its processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmEnd {
    /// Why, for people.
    pub(crate) reason: String,
    /// It was killed, and its processes with it.
    pub(crate) killed: bool,
}

/// A step of a start and how long it took; for people, logs and the bench.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Phase {
    /// "spec", "host", "vmm", "boot", "agent", "create", "start".
    pub name: &'static str,
    /// Wall time.
    pub took: Duration,
}

/// Handle to a sandbox. Clones share the sandbox; dropping handles does not stop it.
#[derive(Debug, Clone)]
pub struct Sandbox {}

impl Sandbox {
    /// Creates the sandbox: validates and plans, then acquires host resources, boots the VM and reaches the agent.
    /// On an error everything acquired is released again and nothing is left.
    pub async fn create(_request: SandboxRequest) -> Result<Self> {
        Err(Error::new(ErrorKind::Unsupported, "sandboxes are not built yet"))
    }

    /// Pid of the VMM: what callers are shown as the containers' pid.
    pub fn pid(&self) -> u32 {
        0
    }

    /// VMM, machine and accelerator, and why.
    pub fn report(&self) -> VmReport {
        VmReport {
            vmm: String::new(),
            machine: String::new(),
            accelerator: String::new(),
            reason: String::new(),
        }
    }

    /// Phases of the start so far.
    pub fn phases(&self) -> Vec<Phase> {
        Vec::new()
    }

    /// Creates a container in the sandbox; its init process waits to be started.
    pub async fn create_container(&self, _request: ContainerRequest) -> Result<Container> {
        Err(Error::new(ErrorKind::Unsupported, "containers are not built yet"))
    }

    /// Handle to a container, [`ErrorKind::NotFound`] if there is none of that id. Never waits for a boot.
    pub async fn container(&self, id: &ContainerId) -> Result<Container> {
        Err(Error::new(
            ErrorKind::NotFound,
            format!("container {id} does not exist"),
        ))
    }

    /// Ids of the containers that are not deleted yet.
    pub async fn containers(&self) -> Vec<ContainerId> {
        Vec::new()
    }

    /// Ends everything: containers, VM, daemons, mounts, directories. Idempotent; other calls fail with
    /// [`ErrorKind::Unavailable`] afterwards.
    pub async fn stop(&self) -> Result<()> {
        Ok(())
    }

    /// Removes what is left of a sandbox whose owner died (kill -9), from its record on disk alone: VM, daemons,
    /// mounts, directories. Cheap when nothing is left.
    pub async fn clean_up_dead(
        _config: &Config,
        _hypervisor: &dyn Hypervisor,
        _id: &SandboxId,
    ) -> Result<()> {
        Ok(())
    }
}

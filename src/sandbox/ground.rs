//! What a sandbox needs of the host, as it sees it: something to stand on before its virtual machine exists, a place for
//! each container's files, and the end of it all.
//!
//! Must not know how any of it is made; `host` does.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use agent_client::Listener;
use agent_protocol as p;
use async_trait::async_trait;
use futures::future::BoxFuture;
use hypervisor::{Device, Disk, VmRecord, VmSpec};
use tokio::net::TcpListener;

use super::RootfsMount;
use super::volumes::Volume;
use crate::ContainerId;
use crate::admin::Door;
use crate::error::Result;
use crate::host::{Hooks, Stage};
use crate::model::{GrowthPlan, TemplatePlan};
use crate::oci::Limits;

/// The host's side of a sandbox.
///
/// Whatever a method has acquired when it fails or is cancelled, [`Ground::release`] gives back.
#[async_trait]
pub(crate) trait Ground: Send {
    /// What a virtual machine that is kept ready has to be, where one will do; or why none will.
    fn wanted(&self) -> std::result::Result<Wanted, String> {
        Err("sandboxes of this kind take none that is kept ready".to_owned())
    }

    /// The virtual machine is there already, and in this network namespace.
    fn expect(&mut self, namespace: Arc<OwnedFd>) {
        drop(namespace);
    }

    /// Acquires everything that has to be there before the virtual machine.
    async fn acquire(&mut self) -> Result<Acquired>;

    /// Keeps what is needed to reap the virtual machine after our own death.
    fn keep(&mut self, vm: &VmRecord) -> Result<()>;

    /// Makes a container's files visible to the guest. What is answered waits for them, not longer than a deadline, and
    /// may be dropped: on an error nothing of the container is left, or will be when what hangs goes on.
    fn add(&mut self, request: ToAdd) -> BoxFuture<'static, Result<Added>>;

    /// Takes a container's files away from the guest, unless they are being added. Nothing there is success.
    fn remove(&mut self, id: &ContainerId) -> BoxFuture<'static, Result<()>>;

    /// The virtual machine is being ended: what serves nobody else ends as well. Waits for nothing, and release tells what fails.
    fn forgo(&mut self) {}

    /// Gives everything back, in reverse, and forgets the sandbox. Goes on after an error and answers with the first.
    async fn release(&mut self) -> Result<()>;
}

/// A container whose files are wanted: see [`crate::ContainerRequest`].
#[derive(Debug)]
pub(crate) struct ToAdd {
    pub(crate) id: ContainerId,
    pub(crate) bundle: PathBuf,
    pub(crate) rootfs: Vec<RootfsMount>,
}

/// A container whose files are there.
#[derive(Debug)]
pub(crate) struct Added {
    /// The agent's part, but for the streams.
    pub(crate) guest: p::CreateContainerRequest,
    /// To be plugged before, and unplugged after: nobody else has them as long as they are open.
    pub(crate) disks: Vec<Disk>,
    /// Those of them that stand for volumes.
    pub(crate) volumes: Vec<Volume>,
    /// What it may use.
    pub(crate) limits: Limits,
    /// The host's hooks.
    pub(crate) hooks: Hooks,
    /// Where some of them act. Until they have, the guest sees nothing of its root file system.
    pub(crate) stage: Option<Stage>,
}

/// Looks once more at the pod's network on the host.
pub(crate) type Look = Arc<dyn Fn() -> BoxFuture<'static, Result<Appeared>> + Send + Sync>;

/// Interfaces that have appeared in the pod's network.
#[derive(Debug, Default)]
pub(crate) struct Appeared {
    /// To be plugged.
    pub(crate) devices: Vec<Device>,
    /// To be told to the guest, once they are.
    pub(crate) guest: p::Network,
    /// What the guest is not told, because it cannot be: one text for each route or rule.
    pub(crate) left_out: Vec<String>,
}

/// What a virtual machine is to be before anything is acquired for it.
pub(crate) struct Wanted {
    /// As a template of it would be.
    pub(crate) vm: VmSpec,
    /// What that has.
    pub(crate) plan: TemplatePlan,
}

/// What there is before the virtual machine.
pub(crate) struct Acquired {
    /// The virtual machine to be.
    pub(crate) vm: VmSpec,
    /// Where its agent dials in.
    pub(crate) listener: Listener,
    /// What the guest is to become, but for clock and entropy.
    pub(crate) guest: p::CreateSandboxRequest,
    /// Accept connections to the pod's localhost on the host, which are the guest's.
    pub(crate) localhost: Vec<TcpListener>,
    /// Looks for interfaces that have appeared since; where they may.
    pub(crate) late: Option<Look>,
    /// How the virtual machine grows; if it does.
    pub(crate) growth: Option<GrowthPlan>,
    /// What it is a copy of; if it is to be one.
    pub(crate) template: Option<TemplatePlan>,
    /// Where an administrator asks about it; if anybody may.
    pub(crate) admin: Option<Door>,
    /// Ends when a daemon that the virtual machine needs has ended, and says which and why.
    pub(crate) lost: BoxFuture<'static, String>,
}

//! A sandbox: one virtual machine and the containers in it. [`Sandbox`] is a cheap handle to the task that owns it.

#[cfg(test)]
mod agent_tests;
mod custody;
#[cfg(test)]
mod disk_tests;
mod disks;
#[cfg(test)]
mod doubles;
mod forward;
mod ground;
mod growth;
#[cfg(test)]
mod growth_tests;
mod late;
mod owner;
mod phases;
mod start;
mod state;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod trace_tests;
mod volumes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use configuration::Config;
use hypervisor::{Hypervisor, VmReport};
use serde::{Deserialize, Serialize};
use slog::{o, warn};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

pub(crate) use ground::{Acquired, Added, Appeared, Ground, Look, ToAdd, Wanted};
use owner::{Command, Estate, Owner, Reply};
pub(crate) use phases::Phases;
use start::{Clock, Holdings};
pub(crate) use start::{entropy, now_unix_ns};
pub(crate) use volumes::Volume;

use crate::admin::{Admin, Subject};
use crate::aside::aside;
use crate::container::{Container, ContainerRequest, Timeouts};
use crate::error::{Error, ErrorKind, Result};
use crate::factory;
use crate::host::{self, Host};
use crate::model::PodConfig;
use crate::{ContainerId, Event, SandboxId};

/// What is needed to create a sandbox.
pub struct SandboxRequest {
    /// Its id.
    pub id: SandboxId,
    /// Keeps apart the sandboxes of callers that do not know each other's ids: containerd's namespace, or the root
    /// directory of an OCI runtime, as one name. Part of host paths.
    pub scope: SandboxId,
    /// OCI bundle of its first container; the sandbox's own properties (hostname, resources, network) come from there.
    pub bundle: PathBuf,
    /// Mounts that make that container's root file system: what cannot be is refused before anything is started.
    pub rootfs: Vec<RootfsMount>,
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// "spec", "host", "vmm", "boot", "agent"; of the first container "create", "start", "first output".
    pub name: &'static str,
    /// Wall time.
    pub took: Duration,
}

/// Commands that wait for the owner before the next one has to wait for room.
const QUEUE: usize = 8;

/// Handle to a sandbox. Clones share the sandbox; dropping handles does not stop it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    id: SandboxId,
    pid: u32,
    phases: Phases,
    commands: mpsc::Sender<Command>,
}

impl Sandbox {
    /// Creates the sandbox: validates and plans, then acquires host resources, boots the VM and reaches the agent.
    /// On an error everything acquired is released again and nothing is left.
    ///
    /// If the caller gives up waiting, the same happens.
    pub async fn create(request: SandboxRequest) -> Result<Self> {
        let clock = Clock::begin(&request, "spec");
        let limit = request.config.agent.create_container_timeout;
        let planned = aside(limit, move |site| {
            Host::plan(&request, site).map(|host| (request, host))
        });
        match planned.await {
            Ok((request, host)) => Self::start(request, Box::new(host), clock).await,
            Err(error) => Err(clock.fail(error).await),
        }
    }

    /// The same for a pod that no container stands for: its properties are told, and nothing is read from a bundle.
    pub async fn create_pod(request: SandboxRequest, pod: PodConfig) -> Result<Self> {
        let clock = Clock::begin(&request, "spec");
        match Host::plan_pod(&request, pod) {
            Ok(host) => Self::start(request, Box::new(host), clock).await,
            Err(error) => Err(clock.fail(error).await),
        }
    }

    /// Starts a sandbox on this ground. What was measured before goes in front of the phases.
    pub(crate) async fn start(
        request: SandboxRequest,
        ground: Box<dyn Ground>,
        clock: Clock,
    ) -> Result<Self> {
        let (reply, answer) = oneshot::channel();
        tokio::spawn(live(request, ground, clock, reply));
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::Internal,
                "the sandbox's task ended without an answer",
            ))
        })
    }

    /// Pid of the VMM: what callers are shown as the containers' pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// VMM, machine and accelerator, and why.
    pub fn report(&self) -> VmReport {
        self.phases.report()
    }

    /// Its id.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Phases of the start so far.
    pub fn phases(&self) -> Vec<Phase> {
        self.phases.list()
    }

    /// Creates a container in the sandbox; its init process waits to be started.
    pub async fn create_container(&self, request: ContainerRequest) -> Result<Container> {
        self.ask(|owner, reply| owner.create_container(request, reply))
            .await
    }

    /// Handle to a container, [`ErrorKind::NotFound`] if there is none of that id. Never waits for a boot.
    pub async fn container(&self, id: &ContainerId) -> Result<Container> {
        let id = id.clone();
        self.ask(move |owner, reply| drop(reply.send(owner.container(&id))))
            .await
    }

    /// Ids of the containers that are not deleted yet.
    pub async fn containers(&self) -> Vec<ContainerId> {
        self.ask(|owner, reply| drop(reply.send(Ok(owner.ids()))))
            .await
            .unwrap_or_default()
    }

    /// Carries a connection to a port of the pod's localhost, until both ends have said all. It is closed, at both ends, when
    /// nobody waits for it any more.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] and others of the agent's: nobody listens there, or the connection breaks.
    pub async fn port_forward(&self, port: u16, stream: UnixStream) -> Result<()> {
        let carrying = self.ask(move |owner, reply| owner.forward(stream, port, reply));
        carrying.await?.await
    }

    /// Ends everything: containers, VM, daemons, mounts, directories. Idempotent; other calls fail with
    /// [`ErrorKind::Unavailable`] afterwards.
    pub async fn stop(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |owner| owner.stop(reply));
        if self.commands.send(command).await.is_err() {
            // Stopped already.
            return Ok(());
        }
        // An owner that went while we asked was asked by another one as well.
        answer.await.unwrap_or(Ok(()))
    }

    /// Removes what is left of a sandbox whose owner died (kill -9), from its record on disk alone: VM, daemons,
    /// mounts, directories. Cheap when nothing is left.
    ///
    /// # Errors
    /// [`ErrorKind::FailedPrecondition`] if the owner lives; else what could not be removed.
    pub async fn clean_up_dead(
        config: &Config,
        hypervisor: &dyn Hypervisor,
        scope: &SandboxId,
        id: &SandboxId,
    ) -> Result<()> {
        host::clean_up_dead(config, hypervisor, scope, id).await
    }

    /// Has the owner carry out a request. It is carried out even if nobody waits for the answer any more.
    async fn ask<T>(&self, request: impl FnOnce(&mut Owner, Reply<T>) + Send + 'static) -> Result<T>
    where
        T: Send + 'static,
    {
        let gone = || Error::new(ErrorKind::Unavailable, format!("sandbox {} is stopped", self.id));
        let (reply, answer) = oneshot::channel();
        let command: Command = Box::new(move |owner| request(owner, reply));
        self.commands.send(command).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// The life of a sandbox, from its start to its end; whoever asked for it may give up at any time before it runs.
async fn live(request: SandboxRequest, ground: Box<dyn Ground>, mut clock: Clock, mut reply: Reply<Sandbox>) {
    let log = request.log.new(o!("sandbox" => request.id.to_string()));
    let agent = &request.config.agent;
    let factory = factory::of(&request.config, &request.hypervisor, &log);
    let mut holdings = Holdings::new(ground);
    let acquired = tokio::select! {
        acquired = holdings.acquire(&*factory, agent, &mut clock, &log) => acquired,
        () = reply.closed() => Err(Error::new(ErrorKind::DeadlineExceeded, "nobody waits for the sandbox any more")),
    };
    let mut ready = match acquired {
        Ok(ready) => ready,
        Err(mut error) => {
            if let Err(second) = holdings.release(&mut clock.course, &log).await {
                error = error.and(&second);
            }
            warn!(log, "the sandbox did not start"; "after" => ?holdings.state, "error" => error.chain());
            drop(reply.send(Err(clock.fail(error).await)));
            return;
        }
    };
    let (phases, course) = clock.stop();
    let phases = Phases::new(phases, ready.report.clone(), log.clone());
    let (commands, queue) = mpsc::channel(QUEUE);
    let sandbox = Sandbox {
        id: request.id.clone(),
        pid: ready.vm.pid(),
        phases: phases.clone(),
        commands,
    };
    // Ends with the sandbox.
    let _admin = ready.admin.take().map(|door| {
        let subject = Subject {
            sandbox: sandbox.clone(),
            scope: request.scope.clone(),
            config: Arc::clone(&request.config),
            agent: Arc::clone(&ready.agent),
            about: ready.about.clone(),
        };
        Admin::start(door, subject, &log)
    });
    if let Err(Ok(unwanted)) = reply.send(Ok(sandbox)) {
        // Given up at the last moment; the owner takes this as its first command.
        tokio::spawn(async move { unwanted.stop().await });
    }
    let timeouts = Timeouts {
        request: agent.request_timeout,
        create: agent.create_container_timeout,
    };
    let estate = Estate {
        id: request.id,
        holdings,
        ready,
        phases,
        course,
        timeouts,
        events: request.events,
        log,
    };
    Owner::run(estate, queue).await;
}

//! The sandbox: every container and process of this guest, owned by one task.
//!
//! The task is commanded through a [`Handle`], one job after the other. A job that needs the workload's cooperation
//! (output, the end of a process) only hands out what to wait on; the waiting is done by whoever asked. Containers are
//! made and taken apart beside it, in the [`workshop`].
//!
//! Must not know of the wire (`rpc` translates).

mod entry;
mod handle;
pub mod spec;
pub mod state;
mod stats;
mod workshop;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_protocol::{GUEST_RESOLV_CONF, GUEST_SHM, StatsResponse};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use slog::{Logger, warn};
use tokio::sync::{mpsc, watch};

use crate::connection::Connections;
use crate::container::{Environment, PodNamespaces};
use crate::error::{Error, Result};
use crate::events::{Event, Log, MemoryWatch};
use crate::growth::Growth;
use crate::identity::Identity;
use crate::network::{self, Network};
use crate::process::stdio::{self, Wanted};
use crate::process::{Process, Signal};
use crate::reaper::{self, Exited, Reaper};
use crate::storage::{Mounted, Mounter, Storage};
use crate::sys;
use entry::Entry;
pub use handle::{Handle, Stream};
use state::Call;
use workshop::Workshop;

/// What a sandbox stands on.
#[derive(Debug)]
pub struct Settings {
    /// Mounts below the agent's directory.
    pub mounter: Mounter,
    /// The cgroup (version 2) below which containers get theirs.
    pub cgroup_root: PathBuf,
    /// Whether the kernel is this sandbox's own, so that its clock, name and sysctls may be set.
    pub owns_kernel: bool,
    /// Whether the network namespace is this sandbox's own.
    pub owns_network: bool,
}

/// The request to make this guest a sandbox.
#[derive(Debug)]
pub struct SandboxRequest {
    /// Id, for the log.
    pub id: String,
    /// Who it is.
    pub identity: Identity,
    /// What it is connected to.
    pub network: Network,
    /// Mounted as long as the sandbox lives.
    pub storages: Vec<Storage>,
    /// Size of /dev/shm in bytes; 0: [`DEFAULT_SHM_SIZE`].
    pub shm_size: u64,
    /// vCPUs and memory may be added.
    pub grows: bool,
}

/// The request to create a container.
#[derive(Debug)]
pub struct ContainerRequest {
    /// Id.
    pub id: String,
    /// OCI specification, JSON.
    pub spec: Vec<u8>,
    /// Mounted as long as the container exists.
    pub storages: Vec<Storage>,
    /// Streams of its init process.
    pub stdio: Wanted,
}

/// The request for one more process.
#[derive(Debug)]
pub struct ExecRequest {
    /// Container's id.
    pub container: String,
    /// Id of the new process.
    pub id: String,
    /// What to run.
    pub process: ProcessSpec,
    /// Its streams.
    pub stdio: Wanted,
}

/// Size of /dev/shm when the host names none, in bytes (Docker's and Kubernetes' default).
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Blank,
    Ready,
    /// Being destroyed: nothing new is accepted.
    Ending,
    Destroyed,
}

/// Owner of everything.
#[derive(Debug)]
pub struct Sandbox {
    log: Logger,
    workshop: Workshop,
    owns_kernel: bool,
    owns_network: bool,
    handle: Handle,
    phase: watch::Sender<Phase>,
    mounts: Vec<Mounted>,
    containers: BTreeMap<String, Entry>,
    connections: Connections,
    /// Ids of containers that are being made or taken apart.
    busy: watch::Sender<BTreeSet<String>>,
    events: Log,
    memory: MemoryWatch,
    growth: Option<Growth>,
}

impl Sandbox {
    /// A blank sandbox and the handle to command it with; it lives as long as [`Sandbox::run`] does.
    ///
    /// # Errors
    /// When the kernel refuses the signal handler or the watch it needs.
    pub fn new(settings: Settings, log: Logger) -> Result<(Self, mpsc::Receiver<handle::Job>)> {
        let phase = watch::Sender::new(Phase::Blank);
        let (handle, jobs) = Handle::new(phase.subscribe());
        let state_dir = settings.mounter.root().dir().join("state");
        let environment = Environment {
            cgroup_root: settings.cgroup_root,
            state_dir,
            pod: PodNamespaces::default(),
        };
        let sandbox = Self {
            workshop: Workshop {
                log: log.clone(),
                mounter: Arc::new(settings.mounter),
                environment: Arc::new(environment),
                reaper: Reaper::start()?,
            },
            log,
            owns_kernel: settings.owns_kernel,
            owns_network: settings.owns_network,
            handle,
            phase,
            mounts: Vec::new(),
            containers: BTreeMap::new(),
            connections: Connections::default(),
            busy: watch::Sender::default(),
            events: Log::default(),
            memory: MemoryWatch::new()?,
            growth: None,
        };
        Ok((sandbox, jobs))
    }

    /// The way to command it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Works off the jobs.
    ///
    /// # Errors
    /// When the watch on the containers' memory breaks: a sandbox that can't tell of a shortage is not to be trusted.
    pub async fn run(mut self, mut jobs: mpsc::Receiver<handle::Job>) -> Result<()> {
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => job(&mut self).await,
                    None => return Ok(()),
                },
                changed = self.memory.changed() => changed?.iter().for_each(|id| self.announce_oom(id)),
            }
        }
    }

    fn ready(&self) -> Result<()> {
        match *self.phase.borrow() {
            Phase::Blank => Err(Error::State("the sandbox is not created yet")),
            Phase::Ready => Ok(()),
            Phase::Ending | Phase::Destroyed => Err(Error::State("the sandbox is destroyed")),
        }
    }

    fn entry(&self, id: &str) -> Result<&Entry> {
        self.containers
            .get(id)
            .ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    fn entry_mut(&mut self, id: &str) -> Result<&mut Entry> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    async fn create_sandbox(&mut self, request: SandboxRequest) -> Result<()> {
        match *self.phase.borrow() {
            Phase::Blank => {}
            Phase::Ready => {
                return Err(Error::Exists {
                    what: "sandbox",
                    id: request.id,
                });
            }
            Phase::Ending | Phase::Destroyed => return Err(Error::State("the sandbox is destroyed")),
        }
        spec::check_id("sandbox_id", &request.id)?;
        request.identity.check()?;
        self.check_network(&request.network)?;
        if self.owns_kernel {
            request.identity.apply_to_guest()?;
            self.growth = request.grows.then(Growth::prepare).transpose()?;
        }
        network::add(&request.network).await?;
        if self.owns_kernel {
            request.identity.apply_sysctls()?;
        }
        let shm_size = if request.shm_size == 0 {
            DEFAULT_SHM_SIZE
        } else {
            request.shm_size
        };
        let options = [
            "nosuid",
            "nodev",
            "noexec",
            "mode=1777",
            &format!("size={shm_size}"),
        ];
        let shm = Storage::parse("tmpfs", "", "", &options.map(str::to_owned), GUEST_SHM)?;
        let storages: Vec<Storage> = std::iter::once(shm).chain(request.storages).collect();
        let mounts = self.workshop.mounter.mount_all(&storages).await?;
        if let Some(text) = request.identity.dns.resolv_conf() {
            let path = self.resolv_conf();
            if let Err(error) = std::fs::write(&path, text) {
                let _ = self.workshop.mounter.unmount_all(mounts);
                return Err(Error::file("write", path)(error));
            }
        }
        self.mounts = mounts;
        self.phase.send_replace(Phase::Ready);
        Ok(())
    }

    fn check_network(&self, network: &Network) -> Result<()> {
        if self.owns_network || network.is_empty() {
            return Ok(());
        }
        Err(Error::Unsupported(
            "a network of its own (the agent is a process in somebody else's)".to_owned(),
        ))
    }

    /// Whether one more connection to localhost may be opened.
    fn begin_connect(&self) -> Result<()> {
        self.ready()?;
        if !self.owns_network {
            return Err(Error::Unsupported(
                "a connection to the localhost of a host (the agent is a process in its network)".to_owned(),
            ));
        }
        self.connections.check()
    }

    /// Whether this may be added to the network now.
    fn begin_update_network(&self, network: &Network) -> Result<()> {
        self.ready()?;
        self.check_network(network)
    }

    /// How the guest grows; `None` where it is a process.
    fn growth(&self) -> Result<Option<Growth>> {
        self.ready()?;
        match self.growth {
            None if self.owns_kernel => Err(Error::State("the sandbox was created to keep its size")),
            growth => Ok(growth),
        }
    }

    fn resolv_conf(&self) -> PathBuf {
        spec::locate(Path::new(GUEST_RESOLV_CONF), self.workshop.mounter.root().dir())
    }

    /// Reserves the id of a container that is about to be made.
    fn begin_create(&mut self, id: &str) -> Result<Workshop> {
        self.ready()?;
        spec::check_id("container_id", id)?;
        if self.containers.contains_key(id) || self.busy.borrow().contains(id) {
            return Err(Error::Exists {
                what: "container",
                id: id.to_owned(),
            });
        }
        self.reserve(id);
        Ok(self.workshop.clone())
    }

    /// Takes a container that was made, and answers with the pid of its init process.
    fn finish_create(&mut self, id: String, made: Result<Entry>) -> Result<i32> {
        self.settle(&id);
        let entry = made?;
        let pid = entry.init.pid;
        self.memory.add(&id, entry.container.cgroup());
        self.announce_end(&id, entry.init.exited.clone());
        self.containers.insert(id, entry);
        Ok(pid)
    }

    /// Hands out a container that has ended, to be taken apart; its id stays reserved until [`Sandbox::settle`].
    fn begin_delete(&mut self, id: &str) -> Result<(Workshop, Entry)> {
        self.entry(id)?.check(Call::Delete)?;
        self.announce_oom(id);
        self.memory.remove(id);
        let entry = self
            .containers
            .remove(id)
            .ok_or_else(|| Error::NoContainer(id.to_owned()))?;
        self.reserve(id);
        Ok((self.workshop.clone(), entry))
    }

    /// Keeps others from using an id.
    fn reserve(&self, id: &str) {
        self.busy.send_modify(|busy| {
            busy.insert(id.to_owned());
        });
    }

    /// Frees an id that was reserved.
    fn settle(&self, id: &str) {
        self.busy.send_modify(|busy| {
            busy.remove(id);
        });
    }

    /// Sees to it that the end of an init process takes the rest of its container with it.
    fn announce_end(&self, id: &str, exited: Exited) {
        let (handle, id) = (self.handle.clone(), id.to_owned());
        tokio::spawn(async move {
            if reaper::ended(exited).await.is_ok() {
                // Fails only when the sandbox is gone, and all its processes with it.
                let _ = handle.call(async move |sandbox| sandbox.init_ended(&id)).await;
            }
        });
    }

    fn init_ended(&mut self, id: &str) -> Result<()> {
        self.announce_oom(id);
        // The container may be deleted since, and its id taken by another one that lives.
        if let Some(entry) = self
            .containers
            .get(id)
            .filter(|entry| entry.init.exit().is_some())
        {
            // Without a pid namespace of its own the container's other processes would live on.
            entry.signal_all(Signal::KILL)?;
        }
        Ok(())
    }

    fn announce_oom(&mut self, id: &str) {
        if let Some(entry) = self.containers.get_mut(id) {
            let kills = stats::oom_kills(entry.container.cgroup());
            if kills > entry.oom_kills {
                entry.oom_kills = kills;
                self.events.push(Event::Oom {
                    container: id.to_owned(),
                });
            }
        }
    }

    async fn start_container(&mut self, id: &str) -> Result<()> {
        let entry = self.entry_mut(id)?;
        let after = entry.check(Call::Start)?;
        match entry.container.start().await {
            Ok(()) => {
                entry.enter(after);
                Ok(())
            }
            Err(error) => {
                // What could not execute is of no use to anyone: it ends now, and can be deleted.
                entry.signal_all(Signal::KILL)?;
                Err(error.into())
            }
        }
    }

    async fn exec(&mut self, request: ExecRequest) -> Result<i32> {
        spec::check_id("exec_id", &request.id)?;
        let reaper = self.workshop.reaper.clone();
        let entry = self.entry_mut(&request.container)?;
        entry.check(Call::Exec)?;
        if entry.execs.contains_key(&request.id) {
            return Err(Error::Exists {
                what: "process",
                id: request.id,
            });
        }
        let (pending, child) = stdio::prepare(request.stdio)?;
        let expectation = reaper.expect();
        let mut started = entry.container.exec(&request.process, child).await?;
        let pid = started.pid.as_raw();
        let exited = expectation.claim(pid);
        let streams = pending.connect(&mut started);
        if streams.is_err() {
            sys::kill(pid, libc::SIGKILL).map_err(Error::system("kill a process without streams"))?;
        }
        entry.execs.insert(
            request.id,
            Process {
                pid,
                exited,
                streams: streams?,
            },
        );
        Ok(pid)
    }

    fn signal(&self, container: &str, exec: &str, signal: Signal, all: bool) -> Result<()> {
        let entry = self.entry(container)?;
        let process = entry.process(container, exec)?;
        if all {
            entry.check(Call::Signal)?;
            return entry.signal_all(signal);
        }
        process.signal(signal)
    }

    fn exited(&self, container: &str, exec: &str) -> Result<Exited> {
        Ok(self.entry(container)?.process(container, exec)?.exited.clone())
    }

    fn delete_process(&mut self, container: &str, exec: &str) -> Result<()> {
        if exec.is_empty() {
            return Err(Error::invalid(
                "exec_id",
                "empty: the init process goes with its container",
            ));
        }
        let entry = self.entry_mut(container)?;
        if entry.process(container, exec)?.exit().is_none() {
            return Err(Error::State("process still runs"));
        }
        entry.execs.remove(exec);
        Ok(())
    }

    async fn pause(&mut self, id: &str) -> Result<()> {
        let entry = self.entry_mut(id)?;
        let after = entry.check(Call::Pause)?;
        entry.container.pause().await?;
        entry.enter(after);
        Ok(())
    }

    async fn resume(&mut self, id: &str) -> Result<()> {
        let entry = self.entry_mut(id)?;
        let after = entry.check(Call::Resume)?;
        entry.container.resume().await?;
        entry.enter(after);
        Ok(())
    }

    fn update(&self, id: &str, resources: &LinuxResources) -> Result<()> {
        let entry = self.entry(id)?;
        entry.check(Call::Update)?;
        Ok(entry.container.update(resources)?)
    }

    fn stats(&self, id: &str) -> Result<StatsResponse> {
        Ok(stats::read(self.entry(id)?.container.cgroup()))
    }

    fn pids(&self, id: &str) -> Result<Vec<u32>> {
        Ok(self.entry(id)?.container.pids())
    }

    /// Signals every process of every container, and answers with the ends to wait for.
    fn signal_everything(&self, signal: Signal) -> Vec<Exited> {
        for (id, entry) in &self.containers {
            if let Err(error) = entry.signal_all(signal) {
                warn!(self.log, "can't signal a container"; "container" => id, "cause" => %error);
            }
        }
        let processes = self.containers.values().flat_map(Entry::processes);
        processes.map(|process| process.exited.clone()).collect()
    }

    /// From now on nothing is created. Answers with the ids that are being worked on.
    fn begin_destroy(&mut self) -> watch::Receiver<BTreeSet<String>> {
        // A second destruction finds nothing to do, and must not seem to begin again.
        if *self.phase.borrow() != Phase::Destroyed {
            self.phase.send_replace(Phase::Ending);
        }
        self.connections.close_all();
        self.busy.subscribe()
    }

    fn ids(&self) -> Vec<String> {
        self.containers.keys().cloned().collect()
    }

    /// Unmounts everything. The containers are deleted by now.
    fn finish_destroy(&mut self) -> Result<()> {
        let mounts = std::mem::take(&mut self.mounts);
        let result = self.workshop.mounter.unmount_all(mounts);
        // There is none without DNS settings.
        let _ = std::fs::remove_file(self.resolv_conf());
        if self.owns_kernel {
            rustix::fs::sync();
        }
        self.phase.send_replace(Phase::Destroyed);
        result
    }
}

//! The sandbox: every container and process of this guest, owned by one task.
//!
//! The task is commanded through a [`Handle`], one job after the other, and no job waits for anything. One that needs the
//! workload's cooperation (output, the end of a process) only hands out what to wait on; the waiting is done by whoever
//! asked. Containers are made and taken apart beside it, in the [`workshop`], and started, entered and paused as `beside`
//! says.
//!
//! Must not know of the wire (`rpc` translates).

mod beside;
mod birth;
mod consoles;
mod entry;
mod handle;
mod outside;
mod shares;
pub mod spec;
pub mod state;
mod stats;
mod turn;
mod workshop;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use agent_protocol::StatsResponse;
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use slog::{Logger, warn};
use tokio::sync::{mpsc, watch};

use self::birth::PodFiles;
use crate::connection::Connections;
use crate::container::{Environment, PodNamespaces};
use crate::error::{Error, Result};
use crate::events::{Event, Log, MemoryWatch};
use crate::growth::Growth;
use crate::identity::{self, Identity};
use crate::iptables::Filter;
use crate::network::Network;
use crate::process::stdio::Wanted;
use crate::process::{Process, Signal};
use crate::reaper::{self, Exited, Reaper};
use crate::storage::{self, DiskDevice, Mounted, Mounter, Storage};
use entry::Entry;
pub use handle::{After, Handle, Stream};
use shares::Shares;
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
    /// Size of /dev/shm in bytes; 0: as large as Docker makes it.
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
    /// Disks that it has as devices.
    pub devices: Vec<DiskDevice>,
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Blank,
    /// Becoming a sandbox.
    Making,
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
    /// Its id, which is that of its first container as well.
    id: String,
    mounts: Vec<Mounted>,
    /// What containers have asked to be mounted for the pod, by the mount point.
    of_pod: BTreeMap<PathBuf, Storage>,
    shares: Shares,
    /// Keeps the name of the pod's pid namespace, while its first container is there.
    processes: Option<File>,
    containers: BTreeMap<String, Entry>,
    connections: Connections,
    /// Programs that the host has run in the guest itself, by their ids.
    consoles: BTreeMap<String, Process>,
    /// Ids of containers that are being made or taken apart.
    busy: watch::Sender<BTreeSet<String>>,
    events: Log,
    memory: MemoryWatch,
    growth: Option<Growth>,
    filter: Arc<Filter>,
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
        let reaper = Reaper::start()?;
        let filter = Filter::new(
            settings.mounter.root().dir(),
            settings.owns_kernel,
            reaper.clone(),
        );
        let sandbox = Self {
            workshop: Workshop {
                log: log.clone(),
                mounter: Arc::new(settings.mounter),
                environment: Arc::new(environment),
                reaper,
            },
            log,
            owns_kernel: settings.owns_kernel,
            owns_network: settings.owns_network,
            handle,
            phase,
            id: String::new(),
            mounts: Vec::new(),
            of_pod: BTreeMap::new(),
            shares: Shares::default(),
            processes: None,
            containers: BTreeMap::new(),
            connections: Connections::default(),
            consoles: BTreeMap::new(),
            busy: watch::Sender::default(),
            events: Log::default(),
            memory: MemoryWatch::new()?,
            growth: None,
            filter: Arc::new(filter),
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
                    Some(job) => job(&mut self),
                    None => return Ok(()),
                },
                changed = self.memory.changed() => changed?.iter().for_each(|id| self.announce_oom(id)),
            }
        }
    }

    fn ready(&self) -> Result<()> {
        match *self.phase.borrow() {
            Phase::Blank | Phase::Making => Err(Error::State("the sandbox is not created yet")),
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

    fn files(&self) -> PodFiles {
        PodFiles::below(self.workshop.mounter.root().dir())
    }

    /// Reserves the id of a container that is about to be made, and mounts what of its storages is the pod's and not there yet.
    /// Answers with where the shares are, too.
    fn begin_create(&mut self, request: &ContainerRequest) -> Result<(Workshop, Vec<PathBuf>)> {
        let id = request.id.as_str();
        self.ready()?;
        spec::check_id("container_id", id)?;
        if self.containers.contains_key(id) || self.busy.borrow().contains(id) {
            return Err(Error::Exists {
                what: "container",
                id: id.to_owned(),
            });
        }
        self.mount_of_pod(&request.storages)?;
        self.reserve(id);
        Ok((self.workshop.clone(), self.shares.roots().to_owned()))
    }

    /// It is memory, which is there at once, and stays until the end of the sandbox.
    fn mount_of_pod(&mut self, storages: &[Storage]) -> Result<()> {
        for storage in storages.iter().filter(|storage| storage.is_of_the_pod()) {
            match self.of_pod.get(&storage.mount_point()) {
                Some(known) if known == storage => {}
                Some(_) => {
                    return Err(Error::invalid(
                        "storage.mount_point",
                        format!(
                            "{} is another storage of the pod's",
                            storage.mount_point().display()
                        ),
                    ));
                }
                None => {
                    self.mounts.push(self.workshop.mounter.mount_of_pod(storage)?);
                    self.of_pod.insert(storage.mount_point(), storage.clone());
                }
            }
        }
        Ok(())
    }

    /// Takes a container that was made, and answers with the pid of its init process. `used`: what it has used of the shares.
    fn finish_create(&mut self, id: String, used: BTreeSet<PathBuf>, made: Result<Entry>) -> Result<i32> {
        let mut entry = match made {
            Ok(entry) => entry,
            Err(error) => {
                self.shares.left(used);
                self.settle(&id);
                return Err(error);
            }
        };
        entry.used = used;
        let pid = entry.init.pid;
        self.memory.add(&id, entry.container.cgroup());
        self.announce_end(&id, entry.init.exited.clone());
        let processes = entry.container.take_processes();
        if id == self.id {
            self.share_processes(processes);
        }
        self.containers.insert(id.clone(), entry);
        self.settle(&id);
        Ok(pid)
    }

    /// Hands out a container that has ended, to be taken apart; its id stays reserved until [`Sandbox::settle`].
    fn begin_delete(&mut self, id: &str) -> Result<(Workshop, Entry)> {
        if !self.containers.contains_key(id) && self.busy.borrow().contains(id) {
            // Whoever asked first may have given up; it is not gone before all is written.
            return Err(Error::State("container is being created or deleted"));
        }
        self.entry(id)?.check(Call::Delete)?;
        self.announce_oom(id);
        self.memory.remove(id);
        if id == self.id {
            self.share_processes(None);
        }
        let entry = self
            .containers
            .remove(id)
            .ok_or_else(|| Error::NoContainer(id.to_owned()))?;
        self.shares.left(entry.used.clone());
        self.reserve(id);
        Ok((self.workshop.clone(), entry))
    }

    /// From now on the pod's processes are in this pid namespace.
    fn share_processes(&mut self, processes: Option<File>) {
        let environment = Arc::make_mut(&mut self.workshop.environment);
        environment.pod.pid = processes
            .as_ref()
            .map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()).into());
        self.processes = processes;
    }

    /// Keeps others from using an id.
    fn reserve(&self, id: &str) {
        self.busy.send_modify(|busy| {
            busy.insert(id.to_owned());
        });
    }

    /// Frees an id that was reserved.
    fn settle(&mut self, id: &str) {
        self.busy.send_modify(|busy| {
            busy.remove(id);
        });
        // What is being made may use what others have left.
        if self.busy.borrow().is_empty() {
            let used = self.containers.values().map(|entry| &entry.used);
            let unused = self.shares.take_unused(used);
            if let Err(error) = storage::forget(&unused) {
                warn!(self.log, "the host may hold what nobody uses any more"; "cause" => %error);
            }
        }
    }

    /// Sees to it that the end of an init process takes the rest of its container with it.
    fn announce_end(&self, id: &str, exited: Exited) {
        let (handle, id) = (self.handle.clone(), id.to_owned());
        tokio::spawn(async move {
            if reaper::ended(exited).await.is_ok() {
                // Fails only when the sandbox is gone, and all its processes with it.
                let _ = handle.call(move |sandbox| sandbox.init_ended(&id)).await;
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

    fn signal(&self, container: &str, exec: &str, signal: Signal, all: bool) -> Result<()> {
        let process = self.process(container, exec)?;
        if all {
            let entry = self.entry(container)?;
            entry.check(Call::Signal)?;
            return entry.signal_all(signal);
        }
        process.signal(signal)
    }

    fn exited(&self, container: &str, exec: &str) -> Result<Exited> {
        Ok(self.process(container, exec)?.exited.clone())
    }

    fn delete_process(&mut self, container: &str, exec: &str) -> Result<()> {
        if exec.is_empty() {
            return Err(Error::invalid(
                "exec_id",
                "empty: the init process goes with its container",
            ));
        }
        if self.process(container, exec)?.exit().is_none() {
            return Err(Error::State("process still runs"));
        }
        if container.is_empty() {
            self.consoles.remove(exec);
        } else {
            self.entry_mut(container)?.execs.remove(exec);
        }
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

    /// Signals every process that was asked for, and answers with the ends to wait for.
    fn signal_everything(&self, signal: Signal) -> Vec<Exited> {
        for (id, entry) in &self.containers {
            if let Err(error) = entry.signal_all(signal) {
                warn!(self.log, "can't signal a container"; "container" => id, "cause" => %error);
            }
        }
        for process in self.consoles.values() {
            // One that has ended needs none.
            let _ = process.signal(signal);
        }
        let processes = self.containers.values().flat_map(Entry::processes);
        processes
            .chain(self.consoles.values())
            .map(|process| process.exited.clone())
            .collect()
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

    /// Writes back what the host does not have yet, and leaves everything as it is. False where that would not do: the kernel is
    /// somebody else's, or the file system of a disk would have to be repaired.
    fn abandon(&mut self) -> bool {
        if !self.owns_kernel || self.workshop.mounter.has_mounted_a_disk() {
            return false;
        }
        rustix::fs::sync();
        self.phase.send_replace(Phase::Destroyed);
        true
    }

    /// Unmounts everything. The containers are deleted by now.
    fn finish_destroy(&mut self, after: After) -> Result<()> {
        let mounts = std::mem::take(&mut self.mounts);
        let result = self.workshop.mounter.unmount_all(mounts);
        self.files().remove();
        if self.owns_kernel {
            rustix::fs::sync();
        }
        // What could not be taken apart must not be somebody else's.
        let phase = match (&result, after) {
            (Ok(()), After::Anew) => {
                self.forget();
                Phase::Blank
            }
            _ => Phase::Destroyed,
        };
        self.phase.send_replace(phase);
        result
    }

    /// Is nobody again.
    fn forget(&mut self) {
        self.id.clear();
        self.shares = Shares::default();
        self.of_pod.clear();
        // Who waits for one is told that there will be none.
        self.events = Log::default();
        self.growth = None;
        self.consoles.clear();
        if self.owns_kernel {
            identity::forget();
        }
    }
}

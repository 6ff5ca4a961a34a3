//! The sandbox: every container and process of this guest, owned by one task.
//!
//! The task is commanded through a [`Handle`], one job after the other. A job that needs the workload's cooperation
//! (output, the end of a process) only hands out what to wait on; the waiting is done by whoever asked.
//!
//! Must not know of the wire (`rpc` translates).

mod entry;
mod handle;
pub mod spec;
pub mod state;
mod stats;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agent_protocol::{GUEST_RESOLV_CONF, GUEST_SHM, StatsResponse};
use oci_spec::runtime::{LinuxResources, Process as ProcessSpec};
use slog::{Logger, warn};
use tokio::sync::{mpsc, watch};

use crate::container::{self, Container, CreateRequest, Environment, PodNamespaces};
use crate::error::{Error, Result};
use crate::events::{Event, Log, MemoryWatch};
use crate::identity::Identity;
use crate::process::stdio::{self, Wanted};
use crate::process::{Process, Signal};
use crate::reaper::{self, Exited, Reaper};
use crate::storage::{Mounted, Mounter, Storage};
use crate::sys;
use entry::Entry;
pub use handle::{Handle, Stream};
use state::Call;

/// What a sandbox stands on.
#[derive(Debug)]
pub struct Settings {
    /// Mounts below the agent's directory.
    pub mounter: Mounter,
    /// The cgroup (version 2) below which containers get theirs.
    pub cgroup_root: PathBuf,
    /// Whether the kernel is this sandbox's own, so that its clock, name and sysctls may be set.
    pub owns_kernel: bool,
}

/// The request to make this guest a sandbox.
#[derive(Debug)]
pub struct SandboxRequest {
    /// Id, for the log.
    pub id: String,
    /// Who it is.
    pub identity: Identity,
    /// Mounted as long as the sandbox lives.
    pub storages: Vec<Storage>,
    /// Size of /dev/shm in bytes; 0: [`DEFAULT_SHM_SIZE`].
    pub shm_size: u64,
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
    Destroyed,
}

/// Owner of everything.
#[derive(Debug)]
pub struct Sandbox {
    log: Logger,
    mounter: Mounter,
    owns_kernel: bool,
    environment: Environment,
    reaper: Reaper,
    handle: Handle,
    phase: watch::Sender<Phase>,
    mounts: Vec<Mounted>,
    containers: BTreeMap<String, Entry>,
    events: Log,
    memory: MemoryWatch,
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
        let sandbox = Self {
            log,
            mounter: settings.mounter,
            owns_kernel: settings.owns_kernel,
            environment: Environment {
                cgroup_root: settings.cgroup_root,
                state_dir,
                pod: PodNamespaces::default(),
            },
            reaper: Reaper::start()?,
            handle,
            phase,
            mounts: Vec::new(),
            containers: BTreeMap::new(),
            events: Log::default(),
            memory: MemoryWatch::new()?,
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
            Phase::Destroyed => Err(Error::State("the sandbox is destroyed")),
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
            Phase::Destroyed => return Err(Error::State("the sandbox is destroyed")),
        }
        spec::check_id("sandbox_id", &request.id)?;
        request.identity.check()?;
        if self.owns_kernel {
            request.identity.apply_to_guest()?;
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
        let mounts = self.mounter.mount_all(&storages).await?;
        if let Some(text) = request.identity.dns.resolv_conf() {
            let path = self.resolv_conf();
            if let Err(error) = std::fs::write(&path, text) {
                let _ = self.mounter.unmount_all(mounts);
                return Err(Error::file("write", path)(error));
            }
        }
        self.mounts = mounts;
        self.phase.send_replace(Phase::Ready);
        Ok(())
    }

    fn resolv_conf(&self) -> PathBuf {
        spec::locate(Path::new(GUEST_RESOLV_CONF), self.mounter.root().dir())
    }

    async fn create_container(&mut self, request: ContainerRequest) -> Result<i32> {
        self.ready()?;
        spec::check_id("container_id", &request.id)?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::Exists {
                what: "container",
                id: request.id,
            });
        }
        let spec = spec::container(&request.spec, self.mounter.root().dir())?;
        let mounts = self.mounter.mount_all(&request.storages).await?;
        let (container, init) = match self.create_init(&request, &spec).await {
            Ok(created) => created,
            Err(error) => {
                if let Err(leftover) = self.mounter.unmount_all(mounts) {
                    warn!(self.log, "a mount of a failed container stays"; "cause" => %leftover);
                }
                return Err(error);
            }
        };
        let pid = init.pid;
        self.memory.add(&request.id, container.cgroup());
        self.announce_end(&request.id, init.exited.clone());
        self.containers
            .insert(request.id, Entry::new(container, init, mounts));
        Ok(pid)
    }

    async fn create_init(
        &self,
        request: &ContainerRequest,
        spec: &oci_spec::runtime::Spec,
    ) -> Result<(Container, Process)> {
        let (pending, child) = stdio::prepare(request.stdio)?;
        let expectation = self.reaper.expect();
        let create = CreateRequest {
            id: &request.id,
            spec,
            stdio: child,
            environment: &self.environment,
        };
        let (container, mut started) = container::create(create).await?;
        let pid = started.pid.as_raw();
        let exited = expectation.claim(pid);
        match pending.connect(&mut started) {
            Ok(streams) => Ok((container, Process { pid, exited, streams })),
            Err(error) => {
                container.delete().await?;
                Err(error)
            }
        }
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

    async fn delete_container(&mut self, id: &str) -> Result<()> {
        self.entry(id)?.check(Call::Delete)?;
        self.announce_oom(id);
        self.memory.remove(id);
        let Some(entry) = self.containers.remove(id) else {
            return Err(Error::NoContainer(id.to_owned()));
        };
        let deleted = entry.container.delete().await;
        let unmounted = self.mounter.unmount_all(entry.mounts);
        deleted?;
        unmounted
    }

    async fn exec(&mut self, request: ExecRequest) -> Result<i32> {
        spec::check_id("exec_id", &request.id)?;
        let reaper = self.reaper.clone();
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

    /// Deletes every container, which must all have ended, and unmounts everything.
    async fn destroy(&mut self) -> Result<()> {
        let mut result = Ok(());
        let ids: Vec<String> = self.containers.keys().cloned().collect();
        for id in ids {
            result = result.and(self.delete_container(&id).await);
        }
        let mounts = std::mem::take(&mut self.mounts);
        result = result.and(self.mounter.unmount_all(mounts));
        // There is none without DNS settings.
        let _ = std::fs::remove_file(self.resolv_conf());
        if self.owns_kernel {
            rustix::fs::sync();
        }
        self.phase.send_replace(Phase::Destroyed);
        result
    }
}

//! What a server holds: at most one sandbox and the containers in it, with what their callers were told about each.
//!
//! The runtime decides what may happen to a container. Here is decided when a sandbox comes and goes (with its first
//! and last container), and in which order the news of a process get out. It must not know the wire.

mod bare;
mod create;
mod delete;
mod exec;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtime::error::Result;
use runtime::{Container, ContainerId, Error, ErrorKind, ExecId, ExitStatus, Sandbox, SandboxId};
use slog::{Logger, warn};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use bare::Bare;
pub use bare::{BareOrder, Phase};
pub use create::Order;
pub use exec::ExecOrder;
use process::Process;

use crate::deadlines;
use crate::events::Events;
use crate::log::Verbosity;
use crate::stdio::{self, Streams};

/// The largest pid that the kernel can give (PID_MAX_LIMIT). An additional process has none on the host; what callers
/// are shown for it lies above, so that it is nobody's, and not its container's either: Docker tells ends apart by it.
const PID_MAX: u32 = 1 << 22;

/// Whether there is anything to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupancy {
    /// Nothing was created yet.
    Fresh,
    /// There is a container, or there will be.
    Occupied,
    /// Nothing is left.
    Vacant,
}

/// What stays the same as long as the server lives.
#[derive(Debug, Clone)]
pub struct Setting {
    /// Id of the sandbox that this server is for.
    pub sandbox: SandboxId,
    /// containerd's namespace.
    pub namespace: SandboxId,
    /// Value of `KATA_CONF_FILE`.
    pub configuration: Option<PathBuf>,
    /// Where events go.
    pub events: Events,
    /// How much is logged.
    pub verbosity: Verbosity,
    /// The logger that the runtime is given, which adds the sandbox's id itself.
    pub program_log: Logger,
    /// Our own.
    pub log: Logger,
}

/// See the module's documentation.
pub struct Pod {
    setting: Setting,
    books: Mutex<Books>,
    occupancy: watch::Sender<Occupancy>,
    closing: watch::Sender<bool>,
    /// Sandboxes that hold something, those included whose start nobody waits for any more.
    holding: watch::Sender<usize>,
    next_pid: AtomicU32,
    loggers: Mutex<JoinSet<()>>,
}

/// Who is there. Held for moments only, never across a wait.
struct Books {
    sandbox: Slot,
    /// A sandbox that no container stands for.
    bare: Option<Bare>,
    /// `None`: being created.
    containers: BTreeMap<ContainerId, Option<Arc<Member>>>,
    closed: bool,
    /// Where the sandbox's directory is.
    run_dir: Option<PathBuf>,
}

enum Slot {
    Empty,
    Starting,
    Ready(Sandbox),
    Stopping,
}

/// A container, and what its caller was told about it.
struct Member {
    container: Container,
    bundle: PathBuf,
    init: Arc<Process>,
    execs: Mutex<BTreeMap<ExecId, Arc<Process>>>,
}

/// A process as State shows it.
#[derive(Debug)]
pub struct Shown {
    /// Path of its container's bundle.
    pub bundle: PathBuf,
    /// Its pid.
    pub pid: u32,
    /// Its streams.
    pub streams: Streams,
    /// What the runtime says.
    pub state: runtime::ProcessState,
}

impl Pod {
    /// An empty one.
    pub fn new(setting: Setting) -> Arc<Self> {
        Arc::new(Self {
            setting,
            books: Mutex::new(Books {
                sandbox: Slot::Empty,
                bare: None,
                containers: BTreeMap::new(),
                closed: false,
                run_dir: None,
            }),
            occupancy: watch::Sender::new(Occupancy::Fresh),
            closing: watch::Sender::new(false),
            holding: watch::Sender::new(0),
            next_pid: AtomicU32::new(PID_MAX + 1),
            loggers: Mutex::new(JoinSet::new()),
        })
    }

    /// Whether there is anything to serve, now and later.
    pub fn occupancy(&self) -> watch::Receiver<Occupancy> {
        self.occupancy.subscribe()
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while it holds them.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, id: &ContainerId) -> Result<Arc<Member>> {
        match self.books().containers.get(id) {
            Some(Some(member)) => Ok(Arc::clone(member)),
            Some(None) | None => Err(Error::new(
                ErrorKind::NotFound,
                format!("container {id} does not exist"),
            )),
        }
    }

    /// The runtime's handle to a container.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn container(&self, id: &ContainerId) -> Result<Container> {
        Ok(self.member(id)?.container.clone())
    }

    /// The pid that stands for a container: the virtual machine monitor's.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn pid(&self, id: &ContainerId) -> Result<u32> {
        Ok(self.member(id)?.init.pid)
    }

    /// The processes that callers were told of and that run: their pids, and the ids of additional ones.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn pids(&self, id: &ContainerId) -> Result<Vec<(u32, Option<ExecId>)>> {
        let member = self.member(id)?;
        let execs: Vec<_> = member
            .execs()
            .iter()
            .map(|(id, process)| (id.clone(), process.pid))
            .collect();
        let mut pids = vec![(member.init.pid, None)];
        for (exec, pid) in execs {
            // One that was deleted meanwhile does not run.
            if let Ok(state) = member.container.state(Some(&exec)).await
                && matches!(state.status, runtime::Status::Running | runtime::Status::Paused)
            {
                pids.push((pid, Some(exec)));
            }
        }
        Ok(pids)
    }

    /// A process now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn state(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<Shown> {
        let member = self.member(id)?;
        let process = member.process(exec)?;
        Ok(Shown {
            bundle: member.bundle.clone(),
            pid: process.pid,
            streams: process.streams.clone(),
            state: member.container.state(exec).await?,
        })
    }

    /// Waits for the end of a process; it has been announced when this returns.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]: there is no such process, or it was deleted without having run.
    pub async fn wait(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<ExitStatus> {
        // The process itself is not held on to: that it is dropped tells that it was deleted.
        let end = self.member(id)?.process(exec)?.end();
        process::announced(end).await.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("container {id}: the process was deleted before it was started"),
            )
        })
    }

    /// Starts the init process.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn start(self: Arc<Self>, id: ContainerId) -> Result<u32> {
        let member = self.member(&id)?;
        // Its end, which may come at once, is announced after its start.
        let gate = member.init.starting();
        member.container.start().await?;
        self.setting.events.started(&id, member.init.pid);
        drop(gate);
        Ok(member.init.pid)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn pause(self: Arc<Self>, id: ContainerId) -> Result<()> {
        self.member(&id)?.container.pause().await?;
        self.setting.events.paused(&id);
        Ok(())
    }

    /// Thaws it.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn resume(self: Arc<Self>, id: ContainerId) -> Result<()> {
        self.member(&id)?.container.resume().await?;
        self.setting.events.resumed(&id);
        Ok(())
    }

    /// Closes the pod if no container is left in it, nor a sandbox that needs none; nothing can be created any more then. Says whether it is closed.
    pub fn close_if_empty(&self) -> bool {
        let mut books = self.books();
        books.closed |= books.containers.is_empty() && books.bare.is_none();
        books.closed
    }

    /// Ends creations under way, and the sandbox.
    pub async fn close(self: &Arc<Self>) {
        self.books().closed = true;
        self.closing.send_replace(true);
        let members: Vec<_> = self.books().containers.values().flatten().cloned().collect();
        self.dismiss_bare().await;
        self.stop_sandbox().await;
        self.released().await;
        for member in members {
            // What its processes were ended by; a container that has no end to tell is not waited for long.
            let _ = timeout(deadlines::ANNOUNCED, process::announced(member.init.end())).await;
            let execs: Vec<_> = member.execs().values().cloned().collect();
            for process in execs.into_iter().chain([Arc::clone(&member.init)]) {
                self.finish(process.take_logger());
            }
        }
    }

    /// Returns when every logger has ended.
    pub async fn loggers_end(&self) {
        let mut loggers = std::mem::take(&mut *self.loggers());
        while loggers.join_next().await.is_some() {}
    }

    /// Returns when no sandbox holds anything: one whose start was given up goes on until all is released.
    async fn released(&self) {
        // The sender lives as long as we do.
        let _ = self.holding.subscribe().wait_for(|holding| *holding == 0).await;
    }

    /// Stops the sandbox if there is one, or waits until another one has done it.
    async fn stop_sandbox(&self) {
        let sandbox = {
            let mut books = self.books();
            match std::mem::replace(&mut books.sandbox, Slot::Stopping) {
                Slot::Ready(sandbox) => Some(sandbox),
                other => {
                    books.sandbox = other;
                    None
                }
            }
        };
        if let Some(sandbox) = sandbox {
            self.end(&sandbox).await;
            self.books().sandbox = Slot::Empty;
            self.occupancy.send_replace(Occupancy::Vacant);
        } else {
            // The sender lives as long as we do.
            let _ = self
                .occupancy()
                .wait_for(|occupancy| *occupancy != Occupancy::Occupied)
                .await;
        }
    }

    /// Stops a sandbox that nobody else can have any more. Its place stays taken.
    async fn end(&self, sandbox: &Sandbox) {
        if let Err(error) = sandbox.stop().await {
            warn!(self.setting.log, "the sandbox is stopped, but not all is released"; "error" => error.chain());
        }
    }

    /// The sandbox, if this is the last container of one that goes with it. Nobody else can have it from then on.
    fn take_last(&self, id: &ContainerId) -> Option<Sandbox> {
        let mut books = self.books();
        let is_last =
            books.bare.is_none() && books.containers.len() == 1 && books.containers.contains_key(id);
        if !is_last || !matches!(books.sandbox, Slot::Ready(_)) {
            return None;
        }
        match std::mem::replace(&mut books.sandbox, Slot::Stopping) {
            Slot::Ready(sandbox) => Some(sandbox),
            other => {
                books.sandbox = other;
                None
            }
        }
    }

    /// Stops the sandbox when its last container is gone: it has no purpose any more, unless it is there by itself.
    async fn vacate(&self) {
        let is_vacant = {
            let books = self.books();
            books.containers.is_empty() && books.bare.is_none()
        };
        if is_vacant {
            self.stop_sandbox().await;
        }
    }

    fn loggers(&self) -> MutexGuard<'_, JoinSet<()>> {
        // Nothing panics while it holds them.
        self.loggers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the logger of a deleted process come to its end, without waiting for it.
    fn finish(&self, logger: Option<stdio::Logger>) {
        let Some(logger) = logger else {
            return;
        };
        let log = self.setting.log.clone();
        let mut loggers = self.loggers();
        while loggers.try_join_next().is_some() {}
        loggers.spawn(async move { logger.finish(&log).await });
    }
}

impl Member {
    fn execs(&self) -> MutexGuard<'_, BTreeMap<ExecId, Arc<Process>>> {
        // Nothing panics while it holds them.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn process(&self, exec: Option<&ExecId>) -> Result<Arc<Process>> {
        match exec {
            None => Ok(Arc::clone(&self.init)),
            Some(exec) => self.execs().get(exec).cloned().ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("container {} has no process {exec}", self.container.id()),
                )
            }),
        }
    }
}

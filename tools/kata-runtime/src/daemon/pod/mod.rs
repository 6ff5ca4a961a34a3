//! What a daemon holds: at most one sandbox and the containers in it. The runtime decides what may happen to a container; here is
//! decided when the sandbox comes and goes: with its first and its last container.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use configuration::Config;
use runtime::error::Result;
use runtime::oci::{self, Annotations};
use runtime::{
    Container, ContainerId, ContainerRequest, Error, ErrorKind, Event, ExecId, ExecRequest, Input, Output,
    Sandbox, SandboxId, SandboxRequest, Status, Stdio,
};
use serde_json::Value;
use slog::{Logger, info, o, warn};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::attend::Standin;
use super::{cgroup, is_null};
use crate::place::{Record, Root};
use crate::wire::{NewProcess, Shown};
use crate::{bundle, deadlines};

/// Events of a sandbox that wait to be dealt with.
const QUEUE: usize = 64;

const SIGKILL: u32 = libc::SIGKILL as u32;

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

/// A container to be created.
pub struct Order {
    /// Its id.
    pub id: ContainerId,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// The configuration file that was named.
    pub config: Option<PathBuf>,
    /// Its process.
    pub process: NewProcess,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
}

/// See the module's documentation.
pub struct Pod {
    root: Root,
    id: SandboxId,
    scope: SandboxId,
    books: Mutex<Books>,
    occupancy: watch::Sender<Occupancy>,
    next_exec: AtomicU32,
    program_log: Logger,
    log: Logger,
}

/// Who is there. Held for moments only, never across a wait.
struct Books {
    sandbox: Slot,
    /// `None`: being created.
    containers: BTreeMap<ContainerId, Option<Arc<Member>>>,
}

enum Slot {
    Empty,
    Starting,
    Ready(Sandbox),
    Closed,
}

struct Member {
    container: Container,
    record: Record,
    /// Stand-ins of additional processes that run.
    execs: Mutex<BTreeMap<ExecId, u32>>,
}

impl Member {
    fn execs(&self) -> MutexGuard<'_, BTreeMap<ExecId, u32>> {
        // Nothing panics while it holds them.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pod {
    /// An empty one.
    ///
    /// # Errors
    /// The root has no name.
    pub fn new(root: Root, id: SandboxId, log: Logger) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            scope: root.scope()?,
            root,
            books: Mutex::new(Books {
                sandbox: Slot::Empty,
                containers: BTreeMap::new(),
            }),
            occupancy: watch::Sender::new(Occupancy::Fresh),
            next_exec: AtomicU32::new(1),
            program_log: log.clone(),
            log: log.new(o!("sandbox" => id.to_string())),
            id,
        }))
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
            Some(None) => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("container {id} is being created"),
            )),
            None => Err(does_not_exist(id)),
        }
    }

    /// The runtime's handle to a container.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn container(&self, id: &ContainerId) -> Result<Container> {
        Ok(self.member(id)?.container.clone())
    }

    /// Creates a container, and the sandbox if it is the first one. If whoever asks goes meanwhile, everything is taken back.
    ///
    /// # Errors
    /// The runtime's; nothing is left then.
    pub async fn create(self: Arc<Self>, order: Order, hung_up: impl Future<Output = ()>) -> Result<()> {
        let id = order.id.clone();
        self.reserve(&id)?;
        info!(self.log, "creating"; "container" => %id, "bundle" => %order.bundle.display());
        let created = self.build(order, hung_up).await;
        if let Err(error) = &created {
            warn!(self.log, "a container was not created"; "container" => %id, "error" => error.chain());
            self.books().containers.remove(&id);
            self.forget(&id);
            self.vacate().await;
        }
        created
    }

    fn reserve(&self, id: &ContainerId) -> Result<()> {
        let mut books = self.books();
        let refuse = |kind, why: &str| {
            Err(Error::new(
                kind,
                format!("container {id}: sandbox {} {why}", self.id),
            ))
        };
        if books.containers.contains_key(id) {
            return refuse(ErrorKind::AlreadyExists, "has it already");
        }
        match books.sandbox {
            Slot::Empty if id.as_str() != self.id.as_str() => {
                return refuse(ErrorKind::FailedPrecondition, "has no first container yet");
            }
            Slot::Empty => books.sandbox = Slot::Starting,
            Slot::Ready(_) => {}
            Slot::Starting => return refuse(ErrorKind::Unavailable, "is being started"),
            Slot::Closed => return refuse(ErrorKind::Unavailable, "has ended"),
        }
        books.containers.insert(id.clone(), None);
        self.occupancy.send_replace(Occupancy::Occupied);
        Ok(())
    }

    async fn build(self: &Arc<Self>, order: Order, hung_up: impl Future<Output = ()>) -> Result<()> {
        let annotations = bundle::annotations(&order.bundle)?;
        let (mut standin, stdio) = ends(&order.process, order.fds)?;
        tokio::pin!(hung_up);
        let gone = || {
            Error::new(
                ErrorKind::DeadlineExceeded,
                format!("container {}: nobody waits for it any more", order.id),
            )
        };
        let (sandbox, run_dir) = tokio::select! {
            sandbox = self.sandbox(&order.bundle, order.config.as_deref(), &annotations) => sandbox?,
            () = &mut hung_up => return Err(gone()),
        };
        let container = sandbox
            .create_container(ContainerRequest {
                id: order.id.clone(),
                bundle: order.bundle.clone(),
                rootfs: Vec::new(),
                stdio,
            })
            .await?;
        let settled = async {
            self.settle(&mut standin, &order.process, &sandbox).await?;
            if let Some((rows, columns)) = order.process.size {
                container.resize(None, rows, columns).await?;
            }
            let record = Record {
                id: order.id.to_string(),
                sandbox: self.id.to_string(),
                bundle: order.bundle.clone(),
                config: order.config.clone(),
                run_dir,
                pid: order.process.standin,
                created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
                annotations,
            };
            self.root
                .write(&order.id, &record)
                .map_err(|error| Error::new(ErrorKind::Internal, format!("{error:#}")))?;
            Ok(record)
        };
        let settled = tokio::select! {
            settled = settled => settled,
            () = hung_up => Err(gone()),
        };
        let record = match settled {
            Ok(record) => record,
            Err(error) => {
                if let Err(second) = container.delete().await {
                    warn!(self.log, "a container is left"; "container" => %order.id, "error" => second.chain());
                }
                return Err(error);
            }
        };
        tokio::spawn(standin.attend(container.clone(), None, self.log.clone()));
        let member = Arc::new(Member {
            container,
            record,
            execs: Mutex::default(),
        });
        self.books().containers.insert(order.id.clone(), Some(member));
        Ok(())
    }

    /// Puts a stand-in where its process seems to be: in the pod's network and in the cgroup.
    async fn settle(&self, standin: &mut Standin, process: &NewProcess, sandbox: &Sandbox) -> Result<()> {
        if process.attached {
            return Ok(());
        }
        standin.settle(sandbox.pid()).await.map_err(|error| {
            Error::caused(
                ErrorKind::Internal,
                "the stand-in cannot be in the pod's network and in the container's root file system",
                error,
            )
        })?;
        if let Err(error) = cgroup::follow(sandbox.pid(), process.standin) {
            warn!(self.log, "a stand-in is not in the cgroup"; "error" => %error);
        }
        Ok(())
    }

    /// The sandbox, and where its directory is; if there is none, it is started.
    async fn sandbox(
        self: &Arc<Self>,
        bundle: &Path,
        config: Option<&Path>,
        annotations: &Annotations,
    ) -> Result<(Sandbox, Option<PathBuf>)> {
        let unusable = |error| {
            Error::caused(
                ErrorKind::InvalidArgument,
                "the configuration cannot be used",
                error,
            )
        };
        let there = match &self.books().sandbox {
            Slot::Ready(sandbox) => Some(sandbox.clone()),
            _ => None,
        };
        if let Some(sandbox) = there {
            let first = self.root.read(&ContainerId::new(self.id.as_str())?);
            return Ok((sandbox, first.ok().flatten().and_then(|record| record.run_dir)));
        }
        let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
        let config = Config::load(config, environment.as_deref())
            .map_err(unusable)?
            .with_annotations(annotations)
            .map_err(unusable)?;
        let run_dir = config.runtime.run_dir.clone();
        let hypervisor = hypervisor::registry::driver(&config.hypervisor, &run_dir, self.log.clone())?;
        let (events, news) = mpsc::channel(QUEUE);
        let sandbox = Sandbox::create(SandboxRequest {
            id: self.id.clone(),
            scope: self.scope.clone(),
            bundle: bundle.to_owned(),
            config: Arc::new(config),
            hypervisor,
            events,
            log: self.program_log.clone(),
        })
        .await?;
        self.books().sandbox = Slot::Ready(sandbox.clone());
        tokio::spawn(Arc::clone(self).listen(news));
        Ok((sandbox, Some(run_dir)))
    }

    /// Deals with what the sandbox says by itself, until it is gone.
    async fn listen(self: Arc<Self>, mut news: mpsc::Receiver<Event>) {
        while let Some(event) = news.recv().await {
            match event {
                Event::Oom(id) => {
                    let Ok(member) = self.member(&id) else { continue };
                    if let Err(error) = bundle::mark_oom(&member.record.bundle) {
                        warn!(self.log, "the OOM mark cannot be made"; "container" => %id, "error" => %error);
                    }
                }
                // Every process tells its own end.
                Event::VmExited(reason) => {
                    warn!(self.log, "the virtual machine is gone"; "reason" => reason);
                }
            }
        }
    }

    /// Lets a container's process execute.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn start(&self, id: &ContainerId) -> Result<()> {
        self.member(id)?.container.start().await
    }

    /// A container now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn shown(&self, id: &ContainerId) -> Result<Shown> {
        let member = self.member(id)?;
        let status = member.container.state(None).await?.status;
        let record = &member.record;
        Ok(Shown {
            id: record.id.clone(),
            status: oci::state_to_oci_state(status).to_owned(),
            pid: if status == Status::Stopped { 0 } else { record.pid },
            bundle: record.bundle.clone(),
            created: record.created.clone(),
            annotations: record.annotations.clone(),
        })
    }

    /// The processes of this host that stand for its processes: its own, and those of additional ones that run.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn standins(&self, id: &ContainerId) -> Result<Vec<u32>> {
        let member = self.member(id)?;
        let execs = member.execs();
        Ok([member.record.pid]
            .into_iter()
            .chain(execs.values().copied())
            .collect())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The runtime's. That it has ended is said in words that callers look for.
    pub async fn kill(&self, id: &ContainerId, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        match container.kill(None, signal, all).await {
            Err(error) if error.kind == ErrorKind::NotFound => Err(not_running(id)),
            answer => answer,
        }
    }

    /// Adds a process and starts it.
    ///
    /// # Errors
    /// The runtime's; the process is forgotten then.
    pub async fn exec(
        &self,
        id: &ContainerId,
        spec: Value,
        process: NewProcess,
        fds: Vec<OwnedFd>,
    ) -> Result<()> {
        let member = self.member(id)?;
        let container = member.container.clone();
        match container.state(None).await?.status {
            Status::Running => {}
            Status::Created => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("container {id} is not started yet: container not running"),
                ));
            }
            Status::Paused => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("container {id} is paused: resume it first"),
                ));
            }
            Status::Stopped => return Err(not_running(id)),
        }
        let number = self.next_exec.fetch_add(1, Ordering::Relaxed);
        let exec = ExecId::new(format!("exec-{number}"))?;
        let (mut standin, stdio) = ends(&process, fds)?;
        let sandbox = match &self.books().sandbox {
            Slot::Ready(sandbox) => sandbox.clone(),
            _ => return Err(not_running(id)),
        };
        let request = ExecRequest {
            id: exec.clone(),
            process: oci::process(spec.to_string().as_bytes())?,
            stdio,
        };
        self.settle(&mut standin, &process, &sandbox).await?;
        container.exec(request).await?;
        let started = async {
            if let Some((rows, columns)) = process.size {
                container.resize(Some(&exec), rows, columns).await?;
            }
            container.start_exec(&exec).await
        };
        if let Err(error) = started.await {
            // It never ran; only its name is left.
            let _ = container.delete_exec(&exec).await;
            return Err(error);
        }
        member.execs().insert(exec.clone(), process.standin);
        let attended = standin.attend(container, Some(exec.clone()), self.log.clone());
        tokio::spawn(async move {
            attended.await;
            member.execs().remove(&exec);
        });
        Ok(())
    }

    /// Removes a container; with the last one the sandbox goes.
    ///
    /// # Errors
    /// It runs, and is not to be ended by force; or the runtime's.
    pub async fn delete(&self, id: &ContainerId, force: bool) -> Result<()> {
        let member = self.member(id)?;
        let container = &member.container;
        let status = container.state(None).await?.status;
        if status != Status::Stopped {
            if !force && status != Status::Created {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!(
                        "container {id} is not stopped ({}): kill it first, or use --force",
                        oci::state_to_oci_state(status)
                    ),
                ));
            }
            match container.kill(None, SIGKILL, true).await {
                // It has ended meanwhile.
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            if timeout(deadlines::KILLED, container.wait(None)).await.is_err() {
                warn!(self.log, "a killed container does not end"; "container" => %id);
            }
        }
        container.delete().await?;
        self.books().containers.remove(id);
        self.forget(id);
        self.vacate().await;
        Ok(())
    }

    fn forget(&self, id: &ContainerId) {
        if let Err(error) = self.root.forget(id) {
            warn!(self.log, "a container's directory is left"; "container" => %id, "error" => format!("{error:#}"));
        }
    }

    /// Stops the sandbox when its last container is gone: it has no purpose any more.
    async fn vacate(&self) {
        if self.books().containers.is_empty() {
            self.close().await;
        }
    }

    /// Stops the sandbox, whatever is in it, and gives its name free.
    pub async fn close(&self) {
        let slot = std::mem::replace(&mut self.books().sandbox, Slot::Closed);
        match slot {
            // Another one does it, or has done it.
            Slot::Closed => return,
            Slot::Ready(sandbox) => {
                if let Err(error) = sandbox.stop().await {
                    warn!(self.log, "the sandbox is stopped, but not all is released"; "error" => error.chain());
                }
            }
            Slot::Empty | Slot::Starting => {}
        }
        let removed = self.root.remove_socket(&self.id).and_then(|()| {
            let log = super::log_path(&self.root, &self.id);
            std::fs::remove_file(log).map_err(Into::into)
        });
        if let Err(error) = removed {
            warn!(self.log, "not all files are removed"; "error" => format!("{error:#}"));
        }
        self.occupancy.send_replace(Occupancy::Vacant);
    }
}

fn does_not_exist(id: &ContainerId) -> Error {
    Error::new(ErrorKind::NotFound, format!("container {id} does not exist"))
}

fn not_running(id: &ContainerId) -> Error {
    Error::new(
        ErrorKind::FailedPrecondition,
        format!("container {id} has ended: container not running"),
    )
}

/// The connection to a process's stand-in, and its streams.
fn ends(process: &NewProcess, fds: Vec<OwnedFd>) -> Result<(Standin, Stdio)> {
    let missing = || {
        Error::new(
            ErrorKind::InvalidArgument,
            "a descriptor of the process is missing",
        )
    };
    let mut fds = fds.into_iter();
    let standin = Standin::new(fds.next().ok_or_else(missing)?)
        .map_err(|error| Error::caused(ErrorKind::Internal, "the stand-in cannot be watched", error))?;
    let mut next = |wanted: bool| -> Result<Option<OwnedFd>> {
        if !wanted {
            return Ok(None);
        }
        let fd = fds.next().ok_or_else(missing)?;
        Ok((!is_null(&fd)).then_some(fd))
    };
    let [stdin, stdout, stderr] = process.streams;
    Ok((
        standin,
        Stdio {
            terminal: process.terminal,
            stdin: next(stdin)?.map_or(Input::Null, Input::Descriptor),
            stdout: next(stdout)?.map_or(Output::Null, Output::Descriptor),
            stderr: next(stderr)?.map_or(Output::Null, Output::Descriptor),
        },
    ))
}

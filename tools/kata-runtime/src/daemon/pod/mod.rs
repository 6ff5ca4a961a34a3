//! What a daemon holds: at most one sandbox and the containers in it. The runtime decides what may happen to a container; here is
//! decided when the sandbox comes and goes: with its first and its last container.

mod create;
mod exec;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use runtime::error::Result;
use runtime::{Container, ContainerId, Error, ErrorKind, ExecId, Sandbox, SandboxId, Status, oci};
use slog::{Logger, o, warn};
use tokio::sync::watch;
use tokio::time::timeout;

use super::cgroup;
use crate::deadlines;
use crate::place::{Record, Root};
use crate::wire::Shown;
pub use create::Order;

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
    /// A process in the cgroups where those of its stand-ins belong.
    leader: u32,
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
                format!("container {id} is being created: wait for that, or end the `create` that does it"),
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
    pub async fn standins(&self, id: &ContainerId) -> Result<Vec<u32>> {
        let member = self.member(id)?;
        // The pid of one that has ended may be anybody's.
        let has_ended = member.container.state(None).await?.status == Status::Stopped;
        let own = (!has_ended).then_some(member.record.pid);
        let execs = member.execs();
        Ok(own.into_iter().chain(execs.values().copied()).collect())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The runtime's. That it has ended is said in words that callers look for.
    pub async fn kill(&self, id: &ContainerId, signal: u32, all: bool) -> Result<()> {
        let container = self.container(id)?;
        match container.kill(None, signal, all).await {
            // None of its processes is left: all of them have been told, as with runc.
            Err(error) if all && error.kind == ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind == ErrorKind::NotFound => Err(not_running(id)),
            answer => answer,
        }
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
        if let Err(error) = cgroup::remove(&member.record.cgroups).await {
            warn!(self.log, "a container's cgroup is left"; "container" => %id, "error" => %error);
        }
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
            let log = crate::daemon::log_path(&self.root, &self.id);
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

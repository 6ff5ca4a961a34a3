//! How a container, and with the first one the sandbox, comes to be: all of it, or nothing is left.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use configuration::Config;
use runtime::error::Result;
use runtime::oci::{self, Annotations};
use runtime::{ContainerId, ContainerRequest, Error, ErrorKind, Event, Sandbox, SandboxRequest};
use slog::{info, warn};
use tokio::sync::mpsc;

use super::exec::ends;
use super::{Member, Occupancy, Pod, Slot};
use crate::bundle;
use crate::daemon::cgroup;
use crate::place::Record;
use crate::wire::NewProcess;

/// Events of a sandbox that wait to be dealt with.
const QUEUE: usize = 64;

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

impl Pod {
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

    async fn build(self: &Arc<Self>, mut order: Order, hung_up: impl Future<Output = ()>) -> Result<()> {
        let annotations = bundle::annotations(&order.bundle)?;
        let (mut standin, stdio) = ends(&order.process, std::mem::take(&mut order.fds))?;
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
        let creating = sandbox.create_container(ContainerRequest {
            id: order.id.clone(),
            bundle: order.bundle.clone(),
            rootfs: Vec::new(),
            stdio,
        });
        let container = tokio::select! {
            created = creating => created?,
            // The sandbox takes back what nobody waits for.
            () = &mut hung_up => return Err(gone()),
        };
        let mut cgroups = Vec::new();
        let settled = async {
            self.settle(&mut standin, &order.process, &sandbox, sandbox.pid())
                .await?;
            cgroups = self.seat(&order, &sandbox)?;
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
                cgroups: cgroups.clone(),
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
                cgroup::leave(sandbox.pid(), order.process.standin, &cgroups);
                if let Err(second) = container.delete().await {
                    warn!(self.log, "a container is left"; "container" => %order.id, "error" => second.chain());
                }
                return Err(error);
            }
        };
        tokio::spawn(standin.attend(container.clone(), None, self.log.clone()));
        let member = Arc::new(Member {
            container,
            leader: match order.process.attached {
                true => sandbox.pid(),
                false => record.pid,
            },
            record,
            execs: Mutex::default(),
        });
        self.books().containers.insert(order.id.clone(), Some(member));
        Ok(())
    }

    /// Puts the stand-in of a container that is not the first one into the cgroup that its caller names. Answers with what was made.
    fn seat(&self, order: &Order, sandbox: &Sandbox) -> Result<Vec<PathBuf>> {
        if order.process.attached || order.id.as_str() == self.id.as_str() {
            return Ok(Vec::new());
        }
        let spec = oci::load(&bundle::config(&order.bundle)?)?;
        let Some(cgroup) = oci::cgroup(&spec)? else {
            return Ok(Vec::new());
        };
        let seated = cgroup::settle(sandbox.pid(), order.process.standin, &cgroup.directory());
        Ok(seated.unwrap_or_else(|error| {
            warn!(self.log, "a stand-in is not in a cgroup of its own"; "container" => %order.id, "error" => %error);
            Vec::new()
        }))
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
        let mut config = Config::load(config, environment.as_deref())
            .map_err(unusable)?
            .with_annotations(annotations)
            .map_err(unusable)?;
        if bundle::names_a_network(bundle)? {
            // Stand-ins go where the virtual machine is, and one that is kept ready is in a namespace of its own.
            config.factory.vm_cache_number = 0;
        }
        let run_dir = config.runtime.run_dir.clone();
        let hypervisor = hypervisor::registry::driver(&config.hypervisor, &run_dir, self.log.clone())?;
        let (events, news) = mpsc::channel(QUEUE);
        let sandbox = Sandbox::create(SandboxRequest {
            id: self.id.clone(),
            scope: self.scope.clone(),
            bundle: bundle.to_owned(),
            rootfs: Vec::new(),
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
}

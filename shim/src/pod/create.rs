//! Creation: of the sandbox with its first container, and of every container. What was begun for a caller that has gone
//! is taken back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use configuration::Config;
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::types::mount::Mount;
use runtime::error::Result;
use runtime::model::PodConfig;
use runtime::{
    ContainerId, ContainerRequest, Error, ErrorKind, Event, RootfsMount, Sandbox, SandboxId, SandboxRequest,
};
use slog::{info, warn};
use tokio::sync::{mpsc, oneshot};

use super::process::Process;
use super::{Member, Occupancy, Pod, Slot};
use crate::bundle::{self, Note};
use crate::group;
use crate::stdio::{self, Streams, Wanted};

/// Events of a sandbox that wait to be passed on.
const QUEUE: usize = 64;

/// A container to be created, checked as far as it can be by itself.
#[derive(Debug)]
pub struct Order {
    /// Its id.
    pub id: ContainerId,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// Mounts that make its root file system, as they were sent.
    pub rootfs: Vec<Mount>,
    /// Its streams, as they were sent.
    pub streams: Streams,
    /// Its streams, understood.
    pub wanted: Wanted,
    /// The configuration that the caller's options name.
    pub configuration: Option<PathBuf>,
}

impl Pod {
    /// Creates a container, and the sandbox if it is the first one. Answers with its pid.
    ///
    /// If the caller is gone before the answer, or the server ends, everything is taken back.
    pub async fn create(self: Arc<Self>, order: Order, mut reply: oneshot::Sender<Result<u32>>) {
        let id = order.id.clone();
        let bundle = order.bundle.clone();
        if let Err(error) = self.reserve(&id) {
            drop(reply.send(Err(error)));
            return;
        }
        info!(self.setting.log, "creating"; "container" => %id, "bundle" => %bundle.display());
        let mut closing = self.closing.subscribe();
        let created = tokio::select! {
            // What is there already is not to be forgotten because its caller goes at the same moment.
            biased;
            created = self.build(order) => created,
            () = reply.closed() => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("container {id}: nobody waits for it any more"),
            )),
            _ = closing.wait_for(|closing| *closing) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("container {id}: the shim is ending"),
            )),
        };
        match created {
            Ok(pid) => {
                if reply.send(Ok(pid)).is_err() {
                    info!(self.setting.log, "nobody waits for a container; it is deleted"; "container" => %id);
                    if let Err(error) = Arc::clone(&self).delete(id).await {
                        warn!(self.setting.log, "it cannot be deleted"; "error" => error.chain());
                    }
                }
            }
            Err(error) => {
                warn!(self.setting.log, "a container was not created";
                    "container" => %id, "bundle" => %bundle.display(), "error" => error.chain());
                self.withdraw(&id);
                self.vacate().await;
                drop(reply.send(Err(error)));
            }
        }
    }

    /// Takes the id, and the right to start the sandbox if there is none.
    fn reserve(&self, id: &ContainerId) -> Result<()> {
        let mut books = self.books();
        if books.containers.contains_key(id) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("container {id} exists already"),
            ));
        }
        let refuse = |why: &str| {
            Err(Error::new(
                ErrorKind::Unavailable,
                format!("container {id}: sandbox {} {why}", self.setting.sandbox),
            ))
        };
        if books.closed {
            return refuse("is closed");
        }
        match books.sandbox {
            Slot::Empty if books.bare.is_some() => return refuse("is not started, or has ended"),
            Slot::Empty if id.as_str() != self.setting.sandbox.as_str() => {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!(
                        "container {id} belongs to sandbox {}, which is not there: it has ended, or was never created",
                        self.setting.sandbox
                    ),
                ));
            }
            Slot::Empty => books.sandbox = Slot::Starting,
            Slot::Ready(_) => {}
            Slot::Starting => return refuse("is being started"),
            Slot::Stopping => return refuse("is being stopped"),
        }
        books.containers.insert(id.clone(), None);
        self.occupancy.send_replace(Occupancy::Occupied);
        Ok(())
    }

    /// Gives back what was reserved, after a failure.
    fn withdraw(&self, id: &ContainerId) {
        let mut books = self.books();
        books.containers.remove(id);
        if matches!(books.sandbox, Slot::Starting) {
            books.sandbox = Slot::Empty;
            self.occupancy.send_replace(Occupancy::Vacant);
        }
    }

    async fn build(self: &Arc<Self>, order: Order) -> Result<u32> {
        let group = group::of_bundle(&order.bundle, &SandboxId::new(order.id.as_str())?)?;
        if group != self.setting.sandbox {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "container {} belongs to sandbox {group}, but this is the shim of {}",
                    order.id, self.setting.sandbox
                ),
            ));
        }
        let rootfs = rootfs_mounts(&order)?;
        let sandbox = self.sandbox(&order, &rootfs).await?;
        self.write_note(&order.bundle, order.configuration.as_deref(), Some(sandbox.pid()))?;
        let owner = stdio::Owner {
            namespace: self.setting.namespace.as_str(),
            id: order.id.as_str(),
        };
        let (stdio, logger) = stdio::connect(order.wanted, &owner, &self.setting.log).await?;
        let request = ContainerRequest {
            id: order.id.clone(),
            bundle: order.bundle.clone(),
            rootfs,
            stdio,
        };
        let container = match sandbox.create_container(request).await {
            Ok(container) => container,
            Err(error) => {
                self.finish(logger);
                return Err(error);
            }
        };
        let process = Process::new(sandbox.pid(), order.streams, logger);
        let member = Arc::new(Member {
            container: container.clone(),
            bundle: order.bundle,
            init: Arc::clone(&process),
            execs: Default::default(),
        });
        self.setting.events.created(told(&member, order.rootfs));
        process.announce(container, None, self.setting.events.clone());
        self.books().containers.insert(order.id, Some(member));
        Ok(process.pid)
    }

    /// The sandbox; if there is none, it is started.
    async fn sandbox(self: &Arc<Self>, order: &Order, rootfs: &[RootfsMount]) -> Result<Sandbox> {
        let there = match &self.books().sandbox {
            Slot::Ready(sandbox) => Some(sandbox.clone()),
            _ => None,
        };
        if let Some(sandbox) = there {
            return Ok(sandbox);
        }
        let annotations = group::annotations(&order.bundle)?;
        let whose = format!("container {}", order.id);
        let config = self.configured(order.configuration.as_deref(), &annotations, &whose)?;
        self.books().run_dir = Some(config.runtime.run_dir.clone());
        // Before there is anything to clean up.
        self.write_note(&order.bundle, order.configuration.as_deref(), None)?;
        let sandbox = self
            .launch(&order.bundle, rootfs.to_vec(), Arc::new(config), None)
            .await?;
        self.books().sandbox = Slot::Ready(sandbox.clone());
        Ok(sandbox)
    }

    /// The configuration for a sandbox with these annotations.
    pub(super) fn configured(
        &self,
        named: Option<&Path>,
        annotations: &BTreeMap<String, String>,
        whose: &str,
    ) -> Result<Config> {
        let invalid = |context: String, error| Error::caused(ErrorKind::InvalidArgument, context, error);
        let config = Config::load(named, self.setting.configuration.as_deref())
            .map_err(|error| invalid("the configuration cannot be used".to_owned(), error))?
            .with_annotations(annotations)
            .map_err(|error| invalid(format!("{whose} asks for what it may not have"), error))?;
        if config.runtime.enable_debug {
            self.setting.verbosity.debug();
        }
        Ok(config)
    }

    /// Starts the sandbox: that of the bundle's container, or a pod that none stands for.
    pub(super) async fn launch(
        self: &Arc<Self>,
        bundle: &Path,
        rootfs: Vec<RootfsMount>,
        config: Arc<Config>,
        pod: Option<PodConfig>,
    ) -> Result<Sandbox> {
        let hypervisor = hypervisor::registry::driver(
            &config.hypervisor,
            &config.runtime.run_dir,
            self.setting.log.clone(),
        )?;
        let (events, news) = mpsc::channel(QUEUE);
        self.holding.send_modify(|holding| *holding += 1);
        tokio::spawn(Arc::clone(self).listen(news));
        let request = SandboxRequest {
            id: self.setting.sandbox.clone(),
            scope: self.setting.namespace.clone(),
            bundle: bundle.to_owned(),
            rootfs,
            config,
            hypervisor,
            events,
            log: self.setting.program_log.clone(),
        };
        match pod {
            None => Sandbox::create(request).await,
            Some(pod) => Sandbox::create_pod(request, pod).await,
        }
    }

    /// Leaves in the bundle what the delete action has to know if we die.
    pub(super) fn write_note(
        &self,
        bundle: &Path,
        configuration: Option<&Path>,
        pid: Option<u32>,
    ) -> Result<()> {
        let note = Note {
            sandbox: self.setting.sandbox.to_string(),
            configuration: configuration.map(Path::to_owned),
            run_dir: self.books().run_dir.clone(),
            pid,
        };
        bundle::write_note(bundle, &note)
            .map_err(|error| Error::new(ErrorKind::InvalidArgument, format!("{error:#}")))
    }

    /// Passes on what the sandbox says by itself, until it is gone and holds nothing.
    async fn listen(self: Arc<Self>, mut news: mpsc::Receiver<Event>) {
        while let Some(event) = news.recv().await {
            match event {
                Event::Oom(id) => {
                    let Ok(member) = self.member(&id) else { continue };
                    if let Err(error) = bundle::mark_oom(&member.bundle) {
                        warn!(self.setting.log, "the OOM mark cannot be made"; "container" => %id, "error" => %error);
                    }
                    if member.init.is_oom_news() {
                        self.setting.events.oom(&id);
                    }
                }
                // Every process tells its own end.
                Event::VmExited(reason) => {
                    warn!(self.setting.log, "the virtual machine is gone"; "reason" => reason);
                    self.bare_lost();
                }
            }
        }
        // Whoever tells lets go of the channel last.
        self.holding.send_modify(|holding| *holding -= 1);
    }
}

/// The event of a creation.
fn told(member: &Member, rootfs: Vec<Mount>) -> TaskCreate {
    let streams = &member.init.streams;
    let io = TaskIO {
        stdin: streams.stdin.clone(),
        stdout: streams.stdout.clone(),
        stderr: streams.stderr.clone(),
        terminal: streams.terminal,
        ..Default::default()
    };
    TaskCreate {
        container_id: member.container.id().to_string(),
        bundle: member.bundle.display().to_string(),
        rootfs,
        io: Some(io).into(),
        pid: member.init.pid,
        ..Default::default()
    }
}

/// An order's mounts as the runtime takes them.
fn rootfs_mounts(order: &Order) -> Result<Vec<RootfsMount>> {
    order.rootfs.iter().map(rootfs_mount).collect()
}

/// A mount as the runtime takes it.
fn rootfs_mount(mount: &Mount) -> Result<RootfsMount> {
    if !mount.target.is_empty() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the root file system's {} mount has a target of its own, {:?}; it must be mounted at the root",
                mount.type_, mount.target
            ),
        ));
    }
    Ok(RootfsMount {
        fs_type: mount.type_.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    })
}

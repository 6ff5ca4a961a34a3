//! The runtime as a container engine embeds it, in the words that engines have for it: a [`Runtime`] has [`Pod`]s and
//! [`Container`]s, as libpod's; they are looked up by full or short id, listed by filters, and removed all or nothing; what is known of
//! them is on disk, as CRI-O's container server has it, for every process that opens the same state directory.
//!
//! | libpod | libkpod's `ContainerServer` | CRI-O's `RuntimeImpl` | here |
//! |---|---|---|---|
//! | `NewRuntime` | `New` | | [`Runtime::open`] |
//! | `NewPod` | `AddSandbox` | | [`Runtime::create_pod`] |
//! | `NewContainer`, `Init` | `AddContainer` | `CreateContainer` | [`Runtime::create_container`], [`Pod::create_container`] |
//! | `Start` | | `StartContainer` | [`Container::start`] |
//! | `Exec` | | `ExecContainer` | [`Container::exec`] |
//! | | | `ExecSyncContainer` | [`Container::exec_sync`] |
//! | `Attach` | | `AttachContainer` | [`Container::attach`] |
//! | | | `PortForwardContainer` | [`Pod::port_forward`] |
//! | | | `ReopenContainerLog` | [`Container::reopen_log`] |
//! | `Kill` | `ContainerKill` | `SignalContainer` | [`Container::kill`] |
//! | `StopWithTimeout` | `ContainerStop` | `StopContainer` | [`Container::stop`] |
//! | `Wait` | `ContainerWait` | `WaitContainerStateStopped` | [`Container::wait`] |
//! | `Pause`, `Unpause` | `ContainerPause`, `ContainerUnpause` | `PauseContainer`, `UnpauseContainer` | [`Container::pause`], [`Container::resume`] |
//! | `Update` | | `UpdateContainer` | [`Container::update`] |
//! | `GetContainerStats` | `GetContainerStats` | `ContainerStats` | [`Container::stats`] |
//! | `State`, `Inspect` | `GetContainer` | `UpdateContainerStatus` | [`Container::status`], [`Pod::status`] |
//! | `GetContainers`, `Pods` | `ListContainers`, `ListSandboxes` | | [`Runtime::containers`], [`Runtime::pods`] |
//! | `LookupContainer`, `LookupPod` | `LookupContainer`, `LookupSandbox` | | [`Runtime::lookup_container`], [`Runtime::lookup_pod`] |
//! | `RemoveContainer`, `RemovePod` | `Remove` | `DeleteContainer` | [`Container::remove`], [`Pod::remove`] |
//! | `Shutdown` | `Shutdown` | | [`Runtime::shutdown`] |
//! | `Sync` | `Update`, `ContainerStateToDisk` | | nothing to call: every answer is what the disk says now |
//!
//! `examples/embedding` has one example for each, and each is a test.
//!
//! # Whose is what
//!
//! A pod's virtual machine lives and dies with one process, the one that created it: its **owner**. Only the owner writes what is known
//! of it, before it tells anybody. Another process with the same state directory sees the same, and drives the pod by the same calls:
//! they go to the owner through a socket, with the descriptors of streams. When the owner is dead, its pods are shown as ended (code
//! 255 for whatever nobody knows the end of), they can be waited for and removed, and everything else is
//! [`ErrorKind::FailedPrecondition`]. A pod whose owner dies while it boots has never been there: it is not shown and cannot be removed.
//! Its id is free, and what is left of it goes when the next pod of that id is created.
//!
//! A container runs once: a stopped one is removed and another one created, as by OCI's runtimes. What is to be done is done whether
//! or not its caller waits for the answer; waiting, being attached and forwarding end when nobody waits for them.
//!
//! It must not know how a sandbox or a container is run.

mod answers;
mod container;
mod create;
mod dead;
mod disk;
mod ending;
mod filter;
mod lines;
mod link;
mod lookup;
mod options;
mod own;
mod pod;
mod state;
mod streams;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use configuration::Config;
use futures::future::join_all;
use hypervisor::Hypervisor;
use slog::{Logger, warn};
use tokio::time::timeout;

pub use container::{Attachment, Collected, Container, Exec, Terminal};
pub use filter::{Filter, PodFilter};
pub use options::{ContainerOptions, ExecOptions, PodOptions};
pub use pod::Pod;
pub use state::{ContainerInfo, ContainerState, PodInfo, PodState};
pub use wire::Outcome;

use crate::SandboxId;
use crate::admin::ContainerFigures;
use crate::aside::aside;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Sandbox;
use disk::{Loaded, Root};
use link::{Answers, Told};
use lookup::Named;
use own::Owned;
use wire::{Answer, Bound, Request};

/// Figures of a container.
pub type Stats = ContainerFigures;

/// What a runtime is opened with.
#[derive(Clone)]
pub struct RuntimeOptions {
    /// Directory that is shared with other processes of the same engine. On a file system that a reboot empties.
    pub state_dir: PathBuf,
    /// Validated configuration.
    pub config: Arc<Config>,
    /// The driver that it names.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Logger of the program.
    pub log: Logger,
}

/// What the pods of this process have in common.
pub(crate) struct Settings {
    root: Root,
    config: Arc<Config>,
    hypervisor: Arc<dyn Hypervisor>,
    scope: SandboxId,
    log: Logger,
}

impl fmt::Debug for RuntimeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeOptions")
            .field("state_dir", &self.state_dir)
            .field("hypervisor", &self.hypervisor.name())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("root", &self.root)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl Settings {
    /// Removes what is left of a sandbox that is not there any more.
    async fn clean_up(&self, id: &str) -> Result<()> {
        let id = SandboxId::new(id)?;
        Sandbox::clean_up_dead(&self.config, &*self.hypervisor, &self.scope, &id).await
    }

    /// Whether a container may have this id and name. Asked by whoever keeps others from taking them.
    fn is_free(&self, id: &str, name: &str) -> Result<()> {
        let loaded = self.root.load()?;
        let mut all = loaded.pods.iter().flat_map(|pod| pod.info.containers.values());
        match all.find(|other| other.id == id || (!name.is_empty() && other.name == name)) {
            None => Ok(()),
            Some(other) => Err(taken("container", id, name, &other.id)),
        }
    }
}

fn taken(what: &str, id: &str, name: &str, by: &str) -> Error {
    let text = match id == by {
        true => format!("{what} {id} exists already"),
        false => format!("{what} {id}: the name {name:?} is taken by {by}"),
    };
    Error::new(ErrorKind::AlreadyExists, text)
}

#[derive(Debug)]
struct Shared {
    settings: Arc<Settings>,
    own: Mutex<Own>,
}

/// The pods of this process.
#[derive(Debug, Default)]
struct Own {
    pods: BTreeMap<String, Arc<Owned>>,
    is_shut: bool,
}

/// The pods and containers of a state directory. Clones are the same.
#[derive(Debug, Clone)]
pub struct Runtime(Arc<Shared>);

/// Who answers for a pod.
enum Route {
    /// This process.
    Own(Arc<Owned>),
    /// Its owner, there.
    Other(PathBuf),
    /// Nobody; this is what it has left.
    Nobody(Box<PodInfo>),
}

impl Runtime {
    /// Opens a state directory; makes it, if it is not there.
    ///
    /// # Errors
    /// It cannot be used, or the driver cannot on this host.
    pub fn open(options: RuntimeOptions) -> Result<Self> {
        let root = Root::open(&options.state_dir)?;
        options.hypervisor.check_host()?;
        let settings = Settings {
            scope: root.scope()?,
            root,
            config: options.config,
            hypervisor: options.hypervisor,
            log: options.log,
        };
        Ok(Self(Arc::new(Shared {
            settings: Arc::new(settings),
            own: Mutex::default(),
        })))
    }

    /// The state directory.
    pub fn state_dir(&self) -> &Path {
        self.settings().root.dir()
    }

    fn settings(&self) -> &Arc<Settings> {
        &self.0.settings
    }

    fn own(&self) -> MutexGuard<'_, Own> {
        // Nothing panics while it holds it.
        self.0.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_open(&self) -> Result<()> {
        match self.own().is_shut {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::FailedPrecondition,
                "the runtime is shut down: open another one",
            )),
        }
    }

    /// What the disk says now.
    async fn load(&self) -> Result<Loaded> {
        let root = self.settings().root.clone();
        let loading = aside(deadlines::STATE, move |site| {
            site.at(root.dir())?;
            root.load()
        });
        let mut loaded = loading.await?;
        loaded.pods.retain(|pod| pod.info.is_ready);
        for (path, error) in &loaded.unreadable {
            warn!(self.settings().log, "the state of a pod is passed over"; "path" => %path.display(),
                "error" => error.chain());
        }
        Ok(loaded)
    }

    /// What cannot be understood in the state directory: files, and why.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub async fn unreadable(&self) -> Result<Vec<(PathBuf, Error)>> {
        Ok(self.load().await?.unreadable)
    }

    /// Pods for which these filters hold, the oldest first. Those of single containers are not listed.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub async fn pods(&self, filters: &[PodFilter]) -> Result<Vec<PodInfo>> {
        let pods = self.load().await?.pods.into_iter().map(|found| found.info);
        Ok(pods
            .filter(|pod| !pod.is_alone && filter::wants_pod(filters, pod))
            .map(visible)
            .collect())
    }

    /// Containers for which these filters hold, the oldest pods' first.
    ///
    /// # Errors
    /// The state directory cannot be read.
    pub async fn containers(&self, filters: &[Filter]) -> Result<Vec<ContainerInfo>> {
        let loaded = self.load().await?;
        let all = loaded.pods.iter().flat_map(|found| {
            let wanted = |one: &&ContainerInfo| filter::wants(filters, &found.info, one);
            found.info.shown().filter(wanted).cloned()
        });
        Ok(all.collect())
    }

    /// Finds a pod by its id, its name, or a beginning of its id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Ambiguous`]: several begin so.
    pub async fn lookup_pod(&self, wanted: &str) -> Result<Pod> {
        let loaded = self.load().await?;
        let infos = loaded.pods.iter().map(|found| &found.info);
        let all: Vec<_> = infos
            .filter(|pod| !pod.is_alone)
            .map(|pod| Named {
                id: &pod.id,
                name: &pod.name,
            })
            .collect();
        let found = lookup::pick("pod", &all, wanted)?;
        Ok(Pod::new(self.clone(), found.id.to_owned()))
    }

    /// Finds a container by its id, its name, or a beginning of its id.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Ambiguous`]: several begin so.
    pub async fn lookup_container(&self, wanted: &str) -> Result<Container> {
        let loaded = self.load().await?;
        let shown: Vec<_> = loaded.pods.iter().flat_map(|found| found.info.shown()).collect();
        let all: Vec<_> = shown
            .iter()
            .map(|one| Named {
                id: &one.id,
                name: &one.name,
            })
            .collect();
        let found = lookup::pick("container", &all, wanted)?;
        let pod = shown
            .iter()
            .find(|one| one.id == found.id)
            .map(|one| one.pod.clone());
        Ok(Container::new(
            self.clone(),
            pod.unwrap_or_default(),
            found.id.to_owned(),
        ))
    }

    /// Stops every pod of this process, each container as its stop signal and timeout say or within `allowed`, and gives up their
    /// ownership. How they ended can still be seen; whoever sees it may remove them. Pods of other processes are left alone. What is
    /// being created is not waited for: it fails and is taken back when it is ready, if the process is still there then.
    ///
    /// # Errors
    /// The first one; the others are stopped all the same. It may be called again.
    pub async fn shutdown(&self, allowed: Option<Duration>) -> Result<()> {
        let pods: Vec<_> = {
            let mut own = self.own();
            own.is_shut = true;
            own.pods
                .values()
                .filter(|owned| owned.is_here())
                .cloned()
                .collect()
        };
        let stopping = pods
            .into_iter()
            .map(|owned| tokio::spawn(async move { owned.shut_down(allowed).await }));
        let stopped = join_all(stopping).await;
        stopped
            .into_iter()
            .try_for_each(|stopped| stopped.map_err(cut_off)?)
    }

    /// What is known of a pod, now.
    async fn pod_info(&self, id: &str) -> Result<(PodInfo, bool)> {
        let (root, wanted) = (self.settings().root.clone(), id.to_owned());
        let finding = aside(deadlines::STATE, move |site| {
            site.at(root.dir())?;
            root.find(&wanted)
        });
        match finding.await?.filter(|found| found.info.is_ready) {
            Some(found) => Ok((found.info, found.is_owned)),
            None => Err(Error::new(
                ErrorKind::NotFound,
                format!("pod {id} does not exist"),
            )),
        }
    }

    async fn route(&self, pod: &str) -> Result<Route> {
        let own = {
            let mut own = self.own();
            own.pods.retain(|_, owned| owned.is_here());
            own.pods.get(pod).cloned()
        };
        if let Some(owned) = own {
            return Ok(Route::Own(owned));
        }
        let (info, is_owned) = self.pod_info(pod).await?;
        match is_owned {
            true => Ok(Route::Other(self.settings().root.socket(pod))),
            false => Ok(Route::Nobody(Box::new(info))),
        }
    }

    /// Has the owner of a pod answer, wherever it is.
    async fn ask(&self, pod: &str, request: Request, fds: Vec<OwnedFd>) -> Result<Answer> {
        match self.begin_asking(pod, request, fds).await? {
            Told::Now(answer) => Ok(answer),
            Told::Begun(end) => end.await,
        }
    }

    /// Waits for the owner of a pod, for all that may take it so long, and `own`.
    async fn within<T>(
        &self,
        own: Duration,
        pod: &str,
        answer: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let creation = self.settings().config.agent.create_container_timeout;
        let limit = own.saturating_add(creation).saturating_add(deadlines::STOPPED);
        timeout(limit, answer).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("the owner of pod {pod} has not answered for {limit:?}: see whether it is stopped"),
            ))
        })
    }

    async fn begin_asking(&self, pod: &str, request: Request, fds: Vec<OwnedFd>) -> Result<Told> {
        match self.route(pod).await? {
            Route::Own(owned) if request.only_waits() => owned.answer(request, fds).await,
            Route::Own(owned) => tokio::spawn(owned.answer(request, fds)).await.map_err(cut_off)?,
            Route::Other(socket) => {
                let begins = matches!(request, Request::Attach { .. });
                let passed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
                let asked = link::ask(&socket, &request, &passed).await;
                drop(passed);
                // The owner has them, and their end is to be his.
                drop(fds);
                let mut asked = asked?;
                let answer = match request.bound() {
                    Bound::Workload => asked.answer().await,
                    Bound::Within(own) => self.within(own, pod, asked.answer()).await,
                }?;
                match begins {
                    false => Ok(Told::Now(answer)),
                    true => Ok(Told::Begun(Box::pin(async move { asked.answer().await }))),
                }
            }
            Route::Nobody(info) => self.ask_nobody(*info, request).await.map(Told::Now),
        }
    }
}

/// Without containers that are still being made.
fn visible(mut info: PodInfo) -> PodInfo {
    info.containers
        .retain(|_, one| one.state != ContainerState::Creating);
    info
}

fn cut_off(cause: tokio::task::JoinError) -> Error {
    Error::caused(ErrorKind::Internal, "the work was cut off", cause)
}

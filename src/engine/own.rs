//! A pod of this process: its sandbox, what is known of it, and the engine's ends of its containers. Everything that happens to it
//! happens here, whoever asked, and is written down before its caller is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use oci_spec::runtime::Process;
use slog::{Logger, warn};
use tokio::sync::watch;

use super::Settings;
use super::disk::{Claim, Root};
use super::link::Server;
use super::options::ContainerOptions;
use super::state::{ContainerInfo, ContainerState, PodInfo};
use super::streams::{Streams, Wish};
use crate::aside::aside;
use crate::container::{Container, ContainerRequest, ExitStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::host;
use crate::sandbox::Sandbox;
use crate::{ContainerId, ExecId, deadlines};

/// Ended processes whose exit codes are kept for whoever waits for them later.
const MOST_ENDED: usize = 256;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) id: String,
    pub(super) settings: Arc<Settings>,
    pub(super) sandbox: Sandbox,
    books: Mutex<Books>,
    pub(super) log: Logger,
}

/// Held for moments only, never across a wait.
#[derive(Debug)]
pub(super) struct Books {
    pub(super) info: PodInfo,
    pub(super) held: BTreeMap<String, Arc<Held>>,
    /// Containers that are being started.
    pub(super) starting: BTreeSet<String>,
    pub(super) stage: Stage,
    /// What proves the ownership, and the ear for other processes. Gone with it.
    pub(super) regalia: Option<(Claim, Option<Server>)>,
}

/// How far it is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    Open,
    /// It is being removed, or shut down.
    Closing,
    /// That did not come to its end, and may be tried again.
    Stuck,
    /// What is known of it is being removed, and is not written again.
    Leaving,
    /// It is not this process's any more.
    Gone,
}

/// A container, and the engine's ends of it.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) container: Container,
    pub(super) streams: Streams,
    /// What an additional process is like where nothing else is said.
    pub(super) first: Process,
    pub(super) terminal: bool,
    pub(super) exit: watch::Receiver<Option<ExitStatus>>,
    /// Held from asking for a change of its state until that is noted, so that the notes come in the order of the changes.
    acts: tokio::sync::Mutex<()>,
    next_exec: AtomicU32,
    execs: Mutex<BTreeMap<u32, watch::Receiver<Option<ExitStatus>>>>,
}

impl Held {
    /// A name for another process.
    pub(super) fn next_exec(&self) -> Result<(u32, ExecId)> {
        let number = self.next_exec.fetch_add(1, Ordering::Relaxed);
        Ok((number, ExecId::new(format!("exec-{number}"))?))
    }

    fn execs(&self) -> MutexGuard<'_, BTreeMap<u32, watch::Receiver<Option<ExitStatus>>>> {
        // Nothing panics while it holds them.
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a process; the oldest that have ended are forgotten.
    pub(super) fn remember(&self, number: u32, exit: watch::Receiver<Option<ExitStatus>>) {
        let mut execs = self.execs();
        let ended: Vec<_> = execs
            .iter()
            .filter(|(_, exit)| exit.borrow().is_some())
            .map(|(number, _)| *number)
            .collect();
        for old in ended.iter().take(ended.len().saturating_sub(MOST_ENDED)) {
            execs.remove(old);
        }
        execs.insert(number, exit);
    }

    /// How a process ends: the first one, or another one.
    pub(super) fn exit_of(&self, exec: Option<&str>) -> Result<watch::Receiver<Option<ExitStatus>>> {
        let Some(exec) = exec else {
            return Ok(self.exit.clone());
        };
        let number = exec.strip_prefix("exec-").and_then(|number| number.parse().ok());
        let found = number.and_then(|number: u32| self.execs().get(&number).cloned());
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("container {} has no process {exec}", self.container.id()),
            )
        })
    }
}

/// An id that is taken for a container that is being made; given back unless that comes about.
pub(super) struct Reserved {
    owned: Arc<Owned>,
    id: String,
    is_kept: bool,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        let given_back = self.owned.change(|info| {
            info.containers.remove(&self.id);
            Ok(())
        });
        if let Err(error) = given_back {
            warn!(self.owned.log, "an id is not given back"; "container" => &self.id, "error" => error.chain());
        }
    }
}

impl Owned {
    pub(super) fn new(
        settings: Arc<Settings>,
        sandbox: Sandbox,
        mut info: PodInfo,
        claim: Claim,
        log: Logger,
    ) -> Arc<Self> {
        info.pid = sandbox.pid();
        Arc::new(Self {
            id: info.id.clone(),
            settings,
            sandbox,
            books: Mutex::new(Books {
                info,
                held: BTreeMap::new(),
                starting: BTreeSet::new(),
                stage: Stage::Open,
                regalia: Some((claim, None)),
            }),
            log,
        })
    }

    pub(super) fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while it holds them.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn root(&self) -> &Root {
        &self.settings.root
    }

    /// Whether it is still this process's.
    pub(super) fn is_here(&self) -> bool {
        self.books().stage != Stage::Gone
    }

    /// Hears other processes from now on.
    pub(super) fn hear(&self, server: Server) {
        if let Some((_, ear)) = &mut self.books().regalia {
            *ear = Some(server);
        }
    }

    /// Changes what is known, and writes it down.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut PodInfo) -> Result<T>) -> Result<T> {
        let mut books = self.books();
        let changed = change(&mut books.info)?;
        if !matches!(books.stage, Stage::Leaving | Stage::Gone) {
            self.root().write(&books.info)?;
        }
        Ok(changed)
    }

    fn change_container(
        &self,
        id: &str,
        change: impl FnOnce(&mut ContainerInfo) -> Result<()>,
    ) -> Result<()> {
        self.change(|info| match info.containers.get_mut(id) {
            Some(container) => change(container),
            // Removed meanwhile.
            None => Ok(()),
        })
    }

    /// Something is to be done in it.
    pub(super) fn is_open(&self) -> Result<()> {
        match self.books().stage {
            Stage::Open => Ok(()),
            Stage::Closing | Stage::Stuck | Stage::Leaving | Stage::Gone => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("pod {} is being removed, or shut down", self.id),
            )),
        }
    }

    /// A container.
    pub(super) fn held(&self, id: &str) -> Result<Arc<Held>> {
        self.books().held.get(id).cloned().ok_or_else(|| unknown(id))
    }

    pub(super) fn state_of(&self, id: &str) -> Result<ContainerState> {
        let books = self.books();
        let found = books.info.containers.get(id).map(|container| container.state);
        found.ok_or_else(|| unknown(id))
    }

    /// Takes an id for a container, in every process's eyes.
    async fn reserve(self: &Arc<Self>, options: &ContainerOptions) -> Result<Reserved> {
        let (owned, options) = (Arc::clone(self), options.clone());
        let reserving = aside(deadlines::STATE, move |site| {
            site.at(owned.root().dir())?;
            let _locked = owned.root().lock()?;
            owned.settings.is_free(&options.id, &options.name)?;
            let info = info_of(&options, &owned.id);
            // Before it is taken: what cannot be written down is given back as well.
            let reserved = Reserved {
                id: options.id,
                owned: Arc::clone(&owned),
                is_kept: false,
            };
            owned.change(|pod| {
                pod.containers.insert(reserved.id.clone(), info);
                Ok(())
            })?;
            Ok(reserved)
        });
        reserving.await
    }

    /// Creates a container.
    pub(super) async fn create(self: &Arc<Self>, options: ContainerOptions) -> Result<String> {
        options.check()?;
        self.is_open()?;
        let reserved = self.reserve(&options).await?;
        self.make(options, reserved).await
    }

    /// Creates the one that its pod was made for, whose id it has.
    pub(super) async fn create_first(self: &Arc<Self>, options: ContainerOptions) -> Result<String> {
        let reserved = Reserved {
            owned: Arc::clone(self),
            id: options.id.clone(),
            is_kept: false,
        };
        self.make(options, reserved).await
    }

    async fn make(self: &Arc<Self>, options: ContainerOptions, mut reserved: Reserved) -> Result<String> {
        let id = ContainerId::new(options.id.as_str())?;
        let limit = self.settings.config.agent.create_container_timeout;
        let bundle = options.bundle.clone();
        let spec = aside(limit, move |site| host::specification(&bundle, site)).await?;
        let first = spec.process().clone().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidArgument,
                format!("container {id}: its specification has no process"),
            )
        })?;
        let terminal = first.terminal().unwrap_or(false);
        let wish = Wish {
            container: options.id.clone(),
            terminal,
            stdin: options.stdin,
            stdin_once: options.stdin_once,
            log_path: options.log_path,
            limit: self.settings.config.agent.request_timeout,
            log: self.log.clone(),
        };
        let (streams, stdio) = Streams::open(wish).await?;
        let request = ContainerRequest {
            id,
            bundle: options.bundle,
            rootfs: options.rootfs,
            stdio,
        };
        let container = self.sandbox.create_container(request).await?;
        let (exited, exit) = watch::channel(None);
        let held = Arc::new(Held {
            container: container.clone(),
            streams,
            first,
            terminal,
            exit,
            acts: tokio::sync::Mutex::default(),
            next_exec: AtomicU32::new(1),
            execs: Mutex::default(),
        });
        let pid = self.sandbox.pid();
        self.books().held.insert(options.id.clone(), Arc::clone(&held));
        let written = self.change(|info| {
            info.pid = pid;
            if let Some(container) = info.containers.get_mut(&options.id) {
                container.state = ContainerState::Created;
                container.terminal = terminal;
                container.created = SystemTime::now();
            }
            Ok(())
        });
        if let Err(error) = written {
            self.books().held.remove(&options.id);
            return match container.delete().await {
                Ok(_) => Err(error),
                Err(second) => Err(error.and(&second)),
            };
        }
        reserved.is_kept = true;
        tokio::spawn(watch_end(Arc::clone(self), held, exited));
        Ok(options.id)
    }

    /// It is there, in every process's eyes.
    pub(super) fn appear(&self) -> Result<()> {
        self.change(|info| {
            info.is_ready = true;
            info.created = SystemTime::now();
            Ok(())
        })
    }

    /// Lets a container's process execute.
    pub(super) async fn start(&self, id: &str) -> Result<()> {
        let held = self.held(id)?;
        let _alone = held.acts.lock().await;
        {
            let mut books = self.books();
            if books.stage != Stage::Open {
                drop(books);
                return self.is_open();
            }
            books.starting.insert(id.to_owned());
        }
        let started = held.container.start().await;
        self.books().starting.remove(id);
        started?;
        self.change_container(id, |container| container.start(SystemTime::now()))
    }

    /// Freezes a container's processes.
    pub(super) async fn pause(&self, id: &str) -> Result<()> {
        let held = self.held(id)?;
        let _alone = held.acts.lock().await;
        self.is_open()?;
        held.container.pause().await?;
        self.change_container(id, ContainerInfo::pause)
    }

    /// Thaws them.
    pub(super) async fn resume(&self, id: &str) -> Result<()> {
        let held = self.held(id)?;
        let _alone = held.acts.lock().await;
        held.container.resume().await?;
        self.change_container(id, ContainerInfo::resume)
    }

    /// Its virtual machine is gone, by itself.
    pub(super) fn lost(&self, why: String) {
        let told = self.change(|info| {
            info.ended.get_or_insert(why);
            Ok(())
        });
        if let Err(error) = told {
            warn!(self.log, "the end of a pod is not written down"; "error" => error.chain());
        }
    }
}

/// Waits for the end of a container's process, and tells it, in this order: the log, the disk, whoever waits.
async fn watch_end(owned: Arc<Owned>, held: Arc<Held>, exited: watch::Sender<Option<ExitStatus>>) {
    // Deleted before it was started.
    let Ok(exit) = held.container.wait(None).await else {
        return;
    };
    held.streams.finish().await;
    let told = owned.change_container(held.container.id().as_str(), |container| {
        container.end(exit);
        Ok(())
    });
    if let Err(error) = told {
        warn!(owned.log, "an exit code is not written down"; "container" => %held.container.id(),
            "error" => error.chain());
    }
    exited.send_replace(Some(exit));
}

/// The end of a process.
pub(super) async fn ended_of(exit: &mut watch::Receiver<Option<ExitStatus>>) -> Result<ExitStatus> {
    match exit.wait_for(Option::is_some).await.map(|exit| *exit) {
        Ok(Some(exit)) => Ok(exit),
        Ok(None) | Err(_) => Err(Error::new(
            ErrorKind::NotFound,
            "it was removed before it was started",
        )),
    }
}

pub(super) fn unknown(id: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("container {id} does not exist"))
}

/// What is known of a container that is to be.
pub(super) fn info_of(options: &ContainerOptions, pod: &str) -> ContainerInfo {
    ContainerInfo {
        id: options.id.clone(),
        name: options.name.clone(),
        pod: pod.to_owned(),
        labels: options.labels.clone(),
        bundle: options.bundle.clone(),
        log_path: options.log_path.clone(),
        terminal: false,
        state: ContainerState::Creating,
        created: SystemTime::now(),
        started: None,
        exit: None,
        stop_signal: options.stop_signal,
        stop_timeout: options.stop_timeout,
    }
}

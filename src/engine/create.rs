//! How a pod, or a container with a pod of its own, comes about: its id is taken, its virtual machine boots, and it appears; or nothing
//! of it is left.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use slog::o;
use tokio::sync::mpsc;

use super::container::Container;
use super::disk::Claim;
use super::link::{self, Server};
use super::options::{ContainerOptions, Origin, PodOptions};
use super::own::{self, Owned};
use super::pod::Pod;
use super::state::{self, PodInfo};
use super::{Runtime, Settings, cut_off, taken};
use crate::aside::aside;
use crate::error::{Error, Result};
use crate::sandbox::{Sandbox, SandboxRequest};
use crate::{Event, SandboxId, deadlines};

/// News of a sandbox that wait to be heard.
const NEWS: usize = 16;

impl Runtime {
    /// Creates a pod: boots its virtual machine. It appears when that is ready, or not at all.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists): its id or name is taken. Those of the sandbox.
    pub async fn create_pod(&self, options: PodOptions) -> Result<Pod> {
        options.check()?;
        let info = pod_info(&options, false);
        let id = info.id.clone();
        // On its own: a caller who gives up does not leave half of it.
        let runtime = self.clone();
        let making = tokio::spawn(async move {
            let owned = runtime.begin(options, info).await?;
            runtime.keep(owned).await
        });
        making.await.map_err(cut_off)??;
        Ok(Pod::new(self.clone(), id))
    }

    /// Creates a container from an OCI bundle, in a virtual machine of its own, which goes with it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`](crate::ErrorKind::AlreadyExists): its id or name is taken. Those of the sandbox and of the container.
    pub async fn create_container(&self, options: ContainerOptions) -> Result<Container> {
        let id = options.check()?;
        let alone = PodOptions::new(SandboxId::new(id.as_str())?).bundle(&options.bundle);
        let mut info = pod_info(&alone, true);
        info.containers
            .insert(id.to_string(), own::info_of(&options, id.as_str()));
        // On its own: a caller who gives up does not leave half of it.
        let runtime = self.clone();
        let making = tokio::spawn(async move {
            let owned = runtime.begin(alone, info).await?;
            match owned.create_first(options).await {
                Ok(id) => runtime.keep(owned).await.map(|()| id),
                Err(error) => Err(give_up(&owned, error).await),
            }
        });
        let id = making.await.map_err(cut_off)??;
        Ok(Container::new(self.clone(), id.clone(), id))
    }

    /// Takes an id and boots a sandbox under it.
    async fn begin(&self, options: PodOptions, info: PodInfo) -> Result<Arc<Owned>> {
        self.is_open()?;
        let settings = Arc::clone(self.settings());
        let log = settings.log.new(o!("pod" => info.id.clone()));
        let claim = take(&settings, &info).await?;
        let (events, news) = mpsc::channel(NEWS);
        match boot(&settings, options, events).await {
            Ok(sandbox) => {
                let owned = Owned::new(settings, sandbox, info, claim, log);
                tokio::spawn(hear_news(Arc::clone(&owned), news));
                Ok(owned)
            }
            Err(error) => Err(match give_back(&settings, &info.id, claim).await {
                Ok(()) => error,
                Err(second) => error.and(&second),
            }),
        }
    }

    /// A pod is there: this process hears others about it, and everybody sees it.
    async fn keep(&self, owned: Arc<Owned>) -> Result<()> {
        let settings = self.settings();
        let appeared = link::listen(&settings.root.socket(&owned.id)).and_then(|listener| {
            let server = Server::start(listener, Arc::downgrade(&owned), settings.log.clone());
            owned.hear(server);
            owned.appear()
        });
        if let Err(error) = appeared {
            return Err(give_up(&owned, error).await);
        }
        let is_shut = {
            let mut own = self.own();
            own.pods.insert(owned.id.clone(), Arc::clone(&owned));
            own.is_shut
        };
        // Shut down meanwhile.
        match is_shut {
            false => Ok(()),
            true => {
                owned.remove_pod(true).await?;
                self.is_open()
            }
        }
    }
}

fn pod_info(options: &PodOptions, is_alone: bool) -> PodInfo {
    PodInfo {
        version: state::VERSION,
        id: options.id.to_string(),
        name: options.name.clone(),
        labels: options.labels.clone(),
        created: SystemTime::now(),
        owner: std::process::id(),
        pid: 0,
        is_alone,
        is_ready: false,
        ended: None,
        containers: BTreeMap::new(),
    }
}

/// Takes the id of a pod, its name, and those of its first container.
async fn take(settings: &Arc<Settings>, info: &PodInfo) -> Result<Claim> {
    let (settings, info) = (Arc::clone(settings), info.clone());
    let taking = aside(deadlines::STATE, move |site| {
        let root = &settings.root;
        site.at(root.dir())?;
        let locked = root.lock()?;
        let loaded = root.load()?;
        let mut others = loaded.pods.iter().map(|found| &found.info);
        let is_other =
            |other: &&PodInfo| other.id == info.id || (!info.name.is_empty() && other.name == info.name);
        if let Some(other) = others.find(is_other) {
            return Err(taken("pod", &info.id, &info.name, &other.id));
        }
        for first in info.containers.values() {
            settings.is_free(&first.id, &first.name)?;
        }
        let claim = root.claim(&locked, &info.id)?;
        root.write(&info)?;
        Ok(claim)
    });
    taking.await
}

/// Gives the id of a pod back that did not come about.
async fn give_back(settings: &Settings, id: &str, claim: Claim) -> Result<()> {
    let (root, id) = (settings.root.clone(), id.to_owned());
    let giving = aside(deadlines::STATE, move |site| {
        site.at(root.dir())?;
        root.remove(&root.lock()?, &id)
    });
    let given = giving.await;
    drop(claim);
    given
}

/// Takes a pod back that did not come about.
async fn give_up(owned: &Owned, error: Error) -> Error {
    match owned.remove_pod(true).await {
        Ok(()) => error,
        Err(second) => error.and(&second),
    }
}

async fn boot(settings: &Settings, options: PodOptions, events: mpsc::Sender<Event>) -> Result<Sandbox> {
    let request = |bundle| SandboxRequest {
        id: options.id.clone(),
        scope: settings.scope.clone(),
        bundle,
        // Whoever embeds us has the root in the bundle.
        rootfs: Vec::new(),
        config: Arc::clone(&settings.config),
        hypervisor: Arc::clone(&settings.hypervisor),
        events,
        log: settings.log.clone(),
    };
    match options.origin {
        Origin::Bundle(bundle) => Sandbox::create(request(bundle)).await,
        Origin::Told(config) => Sandbox::create_pod(request(PathBuf::new()), *config).await,
    }
}

/// Hears what a sandbox tells without being asked. That memory was short is part of a container's end. It ends with the sandbox; as long
/// as that is there, so is what is known of it, whoever has dropped his handles.
async fn hear_news(owned: Arc<Owned>, mut news: mpsc::Receiver<Event>) {
    while let Some(event) = news.recv().await {
        if let Event::VmExited(why) = event {
            owned.lost(why);
        }
    }
}

//! A sandbox that no container stands for: its caller creates, starts and stops it by itself (containerd's sandbox API), and
//! containers come and go in it. It is there until it is shut down, so that its end can be asked for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use configuration::Config;
use runtime::error::Result;
use runtime::model::PodConfig;
use runtime::{Error, ErrorKind, ExitStatus, SandboxId, Stats};
use slog::{info, warn};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Occupancy, Pod, Slot};
use crate::bundle;
use crate::deadlines;
use crate::stats;

/// Status of a sandbox whose virtual machine has ended by itself.
const BY_ITSELF: u32 = 255;

/// A sandbox to be created, checked as far as it can be by itself.
#[derive(Debug)]
pub struct BareOrder {
    /// Its id.
    pub id: SandboxId,
    /// Absolute path of its bundle, in which there may be nothing.
    pub bundle: PathBuf,
    /// The configuration that the caller's options name.
    pub configuration: Option<PathBuf>,
    /// What it is to be.
    pub pod: PodConfig,
}

/// Where such a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing of it is started.
    Created,
    /// Its virtual machine is.
    Starting,
    /// It takes containers.
    Running,
    /// It has ended, or never ran and will not.
    Ended(ExitStatus),
}

/// Such a sandbox.
pub(super) struct Bare {
    bundle: PathBuf,
    config: Arc<Config>,
    pod: PodConfig,
    /// Pid of its virtual machine monitor, and when it was started.
    started: Option<(u32, SystemTime)>,
    phase: watch::Sender<Phase>,
    /// It is to be stopped, even if it is only starting.
    stop: watch::Sender<bool>,
    /// It was stopped, and holds nothing any more.
    released: watch::Sender<bool>,
}

/// A sandbox as its caller is shown it.
#[derive(Debug)]
pub struct BareShown {
    /// Where it is in its life.
    pub phase: Phase,
    /// Pid of its virtual machine monitor; 0 before there is one.
    pub pid: u32,
    /// When it was started.
    pub started_at: Option<SystemTime>,
    /// What runs, for people.
    pub info: BTreeMap<&'static str, String>,
}

impl Pod {
    fn bare<T>(&self, id: &SandboxId, look: impl FnOnce(&mut Bare) -> T) -> Result<T> {
        let mut books = self.books();
        let bare = books.bare.as_mut().filter(|_| *id == self.setting.sandbox);
        bare.map(look)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("sandbox {id} does not exist")))
    }

    /// Prepares a sandbox: its configuration is read and checked. Nothing is started yet.
    ///
    /// # Errors
    /// There is one already, or a container that stands for it; the configuration cannot be used.
    pub fn create_bare(&self, order: BareOrder) -> Result<()> {
        let id = &order.id;
        if *id != self.setting.sandbox {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                format!(
                    "sandbox {id} is not this shim's, which is {}",
                    self.setting.sandbox
                ),
            ));
        }
        // Who calls `start` tells it there, and may not repeat it.
        let noted = || bundle::read_note(&order.bundle)?.configuration;
        let named = order.configuration.clone().or_else(noted);
        let config = self.configured(named.as_deref(), &order.pod.annotations, &format!("sandbox {id}"))?;
        let refused = |kind, why: &str| Err(Error::new(kind, format!("sandbox {id} {why}")));
        let mut books = self.books();
        if books.closed {
            return refused(ErrorKind::Unavailable, "is closed");
        }
        if books.bare.is_some() {
            return refused(ErrorKind::AlreadyExists, "exists already");
        }
        if !matches!(books.sandbox, Slot::Empty) || !books.containers.is_empty() {
            return refused(
                ErrorKind::FailedPrecondition,
                "was created by its first container",
            );
        }
        books.run_dir = Some(config.runtime.run_dir.clone());
        books.bare = Some(Bare {
            bundle: order.bundle.clone(),
            config: Arc::new(config),
            pod: order.pod,
            started: None,
            phase: watch::Sender::new(Phase::Created),
            stop: watch::Sender::new(false),
            released: watch::Sender::new(false),
        });
        drop(books);
        if let Err(error) = self.write_note(&order.bundle, named.as_deref(), None) {
            self.books().bare = None;
            return Err(error);
        }
        self.occupancy.send_replace(Occupancy::Occupied);
        Ok(())
    }

    /// Starts the sandbox. Answers with the pid of its virtual machine monitor, and when.
    ///
    /// # Errors
    /// It was started before, or is being stopped; the runtime's.
    pub async fn start_bare(self: Arc<Self>, id: SandboxId) -> Result<(u32, SystemTime)> {
        let (bundle, config, told, mut stop) = self.bare(&id, |bare| {
            let was = bare.phase.send_replace(Phase::Starting);
            if was != Phase::Created {
                bare.phase.send_replace(was);
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("sandbox {id} was started already"),
                ));
            }
            let (bundle, config) = (bare.bundle.clone(), Arc::clone(&bare.config));
            Ok((bundle, config, bare.pod.clone(), bare.stop.subscribe()))
        })??;
        self.books().sandbox = Slot::Starting;
        info!(self.setting.log, "starting the sandbox"; "bundle" => %bundle.display());
        let mut closing = self.closing.subscribe();
        let ended = |why: &str| Err(Error::new(ErrorKind::Unavailable, format!("sandbox {id} {why}")));
        let launched = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => ended("is being stopped"),
            _ = closing.wait_for(|closing| *closing) => ended("was being started when the shim ended"),
            launched = self.launch(&bundle, Vec::new(), config, Some(told)) => launched,
        };
        let now = SystemTime::now();
        match launched {
            Ok(sandbox) => {
                let started = (sandbox.pid(), now);
                self.books().sandbox = Slot::Ready(sandbox);
                self.bare(&id, |bare| {
                    bare.started = Some(started);
                    // Its virtual machine may have ended since.
                    bare.phase.send_if_modified(|phase| {
                        let is_starting = *phase == Phase::Starting;
                        if is_starting {
                            *phase = Phase::Running;
                        }
                        is_starting
                    });
                })?;
                Ok(started)
            }
            Err(error) => {
                warn!(self.setting.log, "the sandbox did not start"; "error" => error.chain());
                // A start that was given up is taken back meanwhile, and whoever has stopped it takes the pod for gone.
                let _ = timeout(deadlines::RELEASE, self.released()).await;
                self.books().sandbox = Slot::Empty;
                self.bare_ended(BY_ITSELF);
                Err(error)
            }
        }
    }

    /// Ends the sandbox and every container in it. What was stopped already is stopped.
    ///
    /// # Errors
    /// Not everything is released.
    pub async fn stop_bare(self: Arc<Self>, id: SandboxId) -> Result<()> {
        let (mut phase, mut released) = self.bare(&id, |bare| {
            bare.stop.send_replace(true);
            (bare.phase.subscribe(), bare.released.subscribe())
        })?;
        // The senders go when it is shut down, which is an end as well.
        let _ = phase.wait_for(|phase| *phase != Phase::Starting).await;
        let sandbox = {
            let mut books = self.books();
            match std::mem::replace(&mut books.sandbox, Slot::Stopping) {
                Slot::Ready(sandbox) => Some(sandbox),
                Slot::Stopping => None,
                other => {
                    books.sandbox = other;
                    drop(books);
                    // There never was one, or nothing of it is left.
                    self.bare_ended(0);
                    return Ok(());
                }
            }
        };
        let Some(sandbox) = sandbox else {
            // Another one is at it.
            let _ = released.wait_for(|released| *released).await;
            return Ok(());
        };
        let stopped = sandbox.stop().await;
        self.books().sandbox = Slot::Empty;
        self.bare_ended(0);
        let _ = self.bare(&id, |bare| bare.released.send_replace(true));
        stopped
    }

    /// Waits for the end of the sandbox, whatever its cause.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub async fn wait_bare(&self, id: &SandboxId) -> Result<ExitStatus> {
        let mut phase = self.bare(id, |bare| bare.phase.subscribe())?;
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
        match ended.as_deref() {
            Ok(Phase::Ended(exit)) => Ok(*exit),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("sandbox {id} does not exist any more"),
            )),
        }
    }

    /// The sandbox now.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub fn show_bare(&self, id: &SandboxId) -> Result<BareShown> {
        let mut shown = self.bare(id, |bare| BareShown {
            phase: *bare.phase.borrow(),
            pid: bare.started.map_or(0, |(pid, _)| pid),
            started_at: bare.started.map(|(_, at)| at),
            info: BTreeMap::new(),
        })?;
        if let Slot::Ready(sandbox) = &self.books().sandbox {
            let report = sandbox.report();
            shown.info = [
                ("vmm", report.vmm),
                ("machine", report.machine),
                ("accelerator", report.accelerator),
                ("reason", report.reason),
            ]
            .into();
        }
        Ok(shown)
    }

    /// The figures of all its containers together.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; the runtime's.
    pub async fn measure_bare(&self, id: &SandboxId) -> Result<Stats> {
        self.bare(id, |_| ())?;
        let members: Vec<_> = self.books().containers.values().flatten().cloned().collect();
        let mut sum = Stats::default();
        for member in members {
            match member.container.stats().await {
                Ok(figures) => stats::add(&mut sum, &figures),
                // Deleted since.
                Err(error) if error.kind == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sum)
    }

    /// Tells the sandbox's end, if it was not told before.
    pub(super) fn bare_ended(&self, code: u32) {
        let exit = ExitStatus {
            code,
            at: SystemTime::now(),
            oom: false,
        };
        if let Some(bare) = &self.books().bare {
            bare.phase.send_if_modified(|phase| {
                let is_new = !matches!(phase, Phase::Ended(_));
                if is_new {
                    *phase = Phase::Ended(exit);
                }
                is_new
            });
        }
    }

    /// Its virtual machine has ended by itself.
    pub(super) fn bare_lost(&self) {
        self.bare_ended(BY_ITSELF);
    }

    /// Stops the sandbox, if there is such a one, and forgets it.
    pub(super) async fn dismiss_bare(self: &Arc<Self>) {
        let id = self.setting.sandbox.clone();
        match Arc::clone(self).stop_bare(id).await {
            Ok(()) => {}
            Err(error) if error.kind == ErrorKind::NotFound => return,
            Err(error) => {
                warn!(self.setting.log, "the sandbox is stopped, but not all is released"; "error" => error.chain());
            }
        }
        self.books().bare = None;
        self.occupancy.send_replace(Occupancy::Vacant);
    }
}

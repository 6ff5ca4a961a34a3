//! The owner of a sandbox that runs. It takes commands one by one and waits for nobody: what takes time is done on the
//! side, and its end comes back as a command.

mod end;
mod news;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use agent_client::Agent;
use futures::StreamExt;
use futures::future::{BoxFuture, ready};
use futures::stream::FuturesUnordered;
use hypervisor::Size;
use oci_spec::runtime::LinuxResources;
use slog::{Logger, info, warn};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::custody::Custody;
use super::disks::Disks;
use super::forward::{self, Forward};
use super::ground::{Added, Look, ToAdd};
use super::growth::Growth;
use super::late;
use super::start::{self, Holdings, Ready};
use super::state::{State, Step};
use super::volumes::Access;
use super::{Phases, VmEnd};
use crate::container::{self, Appeal, Container, ContainerRequest, Parts, Timeouts};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Hooks;
use crate::io::Opened;
use crate::trace::Course;
use crate::{ContainerId, Event, SandboxId, deadlines};

/// Something for the owner to do.
pub(super) type Command = Box<dyn FnOnce(&mut Owner) + Send>;
/// Where an answer goes; nobody may be there any more.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;
/// A connection that is carried into the guest as long as somebody waits for it.
pub(super) type Carrying = BoxFuture<'static, Result<()>>;

/// Work on the side.
type Jobs = FuturesUnordered<BoxFuture<'static, Command>>;

/// The owner.
pub(super) struct Owner {
    id: SandboxId,
    /// Gone once they are being released.
    holdings: Option<Holdings>,
    state: State,
    agent: Arc<dyn Agent>,
    vm: Custody,
    /// Looks for interfaces that have appeared, before a container starts.
    late: Option<Look>,
    /// `None`: the virtual machine keeps its size.
    growth: Option<Growth>,
    /// `None`: being created.
    containers: BTreeMap<ContainerId, Option<Container>>,
    disks: Disks,
    /// Those of containers whose end has not been told yet.
    hooks: BTreeMap<ContainerId, Hooks>,
    timeouts: Timeouts,
    /// Told to every container, once.
    end: watch::Sender<Option<VmEnd>>,
    /// Why the virtual machine is being stopped, if it is.
    reason: Option<VmEnd>,
    events: mpsc::Sender<Event>,
    /// When a container's last OOM notice was passed on.
    told_oom: BTreeMap<ContainerId, Instant>,
    phases: Phases,
    /// Its life, until that ends.
    course: Course,
    appeals: mpsc::Sender<Appeal>,
    jobs: Jobs,
    /// Creations under way, which a stop gives up.
    creations: Jobs,
    stops: Vec<Reply<()>>,
    log: Logger,
}

/// What an owner is made of.
pub(super) struct Estate {
    pub(super) id: SandboxId,
    pub(super) holdings: Holdings,
    pub(super) ready: Ready,
    pub(super) phases: Phases,
    pub(super) course: Course,
    pub(super) timeouts: Timeouts,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) log: Logger,
}

impl Owner {
    /// Owns a sandbox until it is stopped. The sandbox outlives its handles.
    pub(super) async fn run(estate: Estate, mut commands: mpsc::Receiver<Command>) {
        let (appeals, mut appealed) = mpsc::channel(4);
        let Ready {
            agent,
            vm,
            mut lost,
            localhost,
            late,
            growth,
            ..
        } = estate.ready;
        // Ends with the sandbox.
        let _forward = Forward::start(localhost, &agent, estate.timeouts.request, &estate.log);
        let mut owner = Self {
            id: estate.id,
            state: estate.holdings.state,
            holdings: Some(estate.holdings),
            agent,
            vm,
            late,
            growth,
            containers: BTreeMap::new(),
            disks: Disks::default(),
            hooks: BTreeMap::new(),
            timeouts: estate.timeouts,
            end: watch::Sender::new(None),
            reason: None,
            events: estate.events,
            told_oom: BTreeMap::new(),
            phases: estate.phases,
            course: estate.course,
            appeals,
            jobs: Jobs::new(),
            creations: Jobs::new(),
            stops: Vec::new(),
            log: estate.log,
        };
        owner.watch_vm();
        owner.ask_for_events(0);
        let mut orphaned = false;
        let mut daemons_run = true;
        while owner.state != State::Stopped {
            tokio::select! {
                command = commands.recv(), if !orphaned => match command {
                    Some(command) => command(&mut owner),
                    None => orphaned = true,
                },
                Some(appeal) = appealed.recv() => owner.appeal(appeal),
                Some(done) = owner.jobs.next() => done(&mut owner),
                Some(done) = owner.creations.next() => done(&mut owner),
                reason = &mut lost, if daemons_run => {
                    daemons_run = false;
                    owner.daemon_ended(reason);
                }
            }
        }
    }

    /// Runs `call` on the side, and then `done` on the owner.
    fn job<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.jobs.push(Box::pin(async move {
            let answer = call.await;
            Box::new(move |owner: &mut Self| done(owner, answer)) as Command
        }));
    }

    /// The same, as a part of a creation.
    fn creation<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.creations.push(Box::pin(async move {
            let answer = call.await;
            Box::new(move |owner: &mut Self| done(owner, answer)) as Command
        }));
    }

    fn serves(&self) -> Result<()> {
        if self.state.serves() {
            return Ok(());
        }
        let reason = match &*self.end.borrow() {
            Some(end) => end.reason.clone(),
            None => "it is being stopped".to_owned(),
        };
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("sandbox {}: {reason}", self.id),
        ))
    }

    /// The way into the guest for a connection of a caller's.
    pub(super) fn forward(&self, stream: UnixStream, port: u16, reply: Reply<Carrying>) {
        let agent = Arc::clone(&self.agent);
        let carrying = forward::port(stream, port, agent, self.timeouts.request, self.log.clone());
        drop(reply.send(self.serves().map(|()| Box::pin(carrying) as Carrying)));
    }

    fn watch_vm(&self) {
        self.job(start::ended(self.vm.exited()), |owner, exit| {
            let end = owner.reason.take().unwrap_or_else(|| start::told(&exit));
            owner.vm_ended(end);
        });
    }

    /// Tells everybody that the virtual machine is gone, whatever the cause.
    fn vm_ended(&mut self, end: VmEnd) {
        let Ok(state) = self.state.next(Step::VmEnded) else {
            return;
        };
        if self.end.borrow().is_some() {
            return;
        }
        let expected = !self.state.serves();
        self.state = state;
        info!(self.log, "the virtual machine has ended"; "reason" => &end.reason);
        let event = Event::VmExited(end.reason.clone());
        self.end.send_replace(Some(end));
        if !expected {
            let events = self.events.clone();
            // Nobody listens any more: then nobody misses it.
            self.job(async move { drop(events.send(event).await) }, |_, ()| {});
        }
    }

    /// Ends the virtual machine for a reason of ours; the first one counts.
    fn stop_vm(&mut self, end: VmEnd) {
        let ended = self.vm.exited().borrow().is_some();
        if ended || !self.state.serves() || self.reason.is_some() {
            // There is a reason already, or the VMM's own will be told.
            return;
        }
        warn!(self.log, "stopping the virtual machine"; "reason" => &end.reason);
        self.reason = Some(end);
        let vm = self.vm.clone();
        self.job(async move { vm.stop().await }, |owner, stopped| {
            if let Err(error) = stopped {
                warn!(owner.log, "the virtual machine cannot be stopped"; "error" => error.chain());
                // It may live, but nobody shall wait for it.
                if let Some(end) = owner.reason.take() {
                    owner.vm_ended(end);
                }
            }
        });
    }

    /// The virtual machine cannot do without its daemons. When it has ended that is the news, and not that they went with it.
    fn daemon_ended(&self, reason: String) {
        let exited = self.vm.exited();
        let news = async move {
            let _ = timeout(deadlines::EXIT_NEWS, start::ended(exited)).await;
        };
        self.job(news, |owner, ()| {
            owner.stop_vm(VmEnd {
                reason,
                killed: false,
            })
        });
    }

    fn appeal(&mut self, appeal: Appeal) {
        match appeal {
            Appeal::ForceStop { container, reason } => {
                // A container that can't end (its storage is gone, say) takes its pod along only if it is the pod.
                let is_alone = self.containers.keys().all(|other| *other == container);
                if is_alone || container.as_str() == self.id.as_str() {
                    warn!(self.log, "the virtual machine has to be stopped"; "reason" => &reason);
                    self.stop_vm(VmEnd { reason, killed: true });
                } else {
                    warn!(self.log, "the guest does not obey; others live in it"; "reason" => reason);
                }
            }
            Appeal::Starting { done } => self.look_again(done),
            Appeal::Growing { id, change, done } => self.update(&id, &change, done),
            Appeal::Release { id, done } => {
                let removing = self.remove(&id);
                self.job(removing, move |owner, removed| match removed {
                    Ok(()) => owner.forget(id, || drop(done.send(Ok(())))),
                    Err(error) => drop(done.send(Err(error))),
                });
            }
        }
    }

    /// Nothing is left of a container: its hooks are told, then its id is free and whoever waits is told.
    fn forget(&mut self, id: ContainerId, told: impl FnOnce() + Send + 'static) {
        self.told_oom.remove(&id);
        self.disks.forget(&id);
        if let Some(growth) = &mut self.growth {
            growth.remove(&id);
        }
        let Some(hooks) = self.hooks.remove(&id).filter(Hooks::await_end) else {
            self.containers.remove(&id);
            told();
            return;
        };
        let log = self.log.clone();
        self.job(async move { hooks.stopped(&log).await }, move |owner, ()| {
            owner.containers.remove(&id);
            told();
        });
    }

    /// Gives the guest what has appeared in the pod's network.
    fn look_again(&self, done: Reply<()>) {
        let Some(look) = self.late.clone() else {
            drop(done.send(Ok(())));
            return;
        };
        let (vm, agent, log) = (self.vm.clone(), Arc::clone(&self.agent), self.log.clone());
        let connecting = late::connect(look, vm, agent, self.timeouts.request, log);
        self.job(connecting, |_, connected| drop(done.send(connected)));
    }

    /// Sees to it that a container with new limits finds what it may use.
    fn update(&mut self, id: &ContainerId, change: &LinuxResources, done: Reply<()>) {
        let changed = match &mut self.growth {
            Some(growth) => growth.update(id, change),
            None => Ok(()),
        };
        match changed {
            Err(error) => drop(done.send(Err(error))),
            Ok(()) => self.job(self.grow(), |owner, grown| {
                drop(done.send(grown.map(|size| owner.took(size))));
            }),
        }
    }

    /// Has the virtual machine grow as far as its containers need it. Answers with what the guest has then, where it grows.
    fn grow(&self) -> impl Future<Output = Result<Option<Size>>> + Send + 'static {
        let job = self.growth.as_ref().map(|growth| growth.job(&self.containers));
        let (vm, agent, log) = (self.vm.clone(), Arc::clone(&self.agent), self.log.clone());
        let limit = self.timeouts.request;
        async move {
            match job {
                Some(job) => job.run(vm, agent, limit, log).await.map(Some),
                None => Ok(None),
            }
        }
    }

    fn took(&mut self, size: Option<Size>) {
        if let (Some(growth), Some(size)) = (&mut self.growth, size) {
            growth.took(size);
        }
    }

    /// Takes a container's disks and files away, of which the guest has let go. Everything is tried; the first error is told.
    fn remove(&mut self, id: &ContainerId) -> BoxFuture<'static, Result<()>> {
        let removing = match &mut self.holdings {
            Some(holdings) => holdings.ground.remove(id),
            // Everything is being released.
            None => return Box::pin(ready(Ok(()))),
        };
        let unplugging = self.disks.unplug(&self.vm, id);
        Box::pin(async move {
            let unplugged = unplugging.await;
            let removed = removing.await;
            unplugged.and(removed)
        })
    }

    pub(super) fn create_container(&mut self, request: ContainerRequest, reply: Reply<Container>) {
        let ContainerRequest {
            id,
            bundle,
            rootfs,
            stdio,
        } = request;
        let mut course = self.course.place().course("container", "files");
        course.tell("kata.container", id.as_str());
        let to_add = ToAdd {
            id: id.clone(),
            bundle,
            rootfs,
        };
        let adding = match self.prepare(to_add) {
            Ok(adding) => adding,
            Err(error) => {
                course.fail(&error);
                drop(reply.send(Err(error)));
                return;
            }
        };
        let limit = self.timeouts.create;
        self.containers.insert(id.clone(), None);
        self.creation(
            async move {
                let added = adding.await?;
                let streams = Opened::open(stdio, limit).await?;
                Ok((added, streams))
            },
            move |owner, prepared| match prepared {
                Ok((added, streams)) => {
                    course.next("devices");
                    owner.added(id, (added, streams, course), reply);
                }
                Err(error) => {
                    course.fail(&error);
                    owner.take_back(id, error, reply);
                }
            },
        );
    }

    /// Begins to make its files visible.
    fn prepare(&mut self, to_add: ToAdd) -> Result<BoxFuture<'static, Result<Added>>> {
        self.serves()?;
        if self.containers.contains_key(&to_add.id) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("container {} exists already", to_add.id),
            ));
        }
        match &mut self.holdings {
            Some(holdings) => Ok(holdings.ground.add(to_add)),
            None => Err(Error::new(ErrorKind::Unavailable, "the sandbox is being stopped")),
        }
    }

    /// Its files are there, and its streams are open: the guest's part of a creation.
    fn added(
        &mut self,
        id: ContainerId,
        (added, streams, course): (Added, Opened, Course),
        reply: Reply<Container>,
    ) {
        let Added {
            guest,
            disks,
            volumes,
            limits,
            hooks,
            stage,
        } = added;
        self.disks.know(&id, volumes);
        if let Some(growth) = &mut self.growth {
            growth.add(id.clone(), limits);
        }
        self.hooks.insert(id.clone(), hooks.clone());
        let parts = Parts {
            id: id.clone(),
            agent: course.place().watched(&self.agent),
            request: guest,
            streams,
            timeouts: self.timeouts,
            sandbox: self.appeals.clone(),
            vm: self.end.subscribe(),
            late: self.late.is_some(),
            grows: self.growth.is_some(),
            has_disks: !disks.is_empty(),
            phases: self.phases.clone(),
            course,
            hooks,
            stage,
            pid: self.vm.pid(),
            log: self.log.clone(),
        };
        let (grow, plug) = (self.grow(), self.disks.plug(&self.vm, &id, disks));
        self.creation(
            async move {
                let grown = match grow.await {
                    Ok(grown) => grown,
                    Err(error) => return (None, Err(error)),
                };
                if let Err(error) = plug.await {
                    return (grown, Err(error));
                }
                (grown, container::create(parts).await)
            },
            |owner, (grown, created)| {
                owner.took(grown);
                match created {
                    Ok(container) => owner.created(id, container, reply),
                    Err(error) => owner.take_back(id, error, reply),
                }
            },
        );
    }

    /// Answers a creation with its error, when its files are taken back; both errors are kept.
    fn take_back(&mut self, id: ContainerId, error: Error, reply: Reply<Container>) {
        let removing = self.remove(&id);
        self.job(removing, move |owner, removed| {
            let error = match removed {
                Ok(()) => error,
                Err(second) => {
                    owner.disks.leave(&id);
                    error.and(&second)
                }
            };
            owner.forget(id, || drop(reply.send(Err(error))));
        });
    }

    fn created(&mut self, id: ContainerId, container: Container, reply: Reply<Container>) {
        self.containers.insert(id, Some(container.clone()));
        if let Err(Ok(unwanted)) = reply.send(Ok(container)) {
            // Its caller has given up; nobody else knows of it.
            info!(self.log, "nobody waits for a container; it is deleted"; "container" => %unwanted.id());
            self.job(async move { unwanted.delete().await }, |owner, deleted| {
                if let Err(error) = deleted {
                    warn!(owner.log, "it cannot be deleted"; "error" => error.chain());
                }
            });
        }
    }

    /// The disk of a volume, and who can be asked about it.
    pub(super) fn volume(&self, path: &Path) -> Result<Access> {
        self.serves()?;
        let volume = self.disks.volume(path).ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!(
                    "sandbox {} has no container with the direct volume {}",
                    self.id,
                    path.display()
                ),
            )
        })?;
        Ok(Access {
            volume: volume.clone(),
            vm: self.vm.clone(),
            agent: Arc::clone(&self.agent),
            limit: self.timeouts.request,
        })
    }

    pub(super) fn container(&self, id: &ContainerId) -> Result<Container> {
        match self.containers.get(id) {
            Some(Some(container)) => Ok(container.clone()),
            Some(None) | None => Err(Error::new(
                ErrorKind::NotFound,
                format!("container {id} does not exist"),
            )),
        }
    }

    pub(super) fn ids(&self) -> Vec<ContainerId> {
        self.containers.keys().cloned().collect()
    }
}

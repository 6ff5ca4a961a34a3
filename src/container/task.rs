//! The owner of a container. It takes commands one by one and never waits for the guest: a call to the agent is a job
//! on the side, and its end comes back as a command. So nothing queues behind a slow guest, client or stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use agent_client::{Agent, ErrorKind as AgentErrorKind};
use agent_protocol as p;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use slog::{Logger, debug, info, o, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::create::has_all;
use super::process::{KILLED, Process, UNKNOWN};
use super::state::{State, Step};
use super::{Appeal, ExecRequest, ExitStatus, ProcessState, Timeouts};
use crate::error::{Error, ErrorKind, Result};
use crate::host::Hooks;
use crate::io::{Delivery, Opened, Target};
use crate::sandbox::{Phases, VmEnd};
use crate::{ContainerId, ExecId, deadlines};

/// Something for the owner to do.
pub(crate) type Command = Box<dyn FnOnce(&mut Task) + Send>;
/// Where an answer goes; nobody may be there any more.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// The owner.
pub(crate) struct Task {
    pub(super) id: ContainerId,
    pub(super) agent: Arc<dyn Agent>,
    pub(super) timeouts: Timeouts,
    pub(super) sandbox: mpsc::Sender<Appeal>,
    pub(super) vm: watch::Receiver<Option<VmEnd>>,
    /// The sandbox has to be asked before a start.
    pub(super) late: bool,
    /// The sandbox has to be asked before an update.
    pub(super) grows: bool,
    pub(super) has_disks: bool,
    pub(super) phases: Phases,
    pub(super) hooks: Hooks,
    pub(super) pid: u32,
    pub(super) init: Process,
    pub(super) execs: HashMap<ExecId, Process>,
    pub(super) jobs: FuturesUnordered<BoxFuture<'static, Command>>,
    pub(super) deleted: bool,
    pub(super) log: Logger,
}

/// Has the sandbox do what it is asked for, and waits for it.
pub(super) async fn appeal(
    sandbox: &mpsc::Sender<Appeal>,
    make: impl FnOnce(Reply<()>) -> Appeal,
) -> Result<()> {
    let gone = || Error::new(ErrorKind::Unavailable, "the sandbox is stopped");
    let (done, answer) = oneshot::channel();
    sandbox.send(make(done)).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

impl Task {
    /// Works until the container is deleted, or nobody can ask for anything any more.
    pub(super) async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        self.watch(None);
        let mut vm = self.vm.clone();
        let mut vm_runs = true;
        while !self.deleted {
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => command(&mut self),
                    None => break,
                },
                Some(done) = self.jobs.next() => done(&mut self),
                end = vm.wait_for(Option::is_some), if vm_runs => {
                    let killed = end.is_ok_and(|end| end.as_ref().is_some_and(|end| end.killed));
                    vm_runs = false;
                    self.vm_ended(killed);
                }
            }
        }
    }

    /// Runs `call` on the side, and then `done` on the task.
    pub(super) fn job<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
        done: impl FnOnce(&mut Self, T) + Send + 'static,
    ) {
        self.jobs.push(Box::pin(async move {
            let answer = call.await;
            Box::new(move |task: &mut Self| done(task, answer)) as Command
        }));
    }

    pub(super) fn process(&mut self, exec: Option<&ExecId>) -> Result<&mut Process> {
        match exec {
            None => Ok(&mut self.init),
            Some(exec) => self.execs.get_mut(exec).ok_or_else(|| {
                Error::new(
                    ErrorKind::NotFound,
                    format!("container {} has no process {exec}", self.id),
                )
            }),
        }
    }

    /// A process that may be told or asked something in the guest.
    pub(super) fn living(&mut self, exec: Option<&ExecId>) -> Result<&mut Process> {
        let name = self.name(exec);
        let process = self.process(exec)?;
        match process.state {
            State::Added => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{name} is not started yet"),
            )),
            state if state.alive() => Ok(process),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                format!("{name} has ended already"),
            )),
        }
    }

    pub(super) fn name(&self, exec: Option<&ExecId>) -> String {
        match exec {
            None => format!("container {}", self.id),
            Some(exec) => format!("container {}: process {exec}", self.id),
        }
    }

    pub(super) fn step(&mut self, exec: Option<&ExecId>, step: Step) -> Result<()> {
        let name = self.name(exec);
        let process = self.process(exec)?;
        let next = process.state.next(step);
        process.enter(next.map_err(|error| error.while_doing(name))?);
        Ok(())
    }

    /// A step that reports what has happened, which no state refuses; the process may be deleted since.
    pub(super) fn happened(&mut self, exec: Option<&ExecId>, step: Step) {
        if self.process(exec).is_ok()
            && let Err(error) = self.step(exec, step)
        {
            warn!(self.log, "{}", error; "step" => ?step);
        }
    }

    pub(super) fn target(&self, exec: Option<&ExecId>) -> Target {
        let log = match exec {
            None => self.log.clone(),
            Some(exec) => self.log.new(o!("exec" => exec.to_string())),
        };
        Target {
            agent: Arc::clone(&self.agent),
            container: self.id.to_string(),
            exec: exec.map(ExecId::to_string).unwrap_or_default(),
            deadline: self.timeouts.request,
            log,
        }
    }

    pub(super) fn container(&self) -> p::ContainerRequest {
        p::ContainerRequest {
            container_id: self.id.to_string(),
            ..Default::default()
        }
    }

    /// Fails quickly, with the reason, once the virtual machine is gone.
    pub(super) fn vm_runs(&self) -> Result<()> {
        match &*self.vm.borrow() {
            None => Ok(()),
            Some(end) => Err(Error::new(ErrorKind::Unavailable, end.reason.clone())),
        }
    }

    /// Waits for the end of a process in the guest.
    fn watch(&self, exec: Option<&ExecId>) {
        let agent = Arc::clone(&self.agent);
        let request = self.target(exec).process();
        let exec = exec.cloned();
        // Waits for the workload, so without a deadline; it ends with the connection.
        self.job(
            async move { agent.wait_process(request, None).await },
            move |task, answer| task.exited(exec.as_ref(), answer),
        );
    }

    fn exited(&mut self, exec: Option<&ExecId>, answer: Result<p::WaitProcessResponse, agent_client::Error>) {
        match answer {
            Ok(answer) => {
                let Ok(process) = self.process(exec) else {
                    return;
                };
                process.told(&answer);
                let deliveries = process.deliveries();
                if exec.is_none() && process.may_be_oom() {
                    self.look_for_oom();
                    return;
                }
                let exec = exec.cloned();
                self.job(delivered(deliveries), move |task, ()| task.ended(exec.as_ref()));
            }
            // The end of the virtual machine is told by its sandbox, once and for all processes.
            Err(error) if error.kind == AgentErrorKind::Unavailable => {}
            // It is being forgotten; whoever does that tells its end.
            Err(_)
                if self
                    .process(exec)
                    .is_ok_and(|p| matches!(p.state, State::Deleting { .. })) => {}
            Err(error) => {
                warn!(self.log, "the exit status is lost"; "process" => self.name(exec), "error" => %error);
                self.ended(exec);
            }
        }
    }

    /// Whether memory was the reason is part of the news of init's end. The guest's own notice may come after it.
    fn look_for_oom(&self) {
        let (agent, request) = (Arc::clone(&self.agent), self.container());
        let look = async move { agent.stats_container(request, Some(deadlines::OOM_NEWS)).await };
        let deliveries = self.init.deliveries();
        self.job(
            async move { futures::future::join(look, delivered(deliveries)).await.0 },
            |task, figures| {
                if figures.is_ok_and(|figures| figures.memory.events_oom_kill > 0) {
                    task.init.told_oom();
                }
                task.ended(None);
            },
        );
    }

    /// A process has ended, as the guest has told or for reasons unknown.
    fn ended(&mut self, exec: Option<&ExecId>) {
        self.happened(exec, Step::Ended);
        if let Ok(process) = self.process(exec) {
            process.ended(UNKNOWN, SystemTime::now());
        }
    }

    fn vm_ended(&mut self, killed: bool) {
        let now = SystemTime::now();
        for process in std::iter::once(&mut self.init).chain(self.execs.values_mut()) {
            if process.state != State::Added
                && let Ok(state) = process.state.next(Step::Ended)
            {
                process.enter(state);
                let code = if killed || process.killed { KILLED } else { UNKNOWN };
                process.ended(code, now);
            }
        }
    }

    fn connect(&mut self, exec: Option<&ExecId>) {
        let target = self.target(exec);
        let log = target.log.clone();
        let phases = exec.is_none().then(|| self.phases.clone());
        if let Ok(process) = self.process(exec) {
            let place = process.place();
            process.connect(&target, move |took| {
                place.event("first output");
                let micros = |took: Duration| took.as_micros() as u64;
                match phases {
                    Some(phases) => {
                        info!(log, "first output"; "microseconds" => micros(phases.first_output(took)))
                    }
                    None => debug!(log, "first output"; "microseconds" => micros(took)),
                }
            });
        }
    }

    pub(super) fn start(&mut self, reply: Reply<()>) {
        if let Err(error) = self.step(None, Step::Start) {
            drop(reply.send(Err(error)));
            return;
        }
        let begun = Instant::now();
        let (agent, request, limit) = (Arc::clone(&self.agent), self.container(), self.timeouts.request);
        let sandbox = self.late.then(|| self.sandbox.clone());
        self.job(
            async move {
                if let Some(sandbox) = sandbox {
                    appeal(&sandbox, |done| Appeal::Starting { done }).await?;
                }
                agent.start_container(request, Some(limit)).await?;
                Ok(())
            },
            move |task, answer: Result<()>| match answer {
                Ok(()) => {
                    task.happened(None, Step::Started);
                    task.phases.started(begun.elapsed());
                    task.tell_start(reply);
                }
                Err(error) => {
                    task.happened(None, Step::StartFailed);
                    drop(reply.send(Err(error)));
                }
            },
        );
        self.connect(None);
    }

    /// Tells the host's hooks that init executes, before the caller.
    fn tell_start(&self, reply: Reply<()>) {
        if !self.hooks.await_start() {
            drop(reply.send(Ok(())));
            return;
        }
        let (hooks, pid, log) = (self.hooks.clone(), self.pid, self.log.clone());
        self.job(async move { hooks.started(pid, &log).await }, |_, ()| {
            drop(reply.send(Ok(())));
        });
    }

    pub(super) fn add(&mut self, request: ExecRequest, reply: Reply<()>) {
        let ExecRequest { id, process, stdio } = request;
        if let Err(error) = self.may_add(&id) {
            drop(reply.send(Err(error)));
            return;
        }
        let opening = Opened::open(stdio, self.timeouts.request);
        self.job(opening, move |task, streams| {
            let added = streams.and_then(|streams| {
                // Another one may have come first.
                task.may_add(&id)?;
                let spec = serde_json::to_vec(&process).map_err(|cause| {
                    Error::caused(ErrorKind::InvalidArgument, "the process is not JSON", cause)
                })?;
                let course = task.init.place().course("process", "added");
                course.tell("kata.process", id.as_str());
                let process = Process::new(State::Added, Some(spec), streams, course);
                task.execs.insert(id, process);
                Ok(())
            });
            drop(reply.send(added));
        });
    }

    fn may_add(&self, id: &ExecId) -> Result<()> {
        self.vm_runs()?;
        if self.execs.contains_key(id) {
            return Err(Error::new(
                ErrorKind::AlreadyExists,
                format!("{} exists already", self.name(Some(id))),
            ));
        }
        if self.init.state != State::Running {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("container {} is not running", self.id),
            ));
        }
        Ok(())
    }

    pub(super) fn start_exec(&mut self, id: ExecId, reply: Reply<()>) {
        let request = match self.exec_request(&id) {
            Ok(request) => request,
            Err(error) => {
                drop(reply.send(Err(error)));
                return;
            }
        };
        let place = self.process(Some(&id)).map(|process| process.place());
        let agent = place.unwrap_or_default().watched(&self.agent);
        let limit = self.timeouts.request;
        let named = self.target(Some(&id)).process();
        let wanted = request.stdio.descriptors.len();
        let exec = async move {
            let answer = agent.exec_process(request, Some(limit)).await?;
            if let Err(error) = has_all(&answer, wanted) {
                // It runs without.
                let kill = p::SignalProcessRequest {
                    container_id: named.container_id,
                    exec_id: named.exec_id,
                    signal: libc::SIGKILL.unsigned_abs(),
                    ..Default::default()
                };
                let _ = agent.signal_process(kill, Some(limit)).await;
                return Err(error);
            }
            Ok(())
        };
        self.job(exec, move |task, answer: Result<()>| {
            let answer = match answer {
                Ok(()) => {
                    task.happened(Some(&id), Step::Started);
                    task.connect(Some(&id));
                    task.watch(Some(&id));
                    Ok(())
                }
                Err(error) => {
                    task.happened(Some(&id), Step::StartFailed);
                    if let Ok(process) = task.process(Some(&id)) {
                        process.disconnect();
                    }
                    Err(error)
                }
            };
            drop(reply.send(answer));
        });
    }

    fn exec_request(&mut self, id: &ExecId) -> Result<p::ExecProcessRequest> {
        let process = self.process(Some(id))?;
        if process.state == State::Added && !process.is_unconnected() {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "container {}: process {id} could not be started; delete it and add another",
                    self.id
                ),
            ));
        }
        self.vm_runs()?;
        if self.init.state != State::Running {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("container {} is not running", self.id),
            ));
        }
        self.step(Some(id), Step::Start)?;
        let container_id = self.id.to_string();
        let process = self.process(Some(id))?;
        Ok(p::ExecProcessRequest {
            container_id,
            exec_id: id.to_string(),
            process: process.spec.clone().unwrap_or_default(),
            stdio: Some(process.wanted()).into(),
            ..Default::default()
        })
    }

    pub(super) fn subscribe(&mut self, exec: Option<ExecId>) -> Result<watch::Receiver<Option<ExitStatus>>> {
        Ok(self.process(exec.as_ref())?.subscribe())
    }

    pub(super) fn state(&mut self, exec: Option<ExecId>) -> Result<ProcessState> {
        Ok(self.process(exec.as_ref())?.status())
    }

    pub(super) fn close_stdin(&mut self, exec: Option<ExecId>) -> Result<()> {
        self.process(exec.as_ref())?.close_input();
        Ok(())
    }
}

/// Returns when everything is delivered, or has had the time to be.
async fn delivered(deliveries: Vec<Delivery>) {
    let all = async {
        for mut delivery in deliveries {
            while delivery.changed().await.is_ok() {}
        }
    };
    let _ = timeout(deadlines::DELIVERY, all).await;
}

//! The way to the sandbox's task: a queue of jobs, each with its answer. Waits that depend on a workload happen here, in
//! the caller's task, so that they hold up nobody.

use std::collections::BTreeSet;
use std::time::Duration;

use agent_protocol::StatsResponse;
use futures::future::join_all;
use oci_spec::runtime::LinuxResources;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::shares;
use super::state::Call;
use super::turn::{Place, Turn, Turns};
use super::{ContainerRequest, ExecRequest, Phase, Sandbox, SandboxRequest};
use crate::connection::{self, Connection};
use crate::console::ConsoleRequest;
use crate::error::{Error, Result};
use crate::events::Event;
use crate::growth::Amount;
use crate::network::{self, Network};
use crate::patience::patient;
use crate::process::Signal;
use crate::process::stream::Output;
use crate::reaper::{self, Exit, Exited};

/// Something to do with the sandbox.
pub type Job = Box<dyn FnOnce(&mut Sandbox) + Send>;

/// Jobs that may queue before callers have to wait.
const QUEUE: usize = 64;

/// How long the kernel may take to end what was sent SIGKILL.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// How long creations and deletions under way may take when the sandbox is to be destroyed: longer than the longest wait
/// inside them.
const SETTLE_DEADLINE: Duration = Duration::from_secs(45);

/// What comes after a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// The end of the machine, as soon as the host is told.
    TheMachine,
    /// Nothing.
    Nothing,
    /// Another one: this one was for practice.
    Anew,
}

/// Which output is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal's.
    Stdout,
    /// Standard error.
    Stderr,
    /// The descriptor of this number.
    Descriptor(u32),
}

/// Commands the sandbox. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    jobs: mpsc::Sender<Job>,
    phase: watch::Receiver<Phase>,
}

impl Handle {
    pub(super) fn new(phase: watch::Receiver<Phase>) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        (Self { jobs, phase }, queue)
    }

    /// Has the owning task do something, and waits for its answer. The job is done even if the caller gives up.
    pub(super) async fn call<T, F>(&self, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Sandbox) -> Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |sandbox| {
            // Fails only when the caller has given up.
            let _ = answer.send(job(sandbox));
        });
        self.jobs.send(job).await.map_err(|_| Error::ShuttingDown)?;
        answered.await.map_err(|_| Error::ShuttingDown)?
    }

    /// Takes fresh randomness, if there is any.
    ///
    /// # Errors
    /// [`Error::Invalid`] for too much of it; the kernel's.
    pub async fn seed(&self, entropy: Vec<u8>) -> Result<()> {
        match entropy.is_empty() {
            true => Ok(()),
            false => self.call(move |sandbox| sandbox.seed(&entropy)).await,
        }
    }

    /// Makes the guest this sandbox.
    ///
    /// # Errors
    /// [`Error::Exists`] the second time; otherwise what its parts answer with.
    pub async fn create_sandbox(&self, request: SandboxRequest) -> Result<()> {
        let handle = self.clone();
        completed(async move {
            let (birth, request) = handle
                .call(move |sandbox| Ok((sandbox.begin_create_sandbox(&request)?, request)))
                .await?;
            let id = request.id.clone();
            let made = birth.make(request).await;
            handle
                .call(move |sandbox| sandbox.finish_create_sandbox(id, made))
                .await
        })
        .await
    }

    /// Takes a place in a container's queue, and waits for its turn.
    async fn turn(&self, id: &str, place: fn(&Turns) -> Place) -> Result<(Turns, Turn)> {
        let id = id.to_owned();
        let (turns, place) = self
            .call(move |sandbox| {
                let turns = sandbox.entry(&id)?.turns.clone();
                let place = place(&turns);
                Ok((turns, place))
            })
            .await?;
        Ok((turns, place.await))
    }

    /// Adds to the network. Beside the sandbox's task, because a device may have to appear yet.
    ///
    /// # Errors
    /// [`Error::NoDevice`] when one does not; what the kernel refuses.
    pub async fn update_network(&self, network: Network) -> Result<()> {
        let handle = self.clone();
        completed(async move {
            let network = handle
                .call(move |sandbox| {
                    sandbox.begin_update_network(&network)?;
                    Ok(network)
                })
                .await?;
            network::add(&network).await
        })
        .await
    }

    /// Takes into use what the host has added. Beside the sandbox's task, because it may have to appear yet.
    ///
    /// # Errors
    /// [`Error::State`] for a sandbox that was created without `grows`; the kernel's.
    pub async fn take_growth(&self, wanted: Amount) -> Result<Amount> {
        let handle = self.clone();
        completed(async move {
            match handle.call(|sandbox| sandbox.growth()).await? {
                Some(growth) => growth.take(wanted).await,
                // A process has what its host has.
                None => Ok(wanted),
            }
        })
        .await
    }

    /// Ends everything: SIGTERM and `grace` to comply, then SIGKILL; deletes, unmounts.
    ///
    /// # Errors
    /// [`Error::Late`] when a process outlives SIGKILL; the first failure of what remains, all of which is tried.
    pub async fn destroy(&self, grace: Duration, after: After) -> Result<()> {
        let mut busy = self.call(|sandbox| Ok(sandbox.begin_destroy())).await?;
        let limit = patient(SETTLE_DEADLINE);
        timeout(limit, busy.wait_for(BTreeSet::is_empty))
            .await
            .map_err(|_| Error::Late("the end of creations and deletions".to_owned(), limit))?
            .map_err(|_| Error::ShuttingDown)?;
        if !grace.is_zero() {
            let ends = self
                .call(|sandbox| Ok(sandbox.signal_everything(Signal::TERM)))
                .await?;
            // Those that do not comply are killed next.
            let _ = timeout(grace, join_all(ends.into_iter().map(reaper::ended))).await;
        }
        let ends = self
            .call(|sandbox| Ok(sandbox.signal_everything(Signal::KILL)))
            .await?;
        killed(ends).await?;
        if after == After::TheMachine && self.call(|sandbox| Ok(sandbox.abandon())).await? {
            return Ok(());
        }
        let mut result = Ok(());
        for id in self.call(|sandbox| Ok(sandbox.ids())).await? {
            result = result.and(self.delete_container(id, false).await);
        }
        result.and(self.call(move |sandbox| sandbox.finish_destroy(after)).await)
    }

    /// Whether nobody has made the guest a sandbox yet.
    pub fn is_blank(&self) -> bool {
        *self.phase.borrow() == Phase::Blank
    }

    /// Completes when the sandbox has been destroyed.
    pub async fn destroyed(&self) {
        let mut phase = self.phase.clone();
        // An error means that the task is gone, which is as final.
        let _ = phase.wait_for(|phase| *phase == Phase::Destroyed).await;
    }

    /// Creates a container up to the exec of its init process, whose pid is the answer.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Invalid`], or why a part of it failed.
    pub async fn create_container(&self, request: ContainerRequest) -> Result<i32> {
        let handle = self.clone();
        completed(async move {
            let (workshop, shares, request) = handle
                .call(move |sandbox| {
                    let (workshop, shares) = sandbox.begin_create(&request)?;
                    Ok((workshop, shares, request))
                })
                .await?;
            let mut used = BTreeSet::new();
            let made = match workshop.specification(&request) {
                Ok(spec) => {
                    used = shares::used(&shares, &spec);
                    let mounted = shares::mounted(&shares, &spec);
                    workshop.create(&request, &spec, mounted).await
                }
                Err(error) => Err(error),
            };
            handle
                .call(move |sandbox| sandbox.finish_create(request.id, used, made))
                .await
        })
        .await
    }

    /// Lets the init process execute.
    ///
    /// # Errors
    /// Why it can't; the container has ended then.
    pub async fn start_container(&self, id: String) -> Result<()> {
        let handle = self.clone();
        completed(async move {
            let (turns, _turn) = handle.turn(&id, Turns::alone).await?;
            let (of, queue) = (id.clone(), turns.clone());
            let (after, wait) = handle
                .call(move |sandbox| sandbox.begin_start(&of, &queue))
                .await?;
            let executed = wait.await;
            handle
                .call(move |sandbox| sandbox.finish_start(&id, &turns, after, executed))
                .await
        })
        .await
    }

    /// Removes a container, killed first when `force`.
    ///
    /// # Errors
    /// [`Error::State`] when it runs and is not to be killed.
    pub async fn delete_container(&self, id: String, force: bool) -> Result<()> {
        if force {
            let kill = id.clone();
            let end = self.call(move |sandbox| {
                let exited = sandbox.exited(&kill, "")?;
                if exited.borrow().is_none() {
                    sandbox.signal(&kill, "", Signal::KILL, true)?;
                }
                Ok(exited)
            });
            killed(vec![end.await?]).await?;
        }
        let handle = self.clone();
        completed(async move {
            let of = id.clone();
            let (workshop, entry) = handle.call(move |sandbox| sandbox.begin_delete(&of)).await?;
            let deleted = workshop.delete(entry).await;
            handle
                .call(move |sandbox| {
                    sandbox.settle(&id);
                    Ok(())
                })
                .await?;
            deleted
        })
        .await
    }

    /// Runs one more process in a running container; its pid is the answer.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::State`], or why it can't be run.
    pub async fn exec(&self, request: ExecRequest) -> Result<i32> {
        let handle = self.clone();
        completed(async move {
            let (turns, _turn) = handle.turn(&request.container, Turns::together).await?;
            let queue = turns.clone();
            let (begun, request) = handle
                .call(move |sandbox| Ok((sandbox.begin_exec(&request, &queue)?, request)))
                .await?;
            let executed = begun.executed().await;
            handle
                .call(move |sandbox| sandbox.finish_exec(request, &turns, executed))
                .await
        })
        .await
    }

    /// Signals one process or `all` of the container.
    ///
    /// # Errors
    /// [`Error::State`] when it has ended.
    pub async fn signal(&self, container: String, exec: String, signal: Signal, all: bool) -> Result<()> {
        self.call(move |sandbox| sandbox.signal(&container, &exec, signal, all))
            .await
    }

    /// Waits for the end of a process.
    ///
    /// # Errors
    /// [`Error::NoContainer`], [`Error::NoProcess`].
    pub async fn wait(&self, container: String, exec: String) -> Result<Exit> {
        reaper::ended(
            self.call(move |sandbox| sandbox.exited(&container, &exec))
                .await?,
        )
        .await
    }

    /// Forgets an ended exec process and what it wrote.
    ///
    /// # Errors
    /// [`Error::State`] while it runs.
    pub async fn delete_process(&self, container: String, exec: String) -> Result<()> {
        self.call(move |sandbox| sandbox.delete_process(&container, &exec))
            .await
    }

    /// Waits for output and takes up to `max` bytes; empty at its end.
    ///
    /// # Errors
    /// [`Error::NoStream`] when the stream was not asked for.
    pub async fn read(&self, container: String, exec: String, stream: Stream, max: usize) -> Result<Vec<u8>> {
        let output: Output = self
            .call(move |sandbox| {
                let streams = &sandbox.process(&container, &exec)?.streams;
                match stream {
                    Stream::Stdout => streams.stdout(),
                    Stream::Stderr => streams.stderr(),
                    Stream::Descriptor(number) => streams.output(number),
                }
            })
            .await?;
        output.read(max).await
    }

    /// Nobody reads a descriptor of this number any more.
    ///
    /// # Errors
    /// [`Error::NoContainer`], [`Error::NoProcess`].
    pub async fn close_output(&self, container: String, exec: String, number: u32) -> Result<()> {
        self.call(move |sandbox| {
            sandbox
                .process_mut(&container, &exec)?
                .streams
                .close_output(number);
            Ok(())
        })
        .await
    }

    /// Writes all of the data to the descriptor of this number, 0 for the standard input; false when nobody reads it.
    ///
    /// # Errors
    /// [`Error::NoStream`] when there is no input or it is closed.
    pub async fn write(&self, container: String, exec: String, number: u32, data: &[u8]) -> Result<bool> {
        let (input, exited) = self
            .call(move |sandbox| {
                let process = sandbox.process(&container, &exec)?;
                let input = match number {
                    0 => process.streams.stdin(),
                    number => process.streams.input(number),
                };
                Ok((input?, process.exited.clone()))
            })
            .await?;
        input.write(data, exited).await
    }

    /// Ends what a process reads from the descriptor of this number, 0 for the standard input.
    ///
    /// # Errors
    /// [`Error::NoContainer`], [`Error::NoProcess`].
    pub async fn close_input(&self, container: String, exec: String, number: u32) -> Result<()> {
        self.call(move |sandbox| {
            let streams = &mut sandbox.process_mut(&container, &exec)?.streams;
            match number {
                0 => streams.close_stdin(),
                number => streams.close_input(number),
            }
            Ok(())
        })
        .await
    }

    /// Tells a process's terminal its size.
    ///
    /// # Errors
    /// [`Error::NoStream`] without a terminal.
    pub async fn resize(&self, container: String, exec: String, rows: u16, columns: u16) -> Result<()> {
        self.call(move |sandbox| sandbox.process(&container, &exec)?.streams.resize(rows, columns))
            .await
    }

    /// Pids of a container's processes.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub async fn pids(&self, id: String) -> Result<Vec<u32>> {
        self.call(move |sandbox| sandbox.pids(&id)).await
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// [`Error::State`] unless it runs.
    pub async fn pause(&self, id: String) -> Result<()> {
        self.freeze(id, Call::Pause).await
    }

    /// Thaws a container.
    ///
    /// # Errors
    /// [`Error::State`] unless it is paused.
    pub async fn resume(&self, id: String) -> Result<()> {
        self.freeze(id, Call::Resume).await
    }

    async fn freeze(&self, id: String, call: Call) -> Result<()> {
        let handle = self.clone();
        completed(async move {
            let (turns, _turn) = handle.turn(&id, Turns::alone).await?;
            let (of, queue) = (id.clone(), turns.clone());
            let (after, wait) = handle
                .call(move |sandbox| sandbox.begin_freeze(&of, &queue, call))
                .await?;
            let done = wait.await;
            handle
                .call(move |sandbox| sandbox.finish_freeze(&id, &turns, after, done))
                .await
        })
        .await
    }

    /// Changes a container's limits.
    ///
    /// # Errors
    /// [`Error::State`] when it has ended.
    pub async fn update(&self, id: String, resources: LinuxResources) -> Result<()> {
        self.call(move |sandbox| sandbox.update(&id, &resources)).await
    }

    /// Reads a container's cgroup.
    ///
    /// # Errors
    /// [`Error::NoContainer`].
    pub async fn stats(&self, id: String) -> Result<StatsResponse> {
        self.call(move |sandbox| sandbox.stats(&id)).await
    }

    /// Runs a program in the guest itself; its pid is the answer.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Invalid`], or why it can't be run.
    pub async fn open_console(&self, request: ConsoleRequest) -> Result<i32> {
        self.call(move |sandbox| sandbox.open_console(&request)).await
    }

    /// Connects to a port of the pod's localhost; the answer is the connection's number.
    ///
    /// # Errors
    /// [`Error::NoListener`]; [`Error::State`] when too many are open.
    pub async fn open_connection(&self, port: u16, ipv6_first: bool) -> Result<u64> {
        self.call(|sandbox| sandbox.begin_connect()).await?;
        let stream = connection::open(port, ipv6_first).await?;
        self.call(move |sandbox| {
            sandbox.begin_connect()?;
            Ok(sandbox.connections.add(stream))
        })
        .await
    }

    /// An open connection.
    ///
    /// # Errors
    /// [`Error::NoConnection`].
    pub async fn connection(&self, number: u64) -> Result<Connection> {
        self.call(move |sandbox| sandbox.connections.get(number)).await
    }

    /// Ends a connection.
    ///
    /// # Errors
    /// [`Error::NoConnection`].
    pub async fn close_connection(&self, number: u64) -> Result<()> {
        self.call(move |sandbox| sandbox.connections.close(number)).await
    }

    /// Waits for events after this sequence number.
    ///
    /// # Errors
    /// [`Error::ShuttingDown`].
    pub async fn events(&self, after: u64) -> Result<Vec<(u64, Event)>> {
        loop {
            let (events, mut newest) = self
                .call(move |sandbox| Ok((sandbox.events.after(after), sandbox.events.subscribe())))
                .await?;
            if !events.is_empty() {
                return Ok(events);
            }
            newest.changed().await.map_err(|_| Error::ShuttingDown)?;
        }
    }
}

/// Does something in a task of its own, so that it is completed even if the caller gives up.
pub(super) async fn completed<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.map_err(|_| Error::ShuttingDown)?
}

/// Waits for what was sent SIGKILL.
async fn killed(ends: Vec<Exited>) -> Result<()> {
    let limit = patient(KILL_DEADLINE);
    timeout(limit, join_all(ends.into_iter().map(reaper::ended)))
        .await
        .map(drop)
        .map_err(|_| Error::Late("the end of a killed process".to_owned(), limit))
}

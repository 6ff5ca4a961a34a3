//! The server: its life from the listening socket that it is given to its end, when nothing is left of it.

use std::env;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use runtime::SandboxId;
use runtime::error::story;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};
use slog::{Logger, info, o, warn};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::timeout;
use ttrpc::asynchronous::Server;
use ttrpc::asynchronous::transport::Listener;

use crate::arguments::Arguments;
use crate::connections::{self, Connections};
use crate::deadlines;
use crate::events::{Events, Transport};
use crate::log::{self, Verbosity};
use crate::pod::{Occupancy, Pod, Setting};
use crate::sandboxes::Sandboxes;
use crate::service::Service;
use crate::socket::SocketFile;
use crate::stats::Form;

/// Names under which the task API is served: that of containerd up to 1.7, and the one since. On the wire they are the
/// same.
const V2: &str = "containerd.task.v2.Task";
const V3: &str = "containerd.task.v3.Task";

/// Connections that wait to be accepted; as many as std asks for.
const BACKLOG: i32 = 128;

/// Threads that file systems may hold up at once. Each container needs one for moments, and each stream that goes into a
/// file; one that a dead server keeps is lost.
const MOST_THREADS: usize = 32;

/// What `start` says when its caller has the address.
pub const HANDED_OVER: &[u8] = b".";

/// Serves until there is nothing more to serve.
///
/// # Errors
/// There is no socket to serve on, or the system refuses what a server needs.
pub fn serve(arguments: &Arguments) -> Result<()> {
    let listener = take_listener()?;
    let handover = take_handover()?;
    // A session of its own: what ends containerd's does not end us. Refused if it is so already.
    let _ = setsid();
    raise_limit();
    let verbosity = Verbosity::default();
    if arguments.debug {
        verbosity.debug();
    }
    let pipe = log::open(Path::new(".")).context("cannot open the log")?;
    let log = log::logger(pipe, verbosity.clone());
    let served = run(arguments, listener, handover, verbosity, &log);
    if let Err(error) = &served {
        warn!(log, "the server failed"; "error" => story(&**error));
    }
    served
}

fn run(
    arguments: &Arguments,
    listener: UnixListener,
    handover: Option<OwnedFd>,
    verbosity: Verbosity,
    log: &Logger,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        // For what a file system may hold up. They are there while that goes on, whatever the number of containers.
        .max_blocking_threads(MOST_THREADS)
        .thread_keep_alive(deadlines::IDLE_THREAD)
        .build()
        .context("cannot start the event loop")?;
    let served = runtime.block_on(async {
        let life = Life::begin(arguments, listener, verbosity, log.clone()).await?;
        life.run(handover).await
    });
    // One that a dead file system holds does not hold us.
    runtime.shutdown_background();
    served
}

/// The listening socket is the standard input: so it gets here without a line of unsafe code.
fn take_listener() -> Result<UnixListener> {
    let stdin = std::io::stdin();
    if !socket_acceptconn(&stdin).unwrap_or(false) {
        bail!(
            "the standard input is not a listening socket: this program is started by containerd or CRI-O \
             (runtime type io.containerd.kata.v2); see -h"
        );
    }
    let listener: OwnedFd = fcntl_dupfd_cloexec(&stdin, 3).context("cannot keep the socket")?;
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot replace the standard input")?;
    // Once more, so that who connects sees our pid, and not that of the process that started us.
    rustix::net::listen(&listener, BACKLOG).context("cannot listen")?;
    Ok(listener.into())
}

/// The end of the pipe by which `start` says that it has handed us over; if it has made one.
fn take_handover() -> Result<Option<OwnedFd>> {
    let stdout = std::io::stdout();
    let status = rustix::fs::fstat(&stdout).context("cannot look at the standard output")?;
    if rustix::fs::FileType::from_raw_mode(status.st_mode) != rustix::fs::FileType::Fifo {
        return Ok(None);
    }
    let pipe = fcntl_dupfd_cloexec(&stdout, 3).context("cannot keep the pipe")?;
    let null = File::options()
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdout(&null).context("cannot replace the standard output")?;
    Ok(Some(pipe))
}

/// Returns if `start` has ended without having handed us over: nobody knows of us.
async fn abandoned(handover: Option<OwnedFd>) {
    let pipe = handover.and_then(|pipe| pipe::Receiver::from_owned_fd(pipe).ok());
    if let Some(mut pipe) = pipe {
        let mut said = [0; HANDED_OVER.len()];
        if pipe.read_exact(&mut said).await.is_err() {
            return;
        }
    }
    std::future::pending().await
}

/// Every process of a container needs a few descriptors, and the usual limit is low.
fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Up to the hard limit everybody may.
    let _ = setrlimit(Resource::Nofile, raised);
}

/// A server that runs.
struct Life {
    pod: Arc<Pod>,
    events: Events,
    socket: SocketFile,
    server: Server,
    connections: Connections,
    leave: watch::Receiver<bool>,
    left: watch::Sender<bool>,
    log: Logger,
}

impl Life {
    async fn begin(
        arguments: &Arguments,
        listener: UnixListener,
        verbosity: Verbosity,
        program_log: Logger,
    ) -> Result<Self> {
        let log = program_log.new(o!("sandbox" => arguments.id.clone()));
        let socket = SocketFile::of(&listener).context("cannot find the socket's file")?;
        let transport = Transport::choose(
            &env::var("TTRPC_ADDRESS").unwrap_or_default(),
            &arguments.address,
            &arguments.publish_binary,
        );
        let events = Events::start(&arguments.namespace, transport, log.clone());
        let pod = Pod::new(Setting {
            sandbox: SandboxId::new(&arguments.id)?,
            namespace: SandboxId::new(&arguments.namespace)?,
            configuration: env::var_os("KATA_CONF_FILE")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            events: events.clone(),
            verbosity,
            program_log,
            log: log.clone(),
        });
        let (leave_sender, leave) = watch::channel(false);
        let (left, left_receiver) = watch::channel(false);
        let service = Arc::new(Service {
            pod: Arc::clone(&pod),
            form: Form::of_host(),
            leave: leave_sender,
            left: left_receiver,
            log: log.clone(),
        });
        let mut services = create_task(service.clone());
        if let Some(same) = create_task(service.clone()).remove(V3) {
            services.insert(V2.to_owned(), same);
        }
        services.extend(create_sandbox(Arc::new(Sandboxes(service))));
        listener
            .set_nonblocking(true)
            .context("cannot prepare the socket")?;
        let listener = tokio::net::UnixListener::from_std(listener).context("cannot watch the socket")?;
        let (accepted, connections) = connections::accept(listener);
        let mut server = Server::new()
            .register_service(services)
            .add_listener(Listener::new(accepted));
        server.start().await.context("cannot serve")?;
        info!(log, "serving"; "pid" => std::process::id(), "version" => env!("CARGO_PKG_VERSION"));
        Ok(Self {
            pod,
            events,
            socket,
            server,
            connections,
            leave,
            left,
            log,
        })
    }

    async fn run(mut self, handover: Option<OwnedFd>) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
        let why = tokio::select! {
            _ = self.leave.wait_for(|leave| *leave) => "no container is left",
            () = idle(self.pod.occupancy()) => "nobody has a container for us",
            () = abandoned(handover) => {
                // Before anybody finds it.
                self.socket.remove();
                "whoever started us was killed before it could say where we are"
            }
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        info!(self.log, "ending"; "because" => why);
        let is_asked = *self.leave.borrow();
        self.end(is_asked).await;
        Ok(())
    }

    /// Lets go of everything, in an order in which nobody is told what is not so yet.
    async fn end(mut self, is_asked: bool) {
        if timeout(deadlines::RELEASE, self.pod.close()).await.is_err() {
            warn!(
                self.log,
                "not everything is released; it is left to the delete action"
            );
        }
        if timeout(deadlines::FLUSH, self.events.flush()).await.is_err() {
            warn!(self.log, "not every event is delivered");
        }
        // Once it is gone a successor may take its place.
        self.socket.remove();
        self.left.send_replace(true);
        self.server.stop_listen().await;
        if is_asked {
            // containerd's client takes one or the other where an answer and the end of its connection come together, and
            // then says "ttrpc: closed": whoever has asked is left to close it.
            let _ = timeout(deadlines::ANSWER_TAKEN, self.connections.closed()).await;
        }
        let closed = async {
            if let Err(error) = self.server.shutdown().await {
                warn!(self.log, "the server does not end"; "error" => %error);
            }
            self.connections.closed().await;
        };
        // A client that keeps its connection does not keep us.
        let _ = timeout(deadlines::DISCONNECT, closed).await;
        // Each has its own deadlines.
        self.pod.loggers_end().await;
    }
}

/// Returns when nothing has been held for too long.
async fn idle(mut occupancy: watch::Receiver<Occupancy>) {
    loop {
        let limit = match *occupancy.borrow_and_update() {
            Occupancy::Occupied => None,
            Occupancy::Fresh => Some(deadlines::FIRST_CREATE),
            Occupancy::Vacant => Some(deadlines::VACANT),
        };
        let changed = occupancy.changed();
        match limit {
            // The sender lives as long as the pod.
            None => drop(changed.await),
            Some(limit) => {
                if timeout(limit, changed).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn a_server_without_purpose_does_not_stay() {
        let occupancy = watch::Sender::new(Occupancy::Fresh);
        let begun = Instant::now();
        idle(occupancy.subscribe()).await;
        assert_eq!(begun.elapsed().as_secs(), deadlines::FIRST_CREATE.as_secs());

        let occupancy = watch::Sender::new(Occupancy::Occupied);
        let waiting = idle(occupancy.subscribe());
        tokio::pin!(waiting);
        let long = deadlines::FIRST_CREATE * 100;
        assert!(
            timeout(long, &mut waiting).await.is_err(),
            "a container is served as long as it is there"
        );
        occupancy.send_replace(Occupancy::Vacant);
        let begun = Instant::now();
        waiting.await;
        assert_eq!(begun.elapsed().as_secs(), deadlines::VACANT.as_secs());
    }
}

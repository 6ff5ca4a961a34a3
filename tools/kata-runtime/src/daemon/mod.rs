//! The daemon of one sandbox: it owns the sandbox and its containers, and answers what the commands ask about them. It ends with the
//! last container, or when the first one does not come about.
//!
//! It is this program again, started by `create`, with the listening socket as its standard input.

mod attend;
mod cgroup;
mod line;
mod pod;
mod stats;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail};
use runtime::SandboxId;
use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::socket_acceptconn;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit, setsid};
use slog::{Drain, Logger, debug, info, o, warn};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub use cgroup::remove as remove_cgroups;

use crate::deadlines;
use crate::place::Root;
use crate::wire::{Answer, Ask, Call};
use pod::{Occupancy, Order, Pod};

/// Serve a sandbox. For this program itself.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Id of the sandbox.
    sandbox: String,
}

/// Serves until there is nothing more to serve.
///
/// # Errors
/// It cannot begin.
pub fn run(args: &Args, root: Root, debug: bool) -> Result<ExitCode> {
    let sandbox = SandboxId::new(&args.sandbox)?;
    let listener = take_listener()?;
    detach();
    let log = logger(debug);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let served = runtime.block_on(async {
        let pod = Pod::new(root, sandbox, log.clone())?;
        serve(pod, listener, &log).await
    });
    if let Err(error) = &served {
        warn!(log, "the daemon failed"; "error" => format!("{error:#}"));
    }
    served.map(|()| ExitCode::SUCCESS)
}

/// The listening socket is the standard input: so it gets here without a line of unsafe code.
///
/// # Errors
/// It is none.
pub fn take_listener() -> Result<UnixListener> {
    let stdin = std::io::stdin();
    if !socket_acceptconn(&stdin).unwrap_or(false) {
        bail!(
            "the standard input is not a listening socket: this command is for `kata-runtime` itself to use"
        );
    }
    let listener: OwnedFd = fcntl_dupfd_cloexec(&stdin, 3).context("cannot keep the socket")?;
    let null = File::open("/dev/null").context("cannot open /dev/null")?;
    rustix::stdio::dup2_stdin(&null).context("cannot replace the standard input")?;
    Ok(listener.into())
}

/// Leaves whoever has started this program.
pub fn detach() {
    // A session of its own: what ends the caller's does not end us. Refused if it is so already.
    let _ = setsid();
    raise_limit();
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

/// A logger. Records are lines of JSON on the standard error output, which is a file beside the socket.
pub fn logger(debug: bool) -> Logger {
    let level = if debug {
        slog::Level::Debug
    } else {
        slog::Level::Info
    };
    let json = slog_json::Json::new(std::io::stderr()).add_default_keys().build();
    // Poisoned only by a panic, which ends the program.
    let drain = Mutex::new(json).ignore_res();
    Logger::root(
        drain.filter_level(level).ignore_res(),
        o!("name" => "kata-runtime"),
    )
}

async fn serve(pod: Arc<Pod>, listener: UnixListener, log: &Logger) -> Result<()> {
    listener
        .set_nonblocking(true)
        .context("cannot prepare the socket")?;
    let listener = tokio::net::UnixListener::from_std(listener).context("cannot watch the socket")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch SIGINT")?;
    info!(log, "serving"; "pid" => std::process::id(), "version" => env!("CARGO_PKG_VERSION"));
    let mut talks = JoinSet::new();
    let mut occupancy = pod.occupancy();
    let why = loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(talks.spawn(talk(Arc::clone(&pod), stream, log.clone()))),
                // Its client has gone, or there are too many descriptors; others may come.
                Err(error) => warn!(log, "a connection is lost"; "error" => %error),
            },
            () = vacant(&mut occupancy) => break "no container is left",
            _ = terminate.recv() => break "SIGTERM",
            _ = interrupt.recv() => break "SIGINT",
        }
        while talks.try_join_next().is_some() {}
    };
    info!(log, "ending"; "because" => why);
    pod.close().await;
    let farewell = async { while talks.join_next().await.is_some() {} };
    if timeout(deadlines::FAREWELL, farewell).await.is_err() {
        warn!(log, "not every answer is delivered");
    }
    Ok(())
}

/// Returns when there is nothing to serve any more, or has been nothing for too long.
async fn vacant(occupancy: &mut watch::Receiver<Occupancy>) {
    loop {
        let now = *occupancy.borrow_and_update();
        let changed = occupancy.changed();
        match now {
            Occupancy::Vacant => return,
            Occupancy::Fresh => {
                if timeout(deadlines::FIRST_CREATE, changed).await.is_err() {
                    return;
                }
            }
            // The sender lives as long as the pod.
            Occupancy::Occupied => drop(changed.await),
        }
    }
}

/// One question and its answer.
async fn talk(pod: Arc<Pod>, stream: UnixStream, log: Logger) {
    let (call, fds) = match timeout(deadlines::QUESTION, line::receive(&stream)).await {
        Ok(Ok(received)) => received,
        // Somebody has looked whether we live.
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => return,
        Ok(Err(error)) => return warn!(log, "a question is not understood"; "error" => %error),
        Err(_) => return warn!(log, "a connection brings no question"),
    };
    let (id, what) = (
        call.id.clone(),
        format!("{:?}", std::mem::discriminant(&call.ask)),
    );
    debug!(log, "asked"; "container" => &id, "what" => &what);
    let answer = match carry_out(pod, call, fds, &stream).await {
        Ok(answer) => answer,
        Err(error) => {
            info!(log, "refused"; "container" => id, "kind" => ?error.kind, "error" => error.chain());
            Answer::Failed {
                kind: error.kind.into(),
                text: error.chain(),
            }
        }
    };
    if let Err(error) = line::send(&stream, &answer).await {
        debug!(log, "nobody takes an answer"; "error" => %error);
    }
}

async fn carry_out(
    pod: Arc<Pod>,
    call: Call,
    fds: Vec<OwnedFd>,
    stream: &UnixStream,
) -> runtime::error::Result<Answer> {
    let id = runtime::ContainerId::new(call.id)?;
    let done = |()| Answer::Done;
    match call.ask {
        Ask::Create {
            bundle,
            config,
            process,
        } => {
            let order = Order {
                id,
                bundle,
                config,
                process,
                fds,
            };
            pod.create(order, runtime::line::hung_up(stream)).await.map(done)
        }
        Ask::Start => pod.start(&id).await.map(done),
        Ask::State => pod.shown(&id).await.map(Answer::State),
        Ask::Kill { signal, all } => pod.kill(&id, signal, all).await.map(done),
        Ask::Delete { force } => pod.delete(&id, force).await.map(done),
        Ask::Exec { spec, process } => pod.exec(&id, spec, process, fds).await.map(done),
        Ask::Processes => Ok(Answer::Processes(pod.container(&id)?.pids().await?)),
        Ask::Standins => Ok(Answer::Processes(pod.standins(&id).await?)),
        Ask::Pause => pod.container(&id)?.pause().await.map(done),
        Ask::Resume => pod.container(&id)?.resume().await.map(done),
        Ask::Update { resources } => {
            let resources = runtime::oci::resources(resources.to_string().as_bytes())?;
            pod.container(&id)?.update(&resources).await.map(done)
        }
        Ask::Stats => {
            let stats = pod.container(&id)?.stats().await?;
            Ok(Answer::Stats(stats::event(id.as_str(), &stats)))
        }
    }
}

/// Whether this descriptor leads nowhere; then nothing has to be moved through it.
fn is_null(fd: impl AsFd) -> bool {
    // Major and minor number of /dev/null.
    rustix::fs::fstat(fd).is_ok_and(|stat| {
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::CharacterDevice
            && stat.st_rdev == rustix::fs::makedev(1, 3)
    })
}

/// Path of the log of a sandbox's daemon. No socket has a name like this.
pub fn log_path(root: &Root, sandbox: &SandboxId) -> PathBuf {
    root.socket(sandbox).with_file_name(format!(".{sandbox}.log"))
}

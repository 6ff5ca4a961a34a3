//! The `delete` action: removes what is left of a container, in whatever state its sandbox and its server are.
//!
//! It is run after every end of a container, regular or not, once for each container of a pod, and at the start of a
//! daemon that finds a bundle whose server it cannot reach; the bundle may have lost any of its files. While the server
//! lives, its other containers are left alone.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context, Result, bail};
use configuration::{Accelerator, Config};
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::sandbox_api::ShutdownSandboxRequest;
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use hypervisor::Hypervisor;
use protobuf::Message;
use runtime::error::story;
use runtime::{Sandbox, SandboxId};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::net::UnixStream;
use tokio::time::timeout;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context;

use crate::arguments::Arguments;
use crate::bundle::{self, Note};
use crate::timestamp::timestamp;
use crate::{deadlines, group, socket, sys};

/// Exit status of a container that had to be removed: 128 + SIGKILL.
const KILLED: u32 = 137;
const SIGKILL: u32 = 9;

/// Most mounts that lie upon each other at the root file system.
const MOST_MOUNTS: usize = 64;

/// What is known of the container.
struct Target {
    id: SandboxId,
    namespace: SandboxId,
    bundle: PathBuf,
    sandbox: SandboxId,
    note: Option<Note>,
    socket: PathBuf,
}

impl Target {
    fn new(arguments: &Arguments) -> Result<Self> {
        let id = SandboxId::new(&arguments.id).context("-id")?;
        let namespace = SandboxId::new(&arguments.namespace).context("-namespace")?;
        let bundle = match &arguments.bundle {
            Some(bundle) => bundle.clone(),
            None => env::current_dir().unwrap_or_default(),
        };
        let note = bundle::read_note(&bundle);
        let sandbox = match &note {
            Some(note) => SandboxId::new(&note.sandbox).context("the note in the bundle")?,
            // Without either it is taken for the first one of its sandbox.
            None => group::of_bundle(&bundle, &id).unwrap_or_else(|_| id.clone()),
        };
        let socket = match bundle::read_address(&bundle).and_then(|address| socket::path_of(&address)) {
            Some(path) => path,
            None => socket::path(None, &arguments.address, namespace.as_str(), sandbox.as_str())?,
        };
        Ok(Self {
            id,
            namespace,
            bundle,
            sandbox,
            note,
            socket,
        })
    }
}

/// Carries out the action. What containerd reads on the standard output is the end of the container.
///
/// # Errors
/// Something may be left; the text says what.
pub fn delete(arguments: &Arguments) -> Result<()> {
    let target = Target::new(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the event loop")?;
    let removed = runtime.block_on(async {
        let late = || {
            format!(
                "container {} is not removed within {:?}",
                target.id,
                deadlines::DELETE
            )
        };
        timeout(deadlines::DELETE, remove(&target))
            .await
            .with_context(late)?
    });
    // Whatever came of that: containerd removes the bundle next, and with it what is still mounted there.
    removed.and(unmount_all(&target.bundle.join("rootfs")))?;
    let response = DeleteResponse {
        pid: target.note.and_then(|note| note.pid).unwrap_or(0),
        exit_status: KILLED,
        exited_at: Some(timestamp(SystemTime::now())).into(),
        ..Default::default()
    };
    let mut out = io::stdout();
    let bytes = response.write_to_bytes().context("cannot encode the answer")?;
    out.write_all(&bytes)
        .and_then(|()| out.flush())
        .context("cannot print the answer")
}

async fn remove(target: &Target) -> Result<()> {
    let live = socket::is_live(&target.socket).with_context(|| {
        format!(
            "cannot know whether a shim listens at {}",
            target.socket.display()
        )
    })?;
    if live {
        match timeout(deadlines::GIVE_UP, give_up(target)).await {
            Ok(Ok(())) => return Ok(()),
            // It was about to end.
            Ok(Err(error)) if socket::is_lost(&error) => {}
            Ok(Err(error)) => {
                return Err(error).with_context(|| format!("container {} is not removed", target.id));
            }
            Err(_) if target.id == target.sandbox => kill_server(&target.socket).await?,
            Err(_) => bail!(
                "container {} is not removed: the shim of its sandbox {} does not answer at {}",
                target.id,
                target.sandbox,
                target.socket.display()
            ),
        }
    }
    clean_up(target).await
}

/// Has the living server give up this container, and end if it was the last one.
async fn give_up(target: &Target) -> ttrpc::Result<()> {
    let closed = |error: io::Error| ttrpc::Error::Socket(error.to_string());
    // Not ttrpc's own way to connect, which may block.
    let stream = UnixStream::connect(&target.socket).await.map_err(closed)?;
    let client = Client::new(Socket::from(stream));
    let id = target.id.to_string();
    let context = || context::with_duration(deadlines::GIVE_UP);
    if target.id == target.sandbox {
        let shutdown = ShutdownSandboxRequest {
            sandbox_id: id.clone(),
            ..Default::default()
        };
        let sandboxes = SandboxClient::new(client.clone());
        // Longer than we are given: that it does not answer at all is seen there.
        let context = context::with_duration(deadlines::DELETE);
        match sandboxes.shutdown_sandbox(context, &shutdown).await {
            // A container stands for it, mostly.
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => {}
            answer => return answer.map(drop),
        }
    }
    let client = TaskClient::new(client);
    let kill = KillRequest {
        id: id.clone(),
        signal: SIGKILL,
        all: true,
        ..Default::default()
    };
    // It may not exist, or have ended.
    if client.kill(context(), &kill).await.is_ok() {
        let wait = WaitRequest {
            id: id.clone(),
            ..Default::default()
        };
        client.wait(context(), &wait).await?;
    }
    let delete = DeleteRequest {
        id: id.clone(),
        ..Default::default()
    };
    let shutdown = ShutdownRequest {
        id,
        ..Default::default()
    };
    match client.delete(context(), &delete).await {
        Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => {}
        answer => drop(answer?),
    }
    client.shutdown(context(), &shutdown).await.map(drop)
}

/// Kills a server that does not answer. Its virtual machine dies with it.
async fn kill_server(path: &Path) -> Result<()> {
    let doing = || format!("cannot kill the shim that does not answer at {}", path.display());
    let server = socket::connect(path).with_context(doing)?;
    // Whoever has called listen() last, which is the server itself.
    let pid = socket_peercred(&server).with_context(doing)?.pid;
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).with_context(doing)?;
    pidfd_send_signal(&pidfd, Signal::KILL).with_context(doing)?;
    let ended = sys::watch(pidfd).with_context(doing)?;
    ended.readable().await.map(drop).with_context(doing)
}

/// Removes what the dead server of a sandbox has left, whichever of its containers this is.
async fn clean_up(target: &Target) -> Result<()> {
    let (config, hypervisor) = parts(target.note.as_ref())?;
    Sandbox::clean_up_dead(&config, &*hypervisor, &target.namespace, &target.sandbox).await?;
    // Nobody listens; a socket without a server is only in the way.
    match fs::remove_file(&target.socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", target.socket.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The configuration that the sandbox was created with, as far as a clean-up needs it: where its directory is. It may have
/// been changed or broken since; then the built-in one does.
fn parts(note: Option<&Note>) -> Result<(Config, Arc<dyn Hypervisor>)> {
    let named = note.and_then(|note| note.configuration.as_deref());
    let environment = env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    let usable = |mut config: Config| {
        if let Some(run_dir) = note.and_then(|note| note.run_dir.clone()) {
            config.runtime.run_dir = run_dir;
        }
        // Nothing is started: no need to find out what could be.
        config.hypervisor.accelerator = Accelerator::Tcg;
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let hypervisor = hypervisor::registry::driver(&config.hypervisor, &config.runtime.run_dir, log)?;
        anyhow::Ok((config, hypervisor))
    };
    let loaded = Config::load(named, environment.as_deref());
    match loaded.map_err(anyhow::Error::from).and_then(usable) {
        Ok(parts) => Ok(parts),
        Err(error) => {
            // containerd logs it as a warning.
            eprintln!(
                "containerd-shim-kata-v2: cleaning up with built-in settings: {}",
                story(&*error)
            );
            usable(Config::defaults()?)
        }
    }
}

/// Takes away every mount at a path.
fn unmount_all(path: &Path) -> Result<()> {
    for _ in 0..MOST_MOUNTS {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount, or not there.
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot unmount {}", path.display())),
        }
    }
    bail!("{} has more than {MOST_MOUNTS} mounts", path.display())
}

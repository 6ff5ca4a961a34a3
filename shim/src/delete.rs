//! The `delete` action: removes what is left of a container, in whatever state its sandbox and its server are.
//!
//! It is run after every end of a container, regular or not, once for each container of a pod, and at the start of a
//! daemon that finds a bundle whose server it cannot reach; the bundle may have lost any of its files. While the server
//! lives, its other containers are left alone.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use configuration::Config;
use containerd_shim_protos::api::{DeleteRequest, DeleteResponse, KillRequest, ShutdownRequest, WaitRequest};
use containerd_shim_protos::shim_async::{Client, TaskClient};
use protobuf::Message;
use runtime::{Sandbox, SandboxId};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tokio::time::timeout;
use ttrpc::context;

use crate::arguments::Arguments;
use crate::bundle::{self, Note};
use crate::timestamp::timestamp;
use crate::{deadlines, group, socket};

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
    note: Note,
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
        let note = bundle::read_note(&bundle).unwrap_or_else(|| Note {
            sandbox: group::of_bundle(&bundle, id.as_str()).unwrap_or_else(|_| id.to_string()),
            configuration: None,
        });
        let socket = match bundle::read_address(&bundle).and_then(|address| socket::path_of(&address)) {
            Some(path) => path,
            None => socket::path(None, &arguments.address, namespace.as_str(), &note.sandbox)?,
        };
        Ok(Self {
            id,
            namespace,
            bundle,
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
    runtime.block_on(async {
        timeout(deadlines::DELETE, remove(&target))
            .await
            .with_context(|| {
                format!(
                    "container {} is not removed within {:?}",
                    target.id,
                    deadlines::DELETE
                )
            })?
    })?;
    let response = DeleteResponse {
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
    let removed = if live {
        give_up(target).await
    } else {
        clean_up(target).await
    };
    // Whatever came of that: containerd removes the bundle next, and with it what is still mounted there.
    unmount_all(&target.bundle.join("rootfs"))?;
    removed
}

/// Has the living server give up this container, and end if it was the last one.
async fn give_up(target: &Target) -> Result<()> {
    let asked = async {
        let client = TaskClient::new(Client::connect(&socket::address(&target.socket)).await?);
        let id = target.id.to_string();
        let context = || context::with_duration(deadlines::GIVE_UP);
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
        match client.delete(context(), &delete).await {
            Ok(_) => {}
            Err(ttrpc::Error::RpcStatus(status)) if status.code() == ttrpc::Code::NOT_FOUND => {}
            Err(error) => return Err(error),
        }
        let shutdown = ShutdownRequest {
            id,
            ..Default::default()
        };
        client.shutdown(context(), &shutdown).await.map(drop)
    };
    let answer = timeout(deadlines::GIVE_UP, asked)
        .await
        .with_context(|| format!("the shim at {} does not answer", target.socket.display()))?;
    match answer {
        Ok(()) => Ok(()),
        // It was about to end.
        Err(ttrpc::Error::RemoteClosed | ttrpc::Error::LocalClosed | ttrpc::Error::Socket(_)) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("container {} is not removed", target.id)),
    }
}

/// Removes what the dead server of a sandbox has left, whichever of its containers this is.
async fn clean_up(target: &Target) -> Result<()> {
    let sandbox = SandboxId::new(&target.note.sandbox)?;
    let environment = env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    let config = Config::load(target.note.configuration.as_deref(), environment.as_deref())
        .context("what is left cannot be found without the configuration")?;
    let log = slog::Logger::root(slog::Discard, slog::o!());
    let hypervisor = hypervisor::registry::driver(&config.hypervisor, &config.runtime.run_dir, log)?;
    Sandbox::clean_up_dead(&config, &*hypervisor, &target.namespace, &sandbox).await?;
    // Nobody listens; a socket without a server is only in the way.
    match std::fs::remove_file(&target.socket) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", target.socket.display())),
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
    anyhow::bail!("{} has more than {MOST_MOUNTS} mounts", path.display())
}

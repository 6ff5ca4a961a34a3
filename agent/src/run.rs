//! Runs the agent, as PID 1 of a guest or as an ordinary process, until its end.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agent_protocol::GUEST_DIR;
use nix::sched::{CloneFlags, unshare};
use rustix::fs::statfs;
use rustix::mount::{MountPropagationFlags, mount_change};
use slog::Logger;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use crate::arguments::Arguments;
pub use crate::arguments::USAGE;
use crate::dial::Dialler;
use crate::error::{Error, Result};
use crate::init::{self, power};
use crate::log;
use crate::patience;
use crate::sandbox::{After, Handle, Sandbox, Settings};
use crate::server::Serving;
use crate::storage::{Mounter, Root};
use crate::sys;

/// How long an ordinary process tries to reach a host that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long the host may take to hang up after it had the sandbox destroyed.
const FAREWELL: Duration = Duration::from_secs(1);

/// Runs as PID 1. The end of the agent is the end of the guest.
pub fn guest() -> ! {
    power::off_on_panic();
    sys::keep_freed_memory();
    let served = init::prepare().and_then(|parameters| {
        patience::multiply(parameters.patience);
        let mounter = Mounter::new(Root::open(Path::new(GUEST_DIR))?, Default::default());
        let settings = Settings {
            mounter,
            cgroup_root: PathBuf::from(init::CGROUP_ROOT),
            owns_kernel: true,
            owns_network: true,
        };
        serve(
            settings,
            Dialler::new(parameters.channel, None),
            log::logger(parameters.level),
        )
    });
    match served {
        Ok(()) => power::off(&"nothing is left to do"),
        Err(error) => power::off(&error),
    }
}

/// Runs as an ordinary process, with the arguments after the program's name.
///
/// It has a mount namespace of its own, so that its mounts end with it, but sees what the host mounts later.
///
/// # Errors
/// Wrong arguments, or why it can't serve.
pub fn process(arguments: impl IntoIterator<Item = OsString>) -> Result<()> {
    let arguments = Arguments::parse(arguments)?;
    let cgroup_root = match arguments.cgroup_root {
        Some(dir) => dir,
        None => cgroup2_mount()?,
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(Error::system("unshare the mount namespace (is this root?)"))?;
    mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .map_err(Error::file("make mounts private of", "/"))?;
    if arguments.owns_network {
        init::loopback_up()?;
    }
    let mounter = Mounter::new(Root::open(&arguments.root)?, arguments.shares);
    let settings = Settings {
        mounter,
        cgroup_root,
        owns_kernel: false,
        owns_network: arguments.owns_network,
    };
    serve(
        settings,
        Dialler::new(arguments.channel, Some(PATIENCE)),
        log::logger(log::DEFAULT_LEVEL),
    )
}

/// Where hosts mount the cgroup hierarchy (version 2): alone, or beside version 1.
fn cgroup2_mount() -> Result<PathBuf> {
    /// linux/magic.h
    const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .find(|dir| statfs(*dir).is_ok_and(|fs| fs.f_type == CGROUP2_SUPER_MAGIC))
        .map(PathBuf::from)
        .ok_or_else(|| Error::Unsupported("a container without cgroups of version 2".to_owned()))
}

fn serve(settings: Settings, dialler: Dialler, log: Logger) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::system("start the runtime"))?;
    runtime.block_on(async {
        let owns_kernel = settings.owns_kernel;
        let (sandbox, jobs) = Sandbox::new(settings, log.clone())?;
        let handle = sandbox.handle();
        let mut serving = Serving::start(handle.clone(), dialler, log).await?;
        let end = async {
            let result = if owns_kernel {
                Err(serving.failed().await)
            } else {
                dismissed(&handle, &mut serving).await
            };
            // Whatever still runs has nobody any more. A second destruction finds nothing to do.
            let cleared = handle.destroy(Duration::ZERO, After::Nothing).await;
            result.and(cleared)
        };
        tokio::select! {
            result = sandbox.run(jobs) => result,
            result = end => result,
        }
    })
}

/// Waits until an ordinary process has nothing left to do: its sandbox is destroyed, it is told to end, or its host is
/// gone.
async fn dismissed(handle: &Handle, serving: &mut Serving) -> Result<()> {
    let mut told = signal(SignalKind::terminate()).map_err(Error::system("handle SIGTERM"))?;
    tokio::select! {
        error = serving.failed() => return Err(error),
        _ = told.recv() => return Ok(()),
        () = handle.destroyed() => {}
    }
    // The answer that says so is still on its way.
    let farewell = async {
        tokio::select! {
            () = serving.hung_up() => {}
            _ = told.recv() => {}
        }
    };
    // A host that neither hangs up nor tells us to end has the answer by now.
    let _ = timeout(FAREWELL, farewell).await;
    Ok(())
}

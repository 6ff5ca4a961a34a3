//! `create`: a container whose process waits to be started.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use runtime::{ContainerId, SandboxId, oci};

use super::{Context, neighbour};
use crate::bundle;
use crate::launch::{self, Draft, Guise, Streams};
use crate::place::{self, Record};
use crate::wire::Ask;

/// Create a container: its process is held back until `start`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub how: How,
}

/// How a container is created, by `create` and by `run`.
#[derive(Debug, clap::Args)]
pub struct How {
    /// Directory of the container: config.json and, usually, its root file system.
    #[arg(short, long, default_value = ".")]
    pub bundle: PathBuf,
    /// Unix socket that gets the container's terminal.
    #[arg(long, value_name = "SOCKET")]
    pub console_socket: Option<PathBuf>,
    /// File for the pid of the process that stands for the container.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// So many descriptors, 3 and following, are the container's as well: pipes, connected sockets, terminals and files as streams.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Accepted: a root file system in a virtual machine needs no pivot_root on the host.
    #[arg(long)]
    pub no_pivot: bool,
    /// Accepted: the guest's kernel has keyrings of its own.
    #[arg(long)]
    pub no_new_keyring: bool,
    /// Name of the container.
    pub id: String,
}

/// A container that is about to be, checked as far as can be without a sandbox.
pub struct Plan {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// Absolute path of its bundle.
    pub bundle: PathBuf,
    /// It gets a terminal.
    pub terminal: bool,
    /// What its stand-in looks like.
    pub guise: Guise,
    record: Record,
}

/// Creates one.
///
/// # Errors
/// Nothing is left then.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode> {
    let plan = Plan::new(&args.how, context)?;
    let streams = |plan: &Plan| match (&args.how.console_socket, plan.terminal) {
        (Some(socket), true) => Streams::console(socket),
        (None, false) => Streams::own(false),
        (None, true) => {
            bail!("the container has a terminal (process.terminal): --console-socket must say who gets it")
        }
        (Some(_), false) => bail!("--console-socket is for a container with a terminal (process.terminal)"),
    };
    launch::keep_descriptors()?;
    plan.create(context, &args.how, |plan| {
        Draft::detached(streams(plan)?, &plan.guise)
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Plan {
    /// Reads the bundle.
    ///
    /// # Errors
    /// It cannot be a container.
    pub fn new(how: &How, context: &Context) -> Result<Self> {
        let id = ContainerId::new(how.id.as_str())?;
        let bundle = how.bundle.canonicalize().with_context(|| {
            format!(
                "container {id}: the bundle {} cannot be used",
                how.bundle.display()
            )
        })?;
        let spec = oci::load(&bundle::config(&bundle)?)
            .with_context(|| format!("container {id}: bundle {}", bundle.display()))?;
        let annotations = bundle::annotations(&bundle)?;
        let own = SandboxId::new(id.as_str())?;
        let neighbour = || neighbour::sandbox(&spec, context);
        let sandbox = match oci::sandbox_id(&annotations)? {
            None => neighbour()?.unwrap_or(own),
            Some(sandbox) if !is_only_a_name(&sandbox, &annotations, context)? => sandbox,
            Some(sandbox) => match neighbour()? {
                Some(neighbour) => neighbour,
                // It joins the container that holds it together, and that is not there.
                None if neighbour::joins(&spec) => sandbox,
                None => own,
            },
        };
        let config = match &context.config {
            Some(config) => Some(
                std::path::absolute(config)
                    .with_context(|| format!("--config {} is not usable", config.display()))?,
            ),
            None => None,
        };
        let guise = Guise {
            arguments: spec
                .process()
                .as_ref()
                .and_then(|process| process.args().clone())
                .unwrap_or_default(),
            root: spec.root().as_ref().map(|root| bundle.join(root.path())),
        };
        Ok(Self {
            guise,
            terminal: spec
                .process()
                .as_ref()
                .and_then(|process| process.terminal())
                .unwrap_or(false),
            record: Record {
                id: id.to_string(),
                sandbox: sandbox.to_string(),
                bundle: bundle.clone(),
                config,
                run_dir: None,
                pid: 0,
                created: humantime::format_rfc3339_nanos(SystemTime::now()).to_string(),
                annotations,
                cgroups: Vec::new(),
            },
            id,
            sandbox,
            bundle,
        })
    }

    /// Creates the container, and the sandbox if it is the first one.
    ///
    /// # Errors
    /// Nothing is left then.
    pub fn create(
        &self,
        context: &Context,
        how: &How,
        draft: impl FnOnce(&Self) -> Result<Draft>,
    ) -> Result<()> {
        context.root.reserve(&self.id, &self.record)?;
        let made = self.make(context, draft).and_then(|pid| match &how.pid_file {
            Some(path) => write_pid(path, pid).inspect_err(|_| {
                let force = Ask::Delete { force: true };
                // The first error is the one to tell.
                let _ = context.ask(self.id.as_str(), force);
            }),
            None => Ok(()),
        });
        made.inspect_err(|_| {
            // The daemon may have done it.
            let _ = context.root.forget(&self.id);
        })
    }

    fn make(&self, context: &Context, draft: impl FnOnce(&Self) -> Result<Draft>) -> Result<u32> {
        let daemon = self.daemon(context)?;
        let draft = draft(self)?.carrying(context.descriptors.take())?;
        let pid = draft.pid();
        draft.submit(&daemon, self.id.as_str(), |process| Ask::Create {
            bundle: self.bundle.clone(),
            config: self.record.config.clone(),
            process,
        })?;
        Ok(pid)
    }

    /// The sandbox's daemon, which is started for the first container.
    fn daemon(&self, context: &Context) -> Result<UnixStream> {
        let own = self.sandbox.as_str() == self.id.as_str();
        if own {
            launch::daemon(&context.root, &self.sandbox, context.debug)?;
        }
        context.root.connect(&self.sandbox)?.with_context(|| {
            format!(
                "container {} belongs to sandbox {}, which does not exist in {}: create its first container first",
                self.id,
                self.sandbox,
                context.root.path().display()
            )
        })
    }
}

/// Whether a pod is podman's, without a container that holds it together (`--infra=false`): its members share nothing but the pod's
/// name, so each has a virtual machine of its own.
fn is_only_a_name(sandbox: &SandboxId, annotations: &oci::Annotations, context: &Context) -> Result<bool> {
    const MANAGER: &str = "io.container.manager";
    const PODMAN: &str = "libpod";
    if annotations.get(MANAGER).is_none_or(|manager| manager != PODMAN) {
        return Ok(false);
    }
    let holds = ContainerId::new(sandbox.as_str())?;
    Ok(context.root.read(&holds)?.is_none() && context.root.connect(sandbox)?.is_none())
}

/// Writes the pid of a stand-in.
///
/// # Errors
/// The file cannot be written.
pub fn write_pid(path: &Path, pid: u32) -> Result<()> {
    place::replace(path, pid.to_string().as_bytes()).context("--pid-file")
}

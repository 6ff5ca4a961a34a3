//! Creates a container in the guest and the task that owns it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_client::{Agent, ErrorKind as AgentErrorKind};
use agent_protocol as p;
use oci_spec::runtime::LinuxResources;
use slog::{Logger, o, warn};
use tokio::sync::{mpsc, oneshot, watch};

use super::Container;
use super::process::Process;
use super::state::State;
use super::task::Task;
use crate::ContainerId;
use crate::error::{Error, ErrorKind, Result};
use crate::host::{Hooks, Stage};
use crate::io::Opened;
use crate::sandbox::{Phases, VmEnd};
use crate::trace::Course;

/// Commands that wait for the owner before the next one has to wait for room.
const QUEUE: usize = 8;

/// How long calls to the agent may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// An ordinary one.
    pub(crate) request: Duration,
    /// The creation of a container.
    pub(crate) create: Duration,
}

/// What a container asks of its sandbox.
#[derive(Debug)]
pub(crate) enum Appeal {
    /// A container is about to start: see to it that the guest has the network of its pod.
    Starting {
        /// Answered when it has.
        done: oneshot::Sender<Result<()>>,
    },
    /// A container gets new limits: see to it that the guest has what they allow.
    Growing {
        /// Which.
        id: ContainerId,
        /// What changes.
        change: Box<LinuxResources>,
        /// Answered when it has, or is not going to.
        done: oneshot::Sender<Result<()>>,
    },
    /// The guest has let go of the container: release what the host holds for it, and its id.
    Release {
        /// Which.
        id: ContainerId,
        /// Answered when it is done.
        done: oneshot::Sender<Result<()>>,
    },
    /// The guest does not obey: end its virtual machine, unless others live in it.
    ForceStop {
        /// Whose end does not come.
        container: ContainerId,
        /// What the guest does not do.
        reason: String,
    },
}

/// What a container is made of.
pub(crate) struct Parts {
    pub(crate) id: ContainerId,
    pub(crate) agent: Arc<dyn Agent>,
    /// The request to the agent, but for the streams.
    pub(crate) request: p::CreateContainerRequest,
    pub(crate) streams: Opened,
    pub(crate) timeouts: Timeouts,
    pub(crate) sandbox: mpsc::Sender<Appeal>,
    pub(crate) vm: watch::Receiver<Option<VmEnd>>,
    /// The sandbox has to be asked before a start.
    pub(crate) late: bool,
    /// The sandbox has to be asked before an update.
    pub(crate) grows: bool,
    /// File systems on disks are to be unmounted in the guest, whatever goes with it.
    pub(crate) has_disks: bool,
    pub(crate) phases: Phases,
    /// Its life, which has begun.
    pub(crate) course: Course,
    pub(crate) hooks: Hooks,
    /// Where some of them act.
    pub(crate) stage: Option<Stage>,
    /// What hooks are shown as its process.
    pub(crate) pid: u32,
    pub(crate) log: Logger,
}

/// Tells the host's hooks of it and creates it in the guest. On an error the guest has none of it.
pub(crate) async fn create(mut parts: Parts) -> Result<Container> {
    let begun = Instant::now();
    parts.course.next("create");
    parts
        .hooks
        .creating(parts.pid, parts.stage, &parts.log)
        .await
        .inspect_err(|error| parts.course.fail(error))?;
    parts.request.stdio = Some(parts.streams.wanted(None)).into();
    let id = parts.id;
    let created = parts
        .agent
        .create_container(parts.request, Some(parts.timeouts.create))
        .await;
    let created = match created {
        Ok(answer) => has_all(&answer, parts.streams.more.len()).map_err(|error| (true, error)),
        Err(error) => Err((error.kind == AgentErrorKind::DeadlineExceeded, error.into())),
    };
    if let Err((may_exist, error)) = created {
        if may_exist {
            // It may exist, or come to exist yet.
            let request = p::DeleteContainerRequest {
                container_id: id.to_string(),
                force: true,
                ..Default::default()
            };
            if let Err(error) = parts
                .agent
                .delete_container(request, Some(parts.timeouts.request))
                .await
            {
                warn!(parts.log, "a container that nobody waits for may be left in the guest";
                    "container" => %id, "error" => %error);
            }
        }
        parts.course.fail(&error);
        return Err(error);
    }
    parts.phases.record("create", begun.elapsed());

    let (commands, queue) = mpsc::channel(QUEUE);
    let bundle = parts.hooks.bundle().into();
    let task = Task {
        log: parts.log.new(o!("container" => id.to_string())),
        id: id.clone(),
        agent: parts.agent,
        timeouts: parts.timeouts,
        sandbox: parts.sandbox,
        vm: parts.vm,
        late: parts.late,
        grows: parts.grows,
        has_disks: parts.has_disks,
        phases: parts.phases,
        hooks: parts.hooks,
        pid: parts.pid,
        init: Process::new(State::Created, None, parts.streams, parts.course),
        execs: Default::default(),
        jobs: Default::default(),
        deleted: false,
    };
    tokio::spawn(task.run(queue));
    Ok(Container { id, bundle, commands })
}

/// Checks that a process has the descriptors that were asked for: an older agent knows of none.
pub(super) fn has_all(answer: &p::ProcessResponse, wanted: usize) -> Result<()> {
    match usize::try_from(answer.descriptors) {
        Ok(count) if count == wanted => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the guest's agent gives a process {} of the {wanted} descriptors that it is to have; its image is older than this \
                 runtime",
                answer.descriptors
            ),
        )),
    }
}

//! The start of a sandbox: host, VMM, agent, guest, each step timed. What a failure leaves is released by the caller.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_client::{Agent, ErrorKind as AgentErrorKind, Listener, TtrpcAgent};
use agent_protocol as p;
use configuration::AgentConfig;
use futures::future::BoxFuture;
use hypervisor::{Exit, Size, VmReport};
use slog::{Logger, info, warn};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use super::custody::Custody;
use super::ground::{Acquired, Ground, Look};
use super::growth::{Growth, enlarge};
use super::state::{State, Step};
use super::{Phase, SandboxRequest, VmEnd};
use crate::admin::{About, Door};
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::factory::{Obtained, VmFactory};
use crate::model::GrowthPlan;
use crate::trace::Course;

/// Bytes of randomness for the guest: twice what its generator takes for a seed.
const ENTROPY: usize = 64;

/// Lines of the console that an error quotes.
const QUOTED_LINES: usize = 12;

/// What a sandbox holds, in the order of acquisition; [`Holdings::release`] goes the other way.
pub(super) struct Holdings {
    pub(super) state: State,
    pub(super) ground: Box<dyn Ground>,
    pub(super) vm: Option<Custody>,
    pub(super) agent: Option<Arc<dyn Agent>>,
}

/// A sandbox whose guest is ready.
pub(super) struct Ready {
    pub(super) agent: Arc<dyn Agent>,
    pub(super) vm: Custody,
    pub(super) report: VmReport,
    /// See [`Acquired::localhost`].
    pub(super) localhost: Vec<TcpListener>,
    /// See [`Acquired::late`].
    pub(super) late: Option<Look>,
    /// See [`Acquired::growth`].
    pub(super) growth: Option<Growth>,
    /// See [`Acquired::admin`].
    pub(super) admin: Option<Door>,
    /// What was started.
    pub(super) about: About,
    /// See [`Acquired::lost`].
    pub(super) lost: BoxFuture<'static, String>,
}

impl Holdings {
    pub(super) fn new(ground: Box<dyn Ground>) -> Self {
        Self {
            state: State::Prepared,
            ground,
            vm: None,
            agent: None,
        }
    }

    fn step(&mut self, step: Step) -> Result<()> {
        self.state = self.state.next(step)?;
        Ok(())
    }

    /// Starts everything. Cancel safe: what was acquired is in the holdings.
    pub(super) async fn acquire(
        &mut self,
        factory: &dyn VmFactory,
        config: &AgentConfig,
        clock: &mut Clock,
        log: &Logger,
    ) -> Result<Ready> {
        clock.enter(CLAIM);
        // One that is ready brings its network namespace along.
        let claimed = factory.claim(self.ground.wanted(), log).await;
        if let Some(claimed) = &claimed {
            self.ground.expect(claimed.namespace());
        }
        clock.enter("host");
        let Acquired {
            vm: spec,
            listener,
            guest,
            localhost,
            late: look_again,
            growth,
            template,
            admin,
            mut lost,
        } = self.ground.acquire().await?;
        let mut about = About::of(&spec);
        self.step(Step::HostAcquired)?;
        clock.enter("vmm");

        let wanted = Size {
            vcpus: spec.vcpus,
            memory_mib: spec.memory.size_mib,
        };
        let obtained = match claimed {
            Some(claimed) => factory.take(claimed, spec, template).await,
            None => factory.acquire(spec, template).await,
        };
        let Obtained { vm, size, agent } = match obtained {
            Ok(obtained) => obtained,
            Err(error) => return Err(explained(error, &mut lost).await),
        };
        let report = vm.report();
        let vm = Custody::new(vm);
        self.vm = Some(vm.clone());
        self.ground.keep(vm.record())?;
        self.step(Step::VmStarted)?;
        clock.enter("boot");

        let agent: Arc<dyn Agent> = match agent {
            Some(greeted) => Arc::new(TtrpcAgent::new(greeted)),
            None => {
                let limit = deadlines::dial(config, || factory.emulated());
                greeted(&vm, &listener, limit, &mut lost).await?
            }
        };
        let agent = clock.course.place().watched(&agent);
        self.agent = Some(Arc::clone(&agent));
        clock.enter("agent");

        tokio::select! {
            done = introduce(&*agent, guest, config.request_timeout, log) => match done {
                // When the VMM has ended that is the news, and not that the connection went with it.
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    return Err(timeout(deadlines::EXIT_NEWS, died(&vm)).await.unwrap_or(error));
                }
                done => (about.agent, about.kernel_release) = done?,
            },
            error = died(&vm) => return Err(error),
            reason = &mut lost => return Err(deprived(&vm, reason).await),
        }
        self.step(Step::GuestCreated)?;
        let mut taken = size;
        if size != wanted {
            taken = enlarge(&vm, &*agent, size, wanted, config.request_timeout, log).await?;
        }
        clock.enter("ready");
        clock.tell(&report, &about);
        info!(log, "the sandbox is ready");
        Ok(Ready {
            agent,
            vm,
            report,
            localhost,
            late: look_again,
            growth: growth.map(|plan| {
                Growth::new(
                    GrowthPlan {
                        started: size,
                        ..plan
                    },
                    taken,
                )
            }),
            admin,
            about,
            lost,
        })
    }

    /// Gives everything back: the guest is told, then the VMM is ended, then the host's side goes. A step that fails does
    /// not keep the next from being taken; the first error is the answer.
    pub(super) async fn release(&mut self, course: &mut Course, log: &Logger) -> Result<()> {
        course.next("destroy");
        let runs = self.vm.as_ref().is_some_and(|vm| vm.exited().borrow().is_none());
        if let Some(agent) = self.agent.take().filter(|_| runs) {
            // For the sake of data that the guest has not written back. A guest that does not answer loses it.
            let request = p::DestroySandboxRequest {
                machine_ends: true,
                ..Default::default()
            };
            if let Err(error) = agent.destroy_sandbox(request, Some(deadlines::DESTROY)).await {
                warn!(log, "what the guest has not written back is lost"; "error" => %error);
            }
        }
        course.next("kill");
        let stopped = match self.vm.take() {
            Some(vm) => {
                // Whoever has the guest's memory last gives it back, which takes long: so they all end at once.
                self.ground.forgo();
                vm.stop().await
            }
            None => Ok(()),
        };
        course.next("release");
        let released = self.ground.release().await;
        stopped.and(released)
    }
}

/// The stage in which a machine that is kept ready is asked for. Of the phases it is a part of the VMM's.
const CLAIM: &str = "claim";

/// Measures phases one after the other: one look at the clock ends one and begins the next, and is told to the trace.
pub(crate) struct Clock {
    /// The sandbox's.
    pub(super) course: Course,
    phase: (&'static str, Instant),
    claiming: Duration,
    phases: Vec<Phase>,
}

impl Clock {
    /// Begins with this phase of the sandbox.
    pub(crate) fn begin(request: &SandboxRequest, phase: &'static str) -> Self {
        let now = Instant::now();
        Self {
            course: Course::of_sandbox(request, phase, now),
            phase: (phase, now),
            claiming: Duration::ZERO,
            phases: Vec::new(),
        }
    }

    fn enter(&mut self, phase: &'static str) {
        let now = Instant::now();
        let (name, begun) = std::mem::replace(&mut self.phase, (phase, now));
        self.course.next_at(phase, now);
        match now - begun {
            took if name == CLAIM => self.claiming += took,
            took if name == "vmm" => self.phases.push(Phase {
                name,
                took: took + self.claiming,
            }),
            took => self.phases.push(Phase { name, took }),
        }
    }

    /// What was started.
    fn tell(&self, report: &VmReport, about: &About) {
        self.course.tell("kata.vmm", &report.vmm);
        self.course.tell("kata.machine", &report.machine);
        self.course.tell("kata.accelerator", &report.accelerator);
        self.course.tell("kata.origin", &report.origin);
        self.course.tell("kata.agent", &about.agent);
        self.course.tell("kata.kernel", &about.kernel_release);
    }

    /// It has come to nothing, and that is written.
    pub(super) async fn fail(self, error: Error) -> Error {
        self.course.fail(&error);
        self.course.close().await;
        error
    }

    /// The phases that have ended, and the course that goes on.
    pub(super) fn stop(self) -> (Vec<Phase>, Course) {
        (self.phases, self.course)
    }
}

/// Waits for the agent to greet.
async fn greeted(
    vm: &Custody,
    listener: &Listener,
    limit: Duration,
    lost: &mut BoxFuture<'static, String>,
) -> Result<Arc<dyn Agent>> {
    let greeted = tokio::select! {
        greeted = listener.accept(limit) => greeted,
        error = died(vm) => return Err(error),
        reason = lost => return Err(deprived(vm, reason).await),
    };
    match greeted {
        Ok(agent) => Ok(Arc::new(agent)),
        Err(error) if error.kind == AgentErrorKind::DeadlineExceeded => Err(late(vm, limit).await),
        Err(error) => Err(error.into()),
    }
}

/// The error of a start whose agent is late. The guest is stopped first, so that its console can be quoted.
async fn late(vm: &Custody, limit: Duration) -> Error {
    let stopped = vm.stop().await;
    let console = vm.exited().borrow().as_ref().map(quote).unwrap_or_default();
    let context = format!(
        "the guest's agent did not answer within {:.1} s (dial_timeout){console}",
        limit.as_secs_f64()
    );
    let error = Error::new(ErrorKind::DeadlineExceeded, context);
    match stopped {
        Ok(()) => error,
        Err(second) => error.and(&second),
    }
}

/// The error of a start whose virtual machine has ended.
async fn died(vm: &Custody) -> Error {
    let exit = ended(vm.exited()).await;
    Error::new(
        ErrorKind::Unavailable,
        format!("the guest did not start: {}{}", exit.reason, quote(&exit)),
    )
}

/// The error of a start whose virtual machine has lost a daemon. When it has ended that is the news.
async fn deprived(vm: &Custody, reason: String) -> Error {
    timeout(deadlines::EXIT_NEWS, died(vm))
        .await
        .unwrap_or_else(|_| Error::new(ErrorKind::Unavailable, reason))
}

/// The error of a VMM that did not start, with the end of a daemon that it could not reach.
async fn explained(error: Error, lost: &mut BoxFuture<'static, String>) -> Error {
    match timeout(deadlines::DAEMON_NEWS, lost).await {
        Ok(news) => Error {
            context: format!("{} ({news})", error.context),
            ..error
        },
        Err(_) => error,
    }
}

/// Waits for the end of a VMM. Stays pending if nobody can tell any more.
pub(super) async fn ended(mut exited: watch::Receiver<Option<Exit>>) -> Exit {
    match exited.wait_for(Option::is_some).await.map(|exit| exit.clone()) {
        Ok(Some(exit)) => exit,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

fn quote(exit: &Exit) -> String {
    let from = exit.console.len().saturating_sub(QUOTED_LINES);
    match exit.console.get(from..) {
        Some([]) | None => "; its console is empty".to_owned(),
        Some(lines) => format!("; its console ends with:\n{}", lines.join("\n")),
    }
}

/// Compares versions, and makes the guest this sandbox. Answers with the versions of the agent and of the guest's kernel.
async fn introduce(
    agent: &dyn Agent,
    mut guest: p::CreateSandboxRequest,
    limit: Duration,
    log: &Logger,
) -> Result<(String, String)> {
    let request = p::HelloRequest {
        protocol_version: p::VERSION,
        entropy: entropy()?,
        ..Default::default()
    };
    let hello = agent.hello(request, Some(limit)).await?;
    if hello.protocol_version != p::VERSION {
        return Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!(
                "the guest's agent speaks protocol version {}, this runtime {}; install the guest image that was built \
                 with it",
                hello.protocol_version,
                p::VERSION
            ),
        ));
    }
    let versions = (printable(&hello.agent_version), printable(&hello.kernel_release));
    info!(log, "the agent answers";
        "version" => &versions.0,
        "kernel" => &versions.1,
        "uptime_us" => hello.uptime_ns / 1000);
    guest.entropy = entropy()?;
    guest.now_unix_ns = now_unix_ns();
    agent.create_sandbox(guest, Some(limit)).await?;
    Ok(versions)
}

/// A short text of the guest's, as much of it as can do no harm in a log.
fn printable(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

/// The time for a guest to begin with.
pub(crate) fn now_unix_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.as_nanos().try_into().unwrap_or(0)
}

pub(crate) fn entropy() -> Result<Vec<u8>> {
    let mut bytes = vec![0; ENTROPY];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())
            .map_err(|cause| Error::caused(ErrorKind::Internal, "the kernel gives no randomness", cause))?;
    }
    Ok(bytes)
}

/// What is told to the containers about the end of a VMM.
pub(super) fn told(exit: &Exit) -> VmEnd {
    use hypervisor::ExitReason;
    VmEnd {
        reason: exit.reason.to_string(),
        killed: matches!(
            exit.reason,
            ExitReason::Stopped | ExitReason::VmmKilled(libc::SIGKILL)
        ),
    }
}

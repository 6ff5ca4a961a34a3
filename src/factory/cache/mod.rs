//! Virtual machines that are kept ready by a process of its own, in which a guest runs that nobody has yet: started, its agent
//! reached, and everything done once that a container needs. A sandbox takes one over and makes it its own.
//!
//! It must not know containers, nor any hypervisor driver.

mod keep;
mod place;
mod practice;
mod server;
mod sys;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use configuration::Config;
use hypervisor::{Device, Hypervisor, Offer, VmSpec};
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use slog::{Logger, info, warn};
use tokio::net::UnixStream;
use tokio::time::timeout;

pub use place::Place;
pub use server::serve;
use wire::{Answer, Ask, Call, Closing, MOST, VERSION};

use super::{Obtained, VmFactory, key, make};
use crate::error::{Error, ErrorKind, Result};
use crate::model::TemplatePlan;
use crate::sandbox::Wanted;
use crate::{deadlines, line};

/// What is kept, and what became of those who asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Process of who keeps them.
    pub pid: u32,
    /// Of which configuration.
    pub key: String,
    /// How many there are to be.
    pub number: u32,
    /// Those that are ready, the next one first.
    pub kept: Vec<Kept>,
    /// Those who got one.
    pub hits: u64,
    /// Those who did not.
    pub misses: u64,
    /// Why the last one did not.
    pub last_miss: Option<String>,
    /// Why there are less than there are to be; `None`: there are not, or the next one is being made.
    pub short: Option<String>,
}

/// A virtual machine that is ready.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its process.
    pub pid: u32,
    /// Its vCPUs.
    pub vcpus: u32,
    /// Its memory, MiB.
    pub memory_mib: u64,
    /// Seconds since 1970.
    pub ready_at: u64,
    /// Whether it is a copy of a template.
    pub is_copy: bool,
}

/// A virtual machine that was given to us. It dies with this value, unless it is taken over.
pub(crate) struct Claimed {
    offer: Offer,
    agent: UnixStream,
    namespace: Arc<OwnedFd>,
}

impl Claimed {
    /// The network namespace that its process is in, which has nothing in it.
    pub(crate) fn namespace(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.namespace)
    }
}

/// Takes what is kept ready, and makes what is not.
pub(super) struct Cached {
    endpoint: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    otherwise: Box<dyn VmFactory>,
    log: Logger,
}

impl Cached {
    pub(super) fn new(
        endpoint: PathBuf,
        hypervisor: Arc<dyn Hypervisor>,
        otherwise: Box<dyn VmFactory>,
        log: Logger,
    ) -> Self {
        Self {
            endpoint,
            hypervisor,
            otherwise,
            log,
        }
    }

    async fn get(&self, wanted: Result<Wanted, String>) -> Result<Claimed, String> {
        let Wanted { vm, plan } = wanted?;
        let told = |error: Error| error.chain();
        let key = key::of(&*self.hypervisor, &key::template(&vm, &plan)).map_err(told)?;
        let mut line = Line::to(&self.endpoint).await.map_err(told)?;
        let asked = timeout(deadlines::CACHE_GET, line.claim(key)).await;
        asked.unwrap_or_else(|_| {
            Err(format!(
                "who keeps them did not answer within {:?}",
                deadlines::CACHE_GET
            ))
        })
    }
}

#[async_trait]
impl VmFactory for Cached {
    async fn acquire(&self, spec: VmSpec, template: Option<TemplatePlan>) -> Result<Obtained> {
        self.otherwise.acquire(spec, template).await
    }

    async fn claim(&self, wanted: std::result::Result<Wanted, String>, log: &Logger) -> Option<Claimed> {
        match self.get(wanted).await {
            Ok(claimed) => {
                info!(log, "the virtual machine was kept ready");
                Some(claimed)
            }
            Err(why) => {
                warn!(log, "the virtual machine is none that was kept ready"; "reason" => why);
                None
            }
        }
    }

    async fn take(&self, claimed: Claimed, spec: VmSpec, template: Option<TemplatePlan>) -> Result<Obtained> {
        let Claimed { offer, agent, .. } = claimed;
        let Some(plan) = template else {
            return self.acquire(spec, None).await;
        };
        let kept = key::template(&spec, &plan);
        let is_port = |device: &Device| matches!(device, Device::SerialPort(_));
        let devices = spec.devices.iter().filter(|device| !is_port(device)).cloned();
        let taken = VmSpec {
            id: spec.id.clone(),
            run_dir: spec.run_dir.clone(),
            cgroups: spec.cgroups.clone(),
            ..kept
        };
        match self.hypervisor.take_over(offer, taken, devices.collect()).await {
            Ok(vm) => Ok(Obtained {
                vm,
                size: plan.size,
                agent: Some(agent),
            }),
            Err(error) => {
                let why = Error::from(error).chain();
                warn!(self.log, "a virtual machine that was kept ready is of no use"; "reason" => &why);
                let other = self.acquire(spec, Some(plan)).await;
                other.map_err(|error| Error {
                    context: format!(
                        "{} (before, one that was kept ready was of no use: {why})",
                        error.context
                    ),
                    ..error
                })
            }
        }
    }

    fn emulated(&self) -> bool {
        self.otherwise.emulated()
    }
}

/// A connection to who keeps virtual machines.
struct Line {
    stream: UnixStream,
    rest: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Line {
    /// Connects, if who listens there is this process's user.
    async fn to(endpoint: &Path) -> Result<Self> {
        let failed = |cause: std::io::Error| {
            let kind = match cause.kind() {
                std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => ErrorKind::NotFound,
                _ => ErrorKind::Unavailable,
            };
            Error::caused(
                kind,
                format!(
                    "nobody keeps virtual machines ready at {} ({cause}); `kata-runtime factory init` starts that",
                    endpoint.display()
                ),
                cause,
            )
        };
        // A link there, or a socket of somebody else's, would be found out by whose it is.
        let stream = timeout(deadlines::CACHE_GET, UnixStream::connect(endpoint)).await;
        let stream = stream
            .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(failed)?;
        let peer = stream.peer_cred().map_err(failed)?;
        if peer.uid() != geteuid().as_raw() {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("who listens at {} is user {}", endpoint.display(), peer.uid()),
            ));
        }
        Ok(Self {
            stream,
            rest: Vec::new(),
            fds: Vec::new(),
        })
    }

    fn over(stream: UnixStream) -> Self {
        Self {
            stream,
            rest: Vec::new(),
            fds: Vec::new(),
        }
    }

    async fn say(&self, said: &impl Serialize) -> Result<(), String> {
        line::send(&self.stream, &wire::line(said), &[])
            .await
            .map_err(|cause| format!("the other side takes no more: {cause}"))
    }

    async fn hear<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, String> {
        let next = line::next(&self.stream, &mut self.rest, &mut self.fds, MOST).await;
        wire::parse(&next.map_err(|cause| format!("the other side says no more: {cause}"))?)
    }

    async fn ask(&mut self, ask: Ask) -> Result<Answer, String> {
        let call = Call {
            version: VERSION,
            ask,
        };
        self.say(&call).await?;
        self.hear().await
    }

    /// Asks for one, and takes it.
    async fn claim(&mut self, key: String) -> Result<Claimed, String> {
        let about = match self.ask(Ask::Get { key }).await? {
            Answer::Offer { about } => about,
            Answer::Miss { why } | Answer::Failed { why } => return Err(why),
            other => return Err(format!("the answer was {other:?}")),
        };
        self.close(about).await
    }

    /// Takes what is offered.
    async fn close(&mut self, about: String) -> Result<Claimed, String> {
        let mut fds = std::mem::take(&mut self.fds);
        let (Some(namespace), Some(agent)) = (fds.pop(), fds.pop()) else {
            return Err("an offer came without its descriptors".to_owned());
        };
        let agent = || -> std::io::Result<UnixStream> {
            let stream = std::os::unix::net::UnixStream::from(agent);
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        };
        let claimed = Claimed {
            offer: Offer { about, fds },
            agent: agent().map_err(|cause| format!("the connection to the agent is none: {cause}"))?,
            namespace: Arc::new(namespace),
        };
        self.say(&Closing::Taken).await?;
        // Until it is said it is the other side's, who may end it, or have died of what was said last.
        match self.hear().await? {
            Closing::Yours => Ok(claimed),
            Closing::Taken => Err("the answer was that it is taken".to_owned()),
        }
    }
}

/// What is kept for this configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// Nobody keeps any.
    Nobody,
    /// They are kept.
    Somebody(Status),
}

/// The key of the virtual machines of this configuration.
///
/// # Errors
/// They cannot be kept, or their parts are not there.
pub fn key(config: &Config, hypervisor: &dyn Hypervisor) -> Result<String> {
    let capabilities = hypervisor.capabilities();
    if !capabilities.transfer {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "virtual machines of this hypervisor cannot be kept for others; set vm_cache_number = 0",
        ));
    }
    key::of(hypervisor, &make::spec(config, &capabilities))
}

/// Asks who keeps virtual machines what there is.
///
/// # Errors
/// Who listens there is somebody else, or does not answer.
pub async fn status(config: &Config) -> Result<Answered> {
    match call(config, Ask::Status, deadlines::CACHE_GET).await {
        Ok(Answer::Status(status)) => Ok(Answered::Somebody(status)),
        Ok(other) => Err(strange(&other)),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(Answered::Nobody),
        Err(error) => Err(error),
    }
}

/// Waits until as many are ready as there are to be.
///
/// # Errors
/// Why one could not be made.
pub async fn settle(config: &Config) -> Result<()> {
    match call(config, Ask::Settle, deadlines::CACHE_FULL).await? {
        Answer::Done => Ok(()),
        Answer::Failed { why } => Err(Error::new(ErrorKind::Unavailable, why)),
        other => Err(strange(&other)),
    }
}

/// Has who keeps virtual machines end them, and itself. Nobody there is success. Those that were taken go on.
///
/// # Errors
/// It does not end; what it has left cannot be removed.
pub async fn quit(config: &Config) -> Result<()> {
    match call(config, Ask::Quit, deadlines::CACHE_QUIT).await {
        Ok(Answer::Done) => {}
        Ok(other) => return Err(strange(&other)),
        Err(error) if error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Place::of(config).clear().await
}

async fn call(config: &Config, ask: Ask, limit: Duration) -> Result<Answer> {
    let endpoint = &config.factory.vm_cache_endpoint;
    let mut line = Line::to(endpoint).await?;
    let answer = timeout(limit, line.ask(ask))
        .await
        .unwrap_or_else(|_| Err(format!("there is no answer within {limit:?}")));
    answer.map_err(|why| {
        Error::new(
            ErrorKind::Unavailable,
            format!("who keeps virtual machines at {}: {why}", endpoint.display()),
        )
    })
}

fn strange(answer: &Answer) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("who keeps virtual machines answers {answer:?}"),
    )
}

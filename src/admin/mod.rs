//! What an administrator may ask of a sandbox that runs, whoever has started it: over a unix socket in the sandbox's directory, for
//! root alone, in a little of HTTP (`curl --unix-socket SOCKET http://sandbox/metrics`). The client's side of it, and a survey of
//! the sandboxes of a host, are here as well.
//!
//! | request | answer |
//! |---|---|
//! | `GET /inspect` | JSON: what runs, how it was started, its containers |
//! | `GET /stats` | JSON: figures of its containers and processes, now |
//! | `GET /ps` | JSON: the processes of its containers, in the guest |
//! | `GET /metrics` | Prometheus's text format, with Kata's names where the meaning is the same |
//! | `PUT /policy` | what the guest's agent may be asked for from now on |
//! | `GET`, `PUT` `/iptables`, `/ip6tables` | the rules of the guest's packet filter, as iptables-save prints and iptables-restore takes them |
//! | `GET /direct-volume/stats?path=` | JSON: how full a volume is that the guest has mounted from a disk |
//! | `POST /direct-volume/resize` | what its disk has on top is taken into use: JSON, `VolumePath` and `Size` |
//! | `POST /console` | a program in the guest itself; the connection carries its streams from then on |
//!
//! A request costs what it asks for; nothing is gathered for nobody. It must not know how a sandbox is run.

pub mod client;
mod console;
mod frames;
#[cfg(test)]
mod fuzzed;
mod http;
mod iptables;
mod metrics;
mod proc;
pub mod prometheus;
mod report;
mod survey;
mod volume;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_client::Agent;
use agent_protocol as p;
use configuration::Config;
use hypervisor::VmSpec;
use slog::{Logger, debug, warn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

pub use console::Order as ConsoleOrder;
pub use frames::Frame;
pub(crate) use report::of_container;
pub use report::{ContainerFigures, Figures, ProcessFigures, Processes};
pub use survey::{Found, Survey};

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Sandbox;
use crate::{SandboxId, deadlines};
use http::Request;

/// Name of the socket in a sandbox's directory. Not longer than the longest one there.
const SOCKET: &str = "admin.sock";

/// Requests that are answered at a time; the next ones wait.
const MOST: usize = 16;

/// Of those, consoles, which last as long as somebody wants them; more are refused.
const MOST_CONSOLES: usize = 8;

/// Where requests come in, before there is anything to ask about.
#[derive(Debug)]
pub(crate) struct Door {
    listener: UnixListener,
    dir: PathBuf,
}

/// Listens in a sandbox's directory.
///
/// # Errors
/// The system refuses.
pub(crate) fn listen(dir: &Path) -> Result<Door> {
    let path = dir.join(SOCKET);
    let bound = UnixListener::bind(&path).and_then(|listener| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    });
    let listener = bound.map_err(|cause| {
        let text = format!("cannot listen at {} for an administrator", path.display());
        Error::caused(ErrorKind::Internal, text, cause)
    })?;
    Ok(Door {
        listener,
        dir: dir.to_owned(),
    })
}

/// What was started, as far as nobody else remembers it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct About {
    /// The agent's version, as it says.
    pub(crate) agent: String,
    /// The guest kernel's, as the agent says.
    pub(crate) kernel_release: String,
    /// The guest's kernel.
    pub(crate) kernel: PathBuf,
    /// The guest's image.
    pub(crate) initrd: PathBuf,
    /// vCPUs at the start.
    pub(crate) vcpus: u32,
    /// Memory at the start, MiB.
    pub(crate) memory_mib: u64,
}

impl About {
    /// Of a virtual machine that is to be.
    pub(crate) fn of(spec: &VmSpec) -> Self {
        Self {
            kernel: spec.kernel.clone(),
            initrd: spec.initrd.clone(),
            vcpus: spec.vcpus,
            memory_mib: spec.memory.size_mib,
            ..Self::default()
        }
    }
}

/// The sandbox that is asked about.
pub(crate) struct Subject {
    pub(crate) sandbox: Sandbox,
    pub(crate) scope: SandboxId,
    pub(crate) config: Arc<Config>,
    pub(crate) agent: Arc<dyn Agent>,
    pub(crate) about: About,
}

/// Answers until it is dropped.
#[derive(Debug)]
pub(crate) struct Admin(JoinHandle<()>);

impl Drop for Admin {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Admin {
    /// Answers who comes through the door.
    pub(crate) fn start(door: Door, subject: Subject, log: &Logger) -> Self {
        let Door { listener, dir } = door;
        let desk = Arc::new(Desk {
            subject,
            dir,
            consoles: Semaphore::new(MOST_CONSOLES),
            log: log.clone(),
        });
        Self(tokio::spawn(async move {
            // Dropped with this task, and the answers with it.
            let mut answers = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept(), if answers.len() < MOST => match accepted {
                        Ok((stream, _)) => drop(answers.spawn(Arc::clone(&desk).serve(stream))),
                        Err(error) => {
                            // Descriptors have run out, say.
                            warn!(desk.log, "an administrator is not heard"; "error" => %error);
                            tokio::time::sleep(deadlines::ACCEPT_PAUSE).await;
                        }
                    },
                    Some(_) = answers.join_next() => {}
                }
            }
        }))
    }
}

/// What an answer has at hand.
struct Desk {
    subject: Subject,
    /// The sandbox's directory.
    dir: PathBuf,
    consoles: Semaphore,
    log: Logger,
}

/// An answer.
struct Answer {
    content: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn json(value: &impl serde::Serialize) -> Result<Self> {
        let body = serde_json::to_vec(value)
            .map_err(|cause| Error::caused(ErrorKind::Internal, "the answer is not JSON", cause))?;
        Ok(Self {
            content: "application/json",
            body,
        })
    }
}

impl Desk {
    /// One request and its answer.
    async fn serve(self: Arc<Self>, mut stream: UnixStream) {
        let read = match timeout(deadlines::ADMIN, receive(&mut stream)).await {
            Ok(Ok(read)) => read,
            Ok(Err(error)) => Some(Err(error)),
            // Somebody who says nothing is told nothing.
            Err(_) => return,
        };
        // Somebody has looked whether we live.
        let Some(read) = read else { return };
        let answered = match read {
            Ok((request, body))
                if (request.method.as_str(), request.path.as_str()) == ("POST", "/console") =>
            {
                match self.console(&mut stream, &body).await {
                    Ok(()) => return,
                    Err(error) => Err(error),
                }
            }
            Ok((request, body)) => {
                let limit = limit(&request.path);
                match timeout(limit, self.answer(&request, body)).await {
                    Ok(answered) => answered,
                    Err(_) => Err(Error::new(
                        ErrorKind::DeadlineExceeded,
                        format!("no answer within {limit:?}"),
                    )),
                }
            }
            Err(error) => Err(error),
        };
        let bytes = match answered {
            Ok(Answer { content, body }) => http::answer(200, content, &body),
            Err(error) => {
                debug!(self.log, "an administrator is refused"; "error" => error.chain());
                let text = error.chain() + "\n";
                http::answer(
                    http::status(error.kind),
                    "text/plain; charset=utf-8",
                    text.as_bytes(),
                )
            }
        };
        // One who has gone does not miss it.
        let _ = timeout(deadlines::ADMIN, stream.write_all(&bytes)).await;
    }

    async fn answer(&self, request: &Request, body: Vec<u8>) -> Result<Answer> {
        match (request.method.as_str(), request.path.as_str()) {
            ("GET", "/inspect") => Answer::json(&report::inspect(&self.subject, &self.dir).await),
            ("GET", "/stats") => Answer::json(&report::figures(&self.subject, &self.dir).await),
            ("GET", "/ps") => Answer::json(&report::processes(&self.subject).await?),
            ("GET", "/metrics") => Ok(Answer {
                content: prometheus::CONTENT,
                body: metrics::text(&self.subject, &self.dir).await.into_bytes(),
            }),
            ("GET" | "PUT", path @ ("/iptables" | "/ip6tables")) => {
                let rules = (request.method == "PUT").then_some(body);
                let asked = iptables::ask(&self.subject, path == "/ip6tables", rules);
                Ok(Answer {
                    content: "text/plain; charset=utf-8",
                    body: asked.await?.into_bytes(),
                })
            }
            ("PUT", "/policy") => self.set_policy(body).await,
            ("GET", "/direct-volume/stats") => {
                Answer::json(&volume::stats(&self.subject, request.query.get("path")).await?)
            }
            ("POST", "/direct-volume/resize") => Answer::json(&volume::resize(&self.subject, &body).await?),
            (_, path) => Err(Error::new(
                ErrorKind::NotFound,
                format!("nobody answers {} {path}", request.method),
            )),
        }
    }

    /// From now on the agent does what this policy allows, and nothing else.
    async fn set_policy(&self, policy: Vec<u8>) -> Result<Answer> {
        let request = p::SetPolicyRequest {
            policy,
            ..Default::default()
        };
        let limit = self.subject.config.agent.request_timeout;
        self.subject.agent.set_policy(request, Some(limit)).await?;
        warn!(self.log, "a policy is set");
        Ok(Answer {
            content: "text/plain; charset=utf-8",
            body: Vec::new(),
        })
    }

    /// A console, until either end of it ends.
    async fn console(&self, stream: &mut UnixStream, body: &[u8]) -> Result<()> {
        let _room = self.consoles.try_acquire().map_err(|_| {
            Error::new(
                ErrorKind::FailedPrecondition,
                format!("{MOST_CONSOLES} consoles are open, and there can be no more: close one"),
            )
        })?;
        let agent = Arc::clone(&self.subject.agent);
        let opened = console::open(agent, &self.subject.config.agent, body).await?;
        warn!(self.log, "a console is opened in the guest"; "console" => opened.name());
        let switched = timeout(deadlines::ADMIN, stream.write_all(http::SWITCHED)).await;
        let ended = match switched {
            Ok(Ok(())) => opened.carry(stream).await,
            _ => opened.end().await,
        };
        match ended {
            Ok(()) => debug!(self.log, "a console is closed"),
            Err(error) => debug!(self.log, "a console is cut off"; "error" => error.chain()),
        }
        Ok(())
    }
}

/// For the answer to a request for this path.
fn limit(path: &str) -> std::time::Duration {
    match path {
        "/iptables" | "/ip6tables" | "/direct-volume/resize" => deadlines::ADMIN_WORK,
        _ => deadlines::ADMIN_ANSWER,
    }
}

/// Reads a request and its body. `None`: there is none.
async fn receive(stream: &mut UnixStream) -> Result<Option<Result<(Request, Vec<u8>)>>> {
    let mut bytes = Vec::new();
    let gone = |cause: io::Error| Error::caused(ErrorKind::Unavailable, "the request is not complete", cause);
    let (request, head) = loop {
        let mut chunk = [0; 4096];
        match stream.read(&mut chunk).await.map_err(gone)? {
            0 if bytes.is_empty() => return Ok(None),
            0 => return Err(gone(io::ErrorKind::UnexpectedEof.into())),
            length => bytes.extend_from_slice(chunk.get(..length).unwrap_or_default()),
        }
        if let Some(read) = http::request(&bytes)? {
            break read;
        }
    };
    let mut body = bytes.split_off(head);
    let missing = request.body.saturating_sub(body.len());
    body.truncate(request.body);
    let start = body.len();
    body.resize(start + missing, 0);
    let rest = body.get_mut(start..).unwrap_or_default();
    stream.read_exact(rest).await.map_err(gone)?;
    Ok(Some(Ok((request, body))))
}

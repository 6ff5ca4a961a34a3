//! What the owner of a pod does about each question, whichever process it comes from.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use slog::debug;
use tokio::sync::watch;
use tokio::time::timeout;

use super::link::{Answers, Told};
use super::options::ExecOptions;
use super::own::{Held, Owned, ended_of};
use super::wire::{Answer, Outcome, Request, Wanted};
use crate::container::ExecRequest;
use crate::error::{Error, ErrorKind, Result};
use crate::io::{Input, Output, Stdio};
use crate::{ExecId, admin, deadlines, oci};

const SIGKILL: u32 = libc::SIGKILL as u32;

impl Answers for Owned {
    async fn answer(self: Arc<Self>, request: Request, fds: Vec<OwnedFd>) -> Result<Told> {
        let answer = match request {
            Request::Attach { id, streams } => return self.attach(&id, streams, fds).await,
            Request::Create { options } => Answer::Named {
                id: self.create(*options).await?,
            },
            Request::Start { id } => done(self.start(&id).await)?,
            Request::Exec { id, options, streams } => {
                let held = self.held(&id)?;
                let stdio = streams.stdio(fds, options.is_terminal())?;
                let (exec, _) = self.exec(&held, *options, stdio).await?;
                Answer::Named { id: exec.to_string() }
            }
            Request::ExecSync { id, options, timeout } => {
                let held = self.held(&id)?;
                let outputs = Wanted {
                    stdin: false,
                    stdout: true,
                    stderr: true,
                };
                let stdio = outputs.stdio(fds, options.is_terminal())?;
                Answer::Outcome {
                    outcome: self.exec_sync(&held, *options, stdio, timeout).await?,
                }
            }
            Request::Resize {
                id,
                exec,
                rows,
                columns,
            } => {
                let exec = named(exec)?;
                let held = self.held(&id)?;
                done(held.container.resize(exec.as_ref(), rows, columns).await)?
            }
            Request::ReopenLog { id } => done(self.held(&id)?.streams.reopen().await)?,
            Request::Signal {
                id,
                exec,
                signal,
                all,
            } => {
                let exec = named(exec)?;
                done(self.held(&id)?.container.kill(exec.as_ref(), signal, all).await)?
            }
            Request::Stop { id, timeout } => Answer::Exit {
                exit: self.stop(&id, Some(timeout)).await?,
            },
            Request::Wait { id, exec } => {
                let mut exit = self.held(&id)?.exit_of(exec.as_deref())?;
                Answer::Exit {
                    exit: ended_of(&mut exit).await?,
                }
            }
            Request::Pause { id } => done(self.pause(&id).await)?,
            Request::Resume { id } => done(self.resume(&id).await)?,
            Request::Update { id, resources } => done(self.held(&id)?.container.update(&resources).await)?,
            Request::Stats { id } => {
                let container = &self.held(&id)?.container;
                let figures = admin::of_container(container.id(), &container.stats().await?);
                Answer::Stats { figures }
            }
            Request::Pids { id } => Answer::Pids {
                pids: self.held(&id)?.container.pids().await?,
            },
            Request::Remove { id, force } => done(self.remove(&id, force).await)?,
            Request::RemovePod { force } => done(self.remove_pod(force).await)?,
            Request::StopPod { timeout, .. } => done(self.stop_all(timeout).await)?,
            Request::PortForward { port } => {
                let stream = connection(fds)?;
                done(self.sandbox.port_forward(port, stream).await)?
            }
        };
        Ok(Told::Now(answer))
    }
}

fn done(result: Result<()>) -> Result<Answer> {
    result.map(|()| Answer::Done)
}

fn named(exec: Option<String>) -> Result<Option<ExecId>> {
    exec.map(ExecId::new).transpose()
}

fn missing() -> Error {
    Error::new(
        ErrorKind::InvalidArgument,
        "a descriptor of the request is missing",
    )
}

fn connection(fds: Vec<OwnedFd>) -> Result<tokio::net::UnixStream> {
    let stream = UnixStream::from(fds.into_iter().next().ok_or_else(missing)?);
    let usable = stream
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(stream));
    usable.map_err(|cause| {
        Error::caused(
            ErrorKind::InvalidArgument,
            "the descriptor is no connection that can be carried",
            cause,
        )
    })
}

impl Wanted {
    /// The streams that these descriptors are.
    fn stdio(self, fds: Vec<OwnedFd>, terminal: bool) -> Result<Stdio> {
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool| match wanted {
            true => fds.next().map(Some).ok_or_else(missing),
            false => Ok(None),
        };
        Ok(Stdio {
            terminal,
            stdin: next(self.stdin)?.map_or(Input::Null, Input::Descriptor),
            stdout: next(self.stdout)?.map_or(Output::Null, Output::Descriptor),
            stderr: next(self.stderr)?.map_or(Output::Null, Output::Descriptor),
            descriptors: Vec::new(),
        })
    }
}

impl Owned {
    async fn attach(&self, id: &str, streams: Wanted, fds: Vec<OwnedFd>) -> Result<Told> {
        let held = self.held(id)?;
        let attached = held.streams.attach(streams.stdio(fds, held.terminal)?).await?;
        let end = async move { attached.ended().await.map(|()| Answer::Done) };
        Ok(Told::Begun(Box::pin(end)))
    }

    /// Adds a process, starts it, and sees it off. Answers with its name and its end to be.
    async fn exec(
        &self,
        held: &Arc<Held>,
        options: ExecOptions,
        stdio: Stdio,
    ) -> Result<(ExecId, watch::Receiver<Option<crate::ExitStatus>>)> {
        let process = options.process(&held.first)?;
        // What a caller has put together is looked at as any other.
        let process = serde_json::to_vec(&process)
            .map_err(|cause| Error::caused(ErrorKind::InvalidArgument, "the process is not JSON", cause))
            .and_then(|json| oci::process(&json))?;
        let (number, exec) = held.next_exec()?;
        let container = held.container.clone();
        container
            .exec(ExecRequest {
                id: exec.clone(),
                process,
                stdio,
            })
            .await?;
        if let Err(error) = container.start_exec(&exec).await {
            // It never ran; only its name is left.
            let _ = container.delete_exec(&exec).await;
            return Err(error);
        }
        let (exited, exit) = watch::channel(None);
        held.remember(number, exit.clone());
        let (name, log) = (exec.clone(), self.log.clone());
        tokio::spawn(async move {
            // Its container is gone, and it with that.
            let Ok(status) = container.wait(Some(&name)).await else {
                return;
            };
            exited.send_replace(Some(status));
            if let Err(error) = container.delete_exec(&name).await {
                debug!(log, "a process that has ended is not forgotten"; "exec" => %name, "error" => error.chain());
            }
        });
        Ok((exec, exit))
    }

    /// Runs a process to its end, or until its time is over.
    async fn exec_sync(
        &self,
        held: &Arc<Held>,
        options: ExecOptions,
        stdio: Stdio,
        allowed: Option<Duration>,
    ) -> Result<Outcome> {
        let (exec, mut exit) = self.exec(held, options, stdio).await?;
        let ended = match allowed {
            None => Ok(ended_of(&mut exit).await),
            Some(allowed) => timeout(allowed, ended_of(&mut exit)).await,
        };
        if let Ok(exit) = ended {
            return exit.map(|exit| Outcome::Exited(exit.code));
        }
        match held.container.kill(Some(&exec), SIGKILL, false).await {
            // It ends by itself just now: too late.
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        match timeout(deadlines::STOPPED, ended_of(&mut exit)).await {
            Ok(exit) => exit.map(|_| Outcome::TimedOut),
            Err(_) => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "container {}: process {exec} does not end by SIGKILL",
                    held.container.id()
                ),
            )),
        }
    }
}

//! How a pod and its containers end: stopped, removed, shut down. A pod goes as a whole or not at all.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use slog::warn;
use tokio::time::timeout;

use super::own::{Held, Owned, Stage, ended_of, unknown};
use super::state::ContainerState;
use crate::aside::aside;
use crate::container::ExitStatus;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

const SIGKILL: u32 = libc::SIGKILL as u32;

impl Owned {
    /// Asks a container to end, and ends it when it has not done so in time.
    pub(super) async fn stop(&self, id: &str, allowed: Option<Duration>) -> Result<ExitStatus> {
        let held = self.held(id)?;
        let (signal, allowed) = {
            let books = self.books();
            let container = books.info.containers.get(id).ok_or_else(|| unknown(id))?;
            match container.state {
                ContainerState::Paused => {
                    return Err(Error::new(
                        ErrorKind::FailedPrecondition,
                        format!("container {id} is paused, and cannot be asked to end: resume it first"),
                    ));
                }
                ContainerState::Exited | ContainerState::Creating | ContainerState::Created => {}
                ContainerState::Running => {}
            }
            (container.stop_signal, allowed.unwrap_or(container.stop_timeout))
        };
        let mut exit = held.exit.clone();
        let ended = *exit.borrow();
        if let Some(exit) = ended {
            return Ok(exit);
        }
        // One that was not started is not asked: nothing of it would hear.
        if !allowed.is_zero() && self.state_of(id)? == ContainerState::Running {
            match held.container.kill(None, signal, false).await {
                // It ends by itself just now.
                Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            if let Ok(exit) = timeout(allowed, ended_of(&mut exit)).await {
                return exit;
            }
        }
        self.kill(&held).await
    }

    /// Ends a container by force.
    async fn kill(&self, held: &Held) -> Result<ExitStatus> {
        match held.container.kill(None, SIGKILL, true).await {
            Err(error) if error.kind != ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut exit = held.exit.clone();
        match timeout(deadlines::STOPPED, ended_of(&mut exit)).await {
            Ok(exit) => exit,
            Err(_) => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("container {} does not end by SIGKILL", held.container.id()),
            )),
        }
    }

    /// Removes a container; the pod that was made for it goes with it.
    pub(super) async fn remove(&self, id: &str, force: bool) -> Result<()> {
        if self.books().info.is_alone {
            return self.remove_pod(force).await;
        }
        self.is_open()?;
        let held = self.held(id)?;
        let state = self.state_of(id)?;
        if matches!(state, ContainerState::Running | ContainerState::Paused) {
            if !force {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("container {id} is {state}: stop it first, or use force"),
                ));
            }
            self.kill(&held).await?;
        }
        held.container.delete().await?;
        self.books().held.remove(id);
        self.change(|info| {
            info.containers.remove(id);
            Ok(())
        })
    }

    /// Removes the pod and all that is in it, or nothing: what is known goes at once, when the rest is gone.
    pub(super) async fn remove_pod(&self, force: bool) -> Result<()> {
        let is_retry = self.close(force)?;
        let removed = async {
            self.sandbox.stop().await?;
            if is_retry {
                self.settings.clean_up(&self.id).await?;
            }
            // The news of a container's end may be on their way, and would bring it back.
            self.books().stage = Stage::Leaving;
            let (root, id) = (self.root().clone(), self.id.clone());
            aside(deadlines::STATE, move |site| {
                site.at(root.dir())?;
                root.remove(&root.lock()?, &id)
            })
            .await
        };
        self.closed(removed.await, "it could not be removed")
    }

    /// Stops all of it, and leaves what is known of it to whoever wants to see or remove it.
    pub(super) async fn shut_down(&self, allowed: Option<Duration>) -> Result<()> {
        let is_retry = self.close(true)?;
        if let Err(error) = self.stop_all(allowed).await {
            warn!(self.log, "a container is not stopped but killed"; "error" => error.chain());
        }
        let stopped = async {
            self.sandbox.stop().await?;
            if is_retry {
                self.settings.clean_up(&self.id).await?;
            }
            self.change(|info| {
                info.end("it was shut down", SystemTime::now());
                Ok(())
            })
        };
        self.closed(stopped.await, "it could not be shut down")
    }

    /// Nothing new begins in it. Whether that was so already.
    fn close(&self, force: bool) -> Result<bool> {
        let mut books = self.books();
        let is_retry = match books.stage {
            Stage::Open => false,
            Stage::Stuck => true,
            Stage::Closing | Stage::Leaving | Stage::Gone => {
                drop(books);
                return self.is_open().map(|()| false);
            }
        };
        let mut alive: Vec<&str> = books.info.alive();
        alive.extend(books.starting.iter().map(String::as_str));
        if !force && !alive.is_empty() {
            return Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!(
                    "pod {} has containers that run ({}): stop them first, or use force",
                    self.id,
                    alive.join(", ")
                ),
            ));
        }
        books.stage = Stage::Closing;
        Ok(is_retry)
    }

    fn closed(&self, result: Result<()>, failure: &str) -> Result<()> {
        match result {
            Ok(()) => {
                let mut books = self.books();
                books.stage = Stage::Gone;
                books.held.clear();
                books.regalia = None;
                Ok(())
            }
            Err(error) => {
                self.books().stage = Stage::Stuck;
                let ended = self.change(|info| {
                    info.end(failure, SystemTime::now());
                    Ok(())
                });
                Err(match ended {
                    Ok(()) => error,
                    Err(second) => error.and(&second),
                })
            }
        }
    }

    /// Stops every container that runs; the first error counts.
    pub(super) async fn stop_all(&self, allowed: Option<Duration>) -> Result<()> {
        let alive: Vec<String> = self.books().info.alive().into_iter().map(str::to_owned).collect();
        let stopping = alive.iter().map(|id| self.stop(id, allowed));
        join_all(stopping)
            .await
            .into_iter()
            .try_for_each(|stopped| stopped.map(drop))
    }
}

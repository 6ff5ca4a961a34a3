//! Deletion: of additional processes, and of containers; with the last one the sandbox goes as well.

use std::sync::Arc;

use runtime::error::Result;
use runtime::{ContainerId, ExecId, ExitStatus};
use slog::debug;
use tokio::time::timeout;

use super::process::{self, Process};
use super::{Occupancy, Pod, Slot};
use crate::deadlines;

impl Pod {
    /// Removes a container that is stopped or never ran. Answers with its pid and end.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn delete(self: Arc<Self>, id: ContainerId) -> Result<(u32, ExitStatus)> {
        let member = self.member(&id)?;
        let sandbox = match member.init.end().borrow().is_some() {
            true => self.take_last(&id),
            false => None,
        };
        let deleted = match &sandbox {
            Some(_) => member.container.delete_with_sandbox().await,
            None => member.container.delete().await,
        };
        let (exit, ended) = match (deleted, sandbox) {
            (Ok(exit), Some(sandbox)) => {
                self.end(&sandbox).await;
                (exit, true)
            }
            (Err(error), Some(sandbox)) => {
                let is_closed = {
                    let mut books = self.books();
                    books.sandbox = Slot::Ready(sandbox);
                    books.closed
                };
                // Who wanted it stopped meanwhile has found it taken, and waits.
                match is_closed {
                    true => self.stop_sandbox().await,
                    false => self.vacate().await,
                }
                return Err(error);
            }
            (deleted, None) => (deleted?, false),
        };
        self.told(&member.init).await;
        self.setting.events.deleted(&id, member.init.pid, exit);
        {
            let mut books = self.books();
            books.containers.remove(&id);
            if ended {
                // Not before: nobody is to start another one while this is vacated.
                books.sandbox = Slot::Empty;
            }
        }
        let execs: Vec<_> = std::mem::take(&mut *member.execs()).into_values().collect();
        for process in execs.into_iter().chain([Arc::clone(&member.init)]) {
            self.finish(process.take_logger());
        }
        match ended {
            true => drop(self.occupancy.send_replace(Occupancy::Vacant)),
            false => self.vacate().await,
        }
        Ok((member.init.pid, exit))
    }

    /// Forgets an added process that has ended or never ran. Answers with its pid and end.
    ///
    /// # Errors
    /// The runtime's.
    pub async fn delete_exec(self: Arc<Self>, id: ContainerId, exec: ExecId) -> Result<(u32, ExitStatus)> {
        let member = self.member(&id)?;
        let process = member.process(Some(&exec))?;
        let ran = member.container.state(Some(&exec)).await?.exit.is_some();
        let exit = member.container.delete_exec(&exec).await?;
        if ran {
            self.told(&process).await;
        }
        member.execs().remove(&exec);
        self.finish(process.take_logger());
        Ok((process.pid, exit))
    }

    /// Waits until the end of a process is announced, so that the news of its deletion come after it.
    async fn told(&self, process: &Process) {
        if timeout(deadlines::ANNOUNCED, process::announced(process.end()))
            .await
            .is_err()
        {
            debug!(self.setting.log, "a process is deleted before its end is announced"; "pid" => process.pid);
        }
    }
}

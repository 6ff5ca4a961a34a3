//! Removal of processes and of the container, and how long the rest of their output is waited for.

use std::sync::Arc;
use std::time::SystemTime;

use agent_client::ErrorKind as AgentErrorKind;
use agent_protocol as p;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::process::{KILLED, UNKNOWN};
use super::state::Step;
use super::task::{Reply, Task};
use super::{Appeal, ExitStatus};
use crate::error::{Error, ErrorKind, Result};
use crate::io::OutputPump;
use crate::{ExecId, deadlines};

/// What is about to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Extent {
    /// The container alone.
    Container,
    /// Its sandbox as well.
    Sandbox,
}

impl Task {
    pub(super) fn delete_exec(&mut self, id: ExecId, reply: Reply<ExitStatus>) {
        if let Err(error) = self.step(Some(&id), Step::Delete) {
            drop(reply.send(Err(error)));
            return;
        }
        let request = self.target(Some(&id)).process();
        let Some(process) = self.execs.get_mut(&id) else {
            return;
        };
        let exit = process.exit();
        let outputs = process.take_outputs();
        let call = exit.is_some() && self.vm_runs().is_ok();
        let (agent, limit) = (Arc::clone(&self.agent), self.timeouts.request);
        self.job(
            async move {
                drain(outputs).await;
                if call {
                    forgotten(agent.delete_process(request, Some(limit)).await)
                } else {
                    Ok(())
                }
            },
            move |task, answer| {
                let answer = match answer {
                    Ok(()) => {
                        task.execs.remove(&id);
                        Ok(exit.unwrap_or_else(|| never_ran(UNKNOWN)))
                    }
                    Err(error) => {
                        task.happened(Some(&id), Step::DeleteFailed);
                        Err(error)
                    }
                };
                drop(reply.send(answer));
            },
        );
    }

    pub(super) fn delete(&mut self, extent: Extent, reply: Reply<ExitStatus>) {
        if let Err(error) = self.step(None, Step::Delete) {
            drop(reply.send(Err(error)));
            return;
        }
        let request = p::DeleteContainerRequest {
            container_id: self.id.to_string(),
            force: self.init.exit().is_none(),
            ..Default::default()
        };
        let mut outputs = self.init.take_outputs();
        for process in self.execs.values_mut() {
            outputs.append(&mut process.take_outputs());
        }
        let call = self.vm_runs().is_ok();
        let (agent, limit) = (Arc::clone(&self.agent), self.timeouts.request);
        let (id, sandbox, has_disks) = (self.id.clone(), self.sandbox.clone(), self.has_disks);
        self.job(
            async move {
                drain(outputs).await;
                if extent == Extent::Sandbox && !has_disks {
                    return Ok(());
                }
                if call {
                    match agent.delete_container(request, Some(limit)).await {
                        Err(error) if error.kind == AgentErrorKind::DeadlineExceeded && has_disks => {
                            return Err(Error::new(
                                ErrorKind::DeadlineExceeded,
                                format!(
                                    "container {id}: what was written to its disks is not on them yet; delete it again"
                                ),
                            ));
                        }
                        Err(error) if error.kind == AgentErrorKind::DeadlineExceeded => {
                            let reason = format!("container {id}: the guest does not delete it");
                            let container = id.clone();
                            drop(sandbox.send(Appeal::ForceStop { container, reason }).await);
                        }
                        answer => forgotten(answer)?,
                    }
                }
                if extent == Extent::Sandbox {
                    return Ok(());
                }
                let (done, released) = oneshot::channel();
                match sandbox.send(Appeal::Release { id, done }).await {
                    Ok(()) => released.await.unwrap_or(Ok(())),
                    // The sandbox was stopped and has released everything.
                    Err(_) => Ok(()),
                }
            },
            |task, answer| {
                let answer = match answer {
                    Ok(()) => {
                        task.deleted = true;
                        task.init.ended(KILLED, SystemTime::now());
                        Ok(task.init.exit().unwrap_or_else(|| never_ran(KILLED)))
                    }
                    Err(error) => {
                        task.happened(None, Step::DeleteFailed);
                        Err(error)
                    }
                };
                drop(reply.send(answer));
            },
        );
    }
}

/// How a process ended that never ran.
fn never_ran(code: u32) -> ExitStatus {
    ExitStatus {
        code,
        at: SystemTime::now(),
        oom: false,
    }
}

/// Lets clients read what is left of the output, for a while; a reader that does not come must not hold up a deletion.
async fn drain(mut outputs: Vec<OutputPump>) {
    let all = async {
        for output in &mut outputs {
            output.drained().await;
        }
    };
    let _ = timeout(deadlines::DRAIN, all).await;
}

/// What is not there, or went with its virtual machine, is as good as forgotten.
fn forgotten(answer: Result<p::Empty, agent_client::Error>) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind, AgentErrorKind::NotFound | AgentErrorKind::Unavailable) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

//! Requests that the agent answers: freezing, limits, figures, terminals.

use std::sync::Arc;

use agent_protocol as p;

use oci_spec::runtime::LinuxResources;

use super::state::{State, Step};
use super::task::{Reply, Task, appeal};
use super::{Appeal, Stats};
use crate::error::{Error, ErrorKind};
use crate::{ExecId, deadlines};

impl Task {
    pub(super) fn pause(&mut self, reply: Reply<()>) {
        if let Err(error) = self.step(None, Step::Pause) {
            drop(reply.send(Err(error)));
            return;
        }
        let (agent, request, limit) = (Arc::clone(&self.agent), self.container(), self.timeouts.request);
        self.job(
            async move { agent.pause_container(request, Some(limit)).await },
            |task, answer| {
                task.happened(None, Step::PauseDone(answer.is_ok()));
                drop(reply.send(answer.map(drop).map_err(Error::from)));
            },
        );
    }

    pub(super) fn resume(&mut self, reply: Reply<()>) {
        if let Err(error) = self.step(None, Step::Resume) {
            drop(reply.send(Err(error)));
            return;
        }
        let (agent, request, limit) = (Arc::clone(&self.agent), self.container(), self.timeouts.request);
        self.job(
            async move { agent.resume_container(request, Some(limit)).await },
            |task, answer| {
                task.happened(None, Step::ResumeDone(answer.is_ok()));
                drop(reply.send(answer.map(drop).map_err(Error::from)));
            },
        );
    }

    pub(super) fn update(&mut self, resources: Vec<u8>, change: Box<LinuxResources>, reply: Reply<()>) {
        if let Err(error) = self.vm_runs() {
            drop(reply.send(Err(error)));
            return;
        }
        let request = p::UpdateContainerRequest {
            container_id: self.id.to_string(),
            resources,
            ..Default::default()
        };
        let (agent, limit) = (Arc::clone(&self.agent), self.timeouts.request);
        let sandbox = self.grows.then(|| (self.sandbox.clone(), self.id.clone()));
        self.job(
            async move {
                let grown = match sandbox {
                    Some((sandbox, id)) => {
                        appeal(&sandbox, |done| Appeal::Growing { id, change, done }).await
                    }
                    None => Ok(()),
                };
                let updated = agent.update_container(request, Some(limit)).await;
                match (updated, grown) {
                    (Ok(_), Ok(())) => Ok(()),
                    (Ok(_), Err(error)) => Err(Error {
                        context: format!("{}; the new limits are applied all the same", error.context),
                        ..error
                    }),
                    (Err(error), Ok(())) => Err(error.into()),
                    (Err(error), Err(second)) => Err(Error::from(error).and(&second)),
                }
            },
            |_, answer| drop(reply.send(answer)),
        );
    }

    pub(super) fn stats(&mut self, reply: Reply<Stats>) {
        let (agent, request) = (Arc::clone(&self.agent), self.container());
        let limit = deadlines::STATS.min(self.timeouts.request);
        self.pass(
            async move { agent.stats_container(request, Some(limit)).await },
            |stats| stats,
            reply,
        );
    }

    pub(super) fn pids(&mut self, reply: Reply<Vec<u32>>) {
        let (agent, request, limit) = (Arc::clone(&self.agent), self.container(), self.timeouts.request);
        self.pass(
            async move { agent.list_processes(request, Some(limit)).await },
            |answer| answer.pids,
            reply,
        );
    }

    pub(super) fn resize(&mut self, exec: Option<ExecId>, size: (u16, u16), reply: Reply<()>) {
        let name = self.name(exec.as_ref());
        let answer = self.process(exec.as_ref()).and_then(|process| {
            if !process.terminal {
                return Err(Error::new(
                    ErrorKind::FailedPrecondition,
                    format!("{name} has no terminal"),
                ));
            }
            process.size = Some(size);
            Ok(process.state)
        });
        match answer {
            Err(error) => drop(reply.send(Err(error))),
            // Remembered for its start.
            Ok(State::Added) => drop(reply.send(Ok(()))),
            Ok(_) => {
                let request = p::ResizeTerminalRequest {
                    container_id: self.id.to_string(),
                    exec_id: exec.as_ref().map(ExecId::to_string).unwrap_or_default(),
                    size: Some(p::TerminalSize {
                        rows: size.0.into(),
                        columns: size.1.into(),
                        ..Default::default()
                    })
                    .into(),
                    ..Default::default()
                };
                if let Err(error) = self.living(exec.as_ref()) {
                    drop(reply.send(Err(error)));
                    return;
                }
                let (agent, limit) = (Arc::clone(&self.agent), self.timeouts.request);
                self.pass(
                    async move { agent.resize_terminal(request, Some(limit)).await },
                    drop,
                    reply,
                );
            }
        }
    }

    /// A call that changes nothing here: its answer goes back as it is.
    fn pass<A: Send + 'static, T: Send + 'static>(
        &mut self,
        call: impl Future<Output = Result<A, agent_client::Error>> + Send + 'static,
        convert: impl FnOnce(A) -> T + Send + 'static,
        reply: Reply<T>,
    ) {
        match self.vm_runs() {
            Err(error) => drop(reply.send(Err(error))),
            Ok(()) => self.job(call, |_, answer| {
                drop(reply.send(answer.map(convert).map_err(Error::from)));
            }),
        }
    }
}

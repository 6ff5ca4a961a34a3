//! Signals, and what is done about a guest that does not obey the last one.

use std::sync::Arc;

use agent_client::ErrorKind as AgentErrorKind;
use agent_protocol as p;
use tokio::time::timeout;

use super::Appeal;
use super::task::{Reply, Task};
use crate::error::{Error, ErrorKind};
use crate::{ExecId, deadlines};

const SIGKILL: u32 = libc::SIGKILL as u32;
/// The last real-time signal.
const MAX_SIGNAL: u32 = 64;

impl Task {
    pub(super) fn kill(&mut self, exec: Option<ExecId>, signal: u32, all: bool, reply: Reply<()>) {
        let name = self.name(exec.as_ref());
        let fatal = signal == SIGKILL;
        let process = match self.living(exec.as_ref()) {
            _ if signal > MAX_SIGNAL => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{signal} is not a signal"),
            )),
            process => process,
        };
        match process {
            Ok(process) => process.killed |= fatal,
            Err(error) => {
                drop(reply.send(Err(error)));
                return;
            }
        }
        if fatal && (all || exec.is_none()) {
            // The others of a container do not outlive its init.
            self.execs.values_mut().for_each(|process| process.killed = true);
        }
        let request = p::SignalProcessRequest {
            container_id: self.id.to_string(),
            exec_id: exec.as_ref().map(ExecId::to_string).unwrap_or_default(),
            signal,
            all,
            ..Default::default()
        };
        let limit = if fatal { deadlines::KILL } else { deadlines::SIGNAL };
        let limit = limit.min(self.timeouts.request);
        let last_resort = fatal && exec.is_none();
        let agent = Arc::clone(&self.agent);
        self.job(
            async move { agent.signal_process(request, Some(limit)).await },
            move |task, answer| {
                let answer = match answer {
                    Ok(_) if last_resort => {
                        task.expect_end();
                        Ok(())
                    }
                    Ok(_) => Ok(()),
                    Err(error) => match error.kind {
                        AgentErrorKind::DeadlineExceeded if last_resort => {
                            task.force_stop(format!("{name}: the guest does not answer to SIGKILL"));
                            Ok(())
                        }
                        // The signal is on its way. An error here would keep the caller from sending the last one.
                        AgentErrorKind::DeadlineExceeded => Ok(()),
                        // It ended while the signal was on its way.
                        AgentErrorKind::FailedPrecondition | AgentErrorKind::NotFound => Err(Error::new(
                            ErrorKind::NotFound,
                            format!("{name} has ended already"),
                        )),
                        _ => Err(error.into()),
                    },
                };
                drop(reply.send(answer));
            },
        );
    }

    /// The guest says that init was killed. If nothing comes of it, the guest lies or is stuck.
    fn expect_end(&self) {
        let mut exit = self.init.subscribe();
        let name = self.name(None);
        self.job(
            async move {
                timeout(deadlines::KILLED, exit.wait_for(Option::is_some))
                    .await
                    .is_err()
            },
            move |task, late| {
                if late {
                    task.force_stop(format!("{name}: it did not end after SIGKILL"));
                }
            },
        );
    }

    pub(super) fn force_stop(&self, reason: String) {
        let (sandbox, container) = (self.sandbox.clone(), self.id.clone());
        let appeal = Appeal::ForceStop { container, reason };
        self.job(
            // No sandbox any more: then there is no virtual machine either.
            async move { drop(sandbox.send(appeal).await) },
            |_, ()| {},
        );
    }
}

//! What the guest tells without being asked: a question to it that stays open. It is hostile, and may tell anything.
//!
//! It must not know how a container ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_protocol as p;
use slog::debug;
use tokio::time::timeout;

use super::Owner;
use crate::sandbox::{VmEnd, start};
use crate::{ContainerId, Event, deadlines};

/// Between two questions for events. What the guest has to tell is not urgent, and a hostile one answers all day.
const EVENT_PAUSE: Duration = Duration::from_millis(100);

/// Events of one answer that are looked at: as many as the agent keeps.
const MOST_EVENTS: usize = 1024;

impl Owner {
    /// Asks the guest for what happened after this event. The question stays open, and so tells the loss of the agent.
    pub(super) fn ask_for_events(&self, after: u64) {
        let agent = Arc::clone(&self.agent);
        let request = p::NextEventsRequest {
            after,
            ..Default::default()
        };
        let exited = self.vm.exited();
        let call = async move {
            match agent.next_events(request, None).await {
                Ok(answer) => {
                    tokio::time::sleep(EVENT_PAUSE).await;
                    Ok(answer)
                }
                Err(error) => {
                    // When the VMM has ended that is the news, and not that the agent went with it.
                    let _ = timeout(deadlines::LOSS_NEWS, start::ended(exited)).await;
                    Err(error)
                }
            }
        };
        self.job(call, move |owner, answer| match answer {
            Ok(answer) => {
                let last = owner.guest_events(after, answer.events);
                owner.ask_for_events(last);
            }
            Err(error) => owner.stop_vm(VmEnd {
                reason: format!("the connection to the agent is lost: {error}"),
                killed: false,
            }),
        });
    }

    /// Passes on what the guest says has happened to containers that exist; answers with the last sequence number.
    fn guest_events(&mut self, after: u64, events: Vec<p::Event>) -> u64 {
        let mut last = after;
        for event in events.into_iter().take(MOST_EVENTS) {
            last = last.max(event.sequence);
            let Some(p::event::Kind::Oom(oom)) = event.kind else {
                continue;
            };
            let Ok(id) = ContainerId::new(oom.container_id) else {
                continue;
            };
            let now = Instant::now();
            let is_new = self
                .told_oom
                .get(&id)
                .is_none_or(|told| now.duration_since(*told) >= deadlines::OOM_PAUSE);
            if !self.containers.contains_key(&id) || !is_new {
                continue;
            }
            self.told_oom.insert(id.clone(), now);
            if let Err(error) = self.events.try_send(Event::Oom(id)) {
                debug!(self.log, "an OOM notice is dropped"; "error" => %error);
            }
        }
        last
    }
}

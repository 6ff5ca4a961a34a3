//! The end of a sandbox: asked for by many, made once, and told to all of them.
//!
//! It must not know what is released, nor in which order.

use slog::{info, warn};

use super::{Owner, Reply};
use crate::error::{Error, Result};
use crate::sandbox::VmEnd;
use crate::sandbox::state::Step;

impl Owner {
    /// Ends everything. The first request begins, the others wait for the same end.
    pub(in crate::sandbox) fn stop(&mut self, reply: Reply<()>) {
        self.stops.push(reply);
        let Some(mut holdings) = self.holdings.take() else {
            return;
        };
        let Ok(state) = self.state.next(Step::Stop) else {
            return;
        };
        self.state = state;
        // What is being created goes with the guest, and its files with all others.
        self.creations.clear();
        self.reason.get_or_insert(VmEnd {
            reason: "the sandbox was stopped".to_owned(),
            killed: true,
        });
        let (hooks, log) = (std::mem::take(&mut self.hooks), self.log.clone());
        let mut course = std::mem::take(&mut self.course);
        let release = async move {
            let released = holdings.release(&mut course, &log).await;
            for hooks in hooks.values() {
                hooks.stopped(&log).await;
            }
            if let Err(error) = &released {
                course.fail(error);
            }
            course.close().await;
            released
        };
        self.job(release, |owner, released| owner.released(released));
    }

    fn released(&mut self, released: Result<()>) {
        if self.end.borrow().is_none() {
            self.end.send_replace(self.reason.take());
        }
        match &released {
            Ok(()) => info!(self.log, "the sandbox is stopped"),
            Err(error) => {
                warn!(self.log, "the sandbox is stopped, but not all is released"; "error" => error.chain())
            }
        }
        if let Ok(state) = self.state.next(Step::Released) {
            self.state = state;
        }
        let text = released.err().map(|error| (error.kind, error.chain()));
        for reply in self.stops.drain(..) {
            let answer = match &text {
                None => Ok(()),
                Some((kind, text)) => Err(Error::new(*kind, text.clone())),
            };
            drop(reply.send(answer));
        }
    }
}

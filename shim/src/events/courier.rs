//! The task that delivers events: in order, each until it has arrived or was tried often enough.

use containerd_shim_protos::shim::event::Envelope;
use slog::{Logger, debug, warn};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::transport::Transport;
use crate::deadlines;

/// So often an event is sent again after it could not be delivered (as by containerd's own shim).
const RETRIES: u32 = 5;

/// Something to do.
#[derive(Debug)]
pub(super) enum Errand {
    /// Deliver an event.
    Deliver(Box<Envelope>),
    /// Say when everything before is done.
    Flush(oneshot::Sender<()>),
}

/// Works until nobody can publish any more. Once `hurry` is set nothing is tried twice.
pub(super) async fn run(
    mut transport: Transport,
    mut queue: mpsc::Receiver<Errand>,
    mut hurry: watch::Receiver<bool>,
    log: Logger,
) {
    while let Some(errand) = queue.recv().await {
        match errand {
            Errand::Flush(done) => drop(done.send(())),
            Errand::Deliver(event) => deliver(&mut transport, &event, &mut hurry, &log).await,
        }
    }
}

async fn deliver(
    transport: &mut Transport,
    event: &Envelope,
    hurry: &mut watch::Receiver<bool>,
    log: &Logger,
) {
    for attempt in 1.. {
        let error = match transport.send(event).await {
            Ok(()) => return,
            Err(error) => error,
        };
        if attempt > RETRIES || *hurry.borrow() {
            warn!(log, "an event is given up"; "topic" => &event.topic, "error" => error);
            return;
        }
        debug!(log, "an event could not be delivered"; "topic" => &event.topic, "error" => error);
        // A pause, unless somebody is in a hurry; all that matters is that it is over.
        let _ = timeout(deadlines::RETRY * attempt, hurry.wait_for(|hurry| *hurry)).await;
    }
}

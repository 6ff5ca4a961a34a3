//! One thread that starts all VMMs.
//!
//! A child's parent-death signal fires when the *thread* that forked it ends, not the process. Threads of a runtime's
//! pool come and go; this one lives as long as the process, so that a VMM dies with its owner and not before.

use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc;
use std::thread;

use tokio::sync::oneshot;

use crate::rest::Litter;

struct Request {
    command: Command,
    litter: Litter,
    reply: oneshot::Sender<io::Result<Newborn>>,
}

/// A child that nobody supervises yet: dropping it kills and reaps it, so that a caller that is cancelled while its
/// child is being started leaves nothing.
pub struct Newborn {
    child: Option<Child>,
    /// Goes after it.
    litter: Litter,
}

impl Newborn {
    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Somebody else kills and reaps it from now on, and removes its litter.
    pub fn hand_over(mut self) -> Litter {
        self.child = None;
        std::mem::take(&mut self.litter)
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Starts `command` on the spawner's thread; returns when the program runs (or could not be executed).
pub async fn spawn(command: Command, litter: Litter) -> io::Result<Newborn> {
    static SPAWNER: OnceLock<mpsc::Sender<Request>> = OnceLock::new();

    let (reply, answer) = oneshot::channel();
    // Two first callers may race; the loser's thread ends at once, before it has any child.
    let spawner = match SPAWNER.get() {
        Some(spawner) => spawner,
        None => {
            let started = start()?;
            SPAWNER.get_or_init(|| started)
        }
    };
    let gone = || io::Error::other("the spawner thread has ended");
    let request = Request {
        command,
        litter,
        reply,
    };
    spawner.send(request).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

fn start() -> io::Result<mpsc::Sender<Request>> {
    let (sender, requests) = mpsc::channel::<Request>();
    thread::Builder::new()
        .name("spawner".into())
        .stack_size(128 * 1024)
        .spawn(move || {
            for Request {
                mut command,
                litter,
                reply,
            } in requests
            {
                // Nobody waits any more: the caller was cancelled before the start.
                if reply.is_closed() {
                    continue;
                }
                let _ = reply.send(command.spawn().map(|child| Newborn {
                    child: Some(child),
                    litter,
                }));
            }
        })?;
    Ok(sender)
}

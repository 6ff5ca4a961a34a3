//! What is asked of a container and may take long: begun by the sandbox's task, waited for beside it, finished by it. What
//! has become of the container meanwhile is seen at the finish.

use futures::FutureExt;
use futures::future::BoxFuture;

use super::entry::Entry;
use super::state::{Call, State};
use super::turn::Turns;
use super::{ExecRequest, Sandbox, spec};
use crate::container::{self, Started};
use crate::error::{Error, Result};
use crate::process::stdio::{self, Pending};
use crate::process::{Process, Signal};
use crate::reaper::Expectation;
use crate::sys;

/// A wait for a container.
pub(super) type Wait<T> = BoxFuture<'static, container::Result<T>>;

/// An exec whose process is there.
pub(super) struct BegunExec {
    /// Until its program runs.
    pub(super) wait: Wait<Started>,
    streams: Pending,
    expectation: Expectation,
}

/// An exec whose program runs.
pub(super) struct Executed {
    started: Started,
    streams: Pending,
    expectation: Expectation,
}

impl BegunExec {
    /// Waits for the program to run.
    pub(super) async fn executed(self) -> container::Result<Executed> {
        Ok(Executed {
            started: self.wait.await?,
            streams: self.streams,
            expectation: self.expectation,
        })
    }
}

impl Sandbox {
    /// The container whose queue this is, and not one that has its id since.
    fn entry_of(&mut self, id: &str, turns: &Turns) -> Result<&mut Entry> {
        self.containers
            .get_mut(id)
            .filter(|entry| entry.turns.is(turns))
            .ok_or_else(|| Error::NoContainer(id.to_owned()))
    }

    pub(super) fn begin_start(&mut self, id: &str, turns: &Turns) -> Result<(State, Wait<()>)> {
        let entry = self.entry_of(id, turns)?;
        let after = entry.check(Call::Start)?;
        Ok((after, entry.container.start().boxed()))
    }

    pub(super) fn finish_start(
        &mut self,
        id: &str,
        turns: &Turns,
        after: State,
        executed: container::Result<()>,
    ) -> Result<()> {
        match (self.entry_of(id, turns), executed) {
            (Ok(entry), Ok(())) => entry.enter(after),
            // It was deleted since.
            (Err(_), Ok(())) => {}
            (Ok(entry), Err(error)) => {
                // What could not execute is of no use to anyone: it ends now, and can be deleted.
                entry.signal_all(Signal::KILL)?;
                return Err(error.into());
            }
            (Err(_), Err(error)) => return Err(error.into()),
        }
        Ok(())
    }

    /// Makes the process; its id is taken from now on.
    pub(super) fn begin_exec(&mut self, request: &ExecRequest, turns: &Turns) -> Result<BegunExec> {
        spec::check_id("exec_id", &request.id)?;
        let reaper = self.workshop.reaper.clone();
        let entry = self.entry_of(&request.container, turns)?;
        entry.check(Call::Exec)?;
        if entry.execs.contains_key(&request.id) || entry.begun.contains(&request.id) {
            return Err(Error::Exists {
                what: "process",
                id: request.id.clone(),
            });
        }
        let (streams, child) = stdio::prepare(&request.stdio)?;
        let expectation = reaper.expect();
        let wait = entry.container.exec(&request.process, child).boxed();
        entry.begun.insert(request.id.clone());
        Ok(BegunExec {
            wait,
            streams,
            expectation,
        })
    }

    /// Takes the process, and answers with its pid.
    pub(super) fn finish_exec(
        &mut self,
        request: ExecRequest,
        turns: &Turns,
        executed: container::Result<Executed>,
    ) -> Result<i32> {
        // A container that was deleted has taken the process along.
        let entry = self.entry_of(&request.container, turns)?;
        entry.begun.remove(&request.id);
        let mut executed = executed?;
        let pid = executed.started.pid.as_raw();
        let exited = executed.expectation.claim(pid);
        let streams = executed.streams.connect(&mut executed.started);
        if streams.is_err() {
            sys::kill(pid, libc::SIGKILL).map_err(Error::system("kill a process without streams"))?;
        }
        entry.execs.insert(
            request.id,
            Process {
                pid,
                exited,
                streams: streams?,
            },
        );
        Ok(pid)
    }

    /// Begins a pause or a resumption.
    pub(super) fn begin_freeze(&mut self, id: &str, turns: &Turns, call: Call) -> Result<(State, Wait<()>)> {
        let entry = self.entry_of(id, turns)?;
        let after = entry.check(call)?;
        let wait = match after {
            State::Paused => entry.container.pause().boxed(),
            _ => entry.container.resume().boxed(),
        };
        Ok((after, wait))
    }

    pub(super) fn finish_freeze(
        &mut self,
        id: &str,
        turns: &Turns,
        after: State,
        done: container::Result<()>,
    ) -> Result<()> {
        let entry = self.entry_of(id, turns)?;
        match done {
            Ok(()) => entry.enter(after),
            Err(error) => {
                if after == State::Paused {
                    // Those that have stopped shall not stay so. The order is given; the error to report is the first one.
                    drop(entry.container.resume());
                }
                return Err(error.into());
            }
        }
        Ok(())
    }
}

//! One process of a container as the host sees it: its state, its streams, its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agent_protocol as p;
use tokio::sync::watch;

use super::state::State;
use super::{ExitStatus, ProcessState};
use crate::io::{Delivery, InputPump, Name, Opened, OutputPump, Target};
use crate::trace::{Course, Place};

/// Exit code of a process whose end is not known.
pub(super) const UNKNOWN: u32 = 255;
/// Exit code of a process that was killed: 128 + SIGKILL.
pub(super) const KILLED: u32 = 137;

/// A process.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) state: State,
    /// OCI process, JSON; of an additional process until it is started.
    pub(super) spec: Option<Vec<u8>>,
    pub(super) terminal: bool,
    /// Rows and columns, once somebody has said.
    pub(super) size: Option<(u16, u16)>,
    /// It was sent SIGKILL.
    pub(super) killed: bool,
    /// When it became known; it can't have ended before.
    since: SystemTime,
    exit: watch::Sender<Option<ExitStatus>>,
    /// How it has ended as the guest says, while the rest of its output is on its way.
    told: Option<ExitStatus>,
    /// Until they are connected.
    streams: Option<Opened>,
    input: Option<InputPump>,
    close_input: bool,
    /// Of descriptors beyond the standard ones.
    inputs: Vec<InputPump>,
    outputs: Vec<OutputPump>,
    /// Its life, whose stages are its states.
    course: Course,
}

impl Process {
    pub(super) fn new(state: State, spec: Option<Vec<u8>>, streams: Opened, mut course: Course) -> Self {
        course.next(state.stage());
        Self {
            course,
            state,
            spec,
            terminal: streams.terminal,
            size: None,
            killed: false,
            since: SystemTime::now(),
            exit: watch::Sender::new(None),
            told: None,
            streams: Some(streams),
            input: None,
            close_input: false,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }

    /// It is in another state from now on.
    pub(super) fn enter(&mut self, state: State) {
        self.state = state;
        self.course.next(state.stage());
    }

    /// Where what is done with it belongs.
    pub(super) fn place(&self) -> Place {
        self.course.place()
    }

    /// What the agent is to connect its streams to.
    pub(super) fn wanted(&self) -> p::Stdio {
        self.streams
            .as_ref()
            .map(|streams| streams.wanted(self.size))
            .unwrap_or_default()
    }

    /// Closes its streams: it could not be started, and whoever would read its output waits for the end of it.
    pub(super) fn disconnect(&mut self) {
        self.streams = None;
    }

    /// Whether its streams wait to be connected.
    pub(super) fn is_unconnected(&self) -> bool {
        self.streams.is_some()
    }

    /// Connects its streams, once it exists in the guest. `first` is called when its first output has come, on whichever of
    /// them.
    pub(super) fn connect(&mut self, target: &Target, first: impl FnOnce(Duration) + Send + 'static) {
        let Some(streams) = self.streams.take() else {
            return;
        };
        let begun = Instant::now();
        let first = Arc::new(Mutex::new(Some(first)));
        for (stream, sink) in [
            (p::Stream::STDOUT, streams.stdout),
            (p::Stream::STDERR, streams.stderr),
        ] {
            let Some(sink) = sink else { continue };
            let first = Arc::clone(&first);
            self.outputs.push(OutputPump::start(
                target.clone(),
                Name::Standard(stream),
                sink,
                move || {
                    // Nothing panics while it holds it.
                    let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
                    if let Some(first) = first {
                        first(begun.elapsed());
                    }
                },
            ));
        }
        if let Some(source) = streams.stdin {
            let mut input = InputPump::start(target.clone(), 0, source);
            if self.close_input {
                input.close();
            }
            self.input = Some(input);
        }
        for (number, more) in (p::FIRST_DESCRIPTOR..).zip(streams.more) {
            let outputs = more
                .sink
                .map(|sink| OutputPump::start(target.clone(), Name::Descriptor(number), sink, || {}));
            let inputs = more
                .source
                .map(|source| InputPump::start(target.clone(), number, source));
            self.outputs.extend(outputs);
            self.inputs.extend(inputs);
        }
    }

    /// Ends its input after what the client has written so far.
    pub(super) fn close_input(&mut self) {
        self.close_input = true;
        if let Some(input) = &mut self.input {
            input.close();
        }
    }

    /// The pumps of its output; what they have not delivered when they are dropped is lost.
    pub(super) fn take_outputs(&mut self) -> Vec<OutputPump> {
        std::mem::take(&mut self.outputs)
    }

    /// What is left of its output.
    pub(super) fn deliveries(&self) -> Vec<Delivery> {
        self.outputs.iter().map(OutputPump::delivery).collect()
    }

    /// It has ended; the first end that is told counts.
    pub(super) fn ended(&mut self, code: u32, at: SystemTime) {
        self.input = None;
        self.inputs.clear();
        let known = self.exit().is_some();
        let end = self.told.unwrap_or(ExitStatus { code, at, oom: false });
        self.exit.send_if_modified(|exit| {
            let first = exit.is_none();
            exit.get_or_insert(end);
            first
        });
        if !known {
            self.course.tell("kata.exit_code", u64::from(end.code));
        }
    }

    /// The guest says how it has ended: no more than eight bits of code, and a time between its creation and now.
    pub(super) fn told(&mut self, answer: &p::WaitProcessResponse) {
        self.course.next("output");
        let told = UNIX_EPOCH + Duration::from_nanos(answer.exited_at_unix_ns.try_into().unwrap_or(0));
        // The host's clock may have been set back.
        let at = told.max(self.since).min(SystemTime::now());
        self.told.get_or_insert(ExitStatus {
            code: answer.exit_status & 0xff,
            at,
            oom: false,
        });
    }

    /// The guest's kernel has killed a process of its container for memory, before it ended.
    pub(super) fn told_oom(&mut self) {
        if let Some(told) = &mut self.told {
            told.oom = true;
        }
    }

    /// Whether it may have been killed by the guest's kernel for memory: it failed, and not because we have killed it.
    pub(super) fn may_be_oom(&self) -> bool {
        !self.killed && self.told.is_some_and(|told| told.code != 0)
    }

    pub(super) fn exit(&self) -> Option<ExitStatus> {
        *self.exit.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Option<ExitStatus>> {
        self.exit.subscribe()
    }

    pub(super) fn status(&self) -> ProcessState {
        ProcessState {
            status: self.state.status(),
            exit: self.exit(),
            terminal: self.terminal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_of_an_end_is_cut_to_what_is_possible() {
        let now = SystemTime::now();
        let nanos = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
        for (status, at, code) in [
            (0, nanos(now), 0),
            (143, 0, 143),
            (1 << 31, i64::MAX, 0),
            (0x1_07, i64::MIN, 7),
        ] {
            let mut process = Process::new(State::Running, None, Opened::default(), Course::default());
            process.told(&p::WaitProcessResponse {
                exit_status: status,
                exited_at_unix_ns: at,
                ..Default::default()
            });
            assert_eq!(process.exit(), None, "its output may be on its way");
            process.ended(UNKNOWN, SystemTime::now());
            let exit = process.exit().unwrap();
            assert_eq!(exit.code, code);
            assert!(exit.at >= now && exit.at <= SystemTime::now(), "{exit:?}");
            process.ended(UNKNOWN, SystemTime::now());
            assert_eq!(process.exit(), Some(exit), "a second end does not count");
        }
    }
}

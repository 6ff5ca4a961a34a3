//! What may be asked of a process, and of a container, in which state. Pure: no I/O, no clock, no task.
//!
//! A container lives as its init process does. A request that takes time has a state of its own while it is under way,
//! so that two requests never cross, and so that the end of the process, which may come at any time, has a meaning
//! in each of them.

use super::Status;
use crate::error::{Error, ErrorKind, Result};

/// Life of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum State {
    /// An additional process that the guest does not know yet.
    Added,
    /// Init: it exists in the guest, held back before its exec.
    Created,
    /// Being started.
    Starting {
        /// Where a failure leads back to: init is created already, an additional process is not.
        init: bool,
    },
    /// It executes.
    Running,
    /// Its container is being frozen.
    Pausing,
    /// Its container is frozen.
    Paused,
    /// Its container is being thawed.
    Resuming,
    /// It has ended.
    Stopped,
    /// Being removed.
    Deleting {
        /// What a failure leads back to.
        from: Removable,
    },
}

/// A state that a process can be removed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Removable {
    /// Never given to the guest.
    Added,
    /// Never started.
    Created,
    /// Ended.
    Stopped,
}

/// What is asked of a process, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// Let it execute.
    Start,
    /// It executes.
    Started,
    /// It could not be started.
    StartFailed,
    /// Freeze the container.
    Pause,
    /// It is frozen, or could not be.
    PauseDone(bool),
    /// Thaw the container.
    Resume,
    /// It is thawed, or could not be.
    ResumeDone(bool),
    /// The process has ended.
    Ended,
    /// Remove it.
    Delete,
    /// It could not be removed. (A removal that succeeds has no state after it.)
    DeleteFailed,
}

impl State {
    /// Its name among the stages of a trace.
    pub(crate) fn stage(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Created => "created",
            Self::Starting { .. } => "start",
            Self::Running => "run",
            Self::Pausing => "pause",
            Self::Paused => "paused",
            Self::Resuming => "resume",
            Self::Stopped => "stopped",
            Self::Deleting { .. } => "delete",
        }
    }

    /// The state after a step, or why it may not be taken.
    pub(crate) fn next(self, step: Step) -> Result<Self> {
        use State::{Added, Created, Deleting, Paused, Pausing, Resuming, Running, Starting, Stopped};
        let refuse = |reason: &str| Err(Error::new(ErrorKind::FailedPrecondition, reason));
        match (step, self) {
            (Step::Start, Added) => Ok(Starting { init: false }),
            (Step::Start, Created) => Ok(Starting { init: true }),
            (Step::Start, Starting { .. }) => refuse("it is being started already"),
            (Step::Start, Running | Pausing | Paused | Resuming) => refuse("it is started already"),
            (Step::Start, Stopped) => refuse("it has ended already"),
            (Step::Start, Deleting { .. }) => refuse("it is being deleted"),

            (Step::Started, Starting { .. }) => Ok(Running),
            (Step::StartFailed, Starting { init: true }) => Ok(Created),
            (Step::StartFailed, Starting { init: false }) => Ok(Added),

            (Step::Pause, Running) => Ok(Pausing),
            (Step::Pause, Paused) => refuse("it is paused already"),
            (Step::Pause, _) => refuse("it is not running"),
            (Step::PauseDone(done), Pausing) => Ok(if done { Paused } else { Running }),

            (Step::Resume, Paused) => Ok(Resuming),
            (Step::Resume, _) => refuse("it is not paused"),
            (Step::ResumeDone(done), Resuming) => Ok(if done { Running } else { Paused }),

            // While it is being removed, only the end of a process that never ran can come.
            (Step::Ended, Deleting { .. }) => Ok(Deleting {
                from: Removable::Stopped,
            }),
            (Step::Ended, _) => Ok(Stopped),

            (Step::Delete, Added) => Ok(Deleting {
                from: Removable::Added,
            }),
            (Step::Delete, Created) => Ok(Deleting {
                from: Removable::Created,
            }),
            (Step::Delete, Stopped) => Ok(Deleting {
                from: Removable::Stopped,
            }),
            (Step::Delete, Deleting { .. }) => refuse("it is being deleted already"),
            (Step::Delete, _) => refuse("it is running; kill it first"),
            (Step::DeleteFailed, Deleting { from }) => Ok(match from {
                Removable::Added => Added,
                Removable::Created => Created,
                Removable::Stopped => Stopped,
            }),

            // The process ended while the request was under way; its answer changes nothing any more.
            (
                Step::Started
                | Step::StartFailed
                | Step::PauseDone(_)
                | Step::ResumeDone(_)
                | Step::DeleteFailed,
                state,
            ) => Ok(state),
        }
    }

    /// What callers are told.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Added
            | Self::Created
            | Self::Starting { .. }
            | Self::Deleting {
                from: Removable::Added | Removable::Created,
            } => Status::Created,
            Self::Running | Self::Pausing => Status::Running,
            Self::Paused | Self::Resuming => Status::Paused,
            Self::Stopped
            | Self::Deleting {
                from: Removable::Stopped,
            } => Status::Stopped,
        }
    }

    /// Whether the guest knows it as a living process, which can be signalled and looked at.
    pub(crate) fn alive(self) -> bool {
        match self {
            Self::Added | Self::Stopped | Self::Deleting { .. } => false,
            // An additional process may or may not exist yet: the guest knows.
            Self::Created
            | Self::Starting { .. }
            | Self::Running
            | Self::Pausing
            | Self::Paused
            | Self::Resuming => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: [Step; 12] = [
        Step::Start,
        Step::Started,
        Step::StartFailed,
        Step::Pause,
        Step::PauseDone(true),
        Step::PauseDone(false),
        Step::Resume,
        Step::ResumeDone(true),
        Step::ResumeDone(false),
        Step::Ended,
        Step::Delete,
        Step::DeleteFailed,
    ];

    fn run(from: State, steps: &[Step]) -> Result<State> {
        steps.iter().try_fold(from, |state, step| state.next(*step))
    }

    #[test]
    fn lives_that_are_possible() {
        use Step::*;
        for (from, steps, to) in [
            (State::Created, &[Start, Started][..], State::Running),
            (State::Created, &[Start, StartFailed], State::Created),
            (State::Added, &[Start, StartFailed], State::Added),
            (State::Added, &[Start, Started, Ended], State::Stopped),
            // A program that ends before its start is answered.
            (State::Created, &[Start, Ended, Started], State::Stopped),
            (State::Created, &[Ended], State::Stopped),
            (
                State::Running,
                &[Pause, PauseDone(true), Resume, ResumeDone(true)],
                State::Running,
            ),
            (State::Running, &[Pause, PauseDone(false)], State::Running),
            (State::Paused, &[Resume, ResumeDone(false)], State::Paused),
            (State::Running, &[Pause, Ended, PauseDone(true)], State::Stopped),
            (State::Stopped, &[Delete, DeleteFailed], State::Stopped),
            (State::Created, &[Delete, Ended, DeleteFailed], State::Stopped),
        ] {
            assert_eq!(run(from, steps).unwrap(), to, "{from:?} {steps:?}");
        }
    }

    #[test]
    fn what_is_refused_names_the_reason() {
        use Step::*;
        for (from, step, reason) in [
            (State::Running, Start, "started already"),
            (State::Starting { init: true }, Start, "being started"),
            (State::Stopped, Start, "ended"),
            (State::Created, Pause, "not running"),
            (State::Paused, Pause, "paused already"),
            (State::Running, Resume, "not paused"),
            (State::Running, Delete, "running"),
            (State::Paused, Delete, "running"),
            (State::Starting { init: true }, Delete, "running"),
            (
                State::Deleting {
                    from: Removable::Stopped,
                },
                Delete,
                "being deleted",
            ),
        ] {
            let error = from.next(step).unwrap_err();
            assert_eq!(error.kind, ErrorKind::FailedPrecondition);
            assert!(error.context.contains(reason), "{from:?} {step:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn an_ended_process_stays_ended_and_a_refusal_changes_nothing(
            init: bool,
            steps in prop::collection::vec(prop::sample::select(&STEPS[..]), 0..64),
        ) {
            let mut state = if init { State::Created } else { State::Added };
            let mut ended = false;
            for step in steps {
                ended |= step == Step::Ended;
                if let Ok(next) = state.next(step) {
                    state = next;
                }
                if ended {
                    prop_assert_eq!(state.status(), Status::Stopped);
                    prop_assert!(!state.alive());
                }
            }
            // Whatever happened, the end can come and then the process can be removed.
            let last = state.next(Step::Ended).unwrap();
            let last = last.next(Step::DeleteFailed).unwrap();
            let deleting = last.next(Step::Delete).unwrap();
            prop_assert_eq!(deleting, State::Deleting { from: Removable::Stopped });
        }
    }
}

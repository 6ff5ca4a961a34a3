//! What may be asked of a container in which state. Pure: no I/O, no clock, no process.

use crate::error::Error;

/// Life of a container, as its init process lives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The init process exists, held back just before its exec.
    Created,
    /// It executes.
    Running,
    /// The container's cgroup is frozen.
    Paused,
    /// The init process has ended.
    Stopped,
}

/// What is asked of a container, or happens to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Let the init process execute.
    Start,
    /// Run one more process.
    Exec,
    /// Signal the init process or all processes.
    Signal,
    /// Freeze.
    Pause,
    /// Thaw.
    Resume,
    /// Change the limits.
    Update,
    /// Remove the container, which must have ended.
    Delete,
    /// The init process has ended.
    Ended,
}

const ENDED: &str = "process already ended";

/// The state after a call that succeeds, or why it may not be made in this state.
///
/// # Errors
/// [`Error::State`] with the reason.
pub fn next(state: State, call: Call) -> Result<State, Error> {
    use State::{Created, Paused, Running, Stopped};
    let refuse = |reason| Err(Error::State(reason));
    match (call, state) {
        (Call::Ended, _) => Ok(Stopped),

        (Call::Start, Created) => Ok(Running),
        (Call::Start, Running | Paused) => refuse("container is started already"),

        (Call::Exec, Running) => Ok(Running),
        (Call::Exec, Created) => refuse("container is not started yet"),
        (Call::Exec, Paused) => refuse("container is paused"),

        // A frozen process can still be killed, and any other signal is delivered when it is thawed.
        (Call::Signal | Call::Update, Created | Running | Paused) => Ok(state),

        (Call::Pause, Running) => Ok(Paused),
        (Call::Pause, Created) => refuse("container is not started yet"),
        (Call::Pause, Paused) => refuse("container is paused already"),

        (Call::Resume, Paused) => Ok(Running),
        (Call::Resume, Created | Running) => refuse("container is not paused"),

        (Call::Delete, Stopped) => Ok(Stopped),
        (Call::Delete, Created | Running | Paused) => refuse("container still runs"),

        (Call::Start | Call::Exec | Call::Signal | Call::Pause | Call::Resume | Call::Update, Stopped) => {
            refuse(ENDED)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Call::*;
    use super::State::*;
    use super::*;

    const STATES: [State; 4] = [Created, Running, Paused, Stopped];
    const CALLS: [Call; 8] = [Start, Exec, Signal, Pause, Resume, Update, Delete, Ended];

    #[test]
    fn every_call_in_every_state() {
        // Columns in the order of STATES; None: refused.
        let table: [(Call, [Option<State>; 4]); 8] = [
            (Start, [Some(Running), None, None, None]),
            (Exec, [None, Some(Running), None, None]),
            (Signal, [Some(Created), Some(Running), Some(Paused), None]),
            (Pause, [None, Some(Paused), None, None]),
            (Resume, [None, None, Some(Running), None]),
            (Update, [Some(Created), Some(Running), Some(Paused), None]),
            (Delete, [None, None, None, Some(Stopped)]),
            (Ended, [Some(Stopped); 4]),
        ];
        for (call, expected) in table {
            for (state, expected) in STATES.into_iter().zip(expected) {
                assert_eq!(next(state, call).ok(), expected, "{call:?} in {state:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_has_ended_stays_ended_and_can_always_be_deleted(calls in prop::collection::vec(0..CALLS.len(), 0..40)) {
            let mut state = Created;
            let mut ended = false;
            for call in calls {
                let call = CALLS[call];
                ended |= call == Ended;
                if let Ok(after) = next(state, call) {
                    state = after;
                }
                prop_assert_eq!(ended, state == Stopped);
                prop_assert_eq!(next(state, Delete).is_ok(), ended);
            }
        }
    }
}

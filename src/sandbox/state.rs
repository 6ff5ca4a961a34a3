//! How far a sandbox has come, and what may happen to it there. Pure: no I/O, no clock, no task.

use crate::error::{Error, ErrorKind, Result};

/// Life of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum State {
    /// Planned and recorded; nothing is acquired.
    Prepared,
    /// The host's side is there: directories, sockets, daemons, network.
    HostReady,
    /// The VMM runs.
    VmRunning,
    /// The agent answers and the guest is this sandbox.
    GuestReady,
    /// The virtual machine, or something it can't live without, is gone; what the host holds is still there.
    Lost,
    /// Everything is being released.
    Stopping,
    /// Nothing is left.
    Stopped,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// The host's side was acquired.
    HostAcquired,
    /// The VMM was started.
    VmStarted,
    /// The guest has become this sandbox.
    GuestCreated,
    /// The virtual machine ended, or lost a part it needs.
    VmEnded,
    /// It is to be stopped, or its start has failed.
    Stop,
    /// Everything is released.
    Released,
}

impl State {
    /// The state after a step, or why it may not be taken.
    pub(crate) fn next(self, step: Step) -> Result<Self> {
        use State::{GuestReady, HostReady, Lost, Prepared, Stopped, Stopping, VmRunning};
        match (step, self) {
            (Step::HostAcquired, Prepared) => Ok(HostReady),
            (Step::VmStarted, HostReady) => Ok(VmRunning),
            (Step::GuestCreated, VmRunning) => Ok(GuestReady),
            (Step::VmEnded, VmRunning | GuestReady) => Ok(Lost),
            // Its end is part of the stop, or the same news from another side.
            (Step::VmEnded, Lost | Stopping | Stopped) => Ok(self),
            (Step::Stop, Prepared | HostReady | VmRunning | GuestReady | Lost) => Ok(Stopping),
            (Step::Stop, Stopping | Stopped) => Ok(self),
            (Step::Released, Stopping) => Ok(Stopped),
            _ => Err(Error::new(
                ErrorKind::FailedPrecondition,
                format!("{step:?} does not follow {self:?}"),
            )),
        }
    }

    /// Whether containers can be created and found in it.
    pub(crate) fn serves(self) -> bool {
        self == Self::GuestReady
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STEPS: [Step; 6] = [
        Step::HostAcquired,
        Step::VmStarted,
        Step::GuestCreated,
        Step::VmEnded,
        Step::Stop,
        Step::Released,
    ];

    #[test]
    fn a_start_goes_through_every_state_in_order() {
        let mut state = State::Prepared;
        for (step, next) in [
            (Step::HostAcquired, State::HostReady),
            (Step::VmStarted, State::VmRunning),
            (Step::GuestCreated, State::GuestReady),
            (Step::VmEnded, State::Lost),
            (Step::Stop, State::Stopping),
            (Step::Released, State::Stopped),
        ] {
            state = state.next(step).unwrap();
            assert_eq!(state, next);
        }
    }

    #[test]
    fn no_step_of_a_start_can_be_skipped() {
        for (state, step) in [
            (State::Prepared, Step::VmStarted),
            (State::Prepared, Step::GuestCreated),
            (State::HostReady, Step::GuestCreated),
            (State::Prepared, Step::VmEnded),
            (State::GuestReady, Step::Released),
        ] {
            assert!(state.next(step).is_err(), "{step:?} after {state:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_leads_back_and_a_stop_is_always_possible(
            steps in prop::collection::vec(prop::sample::select(&STEPS[..]), 0..32),
        ) {
            let mut state = State::Prepared;
            for step in steps {
                if let Ok(next) = state.next(step) {
                    prop_assert!(next >= state, "{:?} -> {:?}", state, next);
                    state = next;
                }
            }
            let stopping = state.next(Step::Stop).unwrap();
            prop_assert!(!stopping.serves());
            prop_assert!(stopping == State::Stopped || stopping.next(Step::Released).unwrap() == State::Stopped);
        }
    }
}

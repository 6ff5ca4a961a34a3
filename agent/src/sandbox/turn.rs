//! Who may be at work on a container beside the sandbox's task: a start, a pause and a resumption alone, execs together, and
//! each after what was asked for before it. What ends a container (signals, its deletion) waits for no turn.

use std::future;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

/// One container's queue. Its identity is the container's, whoever has the id later.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<RwLock<()>>);

/// The permission to be at work, until it is dropped.
#[derive(Debug)]
pub enum Turn {
    /// With others of this kind.
    Together { _guard: OwnedRwLockReadGuard<()> },
    /// With nobody.
    Alone { _guard: OwnedRwLockWriteGuard<()> },
}

/// A place in the queue.
pub type Place = BoxFuture<'static, Turn>;

impl Turns {
    /// Takes a place, for work that may be done with others.
    pub fn together(&self) -> Place {
        let turn = Arc::clone(&self.0).read_owned();
        take(turn.map(|guard| Turn::Together { _guard: guard }).boxed())
    }

    /// Takes a place, for work that must be done alone.
    pub fn alone(&self) -> Place {
        let turn = Arc::clone(&self.0).write_owned();
        take(turn.map(|guard| Turn::Alone { _guard: guard }).boxed())
    }

    /// Whether both are the same container's.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The lock's queue is one of those who were polled once.
fn take(mut place: Place) -> Place {
    match (&mut place).now_or_never() {
        Some(turn) => future::ready(turn).boxed(),
        None => place,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether it is a place's turn.
    fn comes(place: &mut Place) -> Option<Turn> {
        place.now_or_never()
    }

    #[test]
    fn turns_come_in_the_order_in_which_places_were_taken() {
        let turns = Turns::default();
        let (mut start, mut exec, mut second, mut pause, mut third) = (
            turns.alone(),
            turns.together(),
            turns.together(),
            turns.alone(),
            turns.together(),
        );
        let start = comes(&mut start).expect("nobody is before it");
        for place in [&mut third, &mut exec, &mut second, &mut pause] {
            assert!(comes(place).is_none());
        }
        drop(start);
        assert!(comes(&mut third).is_none(), "polled first, asked for last");
        let (exec, second) = (comes(&mut exec).unwrap(), comes(&mut second).unwrap());
        assert!(comes(&mut pause).is_none());
        drop(exec);
        assert!(comes(&mut pause).is_none());
        drop(second);
        let pause = comes(&mut pause).unwrap();
        assert!(comes(&mut third).is_none());
        drop(pause);
        comes(&mut third).unwrap();
    }

    #[test]
    fn who_gives_up_a_place_is_passed_over() {
        let turns = Turns::default();
        let (first, given_up, mut last) = (turns.alone(), turns.alone(), turns.alone());
        drop(given_up);
        drop(first);
        comes(&mut last).unwrap();
    }
}

//! How long calls take: a histogram for each RPC, so that there are never more than the protocol has RPCs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ErrorKind;

/// Upper ends of the buckets, in milliseconds; what takes longer is in none. Kata's.
pub const BUCKETS_MS: [u64; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// An answer.
    Answered,
    /// An error of this kind.
    Failed(ErrorKind),
    /// Nobody waits for it any more.
    GivenUp,
}

/// Who is told of every call, by its RPC's name, in the task that makes it: it has to be quick. What it answers is told what has
/// come of the call.
pub type Told = Arc<dyn Fn(&'static str) -> Option<Ending> + Send + Sync>;

/// Who is told of the end of a call.
pub type Ending = Box<dyn FnOnce(Outcome) + Send>;

/// How long the calls of one RPC took, failed ones and those that were given up as well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Durations {
    /// Calls.
    pub count: u64,
    /// All of their time.
    pub sum: Duration,
    /// Calls for each of [`BUCKETS_MS`] that took at most so long, and longer than the one before.
    pub buckets: [u64; BUCKETS_MS.len()],
}

impl Durations {
    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum = self.sum.saturating_add(took);
        let fits = |most: &u64| took <= Duration::from_millis(*most);
        if let Some(bucket) = BUCKETS_MS
            .iter()
            .position(fits)
            .and_then(|at| self.buckets.get_mut(at))
        {
            *bucket += 1;
        }
    }
}

/// Those of one agent.
#[derive(Debug, Default)]
pub(crate) struct Books(Mutex<BTreeMap<&'static str, Durations>>);

impl Books {
    fn all(&self) -> MutexGuard<'_, BTreeMap<&'static str, Durations>> {
        // Nothing panics while it holds them.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Measures a call until it ends, or is given up.
    pub(crate) fn measure(&self, name: &'static str, told: Option<&Told>) -> Measured<'_> {
        Measured {
            books: self,
            name,
            begun: Instant::now(),
            outcome: Outcome::GivenUp,
            ending: told.and_then(|told| told(name)),
        }
    }

    pub(crate) fn list(&self) -> Vec<(&'static str, Durations)> {
        self.all()
            .iter()
            .map(|(name, durations)| (*name, *durations))
            .collect()
    }
}

/// A call under way.
pub(crate) struct Measured<'a> {
    books: &'a Books,
    name: &'static str,
    begun: Instant,
    outcome: Outcome,
    ending: Option<Ending>,
}

impl Measured<'_> {
    /// It has ended, and how it failed if it did.
    pub(crate) fn ended(&mut self, failure: Option<ErrorKind>) {
        self.outcome = failure.map_or(Outcome::Answered, Outcome::Failed);
    }
}

impl Drop for Measured<'_> {
    fn drop(&mut self) {
        self.books
            .all()
            .entry(self.name)
            .or_default()
            .add(self.begun.elapsed());
        if let Some(ending) = self.ending.take() {
            ending(self.outcome);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_in_the_first_bucket_that_it_fits() {
        let mut durations = Durations::default();
        for (micros, bucket) in [
            (0, Some(0)),
            (1000, Some(0)),
            (1001, Some(1)),
            (512_000, Some(9)),
            (512_001, None),
        ] {
            let before = durations;
            durations.add(Duration::from_micros(micros));
            assert_eq!(durations.count, before.count + 1);
            let grown = (0..BUCKETS_MS.len()).find(|at| durations.buckets[*at] > before.buckets[*at]);
            assert_eq!(grown, bucket, "{micros}");
        }
        assert_eq!(durations.sum, Duration::from_micros(1_026_002));
    }

    #[test]
    fn each_rpc_has_its_own() {
        let books = Books::default();
        drop(books.measure("hello", None));
        drop(books.measure("hello", None));
        drop(books.measure("read_guest", None));
        let counts: Vec<_> = books
            .list()
            .iter()
            .map(|(name, one)| (*name, one.count))
            .collect();
        assert_eq!(counts, [("hello", 2), ("read_guest", 1)]);
    }

    #[test]
    fn whoever_listens_is_told_how_each_call_ended() {
        let (books, heard) = (Books::default(), Arc::new(Mutex::new(Vec::new())));
        let notes = Arc::clone(&heard);
        let told: Told = Arc::new(move |name| {
            let notes = Arc::clone(&notes);
            let ending = move |outcome| notes.lock().unwrap().push((name, outcome));
            (name != "next_events").then(|| Box::new(ending) as Ending)
        });
        books.measure("hello", Some(&told)).ended(None);
        books
            .measure("read_guest", Some(&told))
            .ended(Some(ErrorKind::NotFound));
        drop(books.measure("next_events", Some(&told)));
        drop(books.measure("wait_process", Some(&told)));
        assert_eq!(
            *heard.lock().unwrap(),
            [
                ("hello", Outcome::Answered),
                ("read_guest", Outcome::Failed(ErrorKind::NotFound)),
                ("wait_process", Outcome::GivenUp),
            ]
        );
    }
}

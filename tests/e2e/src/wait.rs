//! Waiting for what belongs to other processes. Nothing tells us when it changes, so we look again until a deadline.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::deadlines;

/// Looks until `look` has an answer.
///
/// # Errors
/// An error of `look`, or it had no answer within `limit`; then the error says what was waited for.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        // The last look is after the deadline: a machine that was busy until then is no failure.
        let is_last = Instant::now() >= end;
        if let Some(answer) = look()? {
            return Ok(answer);
        }
        if is_last {
            bail!("{what}: not within {:.1} s", limit.as_secs_f64());
        }
        sleep(deadlines::LOOK);
    }
}

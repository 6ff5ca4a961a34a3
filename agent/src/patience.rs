//! How long the agent waits: as long as its deadlines say, or a multiple of that where the host says that the guest is slow. A kernel that
//! is interpreted takes seconds for what takes others a millisecond.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The largest factor.
pub const MOST: u32 = 100;

static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Every deadline is this many times as long from now on; no more than [`MOST`].
pub fn multiply(factor: u32) {
    FACTOR.store(factor.clamp(1, MOST), Ordering::Relaxed);
}

/// The deadline, as it is here.
pub fn patient(limit: Duration) -> Duration {
    limit.saturating_mul(FACTOR.load(Ordering::Relaxed))
}

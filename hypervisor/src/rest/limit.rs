//! How much a device may do, as both Firecracker and Cloud Hypervisor are told: buckets of tokens. Pure.

use configuration::HypervisorConfig;
use serde_json::{Value, json};

/// Limits of a device; 0 is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes per second.
    pub bytes_per_second: u64,
    /// Bytes that it may move on top of that, once.
    pub bytes_once: u64,
    /// Operations per second.
    pub ops_per_second: u64,
    /// Operations that it may do on top of that, once.
    pub ops_once: u64,
}

impl RateLimit {
    /// That of a disk. The configuration's bandwidths are Kata's: bits.
    pub fn of_disks(config: &HypervisorConfig) -> Self {
        Self {
            bytes_per_second: bytes(config.disk_rate_limiter_bw_max_rate),
            bytes_once: bytes(config.disk_rate_limiter_bw_one_time_burst),
            ops_per_second: config.disk_rate_limiter_ops_max_rate,
            ops_once: config.disk_rate_limiter_ops_one_time_burst,
        }
    }

    /// That of a network card, in each direction.
    pub fn of_nets(config: &HypervisorConfig) -> Self {
        Self {
            bytes_per_second: bytes(config.net_rate_limiter_bw_max_rate),
            bytes_once: bytes(config.net_rate_limiter_bw_one_time_burst),
            ops_per_second: config.net_rate_limiter_ops_max_rate,
            ops_once: config.net_rate_limiter_ops_one_time_burst,
        }
    }

    /// The limiter; `None` without a limit.
    pub fn limiter(self) -> Option<Value> {
        let bandwidth = bucket(self.bytes_per_second, self.bytes_once);
        let ops = bucket(self.ops_per_second, self.ops_once);
        let kinds = [("bandwidth", bandwidth), ("ops", ops)];
        let mut limiter = serde_json::Map::new();
        for (name, bucket) in kinds {
            if let Some(bucket) = bucket {
                limiter.insert(name.into(), bucket);
            }
        }
        (!limiter.is_empty()).then(|| limiter.into())
    }
}

/// Whole bytes, and not none where there is a limit.
fn bytes(bits: u64) -> u64 {
    bits.div_ceil(8)
}

fn bucket(rate: u64, once: u64) -> Option<Value> {
    let mut bucket = json!({"size": rate, "refill_time": 1000});
    if once > 0 {
        bucket["one_time_burst"] = json!(once);
    }
    (rate > 0).then_some(bucket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_limits_that_there_are_are_told() {
        assert_eq!(RateLimit::default().limiter(), None);
        let bytes = RateLimit {
            bytes_per_second: 1000,
            bytes_once: 5,
            ..RateLimit::default()
        };
        assert_eq!(
            bytes.limiter(),
            Some(json!({"bandwidth": {"size": 1000, "refill_time": 1000, "one_time_burst": 5}}))
        );
        let ops = RateLimit {
            ops_per_second: 7,
            ..RateLimit::default()
        };
        assert_eq!(
            ops.limiter(),
            Some(json!({"ops": {"size": 7, "refill_time": 1000}}))
        );
    }

    #[test]
    fn bits_become_bytes_and_never_none() {
        assert_eq!([0, 1, 8, 80_000].map(bytes), [0, 1, 1, 10_000]);
    }
}

//! Figures as runc's `events --stats` prints them. Pure.

use runtime::Stats;
use serde_json::{Value, json};

/// Nanoseconds in a microsecond.
const NANO: u64 = 1000;

/// The event of a container's figures.
pub fn event(id: &str, stats: &Stats) -> Value {
    let (cpu, memory, pids) = (&stats.cpu, &stats.memory, &stats.pids);
    let io = |pick: fn(u64, u64, u64, u64) -> [u64; 2]| -> Vec<Value> {
        let figures = stats.io.iter().flat_map(|io| {
            let [read, write] = pick(io.rbytes, io.wbytes, io.rios, io.wios);
            [("Read", read), ("Write", write)]
                .map(|(op, value)| json!({"major": io.major, "minor": io.minor, "op": op, "value": value}))
        });
        figures.collect()
    };
    let entry =
        |usage: u64, limit: u64, max: u64| json!({"usage": usage, "limit": limit, "max": max, "failcnt": 0});
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": {
                    "total": cpu.usage_usec.saturating_mul(NANO),
                    "kernel": cpu.system_usec.saturating_mul(NANO),
                    "user": cpu.user_usec.saturating_mul(NANO),
                },
                "throttling": {
                    "periods": cpu.nr_periods,
                    "throttledPeriods": cpu.nr_throttled,
                    "throttledTime": cpu.throttled_usec.saturating_mul(NANO),
                },
            },
            "memory": {
                "cache": memory.stat.get("file").copied().unwrap_or_default(),
                "usage": entry(memory.usage, memory.limit, memory.max_usage),
                "swap": entry(memory.swap_usage, memory.swap_limit, 0),
                "kernel": entry(0, 0, 0),
                "kernelTCP": entry(0, 0, 0),
                "raw": memory.stat,
            },
            "pids": { "current": pids.current, "limit": pids.limit },
            "blkio": {
                "ioServiceBytesRecursive": io(|read, written, _, _| [read, written]),
                "ioServicedRecursive": io(|_, _, reads, writes| [reads, writes]),
            },
        },
    })
}

//! The limits of an OCI specification as writes to cgroup v2 files.
//!
//! Pure: a value in, a list of (file, content) out. Conversions of v1 numbers are `runc`'s.

use oci_spec::runtime::{
    LinuxBlockIo, LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources, LinuxThrottleDevice,
};

use crate::container::error::{Error, Result};

/// One limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    /// The specification's field, for errors.
    pub(super) field: &'static str,
    /// The controller that has the file.
    pub(super) controller: String,
    /// The file's name.
    pub(super) file: String,
    /// What is written.
    pub(super) content: String,
    /// A kernel whose controller lacks the file can't exceed the limit: no error then.
    pub(super) vacuous_without_file: bool,
}

fn write(field: &'static str, file: impl Into<String>, content: impl ToString) -> Write {
    let file = file.into();
    let controller = file.split('.').next().unwrap_or_default();
    Write {
        field,
        controller: controller.to_owned(),
        file,
        content: content.to_string(),
        vacuous_without_file: false,
    }
}

/// All limits, in an order in which they can be written.
pub(super) fn writes(resources: &LinuxResources) -> Result<Vec<Write>> {
    let mut writes = Vec::new();
    if let Some(cpu) = resources.cpu() {
        cpu_writes(cpu, &mut writes)?;
    }
    if let Some(memory) = resources.memory() {
        memory_writes(memory, &mut writes)?;
    }
    if let Some(pids) = resources.pids() {
        writes.extend(pids_write(pids));
    }
    if let Some(io) = resources.block_io() {
        io_writes(io, &mut writes)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        writes.push(hugepage_write(limit)?);
    }
    if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return Err(Error::unsupported("linux.resources.rdma", "the rdma controller"));
    }
    if resources.network().as_ref().is_some_and(|network| {
        network.class_id().is_some_and(|id| id != 0)
            || network.priorities().as_ref().is_some_and(|all| !all.is_empty())
    }) {
        return Err(Error::unsupported(
            "linux.resources.network",
            "a class or priority of packets (cgroup v1)",
        ));
    }
    if let Some(unified) = resources.unified() {
        // Sorted, so that the same specification gives the same writes.
        let mut entries: Vec<_> = unified.iter().collect();
        entries.sort();
        for (file, content) in entries {
            if !file.contains('.')
                || file.starts_with('.')
                || file.contains('/')
                || file.starts_with("cgroup.")
            {
                return Err(Error::spec(
                    "linux.resources.unified",
                    format!("{file:?} is no limit's file"),
                ));
            }
            writes.push(write("linux.resources.unified", file.as_str(), content));
        }
    }
    Ok(writes)
}

/// -1 is "no limit", 0 is "not asked for".
fn limit(value: i64) -> Option<String> {
    match value {
        0 => None,
        -1 => Some("max".to_owned()),
        value => Some(value.to_string()),
    }
}

fn cpu_writes(cpu: &LinuxCpu, writes: &mut Vec<Write>) -> Result<()> {
    if cpu.realtime_period().unwrap_or(0) != 0 || cpu.realtime_runtime().unwrap_or(0) != 0 {
        return Err(Error::unsupported(
            "linux.resources.cpu.realtimeRuntime",
            "real-time bandwidth (cgroup v1)",
        ));
    }
    // An idle group has no weight: the kernel refuses one after the other.
    if let Some(idle) = cpu.idle() {
        writes.push(write("linux.resources.cpu.idle", "cpu.idle", idle));
    }
    if let (Some(weight), None | Some(0)) = (cpu.shares().and_then(weight_of_shares), cpu.idle()) {
        writes.push(write("linux.resources.cpu.shares", "cpu.weight", weight));
    }
    let quota = cpu.quota().filter(|&quota| quota != 0);
    let period = cpu.period().filter(|&period| period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        // The kernel's own default period, in microseconds.
        let period = period.unwrap_or(100_000);
        writes.push(write(
            "linux.resources.cpu.quota",
            "cpu.max",
            format!("{quota} {period}"),
        ));
    }
    if let Some(burst) = cpu.burst() {
        writes.push(write("linux.resources.cpu.burst", "cpu.max.burst", burst));
    }
    if let Some(cpus) = cpu.cpus().as_ref().filter(|cpus| !cpus.is_empty()) {
        writes.push(write("linux.resources.cpu.cpus", "cpuset.cpus", cpus));
    }
    if let Some(mems) = cpu.mems().as_ref().filter(|mems| !mems.is_empty()) {
        writes.push(write("linux.resources.cpu.mems", "cpuset.mems", mems));
    }
    Ok(())
}

/// Shares (v1: 2 to 262144, default 1024) as weight (v2: 1 to 10000, default 100): the curve through the two ends and the
/// two defaults on which runc, crun and the kubelet agreed in 2025.
fn weight_of_shares(shares: u64) -> Option<u64> {
    match shares {
        0 => None,
        1..=2 => Some(1),
        262_144.. => Some(10_000),
        shares => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            Some(10f64.powf(exponent).ceil() as u64)
        }
    }
}

fn memory_writes(memory: &LinuxMemory, writes: &mut Vec<Write>) -> Result<()> {
    // Kernel memory is part of memory.max in v2; swappiness and the OOM killer's switch do not exist there, and runc
    // ignores them too.
    let max = memory.limit().unwrap_or(0);
    let swap = swap(max, memory.swap().unwrap_or(0))?;
    if let Some(swap) = limit_with_zero(swap) {
        writes.push(Write {
            vacuous_without_file: true,
            ..write("linux.resources.memory.swap", "memory.swap.max", swap)
        });
    }
    if let Some(max) = limit(max) {
        writes.push(write("linux.resources.memory.limit", "memory.max", max));
    }
    if let Some(low) = limit(memory.reservation().unwrap_or(0)) {
        writes.push(write("linux.resources.memory.reservation", "memory.low", low));
    }
    Ok(())
}

/// In v1 the limit is on memory and swap together, in v2 on swap alone. `None` is "not asked for".
fn swap(memory: i64, both: i64) -> Result<Option<i64>> {
    match (memory, both) {
        (_, 0) => Ok(None),
        (_, -1) => Ok(Some(-1)),
        (memory, both) if memory > 0 && both >= memory => Ok(Some(both - memory)),
        (memory, _) => Err(Error::spec(
            "linux.resources.memory.swap",
            if memory > 0 {
                "is less than the memory limit"
            } else {
                "is set without a memory limit"
            },
        )),
    }
}

fn limit_with_zero(value: Option<i64>) -> Option<String> {
    value.map(|value| limit(value).unwrap_or_else(|| "0".to_owned()))
}

fn pids_write(pids: &LinuxPids) -> Option<Write> {
    let max = match pids.limit() {
        0 => return None,
        limit if limit < 0 => "max".to_owned(),
        limit => limit.to_string(),
    };
    Some(write("linux.resources.pids.limit", "pids.max", max))
}

fn io_writes(io: &LinuxBlockIo, writes: &mut Vec<Write>) -> Result<()> {
    const FIELD: &str = "linux.resources.blockIO.weight";
    if let Some(weight) = io.weight().filter(|&weight| weight != 0) {
        writes.push(write(
            FIELD,
            "io.weight",
            format!("default {}", io_weight(weight)?),
        ));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight() {
            let content = format!("{}:{} {}", device.major(), device.minor(), io_weight(weight)?);
            writes.push(write(
                "linux.resources.blockIO.weightDevice",
                "io.weight",
                content,
            ));
        }
    }
    let mut throttle = |key: &str, devices: &Option<Vec<LinuxThrottleDevice>>| {
        for device in devices.iter().flatten() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            let content = format!("{}:{} {key}={rate}", device.major(), device.minor());
            writes.push(write("linux.resources.blockIO.throttle", "io.max", content));
        }
    };
    throttle("rbps", io.throttle_read_bps_device());
    throttle("wbps", io.throttle_write_bps_device());
    throttle("riops", io.throttle_read_iops_device());
    throttle("wiops", io.throttle_write_iops_device());
    Ok(())
}

/// Weight of v1 (10 to 1000) on v2's scale (1 to 10000).
fn io_weight(weight: u16) -> Result<u64> {
    if !(10..=1000).contains(&weight) {
        return Err(Error::spec(
            "linux.resources.blockIO.weight",
            "must be 10 to 1000",
        ));
    }
    Ok(1 + (u64::from(weight) - 10) * 9999 / 990)
}

fn hugepage_write(limit: &LinuxHugepageLimit) -> Result<Write> {
    let size = limit.page_size();
    if size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return Err(Error::spec(
            "linux.resources.hugepageLimits.pageSize",
            format!("{size:?} is no size"),
        ));
    }
    let content = match limit.limit() {
        limit if limit < 0 => "max".to_owned(),
        limit => limit.to_string(),
    };
    Ok(write(
        "linux.resources.hugepageLimits",
        format!("hugetlb.{size}.max"),
        content,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(json: &str) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        writes(&resources)
            .unwrap()
            .into_iter()
            .map(|w| (w.file, w.content))
            .collect()
    }

    #[test]
    fn limits_become_files() {
        let table: &[(&str, &[(&str, &str)])] = &[
            ("{}", &[]),
            (r#"{"cpu": {"shares": 1024}}"#, &[("cpu.weight", "100")]),
            (r#"{"cpu": {"shares": 2}}"#, &[("cpu.weight", "1")]),
            (r#"{"cpu": {"shares": 0, "quota": 0, "period": 0}}"#, &[]),
            (
                r#"{"cpu": {"quota": 50000, "period": 100000}}"#,
                &[("cpu.max", "50000 100000")],
            ),
            (r#"{"cpu": {"quota": -1}}"#, &[("cpu.max", "max 100000")]),
            (r#"{"cpu": {"period": 50000}}"#, &[("cpu.max", "max 50000")]),
            (
                r#"{"cpu": {"cpus": "0-1", "mems": "0"}}"#,
                &[("cpuset.cpus", "0-1"), ("cpuset.mems", "0")],
            ),
            (r#"{"cpu": {"idle": 1, "shares": 1024}}"#, &[("cpu.idle", "1")]),
            (r#"{"memory": {"limit": 1048576}}"#, &[("memory.max", "1048576")]),
            (
                r#"{"memory": {"limit": -1, "swap": -1}}"#,
                &[("memory.swap.max", "max"), ("memory.max", "max")],
            ),
            (
                r#"{"memory": {"limit": 1000, "swap": 1000, "reservation": 500}}"#,
                &[
                    ("memory.swap.max", "0"),
                    ("memory.max", "1000"),
                    ("memory.low", "500"),
                ],
            ),
            (
                r#"{"memory": {"limit": 1000, "swap": 3000}}"#,
                &[("memory.swap.max", "2000"), ("memory.max", "1000")],
            ),
            (r#"{"pids": {"limit": 100}}"#, &[("pids.max", "100")]),
            (r#"{"pids": {"limit": -1}}"#, &[("pids.max", "max")]),
            (r#"{"pids": {"limit": 0}}"#, &[]),
            (r#"{"blockIO": {"weight": 10}}"#, &[("io.weight", "default 1")]),
            (
                r#"{"blockIO": {"weight": 1000}}"#,
                &[("io.weight", "default 10000")],
            ),
            (
                r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 4096}],
                    "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 7}]}}"#,
                &[("io.max", "8:0 rbps=4096"), ("io.max", "8:16 wiops=7")],
            ),
            (
                r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#,
                &[("hugetlb.2MB.max", "4194304")],
            ),
            (
                r#"{"unified": {"memory.high": "5", "cpu.weight.nice": "1"}}"#,
                &[("cpu.weight.nice", "1"), ("memory.high", "5")],
            ),
        ];
        for (json, expected) in table {
            let expected: Vec<_> = expected
                .iter()
                .map(|(f, c)| ((*f).to_owned(), (*c).to_owned()))
                .collect();
            assert_eq!(pairs(json), expected, "{json}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for json in [
            r#"{"memory": {"limit": 1000, "swap": 999}}"#,
            r#"{"memory": {"swap": 999}}"#,
            r#"{"blockIO": {"weight": 9}}"#,
            r#"{"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}"#,
            r#"{"unified": {"../memory.max": "1"}}"#,
            r#"{"unified": {"cgroup.procs": "1"}}"#,
            r#"{"cpu": {"realtimeRuntime": 5}}"#,
            r#"{"network": {"classID": 5}}"#,
        ] {
            let resources: LinuxResources = serde_json::from_str(json).unwrap();
            assert!(writes(&resources).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn weights_grow_with_shares_and_stay_in_range(a in 1u64..300_000, b in 1u64..300_000) {
            let (low, high) = (a.min(b), a.max(b));
            let (low, high) = (weight_of_shares(low).unwrap(), weight_of_shares(high).unwrap());
            prop_assert!(low <= high);
            prop_assert!((1..=10_000).contains(&low) && (1..=10_000).contains(&high));
        }

        #[test]
        fn swap_alone_is_never_negative(memory in 1i64..1 << 50, both in -1i64..1 << 50) {
            if let Ok(Some(swap)) = swap(memory, both) {
                prop_assert!(swap >= -1);
            }
        }
    }
}

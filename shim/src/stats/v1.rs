//! The figures in the form of cgroup version 1. Pure.

use containerd_shim_protos::cgroups::metrics::{
    BlkIOEntry, BlkIOStat, CPUStat, CPUUsage, HugetlbStat, MemoryEntry, MemoryOomControl, MemoryStat,
    Metrics, PidsStat, Throttle,
};
use runtime::Stats;

use super::{MOST, is_page_size, stat};

/// What `memory.limit_in_bytes` shows where there is no limit.
const NO_LIMIT: u64 = 9_223_372_036_854_771_712;

pub(super) fn metrics(stats: &Stats) -> Metrics {
    let pids = PidsStat {
        current: stats.pids.current,
        limit: stats.pids.limit,
        ..Default::default()
    };
    let oom = MemoryOomControl {
        oom_kill: stats.memory.events_oom_kill,
        ..Default::default()
    };
    Metrics {
        cpu: Some(cpu(stats)).into(),
        memory: Some(memory(stats)).into(),
        memory_oom_control: Some(oom).into(),
        pids: Some(pids).into(),
        blkio: Some(blkio(stats)).into(),
        hugetlb: stats
            .hugetlb
            .iter()
            .filter(|pages| is_page_size(&pages.page_size))
            .take(MOST)
            .map(|pages| HugetlbStat {
                usage: pages.current,
                max: pages.max,
                pagesize: pages.page_size.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn nanoseconds(microseconds: u64) -> u64 {
    microseconds.saturating_mul(1000)
}

fn cpu(stats: &Stats) -> CPUStat {
    let cpu = &stats.cpu;
    let usage = CPUUsage {
        total: nanoseconds(cpu.usage_usec),
        kernel: nanoseconds(cpu.system_usec),
        user: nanoseconds(cpu.user_usec),
        ..Default::default()
    };
    let throttling = Throttle {
        periods: cpu.nr_periods,
        throttled_periods: cpu.nr_throttled,
        throttled_time: nanoseconds(cpu.throttled_usec),
        ..Default::default()
    };
    CPUStat {
        usage: Some(usage).into(),
        throttling: Some(throttling).into(),
        ..Default::default()
    }
}

fn memory(stats: &Stats) -> MemoryStat {
    let memory = &stats.memory;
    let limit = if memory.limit == 0 { NO_LIMIT } else { memory.limit };
    // Of memory and swap together, where version 2 has them apart.
    let swap_limit = match (memory.limit, memory.swap_limit) {
        (0, _) | (_, 0) => NO_LIMIT,
        (limit, swap) => limit.saturating_add(swap),
    };
    let usage = MemoryEntry {
        limit,
        usage: memory.usage,
        max: memory.max_usage,
        failcnt: memory.events_max,
        ..Default::default()
    };
    let swap = MemoryEntry {
        limit: swap_limit,
        usage: memory.usage.saturating_add(memory.swap_usage),
        ..Default::default()
    };
    let of = |key| stat(stats, key);
    MemoryStat {
        cache: of("file"),
        total_cache: of("file"),
        rss: of("anon"),
        total_rss: of("anon"),
        rss_huge: of("anon_thp"),
        total_rss_huge: of("anon_thp"),
        mapped_file: of("file_mapped"),
        total_mapped_file: of("file_mapped"),
        dirty: of("file_dirty"),
        total_dirty: of("file_dirty"),
        writeback: of("file_writeback"),
        total_writeback: of("file_writeback"),
        pg_fault: of("pgfault"),
        total_pg_fault: of("pgfault"),
        pg_maj_fault: of("pgmajfault"),
        total_pg_maj_fault: of("pgmajfault"),
        inactive_anon: of("inactive_anon"),
        total_inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        total_active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        total_inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        total_active_file: of("active_file"),
        unevictable: of("unevictable"),
        total_unevictable: of("unevictable"),
        hierarchical_memory_limit: limit,
        hierarchical_swap_limit: swap_limit,
        usage: Some(usage).into(),
        swap: Some(swap).into(),
        ..Default::default()
    }
}

fn blkio(stats: &Stats) -> BlkIOStat {
    let mut blkio = BlkIOStat::default();
    for io in stats.io.iter().take(MOST) {
        let entry = |op: &str, value| BlkIOEntry {
            op: op.to_owned(),
            major: io.major,
            minor: io.minor,
            value,
            ..Default::default()
        };
        let bytes = [entry("Read", io.rbytes), entry("Write", io.wbytes)];
        blkio.io_service_bytes_recursive.extend(bytes);
        let operations = [entry("Read", io.rios), entry("Write", io.wios)];
        blkio.io_serviced_recursive.extend(operations);
    }
    blkio
}

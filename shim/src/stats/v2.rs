//! The figures in the form of cgroup version 2, which is also the guest's. Pure.

use containerd_shim_protos::cgroups_v2::metrics::{
    CPUStat, HugeTlbStat, IOEntry, IOStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use runtime::Stats;

use super::{MOST, is_page_size, stat};

pub(super) fn metrics(stats: &Stats) -> Metrics {
    let pids = PidsStat {
        current: stats.pids.current,
        limit: stats.pids.limit,
        ..Default::default()
    };
    let cpu = CPUStat {
        usage_usec: stats.cpu.usage_usec,
        user_usec: stats.cpu.user_usec,
        system_usec: stats.cpu.system_usec,
        nr_periods: stats.cpu.nr_periods,
        nr_throttled: stats.cpu.nr_throttled,
        throttled_usec: stats.cpu.throttled_usec,
        ..Default::default()
    };
    let events = MemoryEvents {
        low: stats.memory.events_low,
        high: stats.memory.events_high,
        max: stats.memory.events_max,
        oom: stats.memory.events_oom,
        oom_kill: stats.memory.events_oom_kill,
        ..Default::default()
    };
    Metrics {
        pids: Some(pids).into(),
        cpu: Some(cpu).into(),
        memory: Some(memory(stats)).into(),
        memory_events: Some(events).into(),
        io: Some(io(stats)).into(),
        hugetlb: stats
            .hugetlb
            .iter()
            .filter(|pages| is_page_size(&pages.page_size))
            .take(MOST)
            .map(|pages| HugeTlbStat {
                current: pages.current,
                max: pages.max,
                pagesize: pages.page_size.clone(),
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn memory(stats: &Stats) -> MemoryStat {
    let unlimited = |limit| if limit == 0 { u64::MAX } else { limit };
    let of = |key| stat(stats, key);
    MemoryStat {
        usage: stats.memory.usage,
        usage_limit: unlimited(stats.memory.limit),
        max_usage: stats.memory.max_usage,
        swap_usage: stats.memory.swap_usage,
        swap_limit: unlimited(stats.memory.swap_limit),
        anon: of("anon"),
        file: of("file"),
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        // One figure until 5.9, two since.
        workingset_refault: of("workingset_refault_anon").saturating_add(of("workingset_refault_file")),
        workingset_activate: of("workingset_activate_anon").saturating_add(of("workingset_activate_file")),
        workingset_nodereclaim: of("workingset_nodereclaim"),
        pgrefill: of("pgrefill"),
        pgscan: of("pgscan"),
        pgsteal: of("pgsteal"),
        pgactivate: of("pgactivate"),
        pgdeactivate: of("pgdeactivate"),
        pglazyfree: of("pglazyfree"),
        pglazyfreed: of("pglazyfreed"),
        thp_fault_alloc: of("thp_fault_alloc"),
        thp_collapse_alloc: of("thp_collapse_alloc"),
        ..Default::default()
    }
}

fn io(stats: &Stats) -> IOStat {
    let usage = stats.io.iter().take(MOST).map(|io| IOEntry {
        major: io.major,
        minor: io.minor,
        rbytes: io.rbytes,
        wbytes: io.wbytes,
        rios: io.rios,
        wios: io.wios,
        ..Default::default()
    });
    IOStat {
        usage: usage.collect(),
        ..Default::default()
    }
}

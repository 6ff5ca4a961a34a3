//! The figures of a sandbox for Prometheus. Families that Kata's monitor has keep their names, items and units.

use std::fs;
use std::path::Path;

use agent_client::BUCKETS_MS;
use agent_protocol as p;

use super::prometheus::{Figures, Type};
use super::{Subject, proc, report};
use crate::container::Stats;
use crate::{ContainerId, deadlines};

/// All of them. What cannot be read now is left out.
pub(super) async fn text(subject: &Subject, dir: &Path) -> String {
    let request = subject
        .agent
        .read_guest(p::Empty::default(), Some(deadlines::STATS));
    let (stats, guest) = tokio::join!(report::stats(subject), request);
    let mut figures = Figures::default();
    about(&mut figures, subject);
    let processes = report::on_host(subject, dir);
    for (name, pid) in &processes {
        match name.as_str() {
            "owner" => process(&mut figures, "kata_shim", *pid, false),
            "vmm" => process(&mut figures, "kata_hypervisor", *pid, true),
            "virtiofsd" => process(&mut figures, "kata_virtiofsd", *pid, false),
            _ => {}
        }
    }
    overhead(&mut figures, &processes, &stats);
    containers(&mut figures, &stats);
    calls(&mut figures, subject);
    if let Ok(guest) = guest {
        of_guest(&mut figures, &guest);
    }
    figures.finish()
}

fn about(figures: &mut Figures, subject: &Subject) {
    let report = subject.sandbox.report();
    let mut info = figures.family("kata_sandbox_info", Type::Gauge, "What runs; always 1.");
    let labels = [
        ("id", subject.sandbox.id().as_str()),
        ("scope", subject.scope.as_str()),
        ("vmm", &report.vmm),
        ("machine", &report.machine),
        ("accelerator", &report.accelerator),
        ("guest_kernel", &subject.about.kernel_release),
        ("agent", &subject.about.agent),
    ];
    info.add(&labels, 1.0);
    let mut phases = figures.family(
        "kata_sandbox_start_phase_seconds",
        Type::Gauge,
        "How long each phase of the start took.",
    );
    for phase in subject.sandbox.phases() {
        phases.add(&[("phase", phase.name)], phase.took.as_secs_f64());
    }
}

/// How long the agent's calls took.
fn calls(figures: &mut Figures, subject: &Subject) {
    let mut family = figures.family(
        "kata_shim_agent_rpc_durations_histogram_milliseconds",
        Type::Histogram,
        "How long calls to the agent took; some wait for the workload.",
    );
    for (name, durations) in subject.agent.durations() {
        let buckets: Vec<_> = BUCKETS_MS.into_iter().zip(durations.buckets).collect();
        let sum = durations.sum.as_secs_f64() * 1e3;
        family.add_histogram(("action", name), &buckets, durations.count, sum);
    }
}

/// A process of the host's; with its network, the numbers of the namespace that it is in.
fn process(figures: &mut Figures, prefix: &str, pid: u32, network: bool) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let stat = proc::stat(&read("stat"), report::page());
    let threads = stat.iter().find(|(name, _)| name == "num_threads");
    if let Some((_, threads)) = threads {
        let name = format!("{prefix}_threads");
        figures.single(&name, Type::Gauge, "Threads of the process.", *threads);
    }
    if let Ok(open) = fs::read_dir(format!("/proc/{pid}/fd")) {
        let name = format!("{prefix}_fds");
        figures.single(
            &name,
            Type::Gauge,
            "Open descriptors of the process.",
            open.count() as f64,
        );
    }
    for (suffix, help, items) in [
        (
            "proc_stat",
            "/proc/<pid>/stat of the process: times in ticks, memory in bytes.",
            stat,
        ),
        (
            "proc_status",
            "/proc/<pid>/status of the process; memory in bytes.",
            proc::lines(&read("status")),
        ),
        (
            "io_stat",
            "/proc/<pid>/io of the process.",
            proc::lines(&read("io")),
        ),
    ] {
        let name = format!("{prefix}_{suffix}");
        let mut family = figures.family(&name, Type::Gauge, help);
        for (item, value) in items {
            family.add(&[("item", &item.replace('_', ""))], value);
        }
    }
    if network {
        let name = format!("{prefix}_netdev");
        let mut family = figures.family(&name, Type::Gauge, "/proc/<pid>/net/dev: the pod's network.");
        for (interface, items) in proc::network(&read("net/dev")) {
            for (item, value) in items {
                family.add(&[("interface", &interface), ("item", item)], value);
            }
        }
    }
}

/// What a sandbox costs beyond what its containers use.
fn overhead(figures: &mut Figures, processes: &[(String, u32)], stats: &[(ContainerId, Stats)]) {
    let resident = |pid: u32| {
        // Shared pages by their share: guest memory is mapped by several.
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let lines = proc::lines(text.split_once('\n').map_or("", |(_, rest)| rest));
        lines
            .iter()
            .find(|(name, _)| name == "pss")
            .map_or(0.0, |(_, bytes)| *bytes)
    };
    let host: f64 = processes.iter().map(|(_, pid)| resident(*pid)).sum();
    let used: f64 = stats.iter().map(|(_, stats)| stats.memory.usage as f64).sum();
    figures.single(
        "kata_shim_pod_overhead_memory_in_bytes",
        Type::Gauge,
        "Memory of the sandbox's processes on the host beyond what its containers use.",
        (host - used).max(0.0),
    );
}

fn containers(figures: &mut Figures, all: &[(ContainerId, Stats)]) {
    /// Name, form, help, and where the figure is.
    type Row = (&'static str, Type, &'static str, fn(&Stats) -> f64);
    let rows: [Row; 6] = [
        (
            "kata_container_cpu_usage_seconds_total",
            Type::Counter,
            "Time on a processor.",
            |stats| stats.cpu.usage_usec as f64 / 1e6,
        ),
        (
            "kata_container_cpu_throttled_seconds_total",
            Type::Counter,
            "Time that it had to wait for its share.",
            |stats| stats.cpu.throttled_usec as f64 / 1e6,
        ),
        (
            "kata_container_memory_usage_bytes",
            Type::Gauge,
            "Memory in use.",
            |stats| stats.memory.usage as f64,
        ),
        (
            "kata_container_memory_limit_bytes",
            Type::Gauge,
            "Memory that it may use; 0: all that there is.",
            |stats| stats.memory.limit as f64,
        ),
        (
            "kata_container_oom_kills_total",
            Type::Counter,
            "Processes that were killed for want of memory.",
            |stats| stats.memory.events_oom_kill as f64,
        ),
        ("kata_container_pids", Type::Gauge, "Processes.", |stats| {
            stats.pids.current as f64
        }),
    ];
    for (name, of, help, value) in rows {
        let mut family = figures.family(name, of, help);
        for (id, stats) in all {
            family.add(&[("container", id.as_str())], value(stats));
        }
    }
}

fn of_guest(figures: &mut Figures, guest: &p::ReadGuestResponse) {
    let (load, tasks) = proc::load(&guest.loadavg);
    for (name, help, items) in [
        ("kata_guest_load", "The guest's load.", load),
        (
            "kata_guest_tasks",
            "The guest's processes and threads: that run, and all.",
            tasks,
        ),
        (
            "kata_guest_meminfo",
            "/proc/meminfo of the guest, bytes.",
            proc::lines(&guest.meminfo),
        ),
        (
            "kata_guest_vm_stat",
            "/proc/vmstat of the guest.",
            proc::lines(&guest.vmstat),
        ),
    ] {
        let mut family = figures.family(name, Type::Gauge, help);
        for (item, value) in items {
            family.add(&[("item", &item)], value);
        }
    }
    for (name, label, help, rows) in [
        (
            "kata_guest_cpu_time",
            "cpu",
            "Time of the guest's processors, ticks.",
            proc::processors(&guest.stat),
        ),
        (
            "kata_guest_netdev_stat",
            "interface",
            "/proc/net/dev of the guest.",
            proc::network(&guest.netdev),
        ),
        (
            "kata_guest_diskstat",
            "disk",
            "/proc/diskstats of the guest.",
            proc::disks(&guest.diskstats),
        ),
    ] {
        let mut family = figures.family(name, Type::Gauge, help);
        for (row, items) in rows {
            for (item, value) in items {
                family.add(&[(label, &row), ("item", item)], value);
            }
        }
    }
}

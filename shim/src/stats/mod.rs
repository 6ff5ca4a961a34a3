//! A container's figures as containerd's clients read them: in the form of the host's cgroups, version 1 or 2, whatever
//! the guest uses.

mod v1;
mod v2;

use std::path::Path;

use protobuf::Message;
use protobuf::well_known_types::any::Any;
use runtime::error::Result;
use runtime::{Error, ErrorKind, Stats};
use rustix::fs::{StatFs, statfs};

/// Most devices and page sizes that are passed on: the figures come from the guest.
const MOST: usize = 64;

/// Most keys of `memory.stat` in a sum; the kernel has some fifty.
const MOST_KEYS: usize = 256;

/// Which version of cgroups the host uses; its clients read no other form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Version 1, or both at once.
    V1,
    /// Version 2 alone.
    V2,
}

impl Form {
    /// What is mounted at `/sys/fs/cgroup`.
    pub fn of_host() -> Self {
        Self::of(Path::new("/sys/fs/cgroup"))
    }

    fn of(cgroups: &Path) -> Self {
        /// Of cgroup v2, from linux/magic.h.
        const CGROUP2: i64 = 0x6367_7270;
        match statfs(cgroups) {
            Ok(StatFs { f_type, .. }) if f_type == CGROUP2 => Self::V2,
            Ok(_) | Err(_) => Self::V1,
        }
    }

    /// The figures in this form.
    ///
    /// # Errors
    /// They cannot be encoded.
    pub fn express(self, stats: &Stats) -> Result<Any> {
        match self {
            Self::V1 => packed("io.containerd.cgroups.v1.Metrics", &v1::metrics(stats)),
            Self::V2 => packed("io.containerd.cgroups.v2.Metrics", &v2::metrics(stats)),
        }
    }
}

fn packed(name: &str, metrics: &impl Message) -> Result<Any> {
    let value = metrics
        .write_to_bytes()
        .map_err(|error| Error::caused(ErrorKind::Internal, "the figures cannot be encoded", error))?;
    Ok(Any {
        type_url: name.to_owned(),
        value,
        ..Default::default()
    })
}

/// Adds figures of one container to those of others: what they use, and not what they may.
pub fn add(sum: &mut Stats, figures: &Stats) {
    let (cpu, more) = (sum.cpu.mut_or_insert_default(), &figures.cpu);
    for (sum, more) in [
        (&mut cpu.usage_usec, more.usage_usec),
        (&mut cpu.user_usec, more.user_usec),
        (&mut cpu.system_usec, more.system_usec),
        (&mut cpu.nr_periods, more.nr_periods),
        (&mut cpu.nr_throttled, more.nr_throttled),
        (&mut cpu.throttled_usec, more.throttled_usec),
    ] {
        *sum = sum.saturating_add(more);
    }
    let (memory, more) = (sum.memory.mut_or_insert_default(), &figures.memory);
    for (sum, more) in [
        (&mut memory.usage, more.usage),
        (&mut memory.swap_usage, more.swap_usage),
        (&mut memory.events_oom, more.events_oom),
        (&mut memory.events_oom_kill, more.events_oom_kill),
    ] {
        *sum = sum.saturating_add(more);
    }
    for (key, more) in &figures.memory.stat {
        // The guest makes up the keys.
        if memory.stat.len() < MOST_KEYS || memory.stat.contains_key(key) {
            let sum = memory.stat.entry(key.clone()).or_default();
            *sum = sum.saturating_add(*more);
        }
    }
    let pids = sum.pids.mut_or_insert_default();
    pids.current = pids.current.saturating_add(figures.pids.current);
}

/// A figure of `memory.stat`; what the guest's kernel does not know is 0.
fn stat(stats: &Stats, key: &str) -> u64 {
    stats.memory.stat.get(key).copied().unwrap_or(0)
}

/// A page size as the kernel names it: "2MB". The name comes from the guest.
fn is_page_size(name: &str) -> bool {
    let digits = name.trim_end_matches(['K', 'M', 'G', 'B']);
    (1..=8).contains(&name.len()) && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::{cgroups, cgroups_v2};

    /// What an agent answers, every figure different.
    fn stats() -> Stats {
        let mut stats = Stats::default();
        let cpu = stats.cpu.mut_or_insert_default();
        (cpu.usage_usec, cpu.user_usec, cpu.system_usec) = (30, 20, 10);
        (cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec) = (5, 3, 2);
        let memory = stats.memory.mut_or_insert_default();
        (memory.usage, memory.max_usage, memory.limit) = (1000, 2000, 3000);
        (memory.swap_usage, memory.swap_limit) = (100, 200);
        (memory.events_max, memory.events_oom, memory.events_oom_kill) = (11, 12, 13);
        for (key, value) in [("anon", 1), ("file", 2), ("inactive_file", 3), ("pgmajfault", 4)] {
            memory.stat.insert(key.into(), value);
        }
        let pids = stats.pids.mut_or_insert_default();
        (pids.current, pids.limit) = (6, 7);
        stats.io.push(Default::default());
        let io = &mut stats.io[0];
        (io.major, io.minor, io.rbytes, io.wbytes, io.rios, io.wios) = (8, 1, 10, 20, 30, 40);
        for name in ["2MB", "../../etc", ""] {
            stats.hugetlb.push(Default::default());
            let last = stats.hugetlb.last_mut().unwrap();
            (last.page_size, last.current, last.max) = (name.into(), 9, 8);
        }
        stats
    }

    #[test]
    fn figures_of_containers_add_up_and_what_a_guest_makes_up_is_bounded() {
        let figures = |usage: u64, keys: usize| {
            let mut stats = Stats::default();
            stats.cpu.mut_or_insert_default().usage_usec = usage;
            let memory = stats.memory.mut_or_insert_default();
            memory.usage = usage;
            memory.limit = 7;
            memory.stat = (0..keys).map(|key| (format!("k{key}"), usage)).collect();
            stats.pids.mut_or_insert_default().current = 1;
            stats
        };
        let mut sum = Stats::default();
        for one in [
            figures(1, 2),
            figures(2, 2),
            Stats::default(),
            figures(u64::MAX, 10_000),
        ] {
            add(&mut sum, &one);
        }
        assert_eq!((sum.cpu.usage_usec, sum.memory.usage), (u64::MAX, u64::MAX));
        assert_eq!((sum.memory.limit, sum.pids.current), (0, 3));
        assert_eq!(sum.memory.stat.len(), MOST_KEYS);
        assert_eq!(sum.memory.stat.get("k0"), Some(&u64::MAX));
    }

    #[test]
    fn version_1_has_every_figure_in_its_units() {
        let any = Form::V1.express(&stats()).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v1.Metrics");
        let metrics = cgroups::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        let cpu = &metrics.cpu;
        assert_eq!(
            (cpu.usage.total, cpu.usage.user, cpu.usage.kernel),
            (30_000, 20_000, 10_000)
        );
        let throttling = &cpu.throttling;
        assert_eq!(
            (
                throttling.periods,
                throttling.throttled_periods,
                throttling.throttled_time
            ),
            (5, 3, 2000)
        );
        let memory = &metrics.memory;
        let usage = &memory.usage;
        assert_eq!(
            (usage.usage, usage.max, usage.limit, usage.failcnt),
            (1000, 2000, 3000, 11)
        );
        // What CRI subtracts for the working set.
        assert_eq!((memory.total_inactive_file, memory.inactive_file), (3, 3));
        assert_eq!(
            (memory.total_rss, memory.rss, memory.cache, memory.pg_maj_fault),
            (1, 1, 2, 4)
        );
        // Version 1 counts memory and swap together.
        assert_eq!((memory.swap.usage, memory.swap.limit), (1100, 3200));
        assert_eq!(memory.hierarchical_memory_limit, 3000);
        assert_eq!((metrics.pids.current, metrics.pids.limit), (6, 7));
        let entries = |entries: &[cgroups::metrics::BlkIOEntry]| -> Vec<(String, u64, u64, u64)> {
            let one = |entry: &cgroups::metrics::BlkIOEntry| {
                (entry.op.clone(), entry.major, entry.minor, entry.value)
            };
            entries.iter().map(one).collect()
        };
        assert_eq!(
            entries(&metrics.blkio.io_service_bytes_recursive),
            [("Read".to_owned(), 8, 1, 10), ("Write".to_owned(), 8, 1, 20)]
        );
        assert_eq!(
            entries(&metrics.blkio.io_serviced_recursive),
            [("Read".to_owned(), 8, 1, 30), ("Write".to_owned(), 8, 1, 40)]
        );
        assert_eq!(metrics.hugetlb.len(), 1);
        assert_eq!(
            (metrics.hugetlb[0].pagesize.as_str(), metrics.hugetlb[0].usage),
            ("2MB", 9)
        );
        assert_eq!(metrics.memory_oom_control.oom_kill, 13);
    }

    #[test]
    fn version_2_has_every_figure_as_it_is() {
        let any = Form::V2.express(&stats()).unwrap();
        assert_eq!(any.type_url, "io.containerd.cgroups.v2.Metrics");
        let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&any.value).unwrap();
        let cpu = &metrics.cpu;
        assert_eq!((cpu.usage_usec, cpu.user_usec, cpu.system_usec), (30, 20, 10));
        assert_eq!((cpu.nr_periods, cpu.nr_throttled, cpu.throttled_usec), (5, 3, 2));
        let memory = &metrics.memory;
        assert_eq!(
            (memory.usage, memory.usage_limit, memory.max_usage),
            (1000, 3000, 2000)
        );
        assert_eq!((memory.swap_usage, memory.swap_limit), (100, 200));
        assert_eq!(
            (memory.anon, memory.file, memory.inactive_file, memory.pgmajfault),
            (1, 2, 3, 4)
        );
        assert_eq!(
            (metrics.memory_events.oom, metrics.memory_events.oom_kill),
            (12, 13)
        );
        assert_eq!((metrics.pids.current, metrics.pids.limit), (6, 7));
        let io = &metrics.io.usage[0];
        assert_eq!(
            (io.major, io.minor, io.rbytes, io.wbytes, io.rios, io.wios),
            (8, 1, 10, 20, 30, 40)
        );
        assert_eq!((metrics.hugetlb.len(), metrics.hugetlb[0].max), (1, 8));
    }

    #[test]
    fn no_limit_is_what_the_kernel_shows_for_none() {
        let none = Stats::default();
        let v1 = Form::V1.express(&none).unwrap();
        let v1 = cgroups::metrics::Metrics::parse_from_bytes(&v1.value).unwrap();
        assert_eq!(v1.memory.usage.limit, 9_223_372_036_854_771_712);
        assert_eq!(v1.memory.swap.limit, 9_223_372_036_854_771_712);
        let v2 = Form::V2.express(&none).unwrap();
        let v2 = cgroups_v2::metrics::Metrics::parse_from_bytes(&v2.value).unwrap();
        assert_eq!(
            (v2.memory.usage_limit, v2.memory.swap_limit),
            (u64::MAX, u64::MAX)
        );
    }

    #[test]
    fn a_lying_guest_makes_no_large_answer() {
        let mut stats = stats();
        stats.io = vec![stats.io[0].clone(); 10_000];
        stats.hugetlb = vec![stats.hugetlb[0].clone(); 10_000];
        stats.cpu.mut_or_insert_default().usage_usec = u64::MAX;
        stats.memory.mut_or_insert_default().usage = u64::MAX;
        for form in [Form::V1, Form::V2] {
            assert!(form.express(&stats).unwrap().value.len() < 32 * 1024);
        }
    }

    #[test]
    fn the_hosts_form_is_known() {
        assert_eq!(Form::of(Path::new("/proc")), Form::V1);
        assert_eq!(Form::of(Path::new("/nonexistent")), Form::V1);
    }
}

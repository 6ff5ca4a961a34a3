//! Figures of a container's cgroup (version 2), read from its files. A file that is missing reads as zero: a controller
//! may be absent.

use std::collections::HashMap;
use std::path::Path;

use agent_protocol as p;

/// Reads every figure.
pub fn read(cgroup: &Path) -> p::StatsResponse {
    let cgroup = Files(cgroup);
    p::StatsResponse {
        cpu: Some(cgroup.cpu()).into(),
        memory: Some(cgroup.memory()).into(),
        pids: Some(p::PidsStats {
            current: cgroup.number("pids.current"),
            limit: cgroup.number("pids.max"),
            ..Default::default()
        })
        .into(),
        io: io(&cgroup.text("io.stat")),
        hugetlb: cgroup.hugetlb(),
        ..Default::default()
    }
}

/// How many processes of this cgroup the kernel has killed for want of memory.
pub fn oom_kills(cgroup: &Path) -> u64 {
    keyed(&Files(cgroup).text("memory.events"))
        .remove("oom_kill")
        .unwrap_or_default()
}

struct Files<'a>(&'a Path);

impl Files<'_> {
    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    fn number(&self, file: &str) -> u64 {
        number(&self.text(file))
    }

    fn cpu(&self) -> p::CpuStats {
        let stat = keyed(&self.text("cpu.stat"));
        let get = |key: &str| stat.get(key).copied().unwrap_or_default();
        p::CpuStats {
            usage_usec: get("usage_usec"),
            user_usec: get("user_usec"),
            system_usec: get("system_usec"),
            nr_periods: get("nr_periods"),
            nr_throttled: get("nr_throttled"),
            throttled_usec: get("throttled_usec"),
            ..Default::default()
        }
    }

    fn memory(&self) -> p::MemoryStats {
        let events = keyed(&self.text("memory.events"));
        let event = |key: &str| events.get(key).copied().unwrap_or_default();
        p::MemoryStats {
            usage: self.number("memory.current"),
            // Since Linux 5.19.
            max_usage: self.number("memory.peak"),
            limit: self.number("memory.max"),
            swap_usage: self.number("memory.swap.current"),
            swap_limit: self.number("memory.swap.max"),
            stat: keyed(&self.text("memory.stat")),
            events_low: event("low"),
            events_high: event("high"),
            events_max: event("max"),
            events_oom: event("oom"),
            events_oom_kill: event("oom_kill"),
            ..Default::default()
        }
    }

    fn hugetlb(&self) -> Vec<p::HugetlbStats> {
        let entries = std::fs::read_dir(self.0).into_iter().flatten().flatten();
        let mut sizes: Vec<String> = entries
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                Some(
                    name.strip_prefix("hugetlb.")?
                        .strip_suffix(".current")?
                        .to_owned(),
                )
            })
            // `hugetlb.<size>.rsvd.current` counts reservations, not use.
            .filter(|size| !size.ends_with(".rsvd"))
            .collect();
        sizes.sort();
        let stats = |page_size: String| p::HugetlbStats {
            current: self.number(&format!("hugetlb.{page_size}.current")),
            max: self.number(&format!("hugetlb.{page_size}.max")),
            page_size,
            ..Default::default()
        };
        sizes.into_iter().map(stats).collect()
    }
}

/// A number; "max" (no limit) and anything else are 0.
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or_default()
}

/// Lines of `key value`.
fn keyed(text: &str) -> HashMap<String, u64> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(key, value)| (key.to_owned(), number(value)))
        .collect()
}

/// Lines of `major:minor key=value ...`.
fn io(text: &str) -> Vec<p::IoStats> {
    text.lines()
        .filter_map(|line| {
            let (device, figures) = line.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            let mut stats = p::IoStats {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
                ..Default::default()
            };
            for (key, value) in figures.split(' ').filter_map(|figure| figure.split_once('=')) {
                match key {
                    "rbytes" => stats.rbytes = number(value),
                    "wbytes" => stats.wbytes = number(value),
                    "rios" => stats.rios = number(value),
                    "wios" => stats.wios = number(value),
                    _ => {}
                }
            }
            Some(stats)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_read_as_the_kernel_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "cpu.stat",
                "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_periods 3\nnr_throttled 1\nthrottled_usec 9\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "8192\n"),
            ("memory.stat", "anon 1024\nfile 512\n"),
            (
                "memory.events",
                "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\noom_group_kill 0\n",
            ),
            ("pids.current", "5\n"),
            ("pids.max", "100\n"),
            (
                "io.stat",
                "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n",
            ),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let stats = read(dir.path());
        assert_eq!((stats.cpu.usage_usec, stats.cpu.throttled_usec), (300, 9));
        assert_eq!(
            (stats.memory.usage, stats.memory.max_usage, stats.memory.limit),
            (4096, 8192, 0)
        );
        assert_eq!(stats.memory.stat["file"], 512);
        assert_eq!(stats.memory.events_oom_kill, 1);
        assert_eq!((stats.pids.current, stats.pids.limit), (5, 100));
        assert_eq!(stats.io.len(), 2);
        assert_eq!(
            (stats.io[0].major, stats.io[0].wbytes, stats.io[0].wios),
            (254, 20, 2)
        );
        assert_eq!(stats.hugetlb.len(), 1);
        assert_eq!(
            (stats.hugetlb[0].page_size.as_str(), stats.hugetlb[0].current),
            ("2MB", 2_097_152)
        );
        assert_eq!(oom_kills(dir.path()), 1);
    }

    #[test]
    fn a_cgroup_that_is_not_there_is_all_zero() {
        let stats = read(Path::new("/nonexistent"));
        assert_eq!(
            (stats.cpu.usage_usec, stats.memory.usage, stats.io.len()),
            (0, 0, 0)
        );
    }
}

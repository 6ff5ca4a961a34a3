//! The two facts about the host that the configuration needs: how many CPUs, how much memory.

use std::fs;

/// What "all of the host" means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Host {
    /// CPUs that are online.
    pub(crate) cpus: u32,
    /// MiB.
    pub(crate) memory_mib: u64,
}

impl Host {
    /// Asks the kernel. Where it does not say, one CPU and any amount of memory.
    ///
    /// The CPUs that are online count, not those that this process may use: a shim can be started in a cgroup with a quota
    /// of its own, which is not its sandboxes' limit.
    pub(crate) fn read() -> Self {
        let online = fs::read_to_string("/sys/devices/system/cpu/online");
        let memory = fs::read_to_string("/proc/meminfo");
        Self {
            cpus: online.ok().and_then(|list| cpus(&list)).unwrap_or(1),
            memory_mib: memory.ok().and_then(|info| total_mib(&info)).unwrap_or(u64::MAX),
        }
    }
}

/// Length of a list such as `0-3,8`.
fn cpus(list: &str) -> Option<u32> {
    let mut count = 0_u32;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

fn total_mib(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_counted() {
        for (list, count) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8,10-11\n", Some(7)),
            ("", None),
            ("3-1", None),
            ("0-4294967295", None),
            ("x", None),
        ] {
            assert_eq!(cpus(list), count, "{list:?}");
        }
    }

    #[test]
    fn memory_is_read_in_mib() {
        assert_eq!(
            total_mib("MemTotal:       24582424 kB\nMemFree: 1 kB\n"),
            Some(24006)
        );
        assert_eq!(total_mib("MemFree: 1 kB\n"), None);
        assert_eq!(total_mib("MemTotal: many\n"), None);
    }

    #[test]
    fn this_host_has_both() {
        let host = Host::read();
        assert!(host.cpus >= 1 && host.memory_mib > 100 && host.memory_mib < u64::MAX);
    }
}

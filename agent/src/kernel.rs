//! What the guest's kernel says of itself and of its processes, read for whoever looks at the guest from outside. Every answer is
//! bounded.
//!
//! Must not know of containers.

use std::fs::{self, File};
use std::io::Read as _;

use agent_protocol::{ProcessDescription, ReadGuestResponse};

/// Most of a file that is read, in bytes. `/proc/stat` has 25 KiB for 64 processors.
const MOST_TEXT: u64 = 64 << 10;

/// Most of a command line, in bytes.
const MOST_COMMAND: usize = 256;

/// Most processes that are described: an answer has to fit in a message.
const MOST_PROCESSES: usize = 4096;

/// The figures of the kernel.
pub fn figures() -> ReadGuestResponse {
    ReadGuestResponse {
        stat: text("/proc/stat"),
        loadavg: text("/proc/loadavg"),
        meminfo: text("/proc/meminfo"),
        vmstat: text("/proc/vmstat"),
        netdev: text("/proc/net/dev"),
        diskstats: text("/proc/diskstats"),
        ..Default::default()
    }
}

fn text(path: &str) -> String {
    let mut bytes = Vec::new();
    // What cannot be read is not there.
    let _ = File::open(path).and_then(|file| file.take(MOST_TEXT).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What there is to say of these processes. One that has ended is left out.
pub fn describe(pids: &[u32]) -> Vec<ProcessDescription> {
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(4096);
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let described = pids.iter().filter_map(|&pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let (name, stat) = Stat::parse(&stat)?;
        Some(ProcessDescription {
            pid,
            parent: stat.parent,
            uid: effective_uid(&status).unwrap_or(0),
            state: stat.state.to_owned(),
            cpu_ms: stat.ticks.saturating_mul(1000) / ticks,
            resident_bytes: stat.resident_pages.saturating_mul(page),
            command: command(pid).unwrap_or_else(|| format!("[{name}]")),
            ..Default::default()
        })
    });
    described.take(MOST_PROCESSES).collect()
}

/// What is used of `/proc/<pid>/stat` (proc(5)).
struct Stat<'a> {
    state: &'a str,
    parent: u32,
    ticks: u64,
    resident_pages: u64,
}

impl<'a> Stat<'a> {
    fn parse(text: &'a str) -> Option<(&'a str, Self)> {
        // The name is in parentheses, and may contain some.
        let (before, rest) = text.rsplit_once(')')?;
        let (_, name) = before.split_once('(')?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        // The first one after the name is the third of the file.
        let field = |number: usize| fields.get(number - 3).copied();
        let number = |at: usize| field(at)?.parse::<u64>().ok();
        let stat = Self {
            state: field(3)?,
            parent: field(4)?.parse().ok()?,
            ticks: number(14)?.saturating_add(number(15)?),
            resident_pages: number(24)?,
        };
        Some((name, stat))
    }
}

fn effective_uid(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The arguments of a process; `None` where there are none, as of the kernel's own.
fn command(pid: u32) -> Option<String> {
    let mut bytes = Vec::new();
    let file = File::open(format!("/proc/{pid}/cmdline")).ok()?;
    let most = u64::try_from(MOST_COMMAND).unwrap_or(u64::MAX);
    file.take(most).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    let text = text.trim_end();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_described_whatever_its_name() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0 100 5000 42 1844";
        let (name, stat) = Stat::parse(text).unwrap();
        assert_eq!(name, "a) b (c");
        assert_eq!(
            (stat.state, stat.parent, stat.ticks, stat.resident_pages),
            ("S", 3, 200, 42)
        );
        assert!(Stat::parse("7 (a) S").is_none());
        assert!(Stat::parse("").is_none());
    }

    #[test]
    fn this_process_is_found_and_one_that_is_none_is_left_out() {
        let own = std::process::id();
        let described = describe(&[own, u32::MAX]);
        assert_eq!(described.len(), 1);
        assert_eq!(described[0].pid, own);
        assert_eq!(described[0].uid, rustix::process::geteuid().as_raw());
        assert!(described[0].resident_bytes > 0);
        assert!(
            described[0].command.contains("agent"),
            "{:?}",
            described[0].command
        );
    }

    #[test]
    fn the_kernel_has_figures() {
        let figures = figures();
        assert!(figures.stat.starts_with("cpu "), "{}", figures.stat);
        assert!(figures.meminfo.contains("MemTotal"), "{}", figures.meminfo);
        assert!(figures.netdev.contains("lo:"), "{}", figures.netdev);
    }
}

//! Where the benchmarks run: what one must know of a machine to compare its figures with another's.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use e2e::program::Program;
use serde::{Deserialize, Serialize};

/// A machine and what is installed on it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Host {
    /// Release of its kernel.
    pub kernel: String,
    /// Model of its processor.
    pub cpu: String,
    /// How many may be used.
    pub cpus: usize,
    /// MiB.
    pub memory: u64,
    /// `v1`, `v2` or `hybrid`.
    pub cgroups: String,
    /// Processes that ran or waited, over the last minute, before the first sample.
    pub load_before: f64,
    /// And after the last one.
    pub load_after: f64,
    /// First line of what containerd says of its version.
    pub containerd: String,
    /// Of runc's.
    pub runc: String,
    /// Of QEMU's.
    pub qemu: String,
    /// Commit of ours, with `+` where files differ from it.
    pub commit: String,
}

impl Host {
    /// This one, before the first sample.
    ///
    /// # Errors
    /// Something can't be found out.
    pub fn here() -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let meminfo = read("/proc/meminfo")?;
        Ok(Self {
            kernel: read("/proc/sys/kernel/osrelease")?.trim().into(),
            cpu: field(&cpuinfo, "model name").unwrap_or("unknown").into(),
            cpus: std::thread::available_parallelism()?.get(),
            memory: kib(&meminfo, "MemTotal").unwrap_or(0) / 1024,
            cgroups: cgroups(&read("/proc/self/mountinfo")?).into(),
            load_before: load()?,
            load_after: 0.0,
            containerd: first_line(Program::new("containerd").args(["--version"]))?,
            runc: first_line(Program::new("runc").args(["--version"]))?,
            qemu: first_line(Program::new("qemu-system-x86_64").args(["--version"]))?,
            commit: commit(),
        })
    }

    /// Notes the load after the last sample.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn finish(&mut self) -> Result<()> {
        self.load_after = load()?;
        Ok(())
    }

    /// For a person: name, value.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("host kernel", self.kernel.clone()),
            (
                "processor",
                format!("{} x {}, {} MiB", self.cpus, self.cpu, self.memory),
            ),
            ("cgroups", self.cgroups.clone()),
            (
                "load",
                format!("{} before, {} after", self.load_before, self.load_after),
            ),
            (
                "versions",
                format!("{}; {}; {}", self.containerd, self.runc, self.qemu),
            ),
            ("commit", self.commit.clone()),
        ]
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {path}"))
}

fn load() -> Result<f64> {
    let text = read("/proc/loadavg")?;
    let first = text.split(' ').next().unwrap_or_default();
    first
        .parse()
        .with_context(|| format!("understand the load {text:?}"))
}

fn first_line(program: Program) -> Result<String> {
    let text = program.read()?;
    Ok(text.lines().next().unwrap_or_default().into())
}

/// What was built, if this is a clone.
fn commit() -> String {
    let git = |args: &[&str]| {
        let root = ["-C", concat!(env!("CARGO_MANIFEST_DIR"), "/../..")];
        Program::new("git").args(root).args(args).read()
    };
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        Ok(commit) => {
            let is_clean =
                git(&["status", "--porcelain", "--untracked-files=no"]).is_ok_and(|text| text.is_empty());
            format!("{}{}", commit.trim(), if is_clean { "" } else { "+" })
        }
        Err(_) => "unknown".into(),
    }
}

/// The value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The value of a line `name: value kB`.
pub fn kib(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix(" kB")?.trim().parse().ok()
}

/// Which cgroups are mounted.
fn cgroups(mountinfo: &str) -> &'static str {
    let mounted = |kind: &str| {
        let kind = format!(" - {kind} ");
        mountinfo.lines().filter(move |line| line.contains(&kind))
    };
    let unified_at_root = mounted("cgroup2").any(|line| line.split(' ').nth(4) == Some("/sys/fs/cgroup"));
    match (
        mounted("cgroup").next().is_some(),
        mounted("cgroup2").next().is_some(),
    ) {
        _ if unified_at_root => "v2",
        (true, true) => "hybrid",
        (true, false) => "v1",
        (false, _) => "none",
    }
}

/// The memory of a process, KiB: a field of `smaps_rollup`.
///
/// # Errors
/// It has ended.
pub fn memory_of(pid: u32, name: &str) -> Result<f64> {
    number_of(pid, "smaps_rollup", name)
}

/// Threads of a process.
///
/// # Errors
/// It has ended.
pub fn threads_of(pid: u32) -> Result<f64> {
    let status = read(&format!("/proc/{pid}/status"))?;
    let threads = field(&status, "Threads").context("a process has threads")?;
    Ok(f64::from(threads.parse::<u32>()?))
}

fn number_of(pid: u32, file: &str, name: &str) -> Result<f64> {
    let path = Path::new("/proc").join(pid.to_string()).join(file);
    let text = read(&path.display().to_string())?;
    let kib = kib(&text, name).with_context(|| format!("{} has no {name}", path.display()))?;
    Ok(kib as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "Private_Dirty:      1024 kB\nRss:                9000 kB\nRssFile:  1 kB\nPss: 7 kB\nThreads:\t4\n";
        assert_eq!(kib(text, "Rss"), Some(9000));
        assert_eq!(kib(text, "Pss"), Some(7));
        assert_eq!(kib(text, "Private_Dirty"), Some(1024));
        assert_eq!(kib(text, "Threads"), None);
        assert_eq!(kib(text, "Swap"), None);
        assert_eq!(field(text, "Threads"), Some("4"));
    }

    #[test]
    fn cgroups_are_told_by_what_is_mounted() {
        let v1 = "30 24 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let beside = "31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let v2 = "32 24 0:28 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        for (mounts, expected) in [
            (v1.to_owned(), "v1"),
            (format!("{v1}{beside}"), "hybrid"),
            (v2.to_owned(), "v2"),
            ("1 1 8:1 / / rw - ext4 /dev/sda rw\n".to_owned(), "none"),
        ] {
            assert_eq!(cgroups(&mounts), expected, "{mounts}");
        }
    }

    #[test]
    fn our_own_process_has_memory_and_threads() {
        let own = std::process::id();
        assert!(memory_of(own, "Rss").unwrap() > 100.0);
        assert!(threads_of(own).unwrap() >= 1.0);
        assert!(memory_of(own, "Unheard_Of").is_err());
    }
}

//! What VMMs leave on the host: processes, files, mounts, descriptors.

use std::path::Path;
use std::time::{Duration, Instant};

use super::subject::SOON;

/// Whether there is such a process; a zombie counts.
pub fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Waits for the end of a process that is not ours; to reap it is the business of whoever inherited it.
pub async fn ended(pid: u32) {
    let deadline = Instant::now() + SOON;
    let runs = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    };
    while runs() {
        assert!(Instant::now() < deadline, "process {pid} still lives");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Children of this process, with those that nobody has waited for.
pub fn children() -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").expect("threads").flatten();
    let lists = threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok());
    let mut children: Vec<String> = lists
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    children.sort();
    children
}

pub fn is_mounted_below(directory: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("the list of mounts");
    mounts.contains(directory.to_str().expect("a path"))
}

/// Processes whose command line names something in `directory`.
pub fn processes_naming(directory: &Path) -> usize {
    let needle = directory.to_str().expect("a path").as_bytes();
    let processes = std::fs::read_dir("/proc").expect("proc").flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .filter(|line| line.windows(needle.len()).any(|window| window == needle))
        .count()
}

/// What a driver left in the run directory besides the test's own socket and a guest's directory.
pub fn leftovers(run_dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run_dir).expect("a directory").flatten();
    entries
        .map(|entry| {
            (
                entry.path().is_dir(),
                entry.file_name().to_string_lossy().into_owned(),
            )
        })
        .filter(|(is_dir, name)| !is_dir || ["jail", "disks", "saved"].contains(&name.as_str()))
        .map(|(_, name)| name)
        .filter(|name| !["agent.sock", "agent_1024", "accelerator.json"].contains(&name.as_str()))
        .collect()
}

pub fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

//! What is told of a sandbox as values: what runs, its figures, its processes. The agent's part of it is a guest's word, and cleaned.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_protocol as p;
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Subject, proc};
use crate::container::{Container, Stats, Status};
use crate::error::Result;
use crate::store::Record;
use crate::{ContainerId, deadlines};

/// Most characters of a text of the guest's.
const MOST_TEXT: usize = 256;

/// Figures of a sandbox, now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Its id.
    pub id: String,
    /// Whose it is: ids are unique within a scope.
    pub scope: String,
    /// When they were read: nanoseconds since 1970.
    pub at_ns: u64,
    /// vCPUs that it was started with.
    pub vcpus: u32,
    /// Memory that it was started with, bytes.
    pub memory_bytes: u64,
    /// Its processes on the host: owner, VMM, daemons.
    pub processes: Vec<ProcessFigures>,
    /// Bytes that the guest has received and sent, but for its loopback.
    pub network: Option<(u64, u64)>,
    /// Its containers.
    pub containers: Vec<ContainerFigures>,
}

/// A process of the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessFigures {
    /// `owner`, `vmm`, or the daemon's name.
    pub name: String,
    /// Its pid.
    pub pid: u32,
    /// Time on a processor, nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, bytes. What several share is counted for each.
    pub resident_bytes: u64,
}

/// A container of the guest's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFigures {
    /// Its id.
    pub id: String,
    /// Time on a processor, nanoseconds.
    pub cpu_ns: u64,
    /// Memory in use, bytes.
    pub memory_bytes: u64,
    /// Memory that it may use, bytes; 0: all that there is.
    pub memory_limit: u64,
    /// Processes.
    pub pids: u64,
    /// Bytes that it has read from disks.
    pub read_bytes: u64,
    /// Bytes that it has written to disks.
    pub written_bytes: u64,
}

/// Processes of a container, in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// The container's id.
    pub container: String,
    /// They, by pid.
    pub processes: Vec<GuestProcess>,
}

/// A process of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestProcess {
    /// In the guest.
    pub pid: u32,
    /// Of its parent, in the guest.
    pub parent: u32,
    /// Effective, in the guest.
    pub uid: u32,
    /// As the kernel abbreviates it.
    pub state: String,
    /// Time on a processor, milliseconds.
    pub cpu_ms: u64,
    /// Memory in use, bytes.
    pub resident_bytes: u64,
    /// Arguments.
    pub command: String,
}

/// The processes of a sandbox on the host: what each is, and its pid.
pub(super) fn on_host(subject: &Subject, dir: &Path) -> Vec<(String, u32)> {
    let mut all = vec![
        ("owner".to_owned(), std::process::id()),
        ("vmm".to_owned(), subject.sandbox.pid()),
    ];
    // It was written by us; one that is gone tells that the sandbox is, too.
    if let Ok(Some(record)) = Record::read(dir) {
        all.extend(record.daemons.into_iter().map(|daemon| (daemon.name, daemon.pid)));
    }
    all
}

/// What runs, how it was started, and its containers.
pub(super) async fn inspect(subject: &Subject, dir: &Path) -> Value {
    let Subject {
        sandbox,
        scope,
        config,
        about,
        ..
    } = subject;
    let report = sandbox.report();
    let phases: Vec<_> = sandbox
        .phases()
        .iter()
        .map(|phase| json!({"name": phase.name, "microseconds": microseconds(phase.took)}))
        .collect();
    let processes: Vec<_> = on_host(subject, dir)
        .into_iter()
        .map(|(name, pid)| json!({"name": name, "pid": pid, "argv": arguments(pid)}))
        .collect();
    let record = Record::read(dir).ok().flatten();
    let containers = containers(subject).await;
    let containers = containers.iter().map(async |container| {
        let state = container.state(None).await.ok()?;
        Some(json!({
            "id": container.id().as_str(),
            "bundle": container.bundle(),
            "status": word(state.status),
            "exit_code": state.exit.map(|exit| exit.code),
            "terminal": state.terminal,
        }))
    });
    let containers: Vec<_> = join_all(containers).await.into_iter().flatten().collect();
    json!({
        "id": sandbox.id().as_str(),
        "scope": scope.as_str(),
        "state": "running",
        "directory": dir,
        "created_unix": record.map(|record| record.created_at),
        "versions": {
            "runtime": env!("CARGO_PKG_VERSION"),
            "agent_protocol": p::VERSION,
            "agent": about.agent,
            "guest_kernel": about.kernel_release,
            "vmm": report.vmm,
        },
        "configuration": {
            "sources": config.sources,
            "hypervisor": config.hypervisor.kind.name(),
            "shared_fs": format!("{:?}", config.hypervisor.shared_fs),
            "debug_console_enabled": config.agent.debug_console_enabled,
            "sandbox_cgroup_only": config.runtime.sandbox_cgroup_only,
            "static_sandbox_resource_mgmt": config.runtime.static_sandbox_resource_mgmt,
        },
        "machine": {
            "type": report.machine,
            "accelerator": report.accelerator,
            "reason": report.reason,
            "vcpus": about.vcpus,
            "memory_mib": about.memory_mib,
            "kernel": about.kernel,
            "initrd": about.initrd,
        },
        "processes": processes,
        "phases": phases,
        "containers": containers,
    })
}

/// Figures now.
pub(super) async fn figures(subject: &Subject, dir: &Path) -> Figures {
    let processes = on_host(subject, dir)
        .into_iter()
        .filter_map(|(name, pid)| process(name, pid))
        .collect();
    let request = subject
        .agent
        .read_guest(p::Empty::default(), Some(deadlines::STATS));
    let (containers, guest) = tokio::join!(stats(subject), request);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Figures {
        id: subject.sandbox.id().to_string(),
        scope: subject.scope.to_string(),
        at_ns: nanoseconds(now),
        vcpus: subject.about.vcpus,
        memory_bytes: subject.about.memory_mib << 20,
        processes,
        network: guest.ok().map(|guest| proc::traffic(&guest.netdev)),
        containers: containers
            .into_iter()
            .map(|(id, stats)| of_container(&id, &stats))
            .collect(),
    }
}

pub(crate) fn of_container(id: &ContainerId, stats: &Stats) -> ContainerFigures {
    let sum = |of: fn(&p::IoStats) -> u64| stats.io.iter().map(of).fold(0, u64::saturating_add);
    ContainerFigures {
        id: id.to_string(),
        cpu_ns: stats.cpu.usage_usec.saturating_mul(1000),
        memory_bytes: stats.memory.usage,
        memory_limit: stats.memory.limit,
        pids: stats.pids.current,
        read_bytes: sum(|io| io.rbytes),
        written_bytes: sum(|io| io.wbytes),
    }
}

/// Its containers. One that goes meanwhile is left out.
pub(super) async fn containers(subject: &Subject) -> Vec<Container> {
    let ids = subject.sandbox.containers().await;
    let asked = ids.iter().map(|id| subject.sandbox.container(id));
    join_all(asked).await.into_iter().flatten().collect()
}

/// Figures of each container that the agent has some of.
pub(super) async fn stats(subject: &Subject) -> Vec<(ContainerId, Stats)> {
    let containers = containers(subject).await;
    let asked = containers
        .iter()
        .map(async |container| Some((container.id().clone(), container.stats().await.ok()?)));
    join_all(asked).await.into_iter().flatten().collect()
}

/// Processes of each container.
///
/// # Errors
/// The agent's.
pub(super) async fn processes(subject: &Subject) -> Result<Vec<Processes>> {
    let mut all = Vec::new();
    for id in subject.sandbox.containers().await {
        let request = p::ContainerRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let described = subject
            .agent
            .describe_processes(request, Some(deadlines::STATS))
            .await;
        let described = match described {
            // One that is being created, or goes.
            Err(error) if error.kind == agent_client::ErrorKind::NotFound => continue,
            described => described?,
        };
        let mut processes: Vec<_> = described.processes.into_iter().map(guest_process).collect();
        processes.sort_by_key(|process| process.pid);
        all.push(Processes {
            container: id.to_string(),
            processes,
        });
    }
    Ok(all)
}

fn guest_process(process: p::ProcessDescription) -> GuestProcess {
    GuestProcess {
        pid: process.pid,
        parent: process.parent,
        uid: process.uid,
        state: cleaned(&process.state).chars().take(2).collect(),
        cpu_ms: process.cpu_ms,
        resident_bytes: process.resident_bytes,
        command: cleaned(&process.command),
    }
}

/// A text of the guest's, as much of it as can do no harm on a terminal.
fn cleaned(text: &str) -> String {
    text.chars()
        .take(MOST_TEXT)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A process of the host's; `None` when it is gone.
fn process(name: String, pid: u32) -> Option<ProcessFigures> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let items = proc::stat(&text, page());
    let of = |key: &str| {
        items
            .iter()
            .find(|(item, _)| item == key)
            .map_or(0.0, |(_, n)| *n)
    };
    let ticks = of("utime") + of("stime");
    Some(ProcessFigures {
        name,
        pid,
        cpu_ns: (ticks * 1e9 / ticks_per_second()) as u64,
        resident_bytes: of("rss") as u64,
    })
}

/// Bytes of a page of this host's.
pub(super) fn page() -> f64 {
    rustix::param::page_size() as f64
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second().max(1) as f64
}

fn arguments(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Created => "created",
        Status::Running => "running",
        Status::Paused => "paused",
        Status::Stopped => "stopped",
    }
}

fn microseconds(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn nanoseconds(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_cannot_reach_a_terminal() {
        let process = guest_process(p::ProcessDescription {
            state: "S\u{1b}[2J".into(),
            command: format!("sh\u{1b}]0;owned\u{7}{}", "x".repeat(1000)),
            ..Default::default()
        });
        assert_eq!(process.state, "S?");
        assert!(
            process.command.starts_with("sh?]0;owned?xxx"),
            "{}",
            process.command
        );
        assert_eq!(process.command.chars().count(), MOST_TEXT);
    }

    #[test]
    fn this_process_has_figures_and_arguments() {
        let own = process("owner".into(), std::process::id()).unwrap();
        assert!(own.resident_bytes > 1 << 20, "{own:?}");
        assert_eq!(process("none".into(), u32::MAX), None);
        assert!(!arguments(std::process::id()).is_empty());
    }
}

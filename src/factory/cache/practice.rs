//! A guest does once all that a container needs, before anybody has it: what is done for the first time takes many times as long,
//! of which translating code is most where the guest is emulated.
//!
//! It is a sandbox for a moment, with a container in it whose program is a few instructions of ours, and nobody again.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_client::{Agent, TtrpcAgent};
use agent_protocol as p;
use configuration::Config;
use hypervisor::{Capabilities, Vm};
use oci_spec::runtime::Spec;
use slog::Logger;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::sys;
use crate::error::{Error, ErrorKind, Result};
use crate::host::daemon::Place;
use crate::host::devices;
use crate::model::SharePlan;
use crate::plan::{self, Volumes};
use crate::sandbox::{entropy, now_unix_ns};
use crate::{ContainerId, SandboxId, deadlines, guest, oci};

/// Name of the sandbox, its container, and the directory of that.
const NAME: &str = "practice";

/// Name of the second process.
const SECOND: &str = "second";

/// Where the file is loaded.
const BASE: u64 = 0x40_0000;

/// Where its data are: those that the file has, a page, and as many that are zero at first.
const DATA: u64 = 0x80_0000;

/// Size of a page, bytes.
const PAGE: u64 = 0x1000;

/// Size of the file, bytes: more than is read ahead at once, as most programs have. What nobody has written in it takes no room.
const FILE: u64 = 0x12_0000;

/// The beginning of the container's program: three headers (ELF, 64 bit, x86) and its instructions.
fn program() -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let instructions = sys::instructions();
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // An executable for x86-64, version 1.
    file.extend([2, 0, 0x3e, 0, 1, 0, 0, 0]);
    // Its entry, its program headers, and no sections.
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    // No flags; sizes and counts of the headers.
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    // To be loaded, readable and executable; and readable and writable.
    let text = FILE - PAGE;
    let loads = [(5, 0, BASE, text, text), (6, text, DATA, PAGE / 2, 2 * PAGE)];
    for (flags, offset, address, size, memory) in loads {
        file.extend([1, 0, 0, 0, flags, 0, 0, 0]);
        for word in [offset, address, address, size, memory, PAGE] {
            file.extend(word.to_le_bytes());
        }
    }
    file.extend(instructions);
    file
}

/// Has the guest do it, over the connection on which its agent has greeted. That can be another one's afterwards.
///
/// # Errors
/// Whatever goes wrong: such a guest is of no use.
pub(super) async fn run(
    config: &Config,
    abilities: &Capabilities,
    vm: &mut dyn Vm,
    connection: &mut UnixStream,
    dir: &Path,
    log: &Logger,
) -> Result<()> {
    // What the client has not read when it ends is nobody's: so it has a connection of its own, and what passes between is looked
    // after here. When everything is answered nothing is under way.
    let pair = UnixStream::pair();
    let (ours, mut between) =
        pair.map_err(|cause| Error::caused(ErrorKind::Internal, "cannot make a pair of sockets", cause))?;
    let agent: Arc<dyn Agent> = Arc::new(TtrpcAgent::new(ours));
    let work = async {
        tokio::select! {
            done = practise(config, abilities, vm, &agent, dir, log) => done,
            _ = tokio::io::copy_bidirectional(&mut between, connection) => {
                Err(Error::new(ErrorKind::Unavailable, "the agent has hung up"))
            }
        }
    };
    timeout(deadlines::CACHE_PRACTICE, work)
        .await
        .unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!("it took longer than {:?}", deadlines::CACHE_PRACTICE),
            ))
        })
}

async fn practise(
    config: &Config,
    abilities: &Capabilities,
    vm: &mut dyn Vm,
    agent: &Arc<dyn Agent>,
    dir: &Path,
    log: &Logger,
) -> Result<()> {
    let spec = specification()?;
    let sandbox = oci::sandbox(&SandboxId::new(NAME)?, &spec, None)?;
    let sandbox = plan::sandbox(config, &sandbox, abilities, &|_| true)?;
    let mut container = oci::container(&ContainerId::new(NAME)?, spec, dir.to_owned(), Vec::new())?;
    container.directory = NAME.to_owned();
    let container = plan::container(config, &sandbox, &container, &Volumes::default())?;

    let shared = dir.join("shared");
    furnish(&shared).map_err(|cause| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot make files below {}", shared.display()),
            cause,
        )
    })?;
    let SharePlan::VirtioFs { daemon, cache } = &sandbox.share else {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "there is no file system to share",
        ));
    };
    let (daemon, device) = devices::virtiofsd(daemon, cache, dir, &shared, &Place::default(), log).await?;
    let Some(hotplug) = vm.hotplug() else {
        return Err(Error::new(ErrorKind::Unsupported, "it can be given no devices"));
    };
    hotplug.plug(device).await?;
    live(config, &**agent, sandbox.guest, container.guest).await?;
    hotplug.unplug(guest::SHARE_TAG).await?;
    daemon.stop().await
}

/// The life of a sandbox.
async fn live(
    config: &Config,
    agent: &dyn Agent,
    mut sandbox: p::CreateSandboxRequest,
    container: p::CreateContainerRequest,
) -> Result<()> {
    let limit = Some(config.agent.create_container_timeout);
    let hello = p::HelloRequest {
        protocol_version: p::VERSION,
        entropy: entropy()?,
        ..Default::default()
    };
    agent.hello(hello, limit).await?;
    sandbox.entropy = entropy()?;
    sandbox.now_unix_ns = now_unix_ns();
    // As one of a pod that has only itself to talk to; it is what a new kernel has.
    sandbox.network = Some(p::Network {
        sysctls: HashMap::from([("ipv4.ip_forward".to_owned(), "0".to_owned())]),
        ..Default::default()
    })
    .into();
    agent.create_sandbox(sandbox, limit).await?;
    // A sandbox's owner asks for events all the time. It is told that there are no more when the practice is over.
    let events = async {
        let _ = agent.next_events(p::NextEventsRequest::default(), None).await;
        Ok(())
    };
    tokio::try_join!(containers(agent, container, limit), events).map(drop)
}

/// The life of its container.
async fn containers(
    agent: &dyn Agent,
    mut container: p::CreateContainerRequest,
    limit: Option<Duration>,
) -> Result<()> {
    let stdio = |stdin| p::Stdio {
        stdin,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let spec: Spec = serde_json::from_slice(&container.spec).map_err(unsaid)?;
    let process = serde_json::to_vec(spec.process()).map_err(unsaid)?;
    container.stdio = Some(stdio(true)).into();
    agent.create_container(container, limit).await?;
    let init = p::ContainerRequest {
        container_id: NAME.to_owned(),
        ..Default::default()
    };
    agent.start_container(init, limit).await?;
    let second = p::ExecProcessRequest {
        container_id: NAME.to_owned(),
        exec_id: SECOND.to_owned(),
        process,
        stdio: Some(stdio(false)).into(),
        ..Default::default()
    };
    agent.exec_process(second, limit).await?;
    ended(agent, SECOND).await?;
    agent.delete_process(process_of(SECOND), limit).await?;
    let end = p::CloseStdinRequest {
        container_id: NAME.to_owned(),
        ..Default::default()
    };
    agent.close_stdin(end, limit).await?;
    ended(agent, "").await?;
    let delete = p::DeleteContainerRequest {
        container_id: NAME.to_owned(),
        ..Default::default()
    };
    agent.delete_container(delete, limit).await?;
    let end = p::DestroySandboxRequest {
        practised: true,
        ..Default::default()
    };
    Ok(agent.destroy_sandbox(end, limit).await.map(drop)?)
}

fn unsaid(cause: serde_json::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        "the specification of the practice cannot be said",
        cause,
    )
}

fn process_of(exec_id: &str) -> p::ProcessRequest {
    p::ProcessRequest {
        container_id: NAME.to_owned(),
        exec_id: exec_id.to_owned(),
        ..Default::default()
    }
}

/// Reads what a process says to its end, and waits for its own.
async fn ended(agent: &dyn Agent, exec_id: &str) -> Result<()> {
    let stream = async |stream: p::Stream| -> Result<Vec<u8>> {
        let mut said = Vec::new();
        loop {
            let read = p::ReadOutputRequest {
                container_id: NAME.to_owned(),
                exec_id: exec_id.to_owned(),
                stream: stream.into(),
                max: 4096,
                ..Default::default()
            };
            let chunk = agent.read_output(read, None).await?;
            if chunk.eof || said.len() > 4096 {
                return Ok(said);
            }
            said.extend(chunk.data);
        }
    };
    let (said, complained, ended) = tokio::join!(
        stream(p::Stream::STDOUT),
        stream(p::Stream::STDERR),
        agent.wait_process(process_of(exec_id), None),
    );
    let (said, complained, status) = (said?, complained?, ended?.exit_status);
    match (&said[..], &complained[..], status) {
        (b"\n", b"", 0) => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Internal,
            format!(
                "the program of the practice said {:?} and {:?}, and ended with {status}",
                String::from_utf8_lossy(&said),
                String::from_utf8_lossy(&complained)
            ),
        )),
    }
}

/// Puts the program where the guest finds its root file system.
fn furnish(shared: &Path) -> std::io::Result<()> {
    let root = shared.join(NAME).join(guest::ROOTFS);
    DirBuilder::new().mode(0o700).recursive(true).create(&root)?;
    for dir in ["dev", "proc", "run", "sys"] {
        fs::create_dir(root.join(dir))?;
    }
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(root.join(NAME))?;
    file.write_all(&program())?;
    file.set_len(FILE)
}

/// A container as most are.
fn specification() -> Result<Spec> {
    // Those of containers that ask for none.
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ];
    let spec = serde_json::json!({
        "ociVersion": "1.1.0",
        "root": {"path": "rootfs"},
        "process": {
            "cwd": "/",
            "args": [format!("/{NAME}")],
            "env": ["PATH=/"],
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm",
             "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{NAME}"),
            "resources": {
                "devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 136, "access": "rwm"},
                ],
                "cpu": {"shares": 1024},
            },
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["reboot", "kexec_load"], "action": "SCMP_ACT_ERRNO"}],
            },
        },
    });
    serde_json::from_value(spec).map_err(unsaid)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_program_says_what_it_is_told_and_otherwise_a_line() {
        let directory = tempfile::tempdir().unwrap();
        furnish(directory.path()).unwrap();
        let path = directory.path().join("practice/rootfs/practice");
        let output = Command::new(&path).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"\n");
        specification().unwrap();
    }
}

//! Sandboxes whose guest is the real agent as a process, on a ground as bare as can be: a directory that is shared. What
//! the doubles promise about an agent is held against it here.
//!
//! Needs root, a cgroup hierarchy of version 2, `/bin/busybox` (busybox-static) and the agent's program
//! (`KATA_AGENT_BIN`, or `cargo build -p agent`).

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use agent_client::{Channel, Listener};
use agent_protocol as p;
use async_trait::async_trait;
use futures::future::{BoxFuture, ready};
use hypervisor::{Device, Memory, MemoryBacking, SerialPort, VirtioFs, VmRecord, VmSpec, registry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use oci_spec::runtime::Process;
use serde_json::{Value, json};
use slog::{Discard, Logger, o};
use tokio::time::timeout;

use super::ground::{Acquired, Added, Ground, ToAdd};
use super::tests::config;
use super::*;
use crate::container::{ExecRequest, Status};
use crate::host::Hooks;
use crate::io::{Input, Output, Stdio};
use crate::model::HooksPlan;
use crate::{Event, ExecId};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

fn agent() -> PathBuf {
    let program = std::env::var_os("KATA_AGENT_BIN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/debug/kata-agent"),
        PathBuf::from,
    );
    assert!(
        program.is_file(),
        "this test needs the agent: cargo build -p agent (or KATA_AGENT_BIN)"
    );
    program
}

/// A directory with a share in it.
struct Bare {
    dir: PathBuf,
    /// What containers execute, by id.
    script: String,
}

#[async_trait]
impl Ground for Bare {
    async fn acquire(&mut self) -> Result<Acquired> {
        let (socket, run_dir, share) = (
            self.dir.join("agent.sock"),
            self.dir.join("vm"),
            self.dir.join("share"),
        );
        fs::create_dir(&run_dir).unwrap();
        let listener = Listener::bind(&Channel::Unix { path: socket.clone() })?;
        Ok(Acquired {
            vm: VmSpec {
                id: "s".into(),
                run_dir,
                kernel: PathBuf::new(),
                initrd: PathBuf::new(),
                kernel_params: Vec::new(),
                vcpus: 1,
                max_vcpus: 1,
                memory: Memory {
                    size_mib: 1,
                    max_mib: 1,
                    backing: MemoryBacking::Private,
                },
                devices: vec![
                    Device::SerialPort(SerialPort {
                        name: p::SERIAL_PORT_NAME.into(),
                        socket,
                    }),
                    Device::VirtioFs(VirtioFs {
                        tag: "shared".into(),
                        socket: PathBuf::new(),
                        directory: share,
                    }),
                ],
                network_namespace: None,
                cgroups: Vec::new(),
                labels: Vec::new(),
            },
            listener,
            guest: p::CreateSandboxRequest {
                sandbox_id: "s".into(),
                storages: vec![p::Storage {
                    driver: "virtio-fs".into(),
                    source: "shared".into(),
                    mount_point: "/run/kata/shared".into(),
                    ..Default::default()
                }],
                ..Default::default()
            },
            localhost: Vec::new(),
            late: None,
            growth: None,
            template: None,
            admin: None,
            lost: Box::pin(std::future::pending()),
        })
    }

    fn keep(&mut self, _: &VmRecord) -> Result<()> {
        Ok(())
    }

    fn add(&mut self, request: ToAdd) -> BoxFuture<'static, Result<Added>> {
        let guest = p::CreateContainerRequest {
            container_id: request.id.to_string(),
            spec: spec(&self.script, &cgroup(&self.dir).join(request.id.as_str()))
                .to_string()
                .into_bytes(),
            ..Default::default()
        };
        let hooks = Hooks::new(&request.id, HooksPlan::default());
        Box::pin(ready(Ok(Added {
            disks: Vec::new(),
            volumes: Vec::new(),
            guest,
            limits: Default::default(),
            hooks,
            stage: None,
        })))
    }

    fn remove(&mut self, _: &ContainerId) -> BoxFuture<'static, Result<()>> {
        Box::pin(ready(Ok(())))
    }

    async fn release(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Path of a cgroup that only this sandbox's containers use, below the hierarchy's root.
fn cgroup(dir: &Path) -> PathBuf {
    Path::new("kata-runtime-test").with_extension(dir.file_name().unwrap())
}

fn process(script: &str, terminal: bool) -> Value {
    json!({
        "cwd": "/", "args": ["/bin/busybox", "sh", "-c", script], "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0}, "terminal": terminal,
    })
}

fn spec(script: &str, cgroup: &Path) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": {"path": "/run/kata/shared/rootfs"},
        "process": process(script, false),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {"cgroupsPath": cgroup, "namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    })
}

/// A sandbox and its directory.
struct Stand {
    sandbox: Sandbox,
    events: mpsc::Receiver<Event>,
    dir: tempfile::TempDir,
}

async fn sandbox(script: &str) -> Stand {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("share/rootfs");
    for name in ["bin", "dev", "proc", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .unwrap_or_else(|e| panic!("this test needs busybox-static: /bin/busybox: {e}"));
    for tool in [
        "sh",
        "cat",
        "sleep",
        "echo",
        "stty",
        "sha256sum",
        "head",
        "kill",
        "true",
    ] {
        symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
    let mut config = config();
    config.hypervisor.path = agent();
    config.agent.dial_timeout = Some(SOON);
    config.agent.request_timeout = Duration::from_secs(10);
    config.agent.create_container_timeout = SOON;
    let log = Logger::root(Discard, o!());
    let hypervisor = registry::driver(&config.hypervisor, dir.path(), log.clone()).unwrap();
    let (sender, events) = mpsc::channel(4);
    let request = SandboxRequest {
        id: SandboxId::new("s").unwrap(),
        scope: SandboxId::new("test").unwrap(),
        bundle: PathBuf::new(),
        rootfs: Vec::new(),
        config: Arc::new(config),
        hypervisor,
        events: sender,
        log,
    };
    let ground = Bare {
        dir: dir.path().into(),
        script: script.into(),
    };
    let clock = Clock::begin(&request, "claim");
    let sandbox = timeout(SOON, Sandbox::start(request, Box::new(ground), clock));
    Stand {
        sandbox: sandbox.await.unwrap().unwrap(),
        events,
        dir,
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = kill(self.agent(), Signal::SIGKILL);
        }
        let hierarchy = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .map(Path::new)
            .into_iter()
            .find(|dir| dir.join("cgroup.controllers").exists())
            .unwrap();
        let cgroup = hierarchy.join(cgroup(self.dir.path()));
        // An agent that was killed leaves cgroups, in which processes may still be ending.
        let end = Instant::now() + SOON;
        while cgroup.exists() && Instant::now() < end {
            for left in fs::read_dir(&cgroup).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(left.path());
            }
            let _ = fs::remove_dir(&cgroup);
        }
    }
}

impl Stand {
    fn request(&self, id: &str, stdio: Stdio) -> ContainerRequest {
        ContainerRequest {
            id: ContainerId::new(id).unwrap(),
            bundle: PathBuf::new(),
            rootfs: Vec::new(),
            stdio,
        }
    }

    async fn run(&self, id: &str, stdio: Stdio) -> Container {
        let created = self.sandbox.create_container(self.request(id, stdio)).await;
        let container = created.unwrap();
        container.start().await.unwrap();
        container
    }

    /// Output into a file, and the file.
    fn to_file(&self, name: &str) -> (Output, PathBuf) {
        let path = self.dir.path().join(name);
        (Output::File(path.clone()), path)
    }

    fn agent(&self) -> Pid {
        Pid::from_raw(self.sandbox.pid() as i32)
    }
}

async fn code(container: &Container, exec: Option<&ExecId>) -> u32 {
    timeout(SOON, container.wait(exec)).await.unwrap().unwrap().code
}

async fn exec(container: &Container, id: &str, script: &str, stdio: Stdio) -> ExecId {
    let id = ExecId::new(id).unwrap();
    let process: Process = serde_json::from_value(process(script, stdio.terminal)).unwrap();
    let request = ExecRequest {
        id: id.clone(),
        process,
        stdio,
    };
    container.exec(request).await.unwrap();
    container.start_exec(&id).await.unwrap();
    id
}

#[tokio::test]
async fn containers_run_one_after_the_other_under_the_same_id() {
    let s = sandbox("echo out; echo err >&2; exit 3").await;
    for n in 0..3 {
        let (stdout, out) = s.to_file(&format!("out{n}"));
        let (stderr, err) = s.to_file(&format!("err{n}"));
        let stdio = Stdio {
            stdout,
            stderr,
            ..Stdio::default()
        };
        let c = s.run("c", stdio).await;
        assert_eq!(code(&c, None).await, 3);
        assert_eq!(c.delete().await.unwrap().code, 3);
        assert_eq!(fs::read_to_string(out).unwrap(), "out\n");
        assert_eq!(fs::read_to_string(err).unwrap(), "err\n");
    }
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn ten_containers_at_once_cost_no_threads() {
    let s = sandbox("cat; exit 5").await;
    let threads = || fs::read_dir("/proc/self/task").unwrap().count();
    let mut containers = Vec::new();
    let mut before = 0;
    for n in 0..10 {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let stdio = Stdio {
            stdin: Input::Descriptor(read),
            stdout: s.to_file(&format!("out{n}")).0,
            ..Stdio::default()
        };
        containers.push((s.run(&format!("c{n}"), stdio).await, write));
        if n == 0 {
            before = threads();
        }
    }
    // Other tests of this program come and go: those of the harness do not count towards growth by ten.
    assert!(threads() < before + 10, "{before} -> {}", threads());
    for (n, (c, write)) in containers.into_iter().enumerate() {
        let mut file = File::from(write);
        write!(file, "to {n}").unwrap();
        drop(file);
        assert_eq!(code(&c, None).await, 5);
        c.delete().await.unwrap();
        let out = fs::read_to_string(s.dir.path().join(format!("out{n}"))).unwrap();
        assert_eq!(out, format!("to {n}"));
    }
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn sixty_four_mebibytes_go_in_and_come_out_unchanged() {
    const SIZE: u64 = 64 << 20;
    let s = sandbox("cat").await;
    let mut source = tempfile::tempfile().unwrap();
    let block: Vec<u8> = (0..1_u32 << 18)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    for _ in 0..SIZE / block.len() as u64 {
        source.write_all(&block).unwrap();
    }
    source.seek(SeekFrom::Start(0)).unwrap();
    let (stdout, out) = s.to_file("out");
    let stdio = Stdio {
        stdin: Input::Descriptor(source.into()),
        stdout,
        ..Stdio::default()
    };
    let c = s.run("c", stdio).await;
    assert_eq!(code(&c, None).await, 0);
    c.delete().await.unwrap();
    let mut received = File::open(out).unwrap();
    assert_eq!(received.metadata().unwrap().len(), SIZE);
    let mut piece = vec![0; block.len()];
    for _ in 0..SIZE / block.len() as u64 {
        received.read_exact(&mut piece).unwrap();
        assert!(piece == block);
    }
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn additional_processes_signals_and_freezing() {
    let s = sandbox("sleep 1000").await;
    let c = s.run("c", Stdio::default()).await;
    let (stdout, out) = s.to_file("out");
    let e = exec(
        &c,
        "e",
        "echo hello; exit 7",
        Stdio {
            stdout,
            ..Stdio::default()
        },
    )
    .await;
    assert_eq!(code(&c, Some(&e)).await, 7);
    assert_eq!(c.delete_exec(&e).await.unwrap().code, 7);
    assert_eq!(fs::read_to_string(out).unwrap(), "hello\n");

    let e = exec(&c, "e", "sleep 1000", Stdio::default()).await;
    c.kill(Some(&e), 15, false).await.unwrap();
    assert_eq!(code(&c, Some(&e)).await, 143);
    assert_eq!(
        c.kill(Some(&e), 15, false).await.unwrap_err().kind,
        ErrorKind::NotFound
    );

    assert!(!c.pids().await.unwrap().is_empty());
    c.stats().await.unwrap();
    c.pause().await.unwrap();
    assert_eq!(c.state(None).await.unwrap().status, Status::Paused);
    c.resume().await.unwrap();
    c.kill(None, 9, true).await.unwrap();
    assert_eq!(code(&c, None).await, 137);
    c.delete().await.unwrap();
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_the_size_it_was_given_before_its_start() {
    let s = sandbox("sleep 1000").await;
    let c = s.run("c", Stdio::default()).await;
    let (stdout, out) = s.to_file("out");
    let id = ExecId::new("e").unwrap();
    let process: Process = serde_json::from_value(process("stty size", true)).unwrap();
    let stdio = Stdio {
        terminal: true,
        stdout,
        ..Stdio::default()
    };
    c.exec(ExecRequest {
        id: id.clone(),
        process,
        stdio,
    })
    .await
    .unwrap();
    c.resize(Some(&id), 33, 77).await.unwrap();
    c.start_exec(&id).await.unwrap();
    assert_eq!(code(&c, Some(&id)).await, 0);
    c.delete_exec(&id).await.unwrap();
    assert_eq!(fs::read_to_string(out).unwrap(), "33 77\r\n");
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_missing_is_the_callers_mistake() {
    let s = sandbox("true").await;
    fs::remove_file(s.dir.path().join("share/rootfs/bin/busybox")).unwrap();
    let request = s.request("c", Stdio::default());
    let error = s.sandbox.create_container(request).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    assert!(error.context.contains("/bin/busybox"), "{error}");
    assert!(s.sandbox.containers().await.is_empty());
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_killed_agent_ends_every_process() {
    let mut s = sandbox("sleep 1000").await;
    let c = s.run("c", Stdio::default()).await;
    let e = exec(&c, "e", "sleep 1000", Stdio::default()).await;
    kill(s.agent(), Signal::SIGKILL).unwrap();
    assert_eq!(code(&c, None).await, 137);
    assert_eq!(code(&c, Some(&e)).await, 137);
    let event = timeout(SOON, s.events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::VmExited(reason) if reason.contains("signal 9")));
    assert_eq!(c.stats().await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(c.delete().await.unwrap().code, 137);
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_frozen_agent_loses_its_vm_when_its_container_is_to_be_killed() {
    let mut s = sandbox("sleep 1000").await;
    let c = s.run("c", Stdio::default()).await;
    kill(s.agent(), Signal::SIGSTOP).unwrap();
    let begun = Instant::now();
    timeout(SOON, c.kill(None, 9, true)).await.unwrap().unwrap();
    assert_eq!(code(&c, None).await, 137);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let event = timeout(SOON, s.events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::VmExited(reason) if reason.contains("SIGKILL")));
    s.sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn output_waits_for_its_reader_and_the_exit_does_not() {
    let s = sandbox("head -c 1000000 /dev/zero; exit 4").await;
    let path = s.dir.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let stdio = Stdio {
        stdout: Output::Fifo(path.clone()),
        ..Stdio::default()
    };
    let c = s.run("c", stdio).await;
    // The agent's pipe holds 256 KiB, the named pipe 64, and a chunk is on its way: the process has to wait.
    assert!(timeout(Duration::from_millis(200), c.wait(None)).await.is_err());
    let reader = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        File::open(path).unwrap().read_to_end(&mut all).unwrap();
        all.len()
    });
    assert_eq!(code(&c, None).await, 4);
    assert_eq!(timeout(SOON, reader).await.unwrap().unwrap(), 1_000_000);
    c.delete().await.unwrap();

    // Nobody ever reads: kill, wait and delete do not care.
    let stdio = Stdio {
        stdout: Output::Fifo(s.dir.path().join("fifo")),
        ..Stdio::default()
    };
    let c = s.run("c", stdio).await;
    c.kill(None, 9, false).await.unwrap();
    assert_eq!(code(&c, None).await, 137);
    timeout(SOON, c.delete()).await.unwrap().unwrap();
    s.sandbox.stop().await.unwrap();
}

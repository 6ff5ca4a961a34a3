//! A root file system, an OCI specification like containerd's, and a reaper like the agent's.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use agent::container::{self, Container, CreateRequest, Environment, PodNamespaces, ProcessStdio, Started};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::signal::unix::{SignalKind, signal};

const BUSYBOX: &str = "/bin/busybox";
/// Every wait of the tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A root file system and the specification that uses it.
pub struct Fixture {
    pub top: tempfile::TempDir,
    pub id: String,
    pub spec: Value,
    pub environment: Environment,
}

/// What a process wrote and how it ended.
#[derive(Debug)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub code: i32,
}

impl Fixture {
    pub fn new() -> Self {
        assert!(Path::new(BUSYBOX).exists(), "needs Debian's busybox-static");
        let top = tempfile::tempdir().unwrap();
        let root = top.path().join("rootfs");
        for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root", "secret"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "cat", "id", "ls", "mount", "stat", "hostname", "sleep", "true", "readlink", "grep",
            "chmod", "mkdir", "touch", "ps", "stty", "tty", "env", "pwd", "echo", "head", "kill", "rmdir",
            "umask", "setsid",
        ] {
            symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        fs::write(
            root.join("etc/passwd"),
            "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n",
        )
        .unwrap();
        let id = format!("t{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let spec = specification(&root, &id);
        let environment = Environment {
            cgroup_root: cgroup_root(),
            state_dir: top.path().join("state"),
            pod: PodNamespaces::default(),
        };
        Self {
            top,
            id,
            spec,
            environment,
        }
    }

    /// A fixture whose container runs a shell script.
    pub fn script(script: &str) -> Self {
        let mut fixture = Self::new();
        fixture.spec["process"]["args"] = json!(["sh", "-c", script]);
        fixture
    }

    pub fn root(&self) -> PathBuf {
        self.top.path().join("rootfs")
    }

    pub fn add_mount(&mut self, mount: Value) {
        self.spec["mounts"].as_array_mut().unwrap().push(mount);
    }

    pub async fn create(&self, stdio: ProcessStdio) -> container::Result<(Container, Started)> {
        let spec: Spec = serde_json::from_value(self.spec.clone()).unwrap();
        container::create(CreateRequest {
            id: &self.id,
            spec: &spec,
            stdio,
            environment: &self.environment,
        })
        .await
    }

    /// Creates and starts; the streams are /dev/null.
    pub async fn start(&self) -> (Container, Started) {
        let (mut container, started) = self.create(ProcessStdio::default()).await.unwrap();
        container.start().await.unwrap();
        (container, started)
    }

    /// Runs the container to its end and deletes it.
    pub async fn run(&self) -> Output {
        let (stdio, streams) = Streams::new();
        let (mut container, started) = self.create(stdio).await.unwrap();
        container.start().await.unwrap();
        let output = streams.output(started.pid).await;
        container.delete().await.unwrap();
        output
    }

    pub fn exec_process(&self, script: &str) -> Process {
        let mut process = self.spec["process"].clone();
        process["args"] = json!(["sh", "-c", script]);
        serde_json::from_value(process).unwrap()
    }

    /// Runs a script as another process of the container.
    pub async fn exec(&self, container: &Container, script: &str) -> Output {
        let (stdio, streams) = Streams::new();
        let started = container.exec(&self.exec_process(script), stdio).await.unwrap();
        streams.output(started.pid).await
    }
}

/// The test's ends of a process's output.
pub struct Streams {
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
}

impl Streams {
    pub fn new() -> (ProcessStdio, Self) {
        let pipe = || -> (pipe::Receiver, OwnedFd) {
            let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            rustix::io::ioctl_fionbio(&read, true).unwrap();
            (pipe::Receiver::from_owned_fd(read).unwrap(), write)
        };
        let ((stdout, out), (stderr, err)) = (pipe(), pipe());
        let stdio = ProcessStdio {
            stdout: Some(out),
            stderr: Some(err),
            ..ProcessStdio::default()
        };
        (stdio, Self { stdout, stderr })
    }

    pub async fn output(mut self, pid: Pid) -> Output {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        let read = async {
            self.stdout.read_to_string(&mut stdout).await.unwrap();
            self.stderr.read_to_string(&mut stderr).await.unwrap();
            exit_code(pid).await
        };
        let code = tokio::time::timeout(PATIENCE, read)
            .await
            .expect("the process does not end");
        Output { stdout, stderr, code }
    }
}

thread_local! {
    /// How children ended that nobody has asked for yet.
    static ENDED: RefCell<HashMap<i32, i32>> = RefCell::default();
}

/// Reaps whatever has ended, as the agent does; says whether a child is left. A container's first process can't end before
/// the exec'd ones were reaped, failed ones included.
fn reap() -> bool {
    loop {
        let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, code),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
            Ok(_) => return true,
            Err(_) => return false,
        };
        ENDED.with_borrow_mut(|ended| ended.insert(pid.as_raw(), code));
    }
}

/// Waits for the end of one child; 128 and the signal for a killed one.
pub async fn exit_code(pid: Pid) -> i32 {
    let mut ended = signal(SignalKind::child()).unwrap();
    loop {
        reap();
        if let Some(code) = ENDED.with_borrow_mut(|ended| ended.remove(&pid.as_raw())) {
            return code;
        }
        tokio::time::timeout(PATIENCE, ended.recv())
            .await
            .expect("the process does not end");
    }
}

fn cgroup_root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|fields| fields[2] == "cgroup2")
        .expect("needs a cgroup2 mount");
    PathBuf::from(root[1])
}

/// Each run's own: another one may be under way on this machine.
fn cgroup_parent() -> String {
    format!("kata-container-test-{}", std::process::id())
}

fn specification(root: &Path, id: &str) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_NET_BIND_SERVICE"
    ]);
    json!({
        "ociVersion": "1.1.0",
        "root": {"path": root},
        "hostname": "box",
        "process": {
            "args": ["true"],
            "env": ["PATH=/bin", "HOME=/root"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "noNewPrivileges": true,
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024}],
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
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/{}/{id}", cgroup_parent()),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
                           {"type": "cgroup"}],
            "resources": {"pids": {"limit": 64}, "devices": [{"allow": false, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/scsi", "/sys/firmware", "/not/there", "/secret"],
            "readonlyPaths": ["/proc/bus", "/proc/sys", "/proc/sysrq-trigger", "/not/there"],
        },
    })
}

/// What a container could leave behind.
pub struct Leftovers {
    mounts: String,
    descriptors: BTreeSet<PathBuf>,
}

impl Leftovers {
    pub fn now() -> Self {
        Self {
            mounts: fs::read_to_string("/proc/self/mountinfo").unwrap(),
            descriptors: descriptors(),
        }
    }

    /// No mount, descriptor, cgroup or process more than before.
    pub async fn assert_none(self) {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        // One may be gone: whoever removes its directory elsewhere takes it away here as well.
        let new: Vec<_> = mounts
            .lines()
            .filter(|line| !self.mounts.lines().any(|before| before == *line))
            .collect();
        assert!(new.is_empty(), "mounts: {new:?}");
        let new: Vec<_> = descriptors()
            .difference(&self.descriptors)
            // The runtime's own, made with the first signal handler.
            .filter(|path| !path.to_string_lossy().starts_with("socket:"))
            .cloned()
            .collect();
        assert!(new.is_empty(), "descriptors: {new:?}");
        assert!(!cgroup_root().join(cgroup_parent()).exists(), "cgroups");
        // Killed children of a failed creation are the agent's to reap.
        let mut ended = signal(SignalKind::child()).unwrap();
        while reap() {
            tokio::time::timeout(PATIENCE, ended.recv())
                .await
                .expect("a child is left");
        }
    }
}

fn descriptors() -> BTreeSet<PathBuf> {
    fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
        .filter(|path| !path.starts_with("/proc"))
        .collect()
}

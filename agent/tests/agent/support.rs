//! A real agent as a process of its own, and a container root made of busybox.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use agent_client::{Agent as _, Channel, Error, Listener, TtrpcAgent};
use agent_protocol as p;
use serde_json::{Value, json};

/// Deadline of everything that does not wait for a workload, on a machine that may be busy.
pub const SOON: Option<Duration> = Some(Duration::from_secs(30));

/// An agent with its own directory. Its end ends every container.
pub struct Sandbox {
    /// Calls go here.
    pub agent: TtrpcAgent,
    /// What the agent's share "shared" is.
    pub share: PathBuf,
    child: Child,
    listener: Listener,
    dir: tempfile::TempDir,
    cgroup: PathBuf,
}

/// A cgroup (version 2) that no other test uses.
fn make_cgroup(dir: &Path) -> PathBuf {
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .map(Path::new)
        .into_iter()
        .find(|dir| dir.join("cgroup.controllers").exists())
        .expect("this test needs a mounted cgroup hierarchy of version 2");
    let cgroup = root.join(format!("kata-agent-test-{}", dir.file_name().unwrap().display()));
    std::fs::create_dir(&cgroup).unwrap();
    cgroup
}

impl Sandbox {
    /// Starts an agent that has not been told anything yet.
    pub async fn blank() -> Self {
        Self::launch(Command::new(env!("CARGO_BIN_EXE_kata-agent"))).await
    }

    /// The same in this network namespace, which is its own.
    pub async fn in_network(namespace: &str) -> Self {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{namespace}"))
            .arg(env!("CARGO_BIN_EXE_kata-agent"))
            .args(["--network", "own"]);
        Self::launch(command).await
    }

    async fn launch(mut command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let share = dir.path().join("share");
        std::fs::create_dir(&share).unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = Listener::bind(&Channel::Unix { path: socket.clone() }).unwrap();
        let cgroup = make_cgroup(dir.path());
        let child = command
            .arg("--connect")
            .arg(format!("unix:{}", socket.display()))
            .arg("--root")
            .arg(dir.path().join("root"))
            .arg("--cgroup-root")
            .arg(&cgroup)
            .arg("--share")
            .arg(format!("shared={}", share.display()))
            .spawn()
            .unwrap();
        let agent = listener.accept(Duration::from_secs(30)).await.unwrap();
        Self {
            agent,
            share,
            child,
            listener,
            dir,
            cgroup,
        }
    }

    /// Starts an agent with a sandbox, the share mounted, and a root for containers in it.
    pub async fn ready() -> Self {
        let sandbox = Self::blank().await;
        sandbox.make_root("rootfs");
        let request = p::CreateSandboxRequest {
            sandbox_id: "sandbox".into(),
            storages: vec![p::Storage {
                driver: "virtio-fs".into(),
                source: "shared".into(),
                mount_point: "/run/kata/shared".into(),
                ..Default::default()
            }],
            ..Default::default()
        };
        sandbox.agent.create_sandbox(request, SOON).await.unwrap();
        sandbox
    }

    /// Hangs up, and accepts the agent's next connection.
    pub async fn reconnect_after_hang_up(&mut self) {
        self.hang_up();
        self.agent = self.listener.accept(Duration::from_secs(30)).await.unwrap();
    }

    /// Ends the connection, as the end of its last client does.
    fn hang_up(&mut self) {
        let (nobody, _) = tokio::io::duplex(1);
        self.agent = TtrpcAgent::new(nobody);
    }

    /// A root file system with busybox in the share.
    pub fn make_root(&self, name: &str) {
        let root = self.share.join(name);
        for dir in ["bin", "dev", "proc", "sys", "tmp", "etc"] {
            std::fs::create_dir_all(root.join(dir)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox"))
            .unwrap_or_else(|e| panic!("this test needs the package busybox-static: /bin/busybox: {e}"));
        for tool in [
            "sh",
            "cat",
            "sleep",
            "echo",
            "kill",
            "ps",
            "stty",
            "yes",
            "head",
            "true",
            "tty",
            "tr",
            "stat",
            "df",
            "tail",
            "awk",
            "sha256sum",
            "dd",
        ] {
            symlink("busybox", root.join("bin").join(tool)).unwrap();
        }
    }

    /// Pid of the agent.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills the agent, as the death of a virtual machine would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The agent's directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The cgroup below which its containers have theirs.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Resident memory of the agent, in bytes.
    pub fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }

    /// Destroys the sandbox, and checks that the agent ends and leaves nothing mounted.
    pub async fn destroy(mut self) {
        self.agent
            .destroy_sandbox(p::DestroySandboxRequest::default(), SOON)
            .await
            .unwrap();
        self.hang_up();
        let status = wait(&mut self.child).await;
        assert!(
            status.success(),
            "the agent ends well when it was told to: {status}"
        );
        let left: Vec<_> = std::fs::read_dir(&self.cgroup)
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .collect();
        assert!(left.is_empty(), "cgroups are left: {left:?}");
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A test that failed: the agent ends its containers when it is asked to end.
        if let Ok(None) = self.child.try_wait() {
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
            let _ = self.child.wait();
        }
        // An agent that was killed leaves the cgroups of its containers.
        remove_cgroup(&self.cgroup);
    }
}

fn remove_cgroup(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(dir);
}

async fn wait(child: &mut Child) -> std::process::ExitStatus {
    let end = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(tokio::time::Instant::now() < end, "the agent does not end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Which streams: `i`, `o`, `e`, `t` (terminal).
pub fn stdio(streams: &str) -> p::Stdio {
    let descriptors = streams.chars().filter_map(|direction| {
        let (readable, writable) = match direction {
            '<' => (true, false),
            '>' => (false, true),
            '=' => (true, true),
            '!' => (false, false),
            _ => return None,
        };
        Some(p::Descriptor {
            readable,
            writable,
            ..Default::default()
        })
    });
    p::Stdio {
        descriptors: descriptors.collect(),
        stdin: streams.contains('i'),
        stdout: streams.contains('o'),
        stderr: streams.contains('e'),
        terminal: streams.contains('t'),
        size: Some(p::TerminalSize {
            rows: 24,
            columns: 80,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    }
}

/// The OCI process of a shell script.
pub fn process(script: &str, terminal: bool) -> Value {
    json!({
        "cwd": "/",
        "args": ["/bin/sh", "-c", script],
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "terminal": terminal,
    })
}

/// A specification as small as it may be.
pub fn spec(script: &str, terminal: bool) -> Value {
    json!({
        "ociVersion": "1.1.0",
        "root": {"path": "/run/kata/shared/rootfs"},
        "process": process(script, terminal),
        "hostname": "guest",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]},
    })
}

/// Calls as tests make them.
impl Sandbox {
    /// Creates a container.
    pub async fn create(&self, id: &str, script: &str, streams: &str) -> Result<u32, Error> {
        let request = p::CreateContainerRequest {
            container_id: id.into(),
            spec: spec(script, streams.contains('t')).to_string().into_bytes(),
            stdio: Some(stdio(streams)).into(),
            ..Default::default()
        };
        Ok(self.agent.create_container(request, SOON).await?.pid)
    }

    /// Lets it execute.
    pub async fn start(&self, id: &str) -> Result<(), Error> {
        self.agent.start_container(container(id), SOON).await.map(drop)
    }

    /// Creates a container and lets it execute.
    pub async fn run(&self, id: &str, script: &str, streams: &str) {
        self.create(id, script, streams).await.unwrap();
        self.start(id).await.unwrap();
    }

    /// One more process.
    pub async fn exec(&self, id: &str, exec: &str, script: &str, streams: &str) -> Result<u32, Error> {
        let request = p::ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            process: process(script, streams.contains('t')).to_string().into_bytes(),
            stdio: Some(stdio(streams)).into(),
            ..Default::default()
        };
        Ok(self.agent.exec_process(request, SOON).await?.pid)
    }

    /// Exit status.
    pub async fn wait(&self, id: &str, exec: &str) -> Result<u32, Error> {
        Ok(self.agent.wait_process(named(id, exec), SOON).await?.exit_status)
    }

    /// Signals one process.
    pub async fn signal(&self, id: &str, exec: &str, signal: u32) -> Result<(), Error> {
        let request = p::SignalProcessRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            signal,
            ..Default::default()
        };
        self.agent.signal_process(request, SOON).await.map(drop)
    }

    /// One answer of a stream; `None` at its end.
    pub async fn read(
        &self,
        id: &str,
        exec: &str,
        stream: p::Stream,
        max: u32,
    ) -> Result<Option<Vec<u8>>, Error> {
        let request = p::ReadOutputRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            stream: stream.into(),
            max,
            ..Default::default()
        };
        let answer = self.agent.read_output(request, SOON).await?;
        assert_eq!(answer.eof, answer.data.is_empty());
        Ok((!answer.eof).then_some(answer.data))
    }

    /// Everything until the end of standard output.
    pub async fn output(&self, id: &str, exec: &str) -> String {
        let mut all = Vec::new();
        while let Some(data) = self.read(id, exec, p::Stream::STDOUT, 65_536).await.unwrap() {
            all.extend(data);
        }
        String::from_utf8(all).unwrap()
    }

    /// Reads standard output until this text has come.
    pub async fn expect(&self, id: &str, exec: &str, text: &str) {
        let mut all = String::new();
        while !all.contains(text) {
            let data = self.read(id, exec, p::Stream::STDOUT, 65_536).await.unwrap();
            all.push_str(&String::from_utf8(data.unwrap_or_else(|| panic!("ended with {all:?}"))).unwrap());
        }
    }

    /// Writes to standard input; whether anyone reads.
    pub async fn write(&self, id: &str, exec: &str, data: &[u8]) -> Result<bool, Error> {
        let request = p::WriteStdinRequest {
            container_id: id.into(),
            exec_id: exec.into(),
            data: data.to_vec(),
            ..Default::default()
        };
        Ok(self.agent.write_stdin(request, SOON).await?.open)
    }

    /// Deletes a container.
    pub async fn delete(&self, id: &str, force: bool) -> Result<(), Error> {
        let request = p::DeleteContainerRequest {
            container_id: id.into(),
            force,
            ..Default::default()
        };
        self.agent.delete_container(request, SOON).await.map(drop)
    }
}

/// Names a container.
pub fn container(id: &str) -> p::ContainerRequest {
    p::ContainerRequest {
        container_id: id.into(),
        ..Default::default()
    }
}

/// Names a process.
pub fn named(id: &str, exec: &str) -> p::ProcessRequest {
    p::ProcessRequest {
        container_id: id.into(),
        exec_id: exec.into(),
        ..Default::default()
    }
}

/// The end of its standard input.
pub fn end_of_input(id: &str, exec: &str) -> p::CloseStdinRequest {
    p::CloseStdinRequest {
        container_id: id.into(),
        exec_id: exec.into(),
        ..Default::default()
    }
}

/// Whether this process is alive; one that only waits to be reaped is not.
pub fn alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the name, which is in parentheses and may contain anything.
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

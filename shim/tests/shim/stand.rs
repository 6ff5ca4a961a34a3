//! A directory that stands for a machine: a configuration, bundles, sockets, and a containerd that takes events.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest, ForwardRequest, KillRequest,
    ShutdownRequest, StartRequest, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExecStarted, TaskExit, TaskStart};
use containerd_shim_protos::shim_async::{Client, Events, TaskClient, create_events};
use containerd_shim_protos::types::mount::Mount;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use ttrpc::r#async::TtrpcContext;
use ttrpc::asynchronous::Server as TtrpcServer;
use ttrpc::{Code, context};

pub const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-kata-v2");
/// Longer than anything here takes on a busy machine.
pub const LONG: Duration = Duration::from_secs(60);

/// What containerd's `ctr run` writes.
const SPEC: &str = include_str!("../../../tests/golden/ctr.json");

/// See the module's documentation.
pub struct Machine {
    dir: tempfile::TempDir,
    ttrpc_address: String,
}

impl Machine {
    /// Without a containerd that wants events.
    pub fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().unwrap(),
            ttrpc_address: String::new(),
        };
        fs::create_dir(machine.path("run")).unwrap();
        machine
    }

    /// With one.
    pub fn with_containerd() -> (Self, Containerd) {
        let mut machine = Self::new();
        let socket = machine.path("containerd.sock.ttrpc");
        machine.ttrpc_address = socket.to_str().unwrap().into();
        let containerd = Containerd::start(&socket, machine.tag());
        (machine, containerd)
    }

    /// The id of a container of this name: the guests of all tests are one host, on which ids have to differ.
    pub fn id(&self, name: &str) -> String {
        format!("{name}{}", self.tag())
    }

    fn tag(&self) -> String {
        let unique = self.dir.path().file_name().unwrap().to_string_lossy();
        format!("-{}", unique.trim_start_matches('.'))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn sockets(&self) -> PathBuf {
        self.path("s")
    }

    pub fn configuration(&self) -> PathBuf {
        self.path("configuration.toml")
    }

    /// Writes a configuration in which this program is the agent, or the real agent without one.
    pub fn configure(&self, agent: Option<&Path>) {
        let real = std::env::var_os("KATA_AGENT_BIN").map_or_else(
            || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug/kata-agent"),
            PathBuf::from,
        );
        let agent = agent.unwrap_or(&real);
        assert!(
            agent.exists(),
            "this test needs {}: cargo build -p agent",
            agent.display()
        );
        let text = format!(
            "[hypervisor.fake]\npath = {agent:?}\n[runtime]\nrun_dir = {:?}\n",
            self.path("run")
        );
        fs::write(self.configuration(), text).unwrap();
    }

    /// A bundle as containerd makes it, of a container that runs a script; with these annotations.
    pub fn bundle(&self, name: &str, script: &str, annotations: &[(&str, &str)]) -> PathBuf {
        let mut spec: Value = serde_json::from_str(SPEC).unwrap();
        spec["process"]["args"] = json!(["/bin/sh", "-c", script]);
        for (key, value) in annotations {
            spec["annotations"][key] = json!(value);
        }
        let bundle = self.path(name);
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        let _ = mknodat(CWD, bundle.join("log"), FileType::Fifo, mode, 0);
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        bundle
    }

    /// The mount of a container's root file system, which is busybox.
    pub fn rootfs(&self, name: &str) -> Mount {
        let layer = self.path("layer");
        if !layer.exists() {
            busybox(&layer);
        }
        let snapshot = self.path("snapshots").join(name);
        for part in ["fs", "work"] {
            fs::create_dir_all(snapshot.join(part)).unwrap();
        }
        Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                "index=off".into(),
                format!("workdir={}", snapshot.join("work").display()),
                format!("upperdir={}", snapshot.join("fs").display()),
                format!("lowerdir={}", layer.display()),
            ],
            ..Default::default()
        }
    }

    /// Runs an action as containerd 2.3 does, which can say where sockets are to be.
    pub fn action(&self, action: &str, name: &str, bundle: &Path) -> Output {
        let child = self.begin(action, name, bundle, Stdio::piped());
        child.wait_with_output().unwrap()
    }

    /// Begins an action whose output goes there.
    pub fn begin(&self, action: &str, name: &str, bundle: &Path, stdout: impl Into<Stdio>) -> Child {
        let id = &self.id(name);
        let params = BootstrapParams {
            instance_id: id.clone(),
            namespace: "ns".into(),
            socket_dir: Some(self.sockets().to_str().unwrap().into()),
            containerd_ttrpc_address: self.ttrpc_address.clone(),
            ..Default::default()
        };
        let mut child = Command::new(SHIM)
            .args([
                "-namespace",
                "ns",
                "-address",
                "",
                "-publish-binary",
                "/x",
                "-id",
                id,
            ])
            .arg(action)
            .current_dir(bundle)
            .env_remove("TTRPC_ADDRESS")
            .env("KATA_CONF_FILE", self.configuration())
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // `delete` does not read it.
        let _ = stdin.write_all(&params.write_to_bytes().unwrap());
        drop(stdin);
        child
    }

    /// Starts a server; it is ended when the answer is dropped.
    pub fn start(&self, name: &str, bundle: &Path) -> Server {
        let output = self.action("start", name, bundle);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stderr), "");
        let address = text(&output.stdout);
        let pid = fs::read_to_string(bundle.join("shim.pid")).unwrap();
        Server {
            path: address.strip_prefix("unix://").unwrap().into(),
            address,
            pid: pid.parse().unwrap(),
            tag: self.tag(),
        }
    }

    /// Starts a server for a container that runs a script, and creates it.
    pub async fn created(&self, name: &str, script: &str) -> (Server, Task) {
        self.configure(None);
        let bundle = self.bundle(name, script, &[]);
        let server = self.start(name, &bundle);
        let task = server.task(name).await;
        if let Err(error) = task.create(self, &bundle).await {
            panic!("{error}; the server's log:\n{}", server.log());
        }
        (server, task)
    }

    /// Fails if anything is left: a sandbox's directory, a mount, a process, a socket.
    pub fn assert_clean(&self) {
        let names = |dir: PathBuf| -> Vec<_> {
            let entries = fs::read_dir(dir).into_iter().flatten();
            let paths = entries.map(|entry| entry.unwrap().path());
            // What was found out about the host is the next one's as well.
            paths.filter(|path| !path.ends_with("accelerator.json")).collect()
        };
        assert_eq!(names(self.path("run")), [""; 0].map(PathBuf::from));
        assert_eq!(names(self.sockets()), [""; 0].map(PathBuf::from));
        let ours = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts: Vec<_> = mounts.lines().filter(|line| line.contains(ours)).collect();
        assert!(mounts.is_empty(), "mounts are left: {mounts:?}");
        // What was killed with its owner ends by itself, and soon.
        eventually("no process is left", || self.processes().is_empty());
    }

    /// Processes whose command line names our directory.
    pub fn processes(&self) -> Vec<i32> {
        let ours = self.dir.path().to_str().unwrap();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().to_str()?.parse().ok()?;
                let line = fs::read(entry.path().join("cmdline")).ok()?;
                String::from_utf8_lossy(&line).contains(ours).then_some(pid)
            })
            .collect()
    }
}

/// A guest that is killed leaves its containers' processes and cgroups: unlike with a virtual machine they are the host's.
impl Drop for Machine {
    fn drop(&mut self) {
        let tag = self.tag();
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            for entry in fs::read_dir(root).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().ends_with(&tag) {
                    remove_cgroup(&entry.path());
                }
            }
        }
    }
}

fn remove_cgroup(path: &Path) {
    let _ = fs::write(path.join("cgroup.kill"), "1");
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    // What was killed takes a moment to go.
    let begun = Instant::now();
    while fs::remove_dir(path).is_err() && begun.elapsed() < LONG {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until something is so.
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < LONG, "{what}: not within {LONG:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server that runs.
pub struct Server {
    pub address: String,
    pub path: PathBuf,
    pub pid: i32,
    tag: String,
}

impl Server {
    pub async fn client(&self) -> TaskClient {
        TaskClient::new(Client::connect(&self.address).await.unwrap())
    }

    pub async fn task(&self, name: &str) -> Task {
        Task {
            client: self.client().await,
            id: format!("{name}{}", self.tag),
        }
    }

    pub fn runs(&self) -> bool {
        // A zombie has ended; nobody but init reaps it.
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| !stat.rsplit(')').next().unwrap().starts_with(" Z"))
    }

    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_raw(self.pid).unwrap(), signal);
    }

    /// Waits for its end.
    pub fn ended(&self) {
        eventually("the server ends", || !self.runs());
    }

    /// What it has logged since the last time, as far as the pipe holds it.
    pub fn log(&self) -> String {
        let cwd = format!("/proc/{}/cwd/log", self.pid);
        let pipe = open(cwd, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let mut log = vec![0; 1 << 20];
        let length = rustix::io::read(&pipe, &mut log).unwrap_or(0);
        String::from_utf8_lossy(&log[..length]).into()
    }

    /// A line of `/proc/<pid>/status`.
    pub fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').trim().into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.runs() {
            self.signal(Signal::KILL);
        }
    }
}

/// A container as containerd drives it.
pub struct Task {
    pub client: TaskClient,
    pub id: String,
}

impl Task {
    pub async fn create(&self, machine: &Machine, bundle: &Path) -> ttrpc::Result<u32> {
        self.create_with(machine, bundle, |_| {}).await
    }

    pub async fn create_with(
        &self,
        machine: &Machine,
        bundle: &Path,
        change: impl FnOnce(&mut CreateTaskRequest),
    ) -> ttrpc::Result<u32> {
        let mut request = CreateTaskRequest {
            id: self.id.clone(),
            bundle: bundle.to_str().unwrap().into(),
            rootfs: vec![machine.rootfs(&self.id)],
            ..Default::default()
        };
        change(&mut request);
        Ok(self.client.create(context(), &request).await?.pid)
    }

    pub async fn start(&self, exec: &str) -> ttrpc::Result<u32> {
        let request = StartRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..Default::default()
        };
        Ok(self.client.start(context(), &request).await?.pid)
    }

    pub async fn exec(&self, exec: &str, script: &str) -> ttrpc::Result<()> {
        self.exec_with(exec, script, |_| {}).await
    }

    pub async fn exec_with(
        &self,
        exec: &str,
        script: &str,
        change: impl FnOnce(&mut ExecProcessRequest),
    ) -> ttrpc::Result<()> {
        let process = json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/bin"]});
        let spec = Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
            value: process.to_string().into_bytes(),
            ..Default::default()
        };
        let mut request = ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            spec: Some(spec).into(),
            ..Default::default()
        };
        change(&mut request);
        self.client.exec(context(), &request).await.map(drop)
    }

    pub async fn kill(&self, exec: &str, signal: u32) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            signal,
            ..Default::default()
        };
        self.client.kill(context(), &request).await.map(drop)
    }

    pub async fn wait(&self, exec: &str) -> ttrpc::Result<WaitResponse> {
        let request = WaitRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.client.wait(context(), &request).await
    }

    pub async fn state(&self, exec: &str) -> ttrpc::Result<StateResponse> {
        let request = StateRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.client.state(context(), &request).await
    }

    pub async fn delete(&self, exec: &str) -> ttrpc::Result<DeleteResponse> {
        let request = DeleteRequest {
            id: self.id.clone(),
            exec_id: exec.into(),
            ..Default::default()
        };
        self.client.delete(context(), &request).await
    }

    pub async fn shutdown(&self) -> ttrpc::Result<()> {
        let request = ShutdownRequest {
            id: self.id.clone(),
            ..Default::default()
        };
        self.client.shutdown(context(), &request).await.map(drop)
    }

    /// Ends it as containerd does.
    pub async fn end(&self, server: &Server) {
        self.kill("", 9).await.unwrap();
        assert_eq!(self.wait("").await.unwrap().exit_status, 137);
        self.delete("").await.unwrap();
        self.shutdown().await.unwrap();
        server.ended();
    }
}

/// A containerd that takes events.
pub struct Containerd {
    tag: String,
    events: Arc<Mutex<Vec<(String, Any)>>>,
    /// Dropped with us, which ends the thread.
    _end: oneshot::Sender<()>,
}

struct Taker(Arc<Mutex<Vec<(String, Any)>>>);

#[async_trait]
impl Events for Taker {
    async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
        let envelope = request.envelope.unwrap();
        assert_eq!(envelope.namespace, "ns");
        self.0
            .lock()
            .unwrap()
            .push((envelope.topic, envelope.event.unwrap()));
        Ok(Empty::new())
    }
}

impl Containerd {
    /// On a thread of its own: tests wait without yielding.
    fn start(socket: &Path, tag: String) -> Self {
        let events = Arc::new(Mutex::default());
        let service = create_events(Arc::new(Taker(Arc::clone(&events))));
        let address = format!("unix://{}", socket.display());
        let (end, ended) = oneshot::channel::<()>();
        let (listens, listening) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let mut server = TtrpcServer::new()
                    .register_service(service)
                    .bind(&address)
                    .unwrap();
                server.start().await.unwrap();
                listens.send(()).unwrap();
                let _ = ended.await;
            });
        });
        listening.recv().unwrap();
        Self {
            tag,
            events,
            _end: end,
        }
    }

    /// What has come so far, a line each: the topic's last part, the names, the pid, the exit status.
    pub fn told(&self) -> Vec<String> {
        let events = self.events.lock().unwrap();
        let line = |(topic, event): &(String, Any)| line(topic, &event.value).replace(&self.tag, "");
        events.iter().map(line).collect()
    }
}

fn line(topic: &str, event: &[u8]) -> String {
    match topic {
        "/tasks/create" => {
            let event = TaskCreate::parse_from_bytes(event).unwrap();
            format!("create {} {}", event.container_id, event.pid)
        }
        "/tasks/start" => {
            let event = TaskStart::parse_from_bytes(event).unwrap();
            format!("start {} {}", event.container_id, event.pid)
        }
        "/tasks/exec-started" => {
            let event = TaskExecStarted::parse_from_bytes(event).unwrap();
            format!(
                "exec-started {}/{} {}",
                event.container_id, event.exec_id, event.pid
            )
        }
        "/tasks/exit" => {
            let event = TaskExit::parse_from_bytes(event).unwrap();
            assert!(event.exited_at.seconds > 1_600_000_000);
            format!(
                "exit {}/{} {} {}",
                event.container_id, event.id, event.pid, event.exit_status
            )
        }
        "/tasks/delete" => {
            let event = TaskDelete::parse_from_bytes(event).unwrap();
            format!(
                "delete {} {} {}",
                event.container_id, event.pid, event.exit_status
            )
        }
        topic => topic.trim_start_matches("/tasks/").to_owned(),
    }
}

/// A root file system that is busybox.
fn busybox(root: &Path) {
    for name in ["bin", "dev", "proc", "sys", "run", "tmp", "etc"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .unwrap_or_else(|error| panic!("this test needs busybox-static: /bin/busybox: {error}"));
    for tool in ["sh", "cat", "sleep", "echo", "stty", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(tool)).unwrap();
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// The code of an error.
pub fn code<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> Code {
    status(answer).0
}

/// The code and the text of an error.
pub fn status<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        error => panic!("{error:?}"),
    }
}

pub fn context() -> context::Context {
    context::with_duration(LONG)
}

/// What `delete` says besides the end of the container.
pub fn deleted(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    let response = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(response.exit_status, 137);
    assert!(response.exited_at.seconds > 1_600_000_000);
    text(&output.stderr)
}

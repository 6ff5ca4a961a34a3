//! containerd's sandbox API: a pod without a container that stands for it, driven as containerd 2 drives it.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::ConnectRequest;
use containerd_shim_protos::api::Status;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, PingRequest, PlatformRequest, SandboxMetricsRequest, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, StartSandboxRequest, StartSandboxResponse,
    StopSandboxRequest, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::SandboxClient;
use containerd_shim_protos::shim_async::Client;
use rustix::process::{Pid, Signal, kill_process};
use ttrpc::Code;

use crate::stand::{LONG, Machine, Server, Task, code, context, deleted, status};
use crate::vm;

/// A sandbox as containerd drives it.
struct Sandbox {
    machine: Machine,
    server: Server,
    client: SandboxClient,
    id: String,
    bundle: PathBuf,
}

impl Sandbox {
    /// A server, in a bundle in which there is nothing.
    async fn new() -> Self {
        let machine = Machine::new();
        machine.configure(None);
        Self::on(machine).await
    }

    async fn on(machine: Machine) -> Self {
        let bundle = machine.path("pod");
        fs::create_dir(&bundle).unwrap();
        let server = machine.start("pod", &bundle);
        let client = SandboxClient::new(Client::connect(&server.address).await.unwrap());
        Self {
            id: machine.id("pod"),
            machine,
            server,
            client,
            bundle,
        }
    }

    async fn started() -> Self {
        let sandbox = Self::new().await;
        sandbox.create(|_| {}).await.unwrap();
        sandbox.start().await.unwrap();
        sandbox
    }

    async fn create(&self, change: impl FnOnce(&mut CreateSandboxRequest)) -> ttrpc::Result<()> {
        let mut request = CreateSandboxRequest {
            sandbox_id: self.id.clone(),
            bundle_path: self.bundle.to_str().unwrap().into(),
            ..Default::default()
        };
        change(&mut request);
        self.client.create_sandbox(context(), &request).await.map(drop)
    }

    async fn start(&self) -> ttrpc::Result<StartSandboxResponse> {
        let request = StartSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.client.start_sandbox(context(), &request).await
    }

    async fn status(&self) -> ttrpc::Result<SandboxStatusResponse> {
        let request = SandboxStatusRequest {
            sandbox_id: self.id.clone(),
            verbose: true,
            ..Default::default()
        };
        self.client.sandbox_status(context(), &request).await
    }

    async fn ping(&self) -> ttrpc::Result<()> {
        let request = PingRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.client.ping_sandbox(context(), &request).await.map(drop)
    }

    async fn wait(&self) -> ttrpc::Result<WaitSandboxResponse> {
        let request = WaitSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.client.wait_sandbox(context(), &request).await
    }

    async fn stop(&self) -> ttrpc::Result<()> {
        let request = StopSandboxRequest {
            sandbox_id: self.id.clone(),
            timeout_secs: 10,
            ..Default::default()
        };
        self.client.stop_sandbox(context(), &request).await.map(drop)
    }

    async fn shut_down(&self) -> ttrpc::Result<()> {
        let request = ShutdownSandboxRequest {
            sandbox_id: self.id.clone(),
            ..Default::default()
        };
        self.client.shutdown_sandbox(context(), &request).await.map(drop)
    }

    /// A container that runs a script in the sandbox, started as containerd does it.
    async fn container(&self, name: &str, script: &str) -> Task {
        let annotations = [
            ("io.kubernetes.cri.container-type", "container"),
            ("io.kubernetes.cri.sandbox-id", self.id.as_str()),
        ];
        let bundle = self.machine.bundle(name, script, &annotations);
        let output = self.machine.action("start", name, &bundle);
        assert_eq!(output.stdout, self.server.address.as_bytes());
        let task = self.server.task(name).await;
        task.create(&self.machine, &bundle).await.unwrap();
        task.start("").await.unwrap();
        task
    }

    async fn end(self) {
        self.shut_down().await.unwrap();
        self.server.ended();
        self.machine.assert_clean();
    }
}

/// containerd's client may take the end of a connection for the answer, if both have come before it looks.
#[tokio::test]
async fn who_asks_for_the_end_is_left_to_close_its_connection() {
    let sandbox = Sandbox::new().await;
    sandbox.create(|_| {}).await.unwrap();
    sandbox.shut_down().await.unwrap();
    assert_eq!(
        code(sandbox.ping().await),
        Code::NOT_FOUND,
        "it is still answered"
    );
    let Sandbox {
        client,
        server,
        machine,
        ..
    } = sandbox;
    drop(client);
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn a_sandbox_lives_without_a_container_and_takes_containers() {
    let sandbox = Sandbox::new().await;
    assert_eq!(code(sandbox.status().await), Code::NOT_FOUND);
    assert_eq!(code(sandbox.ping().await), Code::NOT_FOUND);
    sandbox.create(|_| {}).await.unwrap();
    assert_eq!(sandbox.status().await.unwrap().state, "SANDBOX_NOTREADY");
    assert!(
        sandbox.machine.processes().len() <= 1,
        "nothing runs but the server"
    );

    let started = sandbox.start().await.unwrap();
    assert!(started.created_at.seconds > 1_600_000_000);
    let shown = sandbox.status().await.unwrap();
    assert_eq!((shown.state.as_str(), shown.pid), ("SANDBOX_READY", started.pid));
    assert_eq!(shown.created_at, started.created_at);
    assert_eq!(shown.info.get("vmm").map(String::as_str), Some("fake"));
    assert!(shown.exited_at.is_none());
    let info: serde_json::Value = serde_json::from_str(&shown.info["info"]).unwrap();
    assert_eq!(info["pid"], started.pid);
    sandbox.ping().await.unwrap();
    // So asks a containerd that was started again.
    let asked = ConnectRequest {
        id: sandbox.id.clone(),
        ..Default::default()
    };
    let containerd = sandbox.server.client().await;
    let greeting = containerd.connect(context(), &asked).await.unwrap();
    assert_eq!((greeting.task_pid, greeting.shim_pid > 0), (started.pid, true));
    let request = PlatformRequest {
        sandbox_id: sandbox.id.clone(),
        ..Default::default()
    };
    let platform = sandbox
        .client
        .platform(context(), &request)
        .await
        .unwrap()
        .platform;
    assert_eq!(
        (platform.os.as_str(), platform.architecture.as_str()),
        ("linux", "amd64")
    );

    for _ in 0..2 {
        let first = sandbox.container("c1", "sleep 1000").await;
        let second = sandbox.container("c2", "exit 4").await;
        assert_eq!(second.wait("").await.unwrap().exit_status, 4);
        let request = SandboxMetricsRequest {
            sandbox_id: sandbox.id.clone(),
            ..Default::default()
        };
        let metrics = sandbox
            .client
            .sandbox_metrics(context(), &request)
            .await
            .unwrap()
            .metrics;
        assert_eq!(metrics.id, sandbox.id);
        assert!(metrics.data.type_url.starts_with("io.containerd.cgroups.v"));
        for task in [first, second] {
            let _ = task.kill("", 9).await;
            task.wait("").await.unwrap();
            task.delete("").await.unwrap();
            // containerd 1.7 says so after each container; the sandbox stays.
            task.shutdown().await.unwrap();
        }
        assert_eq!(sandbox.status().await.unwrap().state, "SANDBOX_READY");
    }
    sandbox.end().await;
}

#[tokio::test]
async fn a_stop_ends_the_containers_and_tells_who_waits() {
    let sandbox = Sandbox::started().await;
    let task = sandbox.container("c1", "sleep 1000").await;
    let (waited, exit, stopped) = tokio::join!(sandbox.wait(), task.wait(""), sandbox.stop());
    stopped.unwrap();
    let end = waited.unwrap();
    assert_eq!((end.exit_status, exit.unwrap().exit_status), (0, 137));
    assert_eq!(task.state("").await.unwrap().status.unwrap(), Status::STOPPED);

    // It can still be asked for, and stopped once more.
    let shown = sandbox.status().await.unwrap();
    assert_eq!(
        (shown.state.as_str(), &shown.exited_at),
        ("SANDBOX_NOTREADY", &end.exited_at)
    );
    assert_eq!(code(sandbox.ping().await), Code::UNAVAILABLE);
    assert_eq!(sandbox.wait().await.unwrap().exit_status, 0);
    sandbox.stop().await.unwrap();
    assert_eq!(code(sandbox.start().await), Code::FAILED_PRECONDITION);
    task.delete("").await.unwrap();
    sandbox.end().await;
}

#[tokio::test]
async fn the_end_of_the_machine_is_the_end_of_the_sandbox() {
    let sandbox = Sandbox::started().await;
    let pid = i32::try_from(sandbox.status().await.unwrap().pid).unwrap();
    let kill = async { kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap() };
    let (waited, ()) = tokio::join!(sandbox.wait(), kill);
    assert_eq!(waited.unwrap().exit_status, 255);
    assert_eq!(sandbox.status().await.unwrap().state, "SANDBOX_NOTREADY");
    let (code, message) = status(sandbox.ping().await);
    assert_eq!((code, message.contains(&sandbox.id)), (Code::UNAVAILABLE, true));
    sandbox.stop().await.unwrap();
    sandbox.end().await;
}

#[tokio::test]
async fn a_sandbox_that_runs_is_shut_down_as_it_is() {
    let sandbox = Sandbox::started().await;
    sandbox.container("c1", "sleep 1000").await;
    sandbox.end().await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let sandbox = Sandbox::new().await;
    assert_eq!(code(sandbox.start().await), Code::NOT_FOUND);
    assert_eq!(code(sandbox.stop().await), Code::NOT_FOUND);
    assert_eq!(code(sandbox.shut_down().await), Code::NOT_FOUND);
    let refused = async |change: fn(&mut CreateSandboxRequest)| status(sandbox.create(change).await);
    let (code_, message) = refused(|request| request.sandbox_id = "other".into()).await;
    assert_eq!(
        (code_, message.contains("other")),
        (Code::INVALID_ARGUMENT, true),
        "{message}"
    );
    let (code_, message) = refused(|request| request.bundle_path = "pod".into()).await;
    assert_eq!(
        (code_, message.contains("absolute")),
        (Code::INVALID_ARGUMENT, true),
        "{message}"
    );
    let wrong = "io.katacontainers.config.hypervisor.default_vcpus";
    let (code_, message) = refused(|request| {
        request.annotations.insert(
            "io.katacontainers.config.hypervisor.default_vcpus".into(),
            "many".into(),
        );
    })
    .await;
    assert_eq!(
        (code_, message.contains(wrong)),
        (Code::INVALID_ARGUMENT, true),
        "{message}"
    );

    sandbox.create(|_| {}).await.unwrap();
    assert_eq!(code(sandbox.create(|_| {}).await), Code::ALREADY_EXISTS);
    // Before its start it takes no container, whatever that is called.
    let task = sandbox.server.task("pod").await;
    let bundle = sandbox.machine.bundle("other", "true", &[]);
    assert_eq!(
        code(task.create(&sandbox.machine, &bundle).await),
        Code::UNAVAILABLE
    );
    sandbox.start().await.unwrap();
    assert_eq!(code(sandbox.start().await), Code::FAILED_PRECONDITION);
    sandbox.end().await;
}

#[tokio::test]
async fn a_start_that_fails_is_told_and_can_be_cleaned_up() {
    let sandbox = Sandbox::new().await;
    let none = "/run/netns/of-nobody";
    sandbox
        .create(|request| request.netns_path = none.into())
        .await
        .unwrap();
    let (code, message) = status(sandbox.start().await);
    assert!(message.contains(none), "{code:?}: {message}");
    assert_eq!(sandbox.wait().await.unwrap().exit_status, 255);
    sandbox.stop().await.unwrap();
    sandbox.end().await;
}

#[tokio::test]
async fn delete_ends_a_sandbox_whether_its_server_lives_or_not() {
    let sandbox = Sandbox::started().await;
    deleted(&sandbox.machine.action("delete", "pod", &sandbox.bundle));
    sandbox.server.ended();
    sandbox.machine.assert_clean();

    let sandbox = Sandbox::started().await;
    sandbox.server.signal(Signal::KILL);
    sandbox.server.ended();
    deleted(&sandbox.machine.action("delete", "pod", &sandbox.bundle));
    sandbox.machine.assert_clean();
}

#[tokio::test]
async fn a_stop_while_it_starts_is_a_stop() {
    let sandbox = Sandbox::new().await;
    // An agent that never calls.
    let idle = sandbox.machine.path("idle");
    fs::write(&idle, "#!/bin/sh\nexec tail -f \"$0\"\n").unwrap();
    fs::set_permissions(&idle, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    sandbox.machine.configure(Some(&idle));
    sandbox.create(|_| {}).await.unwrap();
    let before = sandbox.machine.processes().len();
    let stop = async {
        let begun = Instant::now();
        while sandbox.machine.processes().len() == before {
            assert!(
                begun.elapsed() < LONG,
                "the start is not under way within {LONG:?}"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        sandbox.stop().await
    };
    let (started, stopped) = tokio::join!(sandbox.start(), async {
        stop.await.unwrap();
        sandbox.machine.processes().len()
    });
    assert_eq!(
        stopped, before,
        "what was started is gone when the stop is answered"
    );
    let (code, message) = status(started);
    assert_eq!(
        (code, message.contains("being stopped")),
        (Code::UNAVAILABLE, true),
        "{message}"
    );
    sandbox.end().await;
}

/// A network namespace with a name, as a CNI plugin's caller makes it.
struct Namespace(String);

impl Namespace {
    fn new(id: &str) -> Self {
        let namespace = Self(format!("sandboxes-{id}-{}", std::process::id()));
        namespace.ip("add").unwrap();
        namespace
    }

    fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    fn ip(&self, verb: &str) -> std::io::Result<()> {
        let status = std::process::Command::new("ip")
            .args(["netns", verb, &self.0])
            .status()?;
        status
            .success()
            .then_some(())
            .ok_or_else(|| std::io::Error::other(format!("ip netns {verb}: {status}")))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.ip("delete");
    }
}

#[tokio::test]
async fn a_sandbox_is_a_virtual_machine() {
    let machine = Machine::new();
    if !vm::configure(&machine) {
        return;
    }
    let sandbox = Sandbox::on(machine).await;
    // Without one it would be the host's, which a virtual machine cannot share.
    let namespace = Namespace::new(&sandbox.id);
    sandbox
        .create(|request| request.netns_path = namespace.path())
        .await
        .unwrap();
    let pid = sandbox.start().await.unwrap().pid;
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert!(comm.starts_with("qemu-system"), "{comm}");
    let shown = sandbox.status().await.unwrap();
    assert!(shown.info["vmm"].starts_with("QEMU "), "{:?}", shown.info);

    let ended = sandbox.container("c1", "exit 5").await;
    assert_eq!(ended.wait("").await.unwrap().exit_status, 5);
    ended.delete("").await.unwrap();
    let running = sandbox.container("c2", "sleep 1000").await;
    let (waited, exit, stopped) = tokio::join!(sandbox.wait(), running.wait(""), sandbox.stop());
    stopped.unwrap();
    assert_eq!((waited.unwrap().exit_status, exit.unwrap().exit_status), (0, 137));
    sandbox.end().await;
}

//! Several containers in one sandbox, behind one server.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

use containerd_shim_protos::api::Status;
use ttrpc::Code;

use crate::stand::{Machine, Server, Task, code, deleted, eventually, status};

const TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX: &str = "io.kubernetes.cri.sandbox-id";

struct Pod {
    machine: Machine,
    server: Server,
    pause: Task,
}

impl Pod {
    async fn new() -> Self {
        let machine = Machine::new();
        machine.configure(None);
        let bundle = machine.bundle(
            "pod",
            "sleep 1000",
            &[(TYPE, "sandbox"), (SANDBOX, &machine.id("pod"))],
        );
        let server = machine.start("pod", &bundle);
        let pause = server.task("pod").await;
        pause.create(&machine, &bundle).await.unwrap();
        pause.start("").await.unwrap();
        Self {
            machine,
            server,
            pause,
        }
    }

    fn bundle(&self, id: &str, script: &str) -> PathBuf {
        self.machine.bundle(
            id,
            script,
            &[(TYPE, "container"), (SANDBOX, &self.machine.id("pod"))],
        )
    }

    /// A container of the pod, started as containerd does it.
    async fn container(&self, id: &str, script: &str) -> Task {
        let bundle = self.bundle(id, script);
        let output = self.machine.action("start", id, &bundle);
        assert_eq!(output.stdout, self.server.address.as_bytes());
        let task = self.server.task(id).await;
        task.create(&self.machine, &bundle).await.unwrap();
        task.start("").await.unwrap();
        task
    }

    async fn end(self) {
        self.pause.end(&self.server).await;
        self.machine.assert_clean();
    }
}

#[tokio::test]
async fn containers_come_and_go_and_the_last_one_ends_the_pod() {
    let pod = Pod::new().await;
    for _ in 0..2 {
        let first = pod.container("c1", "sleep 1000").await;
        let second = pod.container("c2", "exit 4").await;
        assert_eq!(second.wait("").await.unwrap().exit_status, 4);
        second.delete("").await.unwrap();
        // containerd says so after each container.
        second.shutdown().await.unwrap();
        assert_eq!(first.state("").await.unwrap().status.unwrap(), Status::RUNNING);
        first.kill("", 9).await.unwrap();
        first.wait("").await.unwrap();
        first.delete("").await.unwrap();
        first.shutdown().await.unwrap();
    }
    pod.end().await;
}

#[tokio::test]
async fn delete_of_one_container_leaves_the_others() {
    let pod = Pod::new().await;
    let first = pod.container("c1", "sleep 1000").await;
    let second = pod.container("c2", "sleep 1000").await;
    // As after every regular end.
    second.kill("", 9).await.unwrap();
    second.wait("").await.unwrap();
    second.delete("").await.unwrap();
    deleted(&pod.machine.action("delete", "c2", &pod.machine.path("c2")));
    assert_eq!(first.state("").await.unwrap().status.unwrap(), Status::RUNNING);
    // As by a daemon that could not reach us: this container must not stay.
    deleted(&pod.machine.action("delete", "c1", &pod.machine.path("c1")));
    assert_eq!(code(first.state("").await), Code::NOT_FOUND);
    assert_eq!(
        pod.pause.state("").await.unwrap().status.unwrap(),
        Status::RUNNING
    );
    pod.end().await;
}

#[tokio::test]
async fn a_container_of_another_pod_is_refused() {
    let pod = Pod::new().await;
    let stranger = pod
        .machine
        .bundle("c1", "true", &[(TYPE, "container"), (SANDBOX, "other")]);
    let task = pod.server.task("c1").await;
    let (code, message) = status(task.create(&pod.machine, &stranger).await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("other"), "{message}");
    pod.end().await;
}

#[tokio::test]
async fn a_dead_server_of_a_pod_is_cleaned_up_by_any_of_its_containers() {
    let pod = Pod::new().await;
    let _first = pod.container("c1", "sleep 1000").await;
    pod.server.signal(rustix::process::Signal::KILL);
    pod.server.ended();
    deleted(&pod.machine.action("delete", "c1", &pod.machine.path("c1")));
    pod.machine.assert_clean();
    deleted(&pod.machine.action("delete", "pod", &pod.machine.path("pod")));
    let late = pod.machine.action("start", "c2", &pod.bundle("c2", "true"));
    assert!(!late.status.success(), "{late:?}");
}

#[tokio::test]
async fn while_one_container_cleans_up_after_a_dead_server_the_others_are_deleted_too() {
    let pod = Pod::new().await;
    let _first = pod.container("c1", "sleep 1000").await;
    pod.server.signal(rustix::process::Signal::KILL);
    pod.server.ended();
    // We are the other one, and take our time.
    let sandbox = pod.machine.path(&format!("run/ns@{}", pod.machine.id("pod")));
    let owner = File::options().write(true).open(sandbox.join("owner")).unwrap();
    eventually("the server's lock goes", || owner.try_lock().is_ok());
    owner.set_len(0).unwrap();
    (&owner)
        .write_all(std::process::id().to_string().as_bytes())
        .unwrap();
    deleted(&pod.machine.action("delete", "c1", &pod.machine.path("c1")));
    assert!(sandbox.exists(), "it is the other one's to remove");
    // We are killed by an impatient daemon: whoever comes next is done with it.
    drop(owner);
    deleted(&pod.machine.action("delete", "pod", &pod.machine.path("pod")));
    pod.machine.assert_clean();
}

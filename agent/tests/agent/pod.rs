//! What the containers of a pod share in the guest.

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;
use serde_json::{Value, json};

use crate::support::{SOON, Sandbox, spec, stdio};

const SIGKILL: u32 = 9;

/// The id of the sandbox's first container, which is the sandbox's own.
const POD: &str = "sandbox";

/// A container without a pid namespace of its own.
fn sharing(script: &str) -> Value {
    let mut spec = spec(script, false);
    spec["linux"]["namespaces"] = json!([{"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]);
    spec
}

impl Sandbox {
    async fn create_as(&self, id: &str, spec: &Value) -> Result<u32, agent_client::Error> {
        let request = p::CreateContainerRequest {
            container_id: id.into(),
            spec: spec.to_string().into_bytes(),
            stdio: Some(stdio("o")).into(),
            ..Default::default()
        };
        Ok(self.agent.create_container(request, SOON).await?.pid)
    }

    /// Runs a container to its end, and answers with what it wrote.
    async fn told(&self, id: &str, spec: &Value) -> String {
        self.create_as(id, spec).await.unwrap();
        self.start(id).await.unwrap();
        let output = self.output(id, "").await;
        self.wait(id, "").await.unwrap();
        self.delete(id, false).await.unwrap();
        output
    }
}

const FIRST: &str = "tr '\\0' ' ' </proc/1/cmdline; echo; ps";

#[tokio::test]
async fn the_pods_first_process_is_that_of_its_first_container() {
    let sandbox = Sandbox::ready().await;
    sandbox.run(POD, "sleep 4711; true", "").await;
    sandbox.run("apart", "echo $$; sleep 4712; true", "o").await;
    sandbox.expect("apart", "", "1\n").await;

    let seen = sandbox.told("sharing", &sharing(FIRST)).await;
    assert!(seen.starts_with("/bin/sh -c sleep 4711; true"), "{seen}");
    assert!(
        !seen.contains("kata-agent"),
        "the guest's processes are no business of the pod's: {seen}"
    );
    // Who shares the pod's processes sees all of them: what `kubectl debug --target` asks for is among them.
    assert!(seen.contains("sleep 4712"), "{seen}");

    let seen = sandbox.told("alone", &spec(FIRST, false)).await;
    assert!(!seen.contains("sleep 47"), "{seen}");
    assert!(seen.starts_with("/bin/sh -c tr"), "{seen}");
    sandbox.exec("apart", "e", FIRST, "o").await.unwrap();
    let seen = sandbox.output("apart", "e").await;
    assert!(
        !seen.contains("sleep 4711") && seen.contains("sleep 4712"),
        "{seen}"
    );
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_pod_ends_with_its_first_process_and_says_so() {
    let sandbox = Sandbox::ready().await;
    sandbox.run(POD, "sleep 4713; true", "").await;
    sandbox.run("apart", "sleep 4714; true", "").await;
    sandbox.signal(POD, "", SIGKILL).await.unwrap();
    assert_eq!(sandbox.wait("apart", "").await.unwrap(), 128 + SIGKILL);
    for spec in [sharing("true"), spec("true", false)] {
        let refused = sandbox.create_as("late", &spec).await.unwrap_err();
        assert_eq!(refused.kind, ErrorKind::FailedPrecondition, "{refused}");
        assert!(refused.message.contains("first container has ended"), "{refused}");
    }
    // With the container, its namespace is forgotten.
    sandbox.delete("apart", false).await.unwrap();
    sandbox.delete(POD, false).await.unwrap();
    assert_eq!(sandbox.told("again", &spec("echo $$", false)).await, "1\n");
    sandbox.destroy().await;
}

fn memory(options: &[&str]) -> p::Storage {
    p::Storage {
        driver: "tmpfs".into(),
        options: options.iter().map(ToString::to_string).collect(),
        mount_point: "/run/kata/volumes/scratch".into(),
        pod: true,
        ..Default::default()
    }
}

/// A container with this storage at /data.
fn with_storage(id: &str, script: &str, storage: p::Storage) -> p::CreateContainerRequest {
    let mut spec = spec(script, false);
    let mount =
        json!({"destination": "/data", "type": "bind", "source": storage.mount_point, "options": ["rbind"]});
    spec["mounts"].as_array_mut().unwrap().push(mount);
    p::CreateContainerRequest {
        container_id: id.into(),
        spec: spec.to_string().into_bytes(),
        storages: vec![storage],
        stdio: Some(stdio("o")).into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn memory_of_the_pod_outlives_the_containers_that_use_it() {
    let sandbox = Sandbox::ready().await;
    let options = ["size=1048576", "mode=1777"];
    for (id, script, said) in [
        ("one", "echo kept >/data/word", ""),
        (
            "two",
            "cat /data/word; stat -c %a /data; df -k /data | tail -n 1 | awk '{print $2}'",
            "kept\n1777\n1024\n",
        ),
    ] {
        let request = with_storage(id, script, memory(&options));
        sandbox.agent.create_container(request, SOON).await.unwrap();
        sandbox.start(id).await.unwrap();
        assert_eq!(sandbox.output(id, "").await, said);
        sandbox.wait(id, "").await.unwrap();
        sandbox.delete(id, false).await.unwrap();
    }
    let other = with_storage("three", "true", memory(&["size=2m"]));
    let refused = sandbox.agent.create_container(other, SOON).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument, "{refused}");
    let mut disk = memory(&[]);
    (disk.driver, disk.source) = ("virtio-fs".into(), "shared".into());
    let refused = sandbox
        .agent
        .create_container(with_storage("three", "true", disk), SOON)
        .await
        .unwrap_err();
    assert!(refused.message.contains("storage.pod"), "{refused}");
    sandbox.destroy().await;
}

/// A guest that has practised is nobody: what comes then finds nothing of it.
#[tokio::test]
async fn after_practice_the_guest_is_nobody_and_becomes_another_sandbox() {
    let sandbox = Sandbox::ready().await;
    assert_eq!(
        sandbox.told(POD, &spec("echo practice", false)).await,
        "practice\n"
    );
    let practised = p::DestroySandboxRequest {
        practised: true,
        ..Default::default()
    };
    let question = sandbox.agent.next_events(p::NextEventsRequest::default(), SOON);
    let (answer, destroyed) = tokio::join!(question, async {
        // It is answered after the question has been taken note of: what asks for the sandbox's state waits in one queue.
        let of_pod = p::ContainerRequest {
            container_id: POD.into(),
            ..Default::default()
        };
        let _ = sandbox.agent.list_processes(of_pod, SOON).await;
        sandbox.agent.destroy_sandbox(practised, SOON).await
    });
    destroyed.unwrap();
    // Were it left open, its deadline would be the error.
    assert_eq!(answer.unwrap_err().kind, ErrorKind::FailedPrecondition);
    let none = sandbox.create(POD, "true", "").await.unwrap_err();
    assert_eq!(none.kind, ErrorKind::FailedPrecondition, "nobody has containers");

    let request = p::CreateSandboxRequest {
        sandbox_id: "another".into(),
        storages: vec![p::Storage {
            driver: "virtio-fs".into(),
            source: "shared".into(),
            mount_point: "/run/kata/shared".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    sandbox.agent.create_sandbox(request.clone(), SOON).await.unwrap();
    assert_eq!(sandbox.told(POD, &spec("echo real", false)).await, "real\n");
    let twice = sandbox.agent.create_sandbox(request, SOON).await.unwrap_err();
    assert_eq!(twice.kind, ErrorKind::AlreadyExists);
    sandbox.destroy().await;
}

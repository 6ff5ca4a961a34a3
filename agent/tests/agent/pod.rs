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

//! What may take long is done beside the sandbox's task: one container's trouble is not another's, and what is asked of one
//! container meanwhile gets the answer of the state it is really in.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;
use serde_json::{Value, json};
use tokio::net::unix::pipe;

use crate::support::{SOON, Sandbox, container, named, spec};

const SIGKILL: u32 = 9;

/// Less than any wait of the agent's for what hangs.
const AT_ONCE: Option<Duration> = Some(Duration::from_secs(8));

/// A named pipe in the containers' root: who reads it hangs until [`writer`]'s answer is dropped.
fn gate(sandbox: &Sandbox) -> PathBuf {
    let path = sandbox.share.join("rootfs/gate");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    path
}

/// Waits for somebody to hang at the gate.
async fn writer(gate: &Path) -> pipe::Sender {
    let begun = Instant::now();
    loop {
        match pipe::OpenOptions::new().open_sender(gate) {
            Ok(writer) => return writer,
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                assert!(
                    begun.elapsed() < Duration::from_secs(30),
                    "nobody comes to the gate"
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn create(sandbox: &Sandbox, id: &str, spec: &Value) {
    let request = p::CreateContainerRequest {
        container_id: id.into(),
        spec: spec.to_string().into_bytes(),
        ..Default::default()
    };
    sandbox.agent.create_container(request, SOON).await.unwrap();
}

/// A container that hangs at the gate between its start and its program.
async fn create_with_hook(sandbox: &Sandbox, id: &str) {
    let mut spec = spec("sleep 1000", false);
    spec["hooks"] =
        json!({"startContainer": [{"path": "/bin/cat", "args": ["cat", "/gate"], "timeout": 60}]});
    create(sandbox, id, &spec).await;
}

/// A container's whole life, in as little time as if it were alone.
async fn lives(sandbox: &Sandbox, id: &str) {
    let life = async {
        sandbox.create(id, "exit 3", "").await.unwrap();
        sandbox.start(id).await.unwrap();
        assert_eq!(sandbox.wait(id, "").await.unwrap(), 3);
        sandbox.delete(id, false).await.unwrap();
    };
    tokio::time::timeout(AT_ONCE.unwrap(), life)
        .await
        .unwrap_or_else(|_| panic!("{id} waits for another container"));
}

#[tokio::test]
async fn a_start_that_hangs_holds_up_nobody_and_what_follows_it_follows() {
    let sandbox = Sandbox::ready().await;
    let gate = gate(&sandbox);
    create_with_hook(&sandbox, "slow").await;
    let meanwhile = async {
        let writer = writer(&gate).await;
        lives(&sandbox, "quick").await;
        let pids = sandbox
            .agent
            .list_processes(container("slow"), AT_ONCE)
            .await
            .unwrap();
        assert!(!pids.pids.is_empty());
        let runs = sandbox.delete("slow", false).await.unwrap_err();
        assert_eq!(runs.kind, ErrorKind::FailedPrecondition, "{runs}");
        let opened = async {
            // The others have been asked for by now: they were put into the queue first.
            sandbox
                .agent
                .list_processes(container("slow"), AT_ONCE)
                .await
                .unwrap();
            drop(writer);
        };
        let (exec, paused, again, ()) = tokio::join!(
            sandbox.exec("slow", "e", "exit 4", ""),
            sandbox.agent.pause_container(container("slow"), SOON),
            sandbox.start("slow"),
            opened,
        );
        exec.expect("an exec that is asked for during the start comes after it");
        paused.expect("a pause that is asked for during the start comes after it");
        let again = again.unwrap_err();
        assert_eq!(
            (again.kind, again.message.as_str()),
            (ErrorKind::FailedPrecondition, "container is started already")
        );
    };
    let (started, ()) = tokio::join!(sandbox.start("slow"), meanwhile);
    started.unwrap();
    sandbox
        .agent
        .resume_container(container("slow"), SOON)
        .await
        .unwrap();
    assert_eq!(sandbox.wait("slow", "e").await.unwrap(), 4);
    sandbox.delete("slow", true).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_container_can_be_killed_and_deleted_while_its_start_hangs() {
    let sandbox = Sandbox::ready().await;
    let gate = gate(&sandbox);
    for round in 0..2 {
        create_with_hook(&sandbox, "slow").await;
        let meanwhile = async {
            let _writer = writer(&gate).await;
            if round == 0 {
                sandbox.signal("slow", "", SIGKILL).await.unwrap();
                assert_eq!(sandbox.wait("slow", "").await.unwrap(), 128 + SIGKILL);
            }
            sandbox.delete("slow", round == 1).await.unwrap();
            // The id is another container's now, which the end of the start must not touch.
            sandbox.create("slow", "true", "").await.unwrap();
        };
        // What is killed during its start was started, or not: both are true.
        let (_, ()) = tokio::join!(sandbox.start("slow"), meanwhile);
        sandbox
            .start("slow")
            .await
            .expect("the new container waits for its start");
        sandbox.delete("slow", true).await.unwrap();
    }
    sandbox.destroy().await;
}

/// Freezes a cgroup above a container's own, as nothing of the agent's does: what is started in it hangs.
struct Frozen(PathBuf);

impl Frozen {
    fn new(sandbox: &Sandbox) -> Self {
        let file = sandbox.cgroup().join("frozen/cgroup.freeze");
        std::fs::write(&file, "1").unwrap();
        Self(file)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.0, "0");
    }
}

#[tokio::test]
async fn an_exec_that_hangs_holds_up_neither_others_nor_the_end_of_its_container() {
    let sandbox = Sandbox::ready().await;
    let mut spec = spec("sleep 1000", false);
    spec["linux"]["cgroupsPath"] = json!("/frozen/c");
    create(&sandbox, "c", &spec).await;
    sandbox.start("c").await.unwrap();

    // One that is late goes on as if nothing had been.
    let frozen = Frozen::new(&sandbox);
    let meanwhile = async {
        lives(&sandbox, "other").await;
        let twice = sandbox.exec("c", "e", "true", "").await.unwrap_err();
        assert_eq!(twice.kind, ErrorKind::AlreadyExists, "{twice}");
        let early = sandbox
            .agent
            .delete_process(named("c", "e"), AT_ONCE)
            .await
            .unwrap_err();
        assert_eq!(early.kind, ErrorKind::NotFound, "{early}");
        drop(frozen);
    };
    let (executed, ()) = tokio::join!(sandbox.exec("c", "e", "exit 5", ""), meanwhile);
    executed.unwrap();
    assert_eq!(sandbox.wait("c", "e").await.unwrap(), 5);

    // One whose container is deleted fails, and the id is free.
    let frozen = Frozen::new(&sandbox);
    let meanwhile = async {
        lives(&sandbox, "other").await;
        sandbox.delete("c", true).await.unwrap();
        sandbox.create("c", "sleep 1000", "").await.unwrap();
    };
    let (executed, ()) = tokio::join!(sandbox.exec("c", "f", "true", ""), meanwhile);
    executed.expect_err("it went with its container");
    drop(frozen);
    sandbox.start("c").await.unwrap();
    sandbox
        .exec("c", "f", "true", "")
        .await
        .expect("the id of the exec is free in the new container");
    sandbox.delete("c", true).await.unwrap();
    sandbox.destroy().await;
}

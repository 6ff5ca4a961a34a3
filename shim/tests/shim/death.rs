//! Ends that nobody asked for: of the guest, of the server, of its client; and starts that fail.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{DeleteResponse, Status};
use protobuf::Message;
use rustix::process::{Pid, Signal, kill_process};
use ttrpc::Code;

use crate::stand::{Machine, code, deleted, eventually, status};

#[tokio::test]
async fn the_guests_death_is_the_end_of_every_process_told_once() {
    let (machine, containerd) = Machine::with_containerd();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    let pid = task.start("").await.unwrap();
    task.exec("e1", "sleep 1000").await.unwrap();
    let exec_pid = task.start("e1").await.unwrap();
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
    assert_eq!(task.wait("").await.unwrap().exit_status, 137);
    assert_eq!(task.wait("e1").await.unwrap().exit_status, 137);
    assert_eq!(task.state("").await.unwrap().status.unwrap(), Status::STOPPED);
    assert_eq!(code(task.kill("", 9).await), Code::NOT_FOUND);
    let (code, message) = status(task.exec("e2", "true").await);
    assert_eq!(code, Code::UNAVAILABLE);
    assert!(message.contains("signal 9"), "the cause is told: {message}");
    task.delete("").await.unwrap();
    task.shutdown().await.unwrap();
    let mut told = containerd.told();
    told[4..6].sort();
    assert_eq!(
        told,
        [
            format!("create c1 {pid}"),
            format!("start c1 {pid}"),
            "exec-added".into(),
            format!("exec-started c1/e1 {exec_pid}"),
            format!("exit c1/c1 {pid} 137"),
            format!("exit c1/e1 {exec_pid} 137"),
            format!("delete c1 {pid} 137"),
        ]
    );
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn what_a_killed_server_leaves_is_removed_by_delete() {
    let machine = Machine::new();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    let pid = task.start("").await.unwrap();
    server.signal(Signal::KILL);
    server.ended();
    // The configuration is broken since, and the bundle has lost its specification.
    fs::write(machine.path("configuration.toml"), "nonsense").unwrap();
    fs::remove_file(machine.path("c1/config.json")).unwrap();
    let begun = Instant::now();
    let output = machine.action("delete", "c1", &machine.path("c1"));
    let warning = deleted(&output);
    let answer = DeleteResponse::parse_from_bytes(&output.stdout).unwrap();
    assert_eq!(answer.pid, pid, "the one that its caller knows");
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(warning.contains("configuration.toml"), "{warning}");
    machine.assert_clean();
}

#[tokio::test]
async fn a_server_that_is_told_to_end_takes_everything_with_it() {
    let (machine, containerd) = Machine::with_containerd();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    task.start("").await.unwrap();
    server.signal(Signal::TERM);
    server.ended();
    assert!(
        containerd.told()[2].starts_with("exit c1/c1 "),
        "{:?}",
        containerd.told()
    );
    machine.assert_clean();
}

#[tokio::test]
async fn a_start_that_fails_says_why_and_leaves_nothing() {
    let machine = Machine::new();
    let agent = machine.path("agent");
    fs::write(&agent, "#!/bin/sh\necho the agent is broken; exit 3\n").unwrap();
    fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
    machine.configure(Some(&agent));
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    let (_, message) = status(task.create(&machine, &bundle).await);
    assert!(
        message.contains("code 3") && message.contains("the agent is broken"),
        "{message}"
    );
    assert!(server.runs(), "it is containerd's to end it");
    assert_eq!(code(task.delete("").await), Code::NOT_FOUND);
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn a_creation_that_nobody_waits_for_any_more_is_taken_back() {
    let machine = Machine::new();
    let agent = machine.path("agent");
    // Never gets ready.
    fs::write(&agent, "#!/bin/sh\nexec sleep 1000 # $*\n").unwrap();
    fs::set_permissions(&agent, PermissionsExt::from_mode(0o755)).unwrap();
    machine.configure(Some(&agent));
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    let sandbox = machine.path(&format!("run/ns@{}", machine.id("c1")));
    let client = tokio::time::timeout(Duration::from_secs(20), async {
        tokio::select! {
            created = task.create(&machine, &bundle) => panic!("{created:?}"),
            () = async {
                while !sandbox.join("record").exists() && !sandbox.join("record.json").exists() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            } => {}
        }
    });
    client.await.unwrap();
    // The daemon dies.
    drop(task);
    eventually("the sandbox is gone", || !sandbox.exists());
    let task = server.task("c1").await;
    assert_eq!(code(task.state("").await), Code::NOT_FOUND);
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

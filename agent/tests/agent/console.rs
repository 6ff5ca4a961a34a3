//! What an administrator looks at from outside: programs in the guest itself, processes described, figures of the kernel.

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;

use crate::support::{SOON, Sandbox, container, end_of_input, named, stdio};

/// A shell that has everything in it.
const BUSYBOX: &str = "/bin/busybox";

fn request(id: &str, script: &str, streams: &str) -> p::OpenConsoleRequest {
    p::OpenConsoleRequest {
        exec_id: id.to_owned(),
        program: std::fs::read(BUSYBOX).unwrap(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: vec!["WHO=me".to_owned(), "PATH=/bin".to_owned()],
        stdio: Some(stdio(streams)).into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_program_of_the_hosts_runs_beside_the_containers() {
    let sandbox = Sandbox::ready().await;
    let opened = sandbox
        .agent
        .open_console(request("one", "cat; echo $WHO $0; exit 3", "ioe"), SOON);
    let pid = opened.await.unwrap().pid;
    assert!(pid > 1);
    assert!(sandbox.write("", "one", b"typed\n").await.unwrap());
    sandbox
        .agent
        .close_stdin(end_of_input("", "one"), SOON)
        .await
        .unwrap();
    assert_eq!(sandbox.output("", "one").await, "typed\nme sh\n");
    assert_eq!(sandbox.wait("", "one").await.unwrap(), 3);
    sandbox
        .agent
        .delete_process(named("", "one"), SOON)
        .await
        .unwrap();
    let gone = sandbox.wait("", "one").await.unwrap_err();
    assert_eq!(gone.kind, ErrorKind::NotFound);
    sandbox.destroy().await;
}

#[tokio::test]
async fn it_can_have_a_terminal_whose_size_changes() {
    let sandbox = Sandbox::ready().await;
    let script = "test -t 0 && echo a terminal; read line; stty size; read line";
    let opened = sandbox.agent.open_console(request("tty", script, "tio"), SOON);
    opened.await.unwrap();
    sandbox.expect("", "tty", "a terminal").await;
    let size = p::ResizeTerminalRequest {
        exec_id: "tty".to_owned(),
        size: Some(p::TerminalSize {
            rows: 33,
            columns: 101,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    sandbox.agent.resize_terminal(size, SOON).await.unwrap();
    sandbox.write("", "tty", b"\n").await.unwrap();
    sandbox.expect("", "tty", "33 101").await;
    // Its controlling terminal takes its keys for signals.
    sandbox.write("", "tty", b"\x03").await.unwrap();
    assert_eq!(sandbox.wait("", "tty").await.unwrap(), 130);
    sandbox.destroy().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_refused_and_the_end_of_the_sandbox_is_its_end() {
    let sandbox = Sandbox::ready().await;
    let open = |request| sandbox.agent.open_console(request, SOON);
    let sleeping = open(request("a", "sleep 1000", "")).await.unwrap();
    for (changed, kind) in [
        (request("a", "true", ""), ErrorKind::AlreadyExists),
        (request("", "true", ""), ErrorKind::InvalidArgument),
        (
            p::OpenConsoleRequest {
                program: Vec::new(),
                ..request("b", "true", "")
            },
            ErrorKind::InvalidArgument,
        ),
        (
            p::OpenConsoleRequest {
                program: vec![0; p::MAX_CONSOLE + 1],
                ..request("b", "true", "")
            },
            ErrorKind::InvalidArgument,
        ),
        (
            p::OpenConsoleRequest {
                args: vec!["a\0b".to_owned()],
                ..request("b", "true", "")
            },
            ErrorKind::InvalidArgument,
        ),
        (
            p::OpenConsoleRequest {
                program: b"#!/bin/sh\ntrue".to_vec(),
                ..request("b", "true", "")
            },
            ErrorKind::InvalidArgument,
        ),
    ] {
        let error = open(changed).await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
    // After one that is no program, a program is one again.
    open(request("b", "true", "")).await.unwrap();
    assert_eq!(sandbox.wait("", "b").await.unwrap(), 0);
    let running = sandbox
        .agent
        .delete_process(named("", "a"), SOON)
        .await
        .unwrap_err();
    assert_eq!(running.kind, ErrorKind::FailedPrecondition);
    sandbox.destroy().await;
    assert!(!crate::support::alive(sleeping.pid));
}

#[tokio::test]
async fn a_policy_is_before_every_call_and_cannot_be_taken_back() {
    let sandbox = Sandbox::ready().await;
    let set = |policy: &str| {
        let request = p::SetPolicyRequest {
            policy: policy.into(),
            ..Default::default()
        };
        sandbox.agent.set_policy(request, SOON)
    };
    sandbox.run("c", "sleep 1000", "").await;
    let wrong = set("package agent_policy\ndefault Exec := false")
        .await
        .unwrap_err();
    assert_eq!(wrong.kind, ErrorKind::InvalidArgument);
    assert!(wrong.message.contains("line 2"), "{wrong}");
    // One that is refused changes nothing.
    sandbox.exec("c", "e", "true", "").await.unwrap();
    set(
        "package agent_policy\ndefault DestroySandboxRequest := true\ndefault SignalProcessRequest := true\n\
         default RemoveContainerRequest := true",
    )
    .await
    .unwrap();
    let refused = sandbox.exec("c", "f", "true", "").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
    assert!(
        refused.message.contains("does not allow ExecProcessRequest"),
        "{refused}"
    );
    let refused = set("package agent_policy\ndefault ExecProcessRequest := true")
        .await
        .unwrap_err();
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition);
    sandbox
        .agent
        .hello(p::HelloRequest::default(), SOON)
        .await
        .unwrap();
    sandbox.signal("c", "", 9).await.unwrap();
    sandbox.delete("c", true).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn processes_are_described_and_the_kernel_has_figures() {
    let sandbox = Sandbox::ready().await;
    // The kernel counts pages in rounds, per processor: of a small process it may say 0.
    let script = "much=$(head -c 8388608 /dev/zero | tr '\\0' x); echo held; sleep 1000; echo $much";
    sandbox.run("c", script, "o").await;
    sandbox.expect("c", "", "held").await;
    let described = sandbox
        .agent
        .describe_processes(container("c"), SOON)
        .await
        .unwrap();
    let is_there = |command: &str, least: u64| {
        let found = |process: &p::ProcessDescription| {
            process.command.contains(command) && process.resident_bytes >= least
        };
        assert!(described.processes.iter().any(found), "{command}: {described:?}");
    };
    is_there("sleep 1000", 0);
    is_there("head -c", 8 << 20);
    let unknown = sandbox
        .agent
        .describe_processes(container("x"), SOON)
        .await
        .unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    let guest = sandbox.agent.read_guest(p::Empty::default(), SOON).await.unwrap();
    assert!(guest.meminfo.contains("MemAvailable"), "{guest:?}");
    sandbox.delete("c", true).await.unwrap();
    sandbox.destroy().await;
}

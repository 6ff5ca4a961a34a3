//! Containers from Create to Shutdown, as containerd drives them, and what it is told on the way.

use containerd_shim_protos::api::{
    CloseIORequest, ConnectRequest, PauseRequest, PidsRequest, ResumeRequest, StatsRequest, Status,
    UpdateTaskRequest,
};
use containerd_shim_protos::cgroups::metrics::Metrics;
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;

use crate::stand::{Machine, code, context, eventually, status};

/// The largest pid of a Linux.
const PID_MAX: u32 = 1 << 22;

#[tokio::test]
async fn every_step_of_a_life_is_answered_and_told_once_and_in_order() {
    let (machine, containerd) = Machine::with_containerd();
    let (server, task) = machine.created("c1", "sleep 1000").await;

    let state = task.state("").await.unwrap();
    let pid = state.pid;
    assert_eq!(state.status.unwrap(), Status::CREATED);
    assert!(state.exited_at.is_none());
    assert_eq!(state.bundle, machine.path("c1").to_str().unwrap());
    assert!(
        machine.processes().contains(&pid.cast_signed()),
        "the pid is the monitor's"
    );
    let connect = ConnectRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    let connected = task.client.connect(context(), &connect).await.unwrap();
    assert_eq!(
        (connected.task_pid, connected.shim_pid),
        (pid, server.pid.cast_unsigned())
    );

    assert_eq!(task.start("").await.unwrap(), pid);
    assert_eq!(task.state("").await.unwrap().status.unwrap(), Status::RUNNING);
    assert_eq!(code(task.start("").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(task.delete("").await), Code::FAILED_PRECONDITION);
    assert_eq!(
        code(task.create(&machine, &machine.path("c1")).await),
        Code::ALREADY_EXISTS
    );

    task.exec("e1", "exit 3").await.unwrap();
    assert_eq!(code(task.exec("e1", "exit 3").await), Code::ALREADY_EXISTS);
    assert_eq!(task.state("e1").await.unwrap().status.unwrap(), Status::CREATED);
    let exec_pid = task.start("e1").await.unwrap();
    assert!(exec_pid > PID_MAX, "it is no process of the host");
    assert_eq!(task.wait("e1").await.unwrap().exit_status, 3);
    let state = task.state("e1").await.unwrap();
    assert_eq!((state.status.unwrap(), state.exit_status), (Status::STOPPED, 3));
    let deleted = task.delete("e1").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (exec_pid, 3));
    assert_eq!(code(task.state("e1").await), Code::NOT_FOUND);

    let pause = PauseRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    task.client.pause(context(), &pause).await.unwrap();
    assert_eq!(task.state("").await.unwrap().status.unwrap(), Status::PAUSED);
    let resume = ResumeRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    task.client.resume(context(), &resume).await.unwrap();

    // CRI-O's way to ask whether it lives.
    task.kill("", 0).await.unwrap();
    task.shutdown().await.unwrap();
    assert!(server.runs(), "a server that holds a container stays");
    task.kill("", 9).await.unwrap();
    let ended = task.wait("").await.unwrap();
    assert_eq!(ended.exit_status, 137);
    let state = task.state("").await.unwrap();
    assert_eq!((state.status.unwrap(), state.exit_status), (Status::STOPPED, 137));
    assert_eq!(state.exited_at, ended.exited_at);
    assert_eq!(code(task.kill("", 9).await), Code::NOT_FOUND);
    let deleted = task.delete("").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (pid, 137));
    assert_eq!(deleted.exited_at, ended.exited_at);
    for answer in [code(task.delete("").await), code(task.wait("").await)] {
        assert_eq!(answer, Code::NOT_FOUND);
    }
    task.shutdown().await.unwrap();
    assert_eq!(
        containerd.told(),
        [
            format!("create c1 {pid}"),
            format!("start c1 {pid}"),
            "exec-added".into(),
            format!("exec-started c1/e1 {exec_pid}"),
            format!("exit c1/e1 {exec_pid} 3"),
            "paused".into(),
            "resumed".into(),
            format!("exit c1/c1 {pid} 137"),
            format!("delete c1 {pid} 137"),
        ],
        "all was delivered before Shutdown was answered"
    );
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn a_process_that_dies_at_once_is_started_before_it_ends() {
    let (machine, containerd) = Machine::with_containerd();
    let (server, task) = machine.created("c1", "exit 7").await;
    task.start("").await.unwrap();
    // Nobody waits; the end is told all the same.
    eventually("the end is told", || containerd.told().len() == 3);
    assert_eq!(task.wait("").await.unwrap().exit_status, 7);
    task.delete("").await.unwrap();
    task.shutdown().await.unwrap();
    let words: Vec<_> = containerd
        .told()
        .iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(words, ["create", "start", "exit", "delete"]);
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn what_never_ran_can_be_killed_and_deleted() {
    let (machine, containerd) = Machine::with_containerd();
    let (server, task) = machine.created("c1", "true").await;
    task.kill("", 9).await.unwrap();
    assert_eq!(task.wait("").await.unwrap().exit_status, 137);
    assert_eq!(task.state("").await.unwrap().status.unwrap(), Status::STOPPED);
    task.delete("").await.unwrap();
    task.shutdown().await.unwrap();
    let words: Vec<_> = containerd
        .told()
        .iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(words, ["create", "exit", "delete"]);
    server.ended();

    // Neither is an additional process that never ran an obstacle.
    let (server, task) = machine.created("c1", "sleep 1000").await;
    task.start("").await.unwrap();
    task.exec("e1", "true").await.unwrap();
    assert_eq!(task.delete("e1").await.unwrap().exit_status, 255);
    assert_eq!(code(task.wait("e1").await), Code::NOT_FOUND);
    task.exec("e1", "true").await.unwrap();
    task.end(&server).await;
    machine.assert_clean();
}

#[tokio::test]
async fn a_program_that_is_missing_is_named() {
    let machine = Machine::new();
    machine.configure(None);
    let bundle = machine.bundle("c1", "", &[]);
    let config = std::fs::read_to_string(bundle.join("config.json")).unwrap();
    let config = config.replace("/bin/sh", "/no/such/program");
    std::fs::write(bundle.join("config.json"), config).unwrap();
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    let (code, message) = status(task.create(&machine, &bundle).await);
    assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
    assert!(message.contains("/no/such/program"), "{message}");
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn figures_and_processes_are_shown_in_the_hosts_terms() {
    let machine = Machine::new();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    let pid = task.start("").await.unwrap();
    task.exec("e1", "sleep 1000").await.unwrap();
    let pids = PidsRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    let shown = task.client.pids(context(), &pids).await.unwrap().processes;
    assert_eq!(shown.len(), 1, "the other one is not started yet");
    let exec_pid = task.start("e1").await.unwrap();
    let shown = task.client.pids(context(), &pids).await.unwrap().processes;
    assert_eq!((shown[0].pid, shown[0].info.is_none()), (pid, true));
    let info = ProcessDetails::parse_from_bytes(&shown[1].info.value).unwrap();
    assert_eq!((shown[1].pid, info.exec_id.as_str()), (exec_pid, "e1"));
    assert_eq!(shown[1].info.type_url, "containerd.runc.v1.ProcessDetails");

    let stats = StatsRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    let stats = task.client.stats(context(), &stats).await.unwrap().stats;
    if stats.type_url == "io.containerd.cgroups.v1.Metrics" {
        assert!(Metrics::parse_from_bytes(&stats.value).unwrap().cpu.usage.total > 0);
    } else {
        assert_eq!(stats.type_url, "io.containerd.cgroups.v2.Metrics");
    }

    let update = |json: &str| UpdateTaskRequest {
        id: machine.id("c1"),
        resources: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: json.as_bytes().to_vec(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let answer = task.client.update(context(), &update("nonsense")).await;
    assert_eq!(code(answer), Code::INVALID_ARGUMENT);
    let answer = task.client.update(context(), &UpdateTaskRequest::new()).await;
    assert_eq!(code(answer), Code::INVALID_ARGUMENT);
    let close = CloseIORequest {
        id: machine.id("c1"),
        stdin: true,
        ..Default::default()
    };
    task.client.close_io(context(), &close).await.unwrap();
    task.end(&server).await;
    machine.assert_clean();
}

#[tokio::test]
async fn threads_do_not_grow_with_processes() {
    let machine = Machine::new();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    task.start("").await.unwrap();
    let threads = || server.status("Threads").parse::<u32>().unwrap();
    let before = threads();
    for number in 0..20 {
        let exec = format!("e{number}");
        task.exec(&exec, "sleep 1000").await.unwrap();
        task.start(&exec).await.unwrap();
    }
    // One that works on files stays for a moment, in case there is more; it does not stay for good.
    assert!(threads() <= before + 1);
    eventually("the thread goes", || threads() <= before);
    task.end(&server).await;
    machine.assert_clean();
}

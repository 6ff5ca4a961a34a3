//! Containers against a fake agent: every call's effect on the rest, and a guest that does not behave.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agent_client::{ErrorKind as AgentErrorKind, FakeAgent};
use agent_protocol as p;
use hypervisor::VmReport;
use slog::{Discard, Logger, o};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::*;
use crate::host::Hooks;
use crate::io::Opened;
use crate::model::HooksPlan;
use crate::sandbox::{Phases, VmEnd};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);
/// Deadline of calls to the agent here.
const REQUEST: Duration = Duration::from_millis(200);

struct Fixture {
    agent: Arc<FakeAgent>,
    container: Container,
    appeals: mpsc::Receiver<Appeal>,
    vm: watch::Sender<Option<VmEnd>>,
    phases: Phases,
}

fn log() -> Logger {
    Logger::root(Discard, o!())
}

async fn created_with(agent: Arc<FakeAgent>, stdio: Stdio) -> Result<Fixture> {
    made(agent, stdio, false).await
}

async fn made(agent: Arc<FakeAgent>, stdio: Stdio, has_disks: bool) -> Result<Fixture> {
    let (sandbox, appeals) = mpsc::channel(4);
    let vm = watch::Sender::new(None);
    let report = VmReport {
        vmm: "fake".into(),
        machine: String::new(),
        accelerator: String::new(),
        reason: String::new(),
        origin: hypervisor::Origin::Boot,
    };
    let phases = Phases::new(Vec::new(), report, log());
    let parts = Parts {
        id: ContainerId::new("c").unwrap(),
        agent: agent.clone(),
        request: p::CreateContainerRequest {
            container_id: "c".into(),
            ..Default::default()
        },
        streams: Opened::open(stdio, SOON).await?,
        timeouts: Timeouts {
            request: REQUEST,
            create: REQUEST,
        },
        sandbox,
        vm: vm.subscribe(),
        late: false,
        grows: false,
        has_disks,
        phases: phases.clone(),
        course: Default::default(),
        hooks: Hooks::new(&ContainerId::new("c").unwrap(), HooksPlan::default()),
        stage: None,
        pid: 7,
        log: log(),
    };
    Ok(Fixture {
        container: create(parts).await?,
        agent,
        appeals,
        vm,
        phases,
    })
}

async fn created() -> Fixture {
    created_with(Arc::new(FakeAgent::new()), Stdio::default())
        .await
        .unwrap()
}

async fn running() -> Fixture {
    let fixture = created().await;
    fixture.container.start().await.unwrap();
    fixture
}

fn exec_id() -> ExecId {
    ExecId::new("e").unwrap()
}

impl Fixture {
    async fn add(&self, stdio: Stdio) {
        let request = ExecRequest {
            id: exec_id(),
            process: Process::default(),
            stdio,
        };
        self.container.exec(request).await.unwrap();
    }

    async fn exec(&self) {
        self.add(Stdio::default()).await;
        self.container.start_exec(&exec_id()).await.unwrap();
    }

    async fn code(&self, exec: Option<&ExecId>) -> u32 {
        let exit = timeout(SOON, self.container.wait(exec)).await;
        exit.expect("the wait is answered").unwrap().code
    }

    async fn status(&self, exec: Option<&ExecId>) -> Status {
        self.container.state(exec).await.unwrap().status
    }

    /// Plays the sandbox: releases what is asked for, and answers with the reasons to stop the VM.
    async fn appeal(&mut self) -> Option<String> {
        match timeout(SOON, self.appeals.recv())
            .await
            .expect("an appeal")
            .unwrap()
        {
            Appeal::ForceStop { reason, .. } => Some(reason),
            Appeal::Release { id, done } => {
                assert_eq!(id.as_str(), "c");
                done.send(Ok(())).unwrap();
                None
            }
            Appeal::Starting { .. } => panic!("nobody said that the network may come late"),
            Appeal::Growing { .. } => panic!("nobody said that the virtual machine grows"),
        }
    }

    async fn delete(&mut self) -> Result<ExitStatus> {
        let container = self.container.clone();
        let deleting = tokio::spawn(async move { container.delete().await });
        assert_eq!(self.appeal().await, None);
        deleting.await.unwrap()
    }

    fn end_vm(&self, killed: bool) {
        self.agent.disconnect();
        self.vm.send_replace(Some(VmEnd {
            reason: "the guest kernel panicked".into(),
            killed,
        }));
    }
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind
}

#[tokio::test]
async fn a_whole_life() {
    let mut fixture = created().await;
    assert_eq!(fixture.status(None).await, Status::Created);
    fixture.container.start().await.unwrap();
    assert_eq!(fixture.status(None).await, Status::Running);
    assert_eq!(
        kind(fixture.container.start().await),
        ErrorKind::FailedPrecondition
    );
    assert_eq!(
        kind(fixture.container.delete().await),
        ErrorKind::FailedPrecondition
    );

    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
    fixture.agent.exit("c", "", 3, at);
    assert_eq!(fixture.code(None).await, 3);
    assert_eq!(fixture.code(None).await, 3, "also later");
    let state = fixture.container.state(None).await.unwrap();
    assert_eq!((state.status, state.exit.unwrap().code), (Status::Stopped, 3));
    for signal in [0, 9, 15] {
        let answer = fixture.container.kill(None, signal, false).await;
        assert_eq!(kind(answer), ErrorKind::NotFound, "signal {signal}");
    }
    assert_eq!(fixture.delete().await.unwrap().code, 3);
    assert_eq!(kind(fixture.container.state(None).await), ErrorKind::NotFound);
    assert_eq!(kind(fixture.container.delete().await), ErrorKind::NotFound);
    let names: Vec<_> = fixture.phases.list().iter().map(|phase| phase.name).collect();
    assert_eq!(names, ["create", "start"]);
}

#[tokio::test]
async fn every_waiter_is_answered() {
    let fixture = running().await;
    let waiters: Vec<_> = (0..10)
        .map(|_| {
            let container = fixture.container.clone();
            tokio::spawn(async move { container.wait(None).await.unwrap().code })
        })
        .collect();
    fixture.container.state(None).await.unwrap();
    fixture.agent.exit("c", "", 0x1ff, 0);
    for waiter in waiters {
        assert_eq!(timeout(SOON, waiter).await.unwrap().unwrap(), 0xff);
    }
}

#[tokio::test]
async fn a_container_that_never_ran_is_killed_when_it_is_deleted() {
    let mut fixture = created().await;
    assert_eq!(fixture.delete().await.unwrap().code, 137);
    assert!(fixture.agent.calls().contains(&"delete_container"));
}

#[tokio::test]
async fn a_failed_start_leaves_a_container_that_can_be_deleted() {
    let mut fixture = created().await;
    let message = "exec /nowhere: no such file";
    fixture
        .agent
        .fail("start_container", AgentErrorKind::InvalidArgument, message);
    let error = fixture.container.start().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.context.contains(message));
    fixture.agent.exit("c", "", 127, 0);
    assert_eq!(fixture.code(None).await, 127);
    fixture.delete().await.unwrap();
}

#[tokio::test]
async fn a_slow_start_holds_up_neither_kill_nor_wait_nor_state() {
    let fixture = created().await;
    fixture.agent.hang("start_container");
    let container = fixture.container.clone();
    let starting = tokio::spawn(async move { container.start().await });
    fixture
        .agent
        .until(|agent| agent.calls().contains(&"start_container"))
        .await;
    assert_eq!(fixture.status(None).await, Status::Created);
    fixture.container.kill(None, 9, false).await.unwrap();
    assert_eq!(fixture.code(None).await, 137);
    assert_eq!(kind(starting.await.unwrap()), ErrorKind::DeadlineExceeded);
    assert_eq!(fixture.status(None).await, Status::Stopped);
}

#[tokio::test]
async fn an_additional_process_has_a_life_of_its_own() {
    let fixture = running().await;
    let id = exec_id();
    fixture.add(Stdio::default()).await;
    let twice = ExecRequest {
        id: id.clone(),
        process: Process::default(),
        stdio: Stdio::default(),
    };
    assert_eq!(
        kind(fixture.container.exec(twice).await),
        ErrorKind::AlreadyExists
    );
    assert_eq!(fixture.status(Some(&id)).await, Status::Created);
    assert_eq!(
        kind(fixture.container.kill(Some(&id), 15, false).await),
        ErrorKind::FailedPrecondition
    );
    fixture.container.start_exec(&id).await.unwrap();
    assert_eq!(
        kind(fixture.container.delete_exec(&id).await),
        ErrorKind::FailedPrecondition
    );
    fixture.container.kill(Some(&id), 9, false).await.unwrap();
    assert_eq!(fixture.code(Some(&id)).await, 137);
    assert_eq!(fixture.status(None).await, Status::Running);
    assert_eq!(fixture.container.delete_exec(&id).await.unwrap().code, 137);
    assert_eq!(
        kind(fixture.container.state(Some(&id)).await),
        ErrorKind::NotFound
    );

    // The id is free again, and one that never ran can be forgotten.
    fixture.add(Stdio::default()).await;
    let container = fixture.container.clone();
    let name = id.clone();
    let waiter = tokio::spawn(async move { container.wait(Some(&name)).await });
    fixture.status(Some(&id)).await;
    fixture.container.delete_exec(&id).await.unwrap();
    assert_eq!(kind(waiter.await.unwrap()), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_process_is_added_only_to_a_running_container() {
    let fixture = created().await;
    let request = || ExecRequest {
        id: exec_id(),
        process: Process::default(),
        stdio: Stdio::default(),
    };
    assert_eq!(
        kind(fixture.container.exec(request()).await),
        ErrorKind::FailedPrecondition
    );
    fixture.container.start().await.unwrap();
    fixture.container.pause().await.unwrap();
    assert_eq!(fixture.status(None).await, Status::Paused);
    assert_eq!(
        kind(fixture.container.pause().await),
        ErrorKind::FailedPrecondition
    );
    assert_eq!(
        kind(fixture.container.exec(request()).await),
        ErrorKind::FailedPrecondition
    );
    fixture.container.resume().await.unwrap();
    fixture.container.exec(request()).await.unwrap();
}

#[tokio::test]
async fn the_end_of_the_vm_ends_every_process_and_later_calls_fail_at_once() {
    for (killed, code) in [(false, 255), (true, 137)] {
        let mut fixture = running().await;
        fixture.exec().await;
        let container = fixture.container.clone();
        let waiter = tokio::spawn(async move { container.wait(None).await.unwrap().code });
        fixture.container.state(None).await.unwrap();
        fixture.end_vm(killed);
        assert_eq!(timeout(SOON, waiter).await.unwrap().unwrap(), code);
        assert_eq!(fixture.code(Some(&exec_id())).await, code);
        assert_eq!(
            kind(fixture.container.kill(None, 9, true).await),
            ErrorKind::NotFound
        );
        let error = fixture.container.stats().await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.context.contains("panicked"), "{error}");
        assert_eq!(kind(fixture.container.pids().await), ErrorKind::Unavailable);
        assert_eq!(
            kind(fixture.container.start().await),
            ErrorKind::FailedPrecondition
        );
        assert_eq!(fixture.delete().await.unwrap().code, code);
    }
}

#[tokio::test]
async fn a_process_that_was_killed_has_the_status_of_it_even_if_the_vm_goes_first() {
    let fixture = running().await;
    fixture.agent.become_immortal();
    fixture.container.kill(None, 9, true).await.unwrap();
    fixture.end_vm(false);
    assert_eq!(fixture.code(None).await, 137);
}

#[tokio::test]
async fn a_lost_connection_alone_does_not_end_a_process() {
    let fixture = running().await;
    fixture.agent.disconnect();
    assert_eq!(kind(fixture.container.stats().await), ErrorKind::Unavailable);
    assert_eq!(fixture.status(None).await, Status::Running);
    fixture.end_vm(false);
    assert_eq!(fixture.code(None).await, 255);
}

#[tokio::test]
async fn a_frozen_guest_fails_calls_by_their_deadline_and_loses_its_vm_when_it_is_to_be_killed() {
    let mut fixture = running().await;
    for call in ["signal_process", "stats_container", "pause_container"] {
        fixture.agent.hang(call);
    }
    assert_eq!(kind(fixture.container.stats().await), ErrorKind::DeadlineExceeded);
    assert_eq!(kind(fixture.container.pause().await), ErrorKind::DeadlineExceeded);
    assert_eq!(fixture.status(None).await, Status::Running);
    // It is on its way; an error would keep a caller from sending the last signal.
    fixture.container.kill(None, 15, false).await.unwrap();
    fixture.container.kill(None, 9, false).await.unwrap();
    assert!(fixture.appeal().await.unwrap().contains("SIGKILL"));
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_takes_a_kill_and_does_nothing_loses_its_vm() {
    let mut fixture = running().await;
    fixture.agent.become_immortal();
    fixture.container.kill(None, 9, false).await.unwrap();
    assert!(fixture.appeal().await.unwrap().contains("did not end"));
}

#[tokio::test]
async fn a_descendant_that_keeps_the_output_open_holds_up_neither_the_exit_nor_for_long_the_deletion() {
    let stdio = |dir: &tempfile::TempDir| Stdio {
        stdout: crate::Output::File(dir.path().join("out")),
        ..Stdio::default()
    };
    let dir = tempfile::tempdir().unwrap();
    let fixture = running().await;
    fixture.add(stdio(&dir)).await;
    fixture.container.start_exec(&exec_id()).await.unwrap();
    fixture.agent.print("c", "e", p::Stream::STDOUT, b"said");
    fixture.agent.exit("c", "e", 0, 0);
    assert_eq!(fixture.code(Some(&exec_id())).await, 0);
    timeout(SOON, fixture.container.delete_exec(&exec_id()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(std::fs::read(dir.path().join("out")).unwrap(), b"said");
}

#[tokio::test]
async fn a_deletion_waits_for_output_that_is_still_to_come() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out");
    let stdio = Stdio {
        stdout: crate::Output::File(path.clone()),
        ..Stdio::default()
    };
    let mut fixture = created_with(Arc::new(FakeAgent::new()), stdio).await.unwrap();
    fixture.container.start().await.unwrap();
    fixture.agent.exit("c", "", 0, 0);
    fixture.code(None).await;
    let agent = fixture.agent.clone();
    tokio::spawn(async move {
        agent.print("c", "", p::Stream::STDOUT, b"last words");
        agent.end_output("c", "");
    });
    fixture.delete().await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"last words");
    assert_eq!(fixture.phases.list().last().unwrap().name, "first output");
}

#[tokio::test]
async fn the_size_of_a_terminal_is_remembered_until_there_is_one() {
    let fixture = running().await;
    let id = exec_id();
    fixture
        .add(Stdio {
            terminal: true,
            ..Stdio::default()
        })
        .await;
    fixture.container.resize(Some(&id), 24, 80).await.unwrap();
    fixture.container.start_exec(&id).await.unwrap();
    assert_eq!(fixture.agent.terminal("c", "e"), Some((24, 80)));
    fixture.container.resize(Some(&id), 50, 132).await.unwrap();
    assert_eq!(fixture.agent.terminal("c", "e"), Some((50, 132)));
    assert_eq!(
        kind(fixture.container.resize(None, 1, 1).await),
        ErrorKind::FailedPrecondition
    );
}

#[tokio::test]
async fn input_that_was_closed_before_the_start_is_delivered_and_then_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("in");
    std::fs::write(&path, b"all of it").unwrap();
    let stdio = Stdio {
        stdin: crate::Input::Descriptor(std::fs::File::open(&path).unwrap().into()),
        ..Stdio::default()
    };
    let fixture = created_with(Arc::new(FakeAgent::new()), stdio).await.unwrap();
    fixture.container.close_stdin(None).await.unwrap();
    fixture.container.start().await.unwrap();
    timeout(SOON, fixture.agent.until(|agent| agent.stdin("c", "").1))
        .await
        .unwrap();
    assert_eq!(fixture.agent.stdin("c", "").0, b"all of it");
}

#[tokio::test]
async fn a_creation_that_may_have_happened_is_taken_back() {
    let agent = Arc::new(FakeAgent::new());
    agent.hang("create_container");
    let error = created_with(agent.clone(), Stdio::default()).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert_eq!(agent.calls(), ["create_container", "delete_container"]);

    let agent = Arc::new(FakeAgent::new());
    agent.fail(
        "create_container",
        AgentErrorKind::InvalidArgument,
        "no such user",
    );
    let error = created_with(agent.clone(), Stdio::default()).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert_eq!(agent.calls(), ["create_container"]);
}

/// A guest that is stopped would lose what it has not written; and what is not written is not deleted.
#[tokio::test]
async fn a_deletion_that_waits_for_a_disk_is_asked_for_again() {
    let agent = Arc::new(FakeAgent::new());
    let mut fixture = made(agent.clone(), Stdio::default(), true).await.unwrap();
    fixture.container.kill(None, 9, true).await.unwrap();
    fixture.code(None).await;
    agent.hang("delete_container");
    let error = fixture.container.delete().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(error.context.contains("delete it again"), "{error}");
    assert!(
        fixture.appeals.try_recv().is_err(),
        "nobody is stopped, nothing is released"
    );
    agent.obey("delete_container");
    fixture.delete().await.unwrap();
}

#[tokio::test]
async fn a_caller_that_gives_up_does_not_undo_its_request() {
    let fixture = created().await;
    fixture.agent.hang("start_container");
    let container = fixture.container.clone();
    let caller = tokio::spawn(async move { container.start().await });
    fixture
        .agent
        .until(|agent| agent.calls().contains(&"start_container"))
        .await;
    caller.abort();
    fixture.agent.obey("start_container");
    timeout(SOON, async {
        while fixture.status(None).await != Status::Running {}
    })
    .await
    .unwrap();
}

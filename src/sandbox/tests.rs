//! Sandboxes on doubles: starts that go wrong at every step, virtual machines that end, stops at any time. Whatever
//! happens, nothing is left.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use configuration::{
    Accelerator, AgentChannel, AgentConfig, Config, FactoryConfig, HypervisorConfig, HypervisorKind,
    MachineType, NetworkModel, RuntimeConfig, SharedFs, VirtioFsCache,
};
use hypervisor::ExitReason;
use slog::{Discard, Logger, o};
use tokio::time::timeout;

use super::doubles::{Counted, Fault, Played, World};
use super::*;
use crate::container::Status;
use crate::deadlines;
use crate::io::Stdio;
use crate::model::{HookPlan, HooksPlan};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

pub(crate) fn config() -> Config {
    Config {
        sources: Vec::new(),
        hypervisor: HypervisorConfig {
            kind: HypervisorKind::Fake,
            path: PathBuf::new(),
            jailer_path: Default::default(),
            kernel: PathBuf::new(),
            initrd: PathBuf::new(),
            kernel_params: Vec::new(),
            machine_type: MachineType::Q35,
            accelerator: Accelerator::Auto,
            cpu_features: Vec::new(),
            default_vcpus: 1,
            default_maxvcpus: 1,
            default_memory_mib: 1,
            default_maxmemory_mib: 1,
            shared_fs: SharedFs::None,
            virtio_fs_daemon: PathBuf::new(),
            virtio_fs_cache: VirtioFsCache::Auto,
            disable_block_device_use: false,
            disable_selinux: false,
            vhost_user_vsock_daemon: PathBuf::new(),
            disk_rate_limiter_bw_max_rate: 0,
            disk_rate_limiter_bw_one_time_burst: 0,
            disk_rate_limiter_ops_max_rate: 0,
            disk_rate_limiter_ops_one_time_burst: 0,
            net_rate_limiter_bw_max_rate: 0,
            net_rate_limiter_bw_one_time_burst: 0,
            net_rate_limiter_ops_max_rate: 0,
            net_rate_limiter_ops_one_time_burst: 0,
            seccomp_sandbox: true,
            enable_debug: false,
            enable_annotations: Vec::new(),
            valid_hypervisor_paths: Vec::new(),
            valid_virtio_fs_daemon_paths: Vec::new(),
        },
        agent: AgentConfig {
            channel: AgentChannel::Auto,
            dial_timeout: Some(Duration::from_millis(500)),
            request_timeout: Duration::from_millis(500),
            create_container_timeout: Duration::from_millis(500),
            debug_console_enabled: false,
            debug_console_program: "/bin/busybox".into(),
            enable_debug: false,
        },
        runtime: RuntimeConfig {
            enable_debug: false,
            internetworking_model: NetworkModel::None,
            disable_new_netns: false,
            disable_guest_seccomp: false,
            sandbox_cgroup_only: false,
            static_sandbox_resource_mgmt: false,
            enable_agent_pidns: false,
            experimental: Vec::new(),
            enable_tracing: false,
            trace_directory: Default::default(),
            trace_max_size_mib: 8,
            run_dir: PathBuf::new(),
        },
        factory: FactoryConfig {
            enable_template: false,
            template_path: PathBuf::new(),
            vm_cache_number: 0,
            vm_cache_endpoint: PathBuf::new(),
        },
    }
}

pub(super) fn request(world: &Arc<World>) -> (SandboxRequest, mpsc::Receiver<Event>) {
    let (events, received) = mpsc::channel(4);
    let request = SandboxRequest {
        id: SandboxId::new("s").unwrap(),
        scope: SandboxId::new("test").unwrap(),
        bundle: PathBuf::new(),
        rootfs: Vec::new(),
        config: Arc::new(config()),
        hypervisor: Arc::new(Played(Arc::clone(world))),
        events,
        log: Logger::root(Discard, o!()),
    };
    (request, received)
}

pub(super) async fn start(world: &Arc<World>) -> (Result<Sandbox>, mpsc::Receiver<Event>) {
    let (request, events) = request(world);
    let clock = Clock::begin(&request, "claim");
    let starting = Sandbox::start(request, Box::new(Counted(Arc::clone(world))), clock);
    (timeout(SOON, starting).await.expect("a start ends"), events)
}

/// Hooks that write down the state they are told; `refusing`: the last one before the creation fails.
fn recording(dir: &std::path::Path, refusing: bool) -> HooksPlan {
    let shell = |name: &str, script: &str| HookPlan {
        name: format!("hooks.{name}[0]"),
        path: "/bin/sh".into(),
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        timeout: None,
    };
    // The state has no end of line.
    let note = "read state; echo \"$state\" >>states";
    let create = vec![
        shell("prestart", note),
        shell("createRuntime", if refusing { "exit 9" } else { note }),
    ];
    HooksPlan {
        create,
        poststart: vec![shell("poststart", note)],
        poststop: vec![shell("poststop", note)],
        version: "1.0.2".into(),
        bundle: dir.to_owned(),
        ..Default::default()
    }
}

/// The statuses and pids that hooks were told, in their order.
fn told(dir: &std::path::Path) -> Vec<(String, Option<u64>)> {
    let text = std::fs::read_to_string(dir.join("states")).unwrap_or_default();
    let states = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    states
        .map(|state| {
            (
                state["status"].as_str().unwrap().to_owned(),
                state["pid"].as_u64(),
            )
        })
        .collect()
}

async fn started() -> (Arc<World>, Sandbox, mpsc::Receiver<Event>) {
    let world = World::new(Fault::None);
    let (sandbox, events) = start(&world).await;
    (world, sandbox.unwrap(), events)
}

pub(super) fn container(id: &str) -> ContainerRequest {
    ContainerRequest {
        id: ContainerId::new(id).unwrap(),
        bundle: PathBuf::new(),
        rootfs: Vec::new(),
        stdio: Stdio::default(),
    }
}

async fn nothing_left(world: &Arc<World>) {
    // What a caller that gave up does not wait for.
    timeout(SOON, async {
        while !world.left().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("left: {:?}", world.left()));
}

fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind
}

#[test]
fn an_emulated_guest_may_take_longer_to_call_unless_somebody_has_said_how_long() {
    let mut config = config().agent;
    config.dial_timeout = None;
    let limit = |config: &AgentConfig, emulated| deadlines::dial(config, || emulated).as_secs();
    assert_eq!((limit(&config, false), limit(&config, true)), (45, 180));
    config.dial_timeout = Some(SOON);
    assert_eq!((limit(&config, false), limit(&config, true)), (20, 20));
}

#[tokio::test]
async fn a_start_that_fails_at_any_step_says_why_and_leaves_nothing() {
    use ErrorKind::*;
    let (guests, ours) = (
        format!("version {}", agent_protocol::VERSION + 1),
        format!("runtime {}", agent_protocol::VERSION),
    );
    for (fault, kind, told) in [
        (Fault::Acquire, Internal, &["the host is broken"][..]),
        (Fault::Launch, Internal, &["the VMM is broken"]),
        (Fault::Keep, Internal, &["the store is broken"]),
        (Fault::Panic, Unavailable, &["panicked", "not syncing"]),
        (Fault::Daemon, Unavailable, &["virtiofsd was killed"]),
        (
            Fault::Silence,
            DeadlineExceeded,
            &["did not answer within 0.5 s", "not syncing"],
        ),
        (Fault::Version, FailedPrecondition, &[&guests, &ours, "image"]),
        (Fault::Deaf, DeadlineExceeded, &["hello"]),
        (Fault::Refusal, InvalidArgument, &["no such sysctl"]),
        (
            Fault::PanicAndRelease,
            Unavailable,
            &["panicked", "and then", "the release is broken"],
        ),
    ] {
        let world = World::new(fault);
        let error = start(&world).await.0.unwrap_err();
        assert_eq!(error.kind, kind, "{fault:?}: {error}");
        for text in told {
            assert!(error.chain().contains(text), "{fault:?}: {text:?} in {error}");
        }
        assert_eq!(world.left(), [""; 0], "{fault:?}");
    }
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_nothing() {
    let world = World::new(Fault::Silence);
    let (request, _events) = request(&world);
    let clock = Clock::begin(&request, "claim");
    let starting = Sandbox::start(request, Box::new(Counted(Arc::clone(&world))), clock);
    assert!(timeout(Duration::from_millis(50), starting).await.is_err());
    nothing_left(&world).await;
}

#[tokio::test]
async fn a_sandbox_starts_runs_containers_and_stops() {
    let (world, sandbox, _events) = started().await;
    assert_eq!(sandbox.pid(), 4711);
    assert_eq!(sandbox.report().vmm, "played");
    let a = sandbox.create_container(container("a")).await.unwrap();
    sandbox.create_container(container("b")).await.unwrap();
    assert_eq!(
        kind(sandbox.create_container(container("a")).await),
        ErrorKind::AlreadyExists
    );
    a.start().await.unwrap();
    let names: Vec<_> = sandbox.phases().iter().map(|phase| phase.name).collect();
    assert_eq!(names, ["host", "vmm", "boot", "agent", "create", "start"]);
    let ids = sandbox.containers().await;
    assert_eq!(
        ids.iter().map(ContainerId::as_str).collect::<Vec<_>>(),
        ["a", "b"]
    );

    a.kill(None, 9, false).await.unwrap();
    assert_eq!(a.wait(None).await.unwrap().code, 137);
    a.delete().await.unwrap();
    assert_eq!(kind(sandbox.container(a.id()).await), ErrorKind::NotFound);
    sandbox.create_container(container("a")).await.unwrap();

    let b = sandbox.container(&ContainerId::new("b").unwrap()).await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), [""; 0]);
    assert!(world.agent.calls().contains(&"destroy_sandbox"));
    assert_eq!(timeout(SOON, b.wait(None)).await.unwrap().unwrap().code, 137);
    b.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(
        kind(sandbox.create_container(container("c")).await),
        ErrorKind::Unavailable
    );
    assert_eq!(kind(sandbox.container(b.id()).await), ErrorKind::Unavailable);
}

/// What goes with the guest is not taken apart in it; what is on the host is given back all the same.
#[tokio::test]
async fn the_last_container_goes_with_its_sandbox() {
    let (world, sandbox, _events) = started().await;
    let a = sandbox.create_container(container("a")).await.unwrap();
    a.start().await.unwrap();
    let early = a.delete_with_sandbox().await;
    assert_eq!(kind(early), ErrorKind::FailedPrecondition, "it runs");
    a.kill(None, 9, false).await.unwrap();
    assert_eq!(a.wait(None).await.unwrap().code, 137);
    assert_eq!(a.delete_with_sandbox().await.unwrap().code, 137);
    assert_eq!(kind(a.delete().await), ErrorKind::NotFound, "it is deleted once");
    sandbox.stop().await.unwrap();
    let calls = world.agent.calls();
    assert!(!calls.contains(&"delete_container"), "{calls:?}");
    assert!(calls.contains(&"destroy_sandbox"), "{calls:?}");
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn hooks_are_told_of_every_step_and_of_every_end() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with_hooks(Fault::None, recording(dir.path(), false));
    let sandbox = start(&world).await.0.unwrap();
    let (creating, running) = (("creating".into(), Some(4711)), ("running".into(), Some(4711)));
    let stopped = ("stopped".to_owned(), None);

    let a = sandbox.create_container(container("a")).await.unwrap();
    let mut expected = vec![creating.clone(), creating.clone()];
    assert_eq!(told(dir.path()), expected);
    a.start().await.unwrap();
    expected.push(running);
    assert_eq!(told(dir.path()), expected, "before the start is answered");
    a.kill(None, 9, false).await.unwrap();
    a.wait(None).await.unwrap();
    assert_eq!(told(dir.path()), expected, "its end is that of its deletion");
    a.delete().await.unwrap();
    expected.push(stopped.clone());
    assert_eq!(told(dir.path()), expected);

    // One that the guest refuses, and one that is there when all ends.
    world
        .agent
        .fail("create_container", agent_client::ErrorKind::Internal, "full");
    sandbox.create_container(container("b")).await.unwrap_err();
    expected.extend([creating.clone(), creating.clone(), stopped.clone()]);
    assert_eq!(told(dir.path()), expected);
    world.agent.obey("create_container");
    sandbox.create_container(container("c")).await.unwrap();
    sandbox.stop().await.unwrap();
    expected.extend([creating.clone(), creating, stopped]);
    assert_eq!(told(dir.path()), expected);
}

#[tokio::test]
async fn a_hook_that_fails_keeps_a_container_from_being_created() {
    let dir = tempfile::tempdir().unwrap();
    let world = World::with_hooks(Fault::None, recording(dir.path(), true));
    let sandbox = start(&world).await.0.unwrap();
    let error = sandbox.create_container(container("a")).await.unwrap_err();
    for said in [
        "container a",
        "hooks.createRuntime[0]",
        "/bin/sh",
        "exit status: 9",
    ] {
        assert!(error.chain().contains(said), "{}", error.chain());
    }
    assert!(!world.agent.calls().contains(&"create_container"));
    assert!(world.containers.lock().unwrap().is_empty());
    assert!(sandbox.containers().await.is_empty());
    let expected = [("creating".into(), Some(4711)), ("stopped".into(), None)];
    assert_eq!(told(dir.path()), expected);
    sandbox.stop().await.unwrap();
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn the_loss_of_any_part_is_the_same_event() {
    type Loss = fn(&World);
    let losses: [(Loss, u32, &str); 4] = [
        (
            |world| world.end_vm(ExitReason::VmmKilled(9)),
            137,
            "killed by signal 9",
        ),
        (|world| world.end_vm(ExitReason::GuestPanic), 255, "panicked"),
        (
            |world| drop(world.daemon.send_replace(Some("virtiofsd was killed".into()))),
            255,
            "virtiofsd",
        ),
        (
            |world| world.agent.disconnect(),
            255,
            "the connection to the agent",
        ),
    ];
    for (loss, code, reason) in losses {
        let (world, sandbox, mut events) = started().await;
        let a = sandbox.create_container(container("a")).await.unwrap();
        a.start().await.unwrap();
        let waiter = tokio::spawn(async move { a.wait(None).await.unwrap().code });
        sandbox.containers().await;
        loss(&world);
        assert_eq!(timeout(SOON, waiter).await.unwrap().unwrap(), code, "{reason}");
        let Event::VmExited(told) = timeout(SOON, events.recv()).await.unwrap().unwrap() else {
            panic!("another event");
        };
        assert!(told.contains(reason), "{told}");
        let error = sandbox.create_container(container("b")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable);
        assert!(error.context.contains(reason), "{error}");
        let a = sandbox.container(&ContainerId::new("a").unwrap()).await.unwrap();
        assert_eq!(a.state(None).await.unwrap().status, Status::Stopped);
        a.delete().await.unwrap();
        sandbox.stop().await.unwrap();
        assert_eq!(world.left(), [""; 0]);
        assert!(events.try_recv().is_err(), "told once");
    }
}

#[tokio::test]
async fn a_container_that_nobody_waits_for_is_deleted_again() {
    let (world, sandbox, _events) = started().await;
    world.agent.hang("create_container");
    let creating = sandbox.create_container(container("a"));
    assert!(timeout(Duration::from_millis(50), creating).await.is_err());
    world.agent.obey("create_container");
    timeout(SOON, async { while !sandbox.containers().await.is_empty() {} })
        .await
        .unwrap();
    assert!(world.containers.lock().unwrap().is_empty());
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_slow_creation_holds_up_neither_the_others_nor_a_stop() {
    let (world, sandbox, _events) = started().await;
    let a = sandbox.create_container(container("a")).await.unwrap();
    world.agent.hang("create_container");
    let slow = {
        let sandbox = sandbox.clone();
        tokio::spawn(async move { sandbox.create_container(container("b")).await })
    };
    world
        .agent
        .until(|agent| {
            agent
                .calls()
                .iter()
                .filter(|call| **call == "create_container")
                .count()
                == 2
        })
        .await;
    a.start().await.unwrap();
    assert_eq!(
        sandbox
            .container(a.id())
            .await
            .unwrap()
            .state(None)
            .await
            .unwrap()
            .status,
        Status::Running
    );
    assert_eq!(
        kind(sandbox.container(&ContainerId::new("b").unwrap()).await),
        ErrorKind::NotFound
    );
    let (first, second) = tokio::join!(sandbox.stop(), sandbox.stop());
    assert_eq!((first.is_ok(), second.is_ok()), (true, true));
    assert_eq!(kind(slow.await.unwrap()), ErrorKind::Unavailable);
    assert_eq!(world.left(), [""; 0]);
}

#[tokio::test]
async fn a_frozen_guest_is_stopped_when_it_does_not_obey() {
    let (world, sandbox, mut events) = started().await;
    let a = sandbox.create_container(container("a")).await.unwrap();
    a.start().await.unwrap();
    world.agent.hang("signal_process");
    timeout(SOON, a.kill(None, 9, false)).await.unwrap().unwrap();
    assert_eq!(timeout(SOON, a.wait(None)).await.unwrap().unwrap().code, 137);
    let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
    assert!(matches!(event, Event::VmExited(reason) if reason.contains("SIGKILL")));
    assert_eq!(world.vms.load(std::sync::atomic::Ordering::SeqCst), 0);
    sandbox.stop().await.unwrap();
}

#[tokio::test]
async fn a_container_that_does_not_end_leaves_its_neighbours_alone_unless_it_is_the_pods_own() {
    let (world, sandbox, _events) = started().await;
    let own = sandbox.create_container(container("s")).await.unwrap();
    let stuck = sandbox.create_container(container("a")).await.unwrap();
    for container in [&own, &stuck] {
        container.start().await.unwrap();
    }
    world.agent.hang("signal_process");
    timeout(SOON, stuck.kill(None, 9, false)).await.unwrap().unwrap();
    // The appeal was heard before this answer.
    assert_eq!(own.state(None).await.unwrap().status, Status::Running);
    assert_eq!(sandbox.containers().await.len(), 2);
    assert_eq!(world.vms.load(std::sync::atomic::Ordering::SeqCst), 1);
    timeout(SOON, own.kill(None, 9, false)).await.unwrap().unwrap();
    for container in [&own, &stuck] {
        let exit = timeout(SOON, container.wait(None)).await.unwrap().unwrap();
        assert_eq!(exit.code, 137);
    }
    sandbox.stop().await.unwrap();
}

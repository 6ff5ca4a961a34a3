//! `start`, the server behind it, `delete`, and what the program says of itself. No sandbox is created here.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::{
    ConnectRequest, CreateTaskRequest, DeleteRequest, KillRequest, ShutdownRequest, StateRequest,
};
use containerd_shim_protos::shim_async::Client;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;
use ttrpc::Code;

use crate::stand::{LONG, Machine, SHIM, code, context, deleted, eventually, text};

#[tokio::test]
async fn a_server_is_started_found_again_and_ended() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    assert_eq!(
        fs::read_to_string(bundle.join("address")).unwrap(),
        server.address
    );
    assert_eq!(
        fs::metadata(&server.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert_eq!(server.path.parent(), Some(&*machine.sockets()));

    // Once more, as after an answer that was lost.
    let again = machine.action("start", "c1", &bundle);
    assert_eq!(text(&again.stdout), server.address);

    let client = server.client().await;
    let state = StateRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    assert_eq!(code(client.state(context(), &state).await), Code::NOT_FOUND);
    let shutdown = ShutdownRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    client.shutdown(context(), &shutdown).await.unwrap();
    assert!(!server.path.exists(), "its socket is gone before the answer");
    server.ended();
}

#[tokio::test]
async fn a_pods_containers_share_the_server_of_its_sandbox() {
    let machine = Machine::new();
    let sandbox = machine.bundle("pod", "true", &[("io.kubernetes.cri.container-type", "sandbox")]);
    let member = [
        ("io.kubernetes.cri.container-type", "container"),
        ("io.kubernetes.cri.sandbox-id", &*machine.id("pod")),
    ];
    let bundle = machine.bundle("c1", "true", &member);

    let early = machine.action("start", "c1", &bundle);
    assert!(!early.status.success());
    assert_eq!(text(&early.stdout), "");
    let error = text(&early.stderr);
    assert!(
        error.contains("sandbox pod") && error.lines().count() == 1,
        "{error}"
    );
    assert!(!bundle.join("address").exists());

    let server = machine.start("pod", &sandbox);
    let found = machine.action("start", "c1", &bundle);
    assert_eq!(text(&found.stdout), server.address);
    assert_eq!(
        fs::read_to_string(bundle.join("address")).unwrap(),
        server.address
    );

    // A container of the pod goes: the pod stays.
    let deleted = machine.action("delete", "c1", &bundle);
    assert!(deleted.status.success(), "{deleted:?}");
    // (This pod's server has no container at all, so that it ends; with one it stays.)
    server.ended();
}

#[tokio::test]
async fn what_a_killed_server_left_is_no_obstacle() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let first = machine.start("c1", &bundle);
    first.signal(rustix::process::Signal::KILL);
    first.ended();
    assert!(first.path.exists());
    let second = machine.start("c1", &bundle);
    assert_eq!(first.address, second.address);
    assert_ne!(first.pid, second.pid);
    let client = second.client().await;
    let connect = ConnectRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    assert_eq!(code(client.connect(context(), &connect).await), Code::NOT_FOUND);
    second.signal(rustix::process::Signal::TERM);
    second.ended();
    assert!(!second.path.exists());
}

#[tokio::test]
async fn both_names_of_the_service_are_served_and_errors_keep_their_codes() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let client = Client::connect(&server.address).await.unwrap();
    for service in ["containerd.task.v2.Task", "containerd.task.v3.Task"] {
        for (method, payload, expected) in [
            (
                "Kill",
                KillRequest::new().write_to_bytes().unwrap(),
                Code::INVALID_ARGUMENT,
            ),
            ("Checkpoint", Vec::new(), Code::UNIMPLEMENTED),
            ("NoSuchMethod", Vec::new(), Code::UNIMPLEMENTED),
            (
                "Delete",
                DeleteRequest {
                    id: "other".into(),
                    ..Default::default()
                }
                .write_to_bytes()
                .unwrap(),
                Code::NOT_FOUND,
            ),
        ] {
            let mut request = ttrpc::Request::new();
            request.service = service.into();
            request.method = method.into();
            request.timeout_nano = LONG.as_nanos() as i64;
            request.payload = payload;
            assert_eq!(
                code(client.request(request).await),
                expected,
                "{service}/{method}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_newer_in_the_sandbox_api_is_not_implemented_and_says_so() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let client = Client::connect(&server.address).await.unwrap();
    let mut request = ttrpc::Request::new();
    request.service = "containerd.runtime.sandbox.v1.Sandbox".into();
    request.method = "UpdateSandbox".into();
    request.timeout_nano = LONG.as_nanos() as i64;
    assert_eq!(code(client.request(request).await), Code::UNIMPLEMENTED);
}

#[tokio::test]
async fn a_creation_that_cannot_be_leaves_nothing_and_says_why() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let client = server.client().await;
    let request = |change: &dyn Fn(&mut CreateTaskRequest)| {
        let mut request = CreateTaskRequest {
            id: machine.id("c1"),
            bundle: bundle.to_str().unwrap().into(),
            ..Default::default()
        };
        change(&mut request);
        request
    };
    for (change, expected, part) in [
        (
            (&|request: &mut CreateTaskRequest| request.id = "../c1".into())
                as &dyn Fn(&mut CreateTaskRequest),
            Code::INVALID_ARGUMENT,
            "../c1",
        ),
        (
            &|request: &mut CreateTaskRequest| request.bundle = "relative".into(),
            Code::INVALID_ARGUMENT,
            "relative",
        ),
        (
            &|request: &mut CreateTaskRequest| request.stdout = "what://ever".into(),
            Code::INVALID_ARGUMENT,
            "what://ever",
        ),
        (
            &|request: &mut CreateTaskRequest| request.checkpoint = "/x".into(),
            Code::UNIMPLEMENTED,
            "checkpoint",
        ),
        (
            &|request: &mut CreateTaskRequest| request.id = "c2".into(),
            Code::FAILED_PRECONDITION,
            "sandbox c1",
        ),
        (
            &|_: &mut CreateTaskRequest| {},
            Code::INVALID_ARGUMENT,
            "configuration",
        ),
    ] {
        let begun = Instant::now();
        let error = client.create(context(), &request(change)).await.unwrap_err();
        let ttrpc::Error::RpcStatus(status) = error else {
            panic!("{error:?}");
        };
        assert_eq!(status.code(), expected, "{status:?}");
        assert!(status.message.contains(part), "{status:?}");
        assert!(begun.elapsed() < Duration::from_secs(1));
    }
    // What containerd does after a failed Create.
    let delete = DeleteRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    assert_eq!(code(client.delete(context(), &delete).await), Code::NOT_FOUND);
    client.shutdown(context(), &ShutdownRequest::new()).await.unwrap();
    server.ended();
}

#[test]
fn an_open_standard_input_does_not_hold_up_start() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let (input, _keep) = std::io::pipe().unwrap();
    let begun = Instant::now();
    let output = Command::new(SHIM)
        .args(["-namespace", "ns", "-id", "../c1", "start"])
        .current_dir(&bundle)
        .stdin(input)
        .output()
        .unwrap();
    assert!(begun.elapsed() < LONG);
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("../c1"));
    assert_eq!(text(&output.stdout), "");
}

#[test]
fn a_server_keeps_none_of_its_starters_descriptors() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let (mut leaked, writer) = std::io::pipe().unwrap();
    rustix::io::fcntl_setfd(&writer, rustix::io::FdFlags::empty()).unwrap();
    let server = machine.start("c1", &bundle);
    drop(writer);
    // Ends only when nobody has the other end any more.
    assert_eq!(leaked.read(&mut [0]).unwrap(), 0);
    assert!(server.runs());
    assert_eq!(server.status("Threads"), "1");
    // The first thing that it does, but `start` does not wait for it. Until then it has ours, whose leader may be outside of our
    // namespace and has no number here, which is why getsid(2) is not asked.
    eventually("it leads a session of its own", || {
        session(server.pid).is_some_and(|leader| leader == server.pid)
    });
    assert!(UnixStream::connect(&server.path).is_ok());
}

/// The sixth field of proc(5)'s stat; the second is a name in parentheses, with whatever in it.
fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(3)?.parse().ok()
}

#[test]
fn a_server_whose_start_is_killed_before_it_has_told_of_it_ends() {
    let machine = Machine::new();
    machine.configure(None);
    let bundle = machine.bundle("c1", "true", &[]);
    // Nobody reads: it cannot tell.
    let (_reader, mut writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&[0; 4096]).unwrap();
    let mut start = machine.begin("start", "c1", &bundle, writer);
    let pid = || fs::read_to_string(bundle.join("shim.pid")).ok();
    eventually("there is a server", || pid().is_some());
    let state = format!("/proc/{}/stat", pid().unwrap());
    let runs = || fs::read_to_string(&state).is_ok_and(|state| !state.contains(") Z"));
    assert!(runs());
    start.kill().unwrap();
    start.wait().unwrap();
    eventually("the server ends", || !runs());
    assert_eq!(fs::read_dir(machine.sockets()).unwrap().count(), 0);
    machine.assert_clean();
}

#[test]
fn a_server_without_a_socket_says_who_starts_it() {
    let output = Command::new(SHIM)
        .args(["-namespace", "ns", "-id", "c1"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let error = text(&output.stderr);
    assert!(
        error.contains("containerd") && error.lines().count() == 1,
        "{error}"
    );
}

#[test]
fn delete_needs_neither_bundle_nor_configuration_nor_server() {
    let machine = Machine::new();
    let empty = machine.path("empty");
    fs::create_dir(&empty).unwrap();
    let warning = deleted(&machine.action("delete", "gone", &empty));
    assert!(warning.contains("configuration.toml"), "{warning}");
    assert_eq!(warning.lines().count(), 1);

    // A server that was killed: its socket goes.
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    server.signal(rustix::process::Signal::KILL);
    server.ended();
    fs::remove_file(bundle.join("config.json")).unwrap();
    deleted(&machine.action("delete", "c1", &bundle));
    assert!(!server.path.exists());
}

#[tokio::test]
async fn delete_does_not_wait_for_a_server_that_hangs() {
    let machine = Machine::new();
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let state = StateRequest {
        id: machine.id("c1"),
        ..Default::default()
    };
    assert_eq!(
        code(server.client().await.state(context(), &state).await),
        Code::NOT_FOUND
    );
    server.signal(rustix::process::Signal::STOP);
    let begun = Instant::now();
    deleted(&machine.action("delete", "c1", &bundle));
    assert!(begun.elapsed() < Duration::from_secs(5));
    server.ended();
    assert!(!server.path.exists());
}

#[test]
fn it_says_what_it_is() {
    let run = |argument: &str| {
        let output = Command::new(SHIM)
            .arg(argument)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        output.stdout
    };
    for argument in ["-v", "--version"] {
        assert!(text(&run(argument)).contains(env!("CARGO_PKG_VERSION")));
    }
    let info = RuntimeInfo::parse_from_bytes(&run("-info")).unwrap();
    assert_eq!(info.name, "io.containerd.kata.v2");
    let features: serde_json::Value = serde_json::from_slice(&run("features")).unwrap();
    assert!(features["ociVersionMax"].is_string());
    assert!(text(&run("-h")).contains("-namespace"));
}

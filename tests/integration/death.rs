//! Whatever is killed, the rest notices, and nothing is left.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use configuration::AgentChannel;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use runtime::{ErrorKind, Event, Sandbox};
use tokio::time::timeout;

use crate::stand::{Guest, SOON, Stand, code, processes};

/// From a death to the exit that is told of it.
const NOTICED: Duration = Duration::from_secs(10);

/// The directory of an owner that is to be killed.
const OWNED: &str = "KATA_TEST_OWNED";

const VM: Guest = Guest::Vm(AgentChannel::VhostUserVsock);

/// The pid of the first process whose program has this name.
fn pid_of(stand: &Stand, program: &str) -> Pid {
    let mut found: Vec<_> = processes(stand.dir.path())
        .into_iter()
        .filter(|(_, line)| line.split(' ').next().is_some_and(|path| path.ends_with(program)))
        .collect();
    found.sort();
    Pid::from_raw(found.first().unwrap_or_else(|| panic!("no {program}")).0)
}

async fn a_container_ends_with(victim: &str, said: &str) {
    let Some(stand) = Stand::new(VM) else { return };
    let bundle = stand.bundle("c", "sleep 1000", |_| {});
    let (sandbox, mut events) = stand.sandbox(&bundle).await;
    let container = stand.started(&sandbox, "c", &bundle).await;
    let begun = Instant::now();
    kill(pid_of(&stand, victim), Signal::SIGKILL).unwrap();
    let code = code(&container).await;
    assert!(begun.elapsed() < NOTICED, "{:?}", begun.elapsed());
    assert!([137, 255].contains(&code), "{code}");
    let event = timeout(SOON, events.recv()).await.unwrap().unwrap();
    let Event::VmExited(reason) = event else {
        panic!("{event:?}");
    };
    assert!(reason.contains(said), "{reason}");
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn of_the_vmm() {
    a_container_ends_with("qemu-system-x86_64", "the VMM was killed by signal 9").await;
}

#[tokio::test]
async fn of_virtiofsd() {
    a_container_ends_with("virtiofsd", "virtiofsd was killed by signal 9").await;
}

#[tokio::test]
async fn of_the_vsock_daemon() {
    a_container_ends_with("vhost-device-vsock", "vhost-device-vsock was killed by signal 9").await;
}

/// A process that owns a sandbox in this place, or is about to.
fn owner(stand: &Stand) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "death::an_owner"])
        .env(OWNED, stand.dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn of_the_owner_at_any_time_of_its_start() {
    let Some(stand) = Stand::new(VM) else { return };
    let (request, _events) = stand.request(stand.config(), &stand.path("c"));
    let clean = || Sandbox::clean_up_dead(&request.config, &*request.hypervisor, &request.scope, &request.id);
    for milliseconds in [5, 10, 20, 30, 40, 60, 80, 120, 200, 400, 800] {
        let mut owner = owner(&stand);
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        owner.kill().unwrap();
        owner.wait().unwrap();
        clean().await.unwrap();
        stand.assert_clean();
    }
}

#[tokio::test]
async fn of_the_owner() {
    let Some(stand) = Stand::new(VM) else { return };
    let mut owner = owner(&stand);
    let mut said = owner.stdout.take().unwrap();
    let told = tokio::task::spawn_blocking(move || {
        let mut all = String::new();
        let mut buffer = [0; 256];
        while !all.contains("container runs") {
            let count = said.read(&mut buffer).unwrap();
            assert!(count > 0, "the owner failed: {all}");
            all.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
        // The pipe stays open until the owner is dead.
        said
    });
    let _said = timeout(SOON, told).await.unwrap().unwrap();

    let (request, _events) = stand.request(stand.config(), &stand.path("c"));
    let clean = || Sandbox::clean_up_dead(&request.config, &*request.hypervisor, &request.scope, &request.id);
    let error = clean().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    assert!(error.context.contains(&owner.id().to_string()), "{error}");

    owner.kill().unwrap();
    owner.wait().unwrap();
    let begun = Instant::now();
    clean().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    stand.assert_clean();
    clean().await.expect("nothing left is success");
}

/// Not a test: what [`of_the_owner`] kills.
#[tokio::test]
#[ignore = "a part of another test"]
async fn an_owner() {
    let dir = std::env::var_os(OWNED).expect("the test says where");
    let stand = Stand::within(Path::new(&dir), VM);
    let bundle = stand.bundle("c", "sleep 1000", |_| {});
    let (sandbox, _events) = stand.sandbox(&bundle).await;
    let _container = stand.started(&sandbox, "c", &bundle).await;
    println!("container runs");
    std::future::pending::<()>().await;
}

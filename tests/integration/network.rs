//! A pod's network, from its namespace on the host into the containers of a real guest, and back.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use configuration::{AgentChannel, Config, MachineType, NetworkModel};
use runtime::{Container, ErrorKind, Sandbox};
use serde_json::Value;

use crate::pod::{Background, POD, POD6, Pod};
use crate::stand::{Guest, Stand, code};

const VM: Guest = Guest::Vm(AgentChannel::VirtioSerial);

/// Bytes that go through an echo: many packets, larger than one segment.
const MUCH: usize = 4 << 20;

/// Bytes of the largest frame without segmentation offload: the MTU and Ethernet's header.
const LARGEST_FRAME: u64 = 1514;

fn data(stand: &Stand) -> (std::path::PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..MUCH / 4)
        .flat_map(|n| (n as u32).wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let path = stand.path("data");
    fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

async fn sandbox(stand: &Stand, config: Config, bundle: &Path) -> Sandbox {
    Sandbox::create(stand.request(config, bundle).0).await.unwrap()
}

/// What a container sees and can do.
const PROBE: &str = "ip -o link show eth0; ip -o addr show eth0; ip route; ip -6 route; ip rule; ip -6 rule;\
    ip route show table 100; cat /sys/class/net/eth0/address;\
    ls /sys/class/net/eth0/queues; busybox ping -c 1 -W 20 10.79.0.1 >/dev/null && echo pinged;\
    busybox ping -c 1 -W 20 fd00:79::1 >/dev/null && echo pinged six;\
    echo there and back | nc 198.51.100.7 9000";

async fn a_guest_has_the_pods_network(change: impl Fn(&mut Config), queues: usize) {
    let Some(stand) = Stand::new(VM) else { return };
    let pod = Pod::new();
    pod.routed_by_source();
    let before = pod.picture();
    let mut config = stand.config();
    config.runtime.internetworking_model = NetworkModel::TcFilter;
    change(&mut config);
    let probe = stand.bundle("probe", PROBE, |spec| pod.name_in(spec));
    let server = stand.bundle("server", "nc -ll -p 8080 -e cat", |spec| pod.name_in(spec));
    let sandbox = sandbox(&stand, config, &probe).await;

    let _echo = Background::start(pod.outside(&["nc", "-ll", "-p", "9000", "-e", "cat"]));
    let (status, out) = stand.run(&sandbox, "probe", &probe).await;
    for expected in [
        "inet 10.79.0.2/24",
        "inet6 fd00:79::2/64",
        "default via 10.79.0.1 dev eth0",
        "10.79.0.0/24 dev eth0 scope link",
        "default via fd00:79::1 dev eth0",
        "1000:\tfrom 10.79.0.2 lookup 100",
        "1000:\tfrom fd00:79::2 lookup 100",
        "pinged\n",
        "pinged six\n",
        "there and back\n",
    ] {
        assert!(out.contains(expected), "{expected} is not in {out}");
    }
    assert_eq!(status, 0, "{out}");
    let defaults = out.matches("default via 10.79.0.1 dev eth0").count();
    assert_eq!(defaults, 2, "of the main table and of the pod's own: {out}");
    assert_eq!(out.matches("rx-").count(), queues, "{out}");
    let mac = before.lines().find(|line| line.contains("eth0")).unwrap();
    let mac = mac
        .split("link/ether ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    assert!(out.contains(&format!("\n{mac}\n")), "{mac} is not in {out}");

    // In, and much of it; the VMM is found in the pod's namespace.
    let container = stand.started(&sandbox, "server", &server).await;
    let (path, bytes) = data(&stand);
    for address in [POD, POD6] {
        let idle = pod.traffic();
        let client = pod.outside(&["nc", address, "8080"]);
        assert!(
            echoed(client, path.clone()).await == bytes,
            "{address}: not what was sent"
        );
        // Neither kernel cuts what it sends into packets: it would take each one's way 40 times for 64 KiB.
        for (now, before) in pod.traffic().into_iter().zip(idle) {
            let mean = now.mean_since(before);
            assert!(
                mean > LARGEST_FRAME,
                "{address}: {mean} bytes: {before:?}, {now:?}"
            );
        }
    }
    let of_vmm = fs::metadata(format!("/proc/{}/ns/net", sandbox.pid()))
        .unwrap()
        .ino();
    assert_eq!(of_vmm, fs::metadata(pod.path()).unwrap().ino());

    container.kill(None, 9, true).await.unwrap();
    assert_eq!(code(&container).await, 137);
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(pod.picture(), before, "the namespace is as it was");
    stand.assert_clean();
}

#[tokio::test]
async fn by_traffic_control_on_q35_with_a_queue_for_each_processor() {
    let two = |config: &mut Config| {
        config.hypervisor.default_vcpus = 2;
        config.hypervisor.default_maxvcpus = 2;
    };
    a_guest_has_the_pods_network(two, 2).await;
}

#[tokio::test]
async fn by_traffic_control_on_microvm() {
    let microvm = |config: &mut Config| config.hypervisor.machine_type = MachineType::Microvm;
    a_guest_has_the_pods_network(microvm, 1).await;
}

#[tokio::test]
async fn by_macvtap_on_q35() {
    let macvtap = |config: &mut Config| config.runtime.internetworking_model = NetworkModel::Macvtap;
    a_guest_has_the_pods_network(macvtap, 1).await;
}

#[tokio::test]
async fn without_a_model_there_is_only_the_loopback_device() {
    let Some(stand) = Stand::new(VM) else { return };
    let pod = Pod::new();
    let before = pod.picture();
    let bundle = stand.bundle("c", "ls /sys/class/net; ip -o addr show lo", |spec| {
        pod.name_in(spec)
    });
    let sandbox = sandbox(&stand, stand.config(), &bundle).await;
    let (_, out) = stand.run(&sandbox, "c", &bundle).await;
    assert!(out.starts_with("lo\n") && out.contains("127.0.0.1/8"), "{out}");
    assert_eq!(pod.picture(), before);
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_guest_that_is_a_process_is_in_the_pods_namespace() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let pod = Pod::new();
    let before = pod.picture();
    let bundle = stand.bundle("c", "ip -o addr; nc -ll -p 8080 -e cat", |spec| pod.name_in(spec));
    let mut config = stand.config();
    config.runtime.internetworking_model = NetworkModel::TcFilter;
    let sandbox = sandbox(&stand, config, &bundle).await;
    let container = stand.started(&sandbox, "c", &bundle).await;
    let (path, bytes) = data(&stand);
    let client = pod.outside(&["nc", POD, "8080"]);
    assert!(echoed(client, path.clone()).await == bytes);
    container.kill(None, 9, true).await.unwrap();
    assert_eq!(code(&container).await, 137);
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    assert_eq!(pod.picture(), before);
    stand.assert_clean();
}

#[tokio::test]
async fn a_namespace_may_go_before_its_sandbox() {
    let Some(stand) = Stand::new(VM) else { return };
    let pod = Pod::new();
    let bundle = stand.bundle("c", "sleep 1000", |spec| pod.name_in(spec));
    let mut config = stand.config();
    config.runtime.internetworking_model = NetworkModel::TcFilter;
    let sandbox = sandbox(&stand, config, &bundle).await;
    let container = stand.started(&sandbox, "c", &bundle).await;
    pod.remove_inside();
    container.kill(None, 9, true).await.unwrap();
    assert_eq!(code(&container).await, 137);
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_namespace_that_vanished_is_one_clear_error() {
    let Some(stand) = Stand::new(VM) else { return };
    let pod = Pod::new();
    let path = pod.path();
    let bundle = stand.bundle("c", "true", |spec| pod.name_in(spec));
    drop(pod);
    let mut config = stand.config();
    config.runtime.internetworking_model = NetworkModel::TcFilter;
    let error = Sandbox::create(stand.request(config, &bundle).0)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{}", error.chain());
    assert!(
        error.chain().contains(path.to_str().unwrap()),
        "{}",
        error.chain()
    );
    stand.assert_clean();
}

#[tokio::test]
async fn something_that_is_no_namespace_is_one_clear_error() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let file = stand.path("file");
    fs::write(&file, "").unwrap();
    let bundle = stand.bundle("c", "true", |spec: &mut Value| {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(serde_json::json!({"type": "network", "path": file}));
    });
    let error = Sandbox::create(stand.request(stand.config(), &bundle).0)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{}", error.chain());
    stand.assert_clean();
}

/// Whether a connection ended in an error at the caller's end.
fn fails(mut client: std::process::Command) -> bool {
    let output = client.stdin(std::process::Stdio::null()).output().unwrap();
    !output.status.success() || output.stdout.is_empty()
}

#[tokio::test]
async fn ports_of_the_guests_localhost_are_reached_from_the_pods_namespace() {
    let Some(stand) = Stand::new(VM) else { return };
    let pod = Pod::new();
    let mut config = stand.config();
    config.runtime.internetworking_model = NetworkModel::TcFilter;
    let name_pod = |spec: &mut Value| pod.name_in(spec);
    // One for each localhost, and an echo that is on every address.
    let script = "mkdir /www; echo four >/www/4; echo six >/www/6; httpd -p 127.0.0.1:80 -h /www; httpd -p [::1]:8086 -h /www;\
                  nc -ll -p 9000 -e cat";
    let bundle = stand.bundle("server", script, name_pod);
    let sandbox = sandbox(&stand, config, &bundle).await;
    let container = stand.started(&sandbox, "server", &bundle).await;

    let (path, bytes) = data(&stand);
    let clients = |words: [&str; 3]| pod.inside(&words);
    let (first, second) = (
        clients(["nc", "127.0.0.1", "9000"]),
        clients(["nc", "::1", "9000"]),
    );
    let path_of_second = path.clone();
    let (first, second) = tokio::join!(echoed(first, path), echoed(second, path_of_second),);
    assert!(first == bytes && second == bytes, "not what was sent");

    // Whichever localhost is dialled, and whichever the program listens on.
    for (url, expected) in [
        ("http://127.0.0.1:80/4", "four\n"),
        ("http://[::1]:80/4", "four\n"),
        ("http://[::1]:8086/6", "six\n"),
        ("http://127.0.0.1:8086/6", "six\n"),
    ] {
        let mut client = pod.inside(&["wget", "-q", "-O", "-", url]);
        let output = tokio::task::spawn_blocking(move || client.output().unwrap())
            .await
            .unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            expected,
            "{url}: {output:?}"
        );
    }
    let nobody = pod.inside(&["wget", "-q", "-O", "-", "http://127.0.0.1:7/"]);
    assert!(tokio::task::spawn_blocking(move || fails(nobody)).await.unwrap());
    // The host's own localhost is none of it.
    assert!(std::net::TcpStream::connect("127.0.0.1:9000").is_err());

    container.kill(None, 9, true).await.unwrap();
    assert_eq!(code(&container).await, 137);
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    assert!(
        fails(pod.inside(&["nc", "127.0.0.1", "9000"])),
        "it has ended with the sandbox"
    );
    stand.assert_clean();
}

/// [`Pod::echoed`] beside the sandbox's own work.
async fn echoed(client: std::process::Command, sent: std::path::PathBuf) -> Vec<u8> {
    tokio::task::spawn_blocking(move || crate::pod::echoed(client, &sent))
        .await
        .unwrap()
}

/// As Docker does since version 26: it puts interfaces into the namespace of the process that it is shown.
async fn interfaces_appear(config: impl FnOnce(&mut Config)) -> Option<(Stand, Pod, Sandbox, Container)> {
    let stand = Stand::new(VM)?;
    let pod = Pod::new();
    let mut configured = stand.config();
    configured.runtime.internetworking_model = NetworkModel::TcFilter;
    config(&mut configured);
    let script = "ip -o addr; ip route; nc -ll -p 8080 -e cat";
    let bundle = stand.bundle("c", script, |_| {});
    let sandbox = sandbox(&stand, configured, &bundle).await;
    let request = stand.container("c", &bundle, stand.snapshot("c"));
    let container = sandbox.create_container(request).await.unwrap();
    pod.moves_to(sandbox.pid());
    Some((stand, pod, sandbox, container))
}

#[tokio::test]
async fn interfaces_that_appear_between_create_and_start_are_plugged() {
    let Some((stand, pod, sandbox, container)) = interfaces_appear(|_| {}).await else {
        return;
    };
    container.start().await.unwrap();
    let (path, bytes) = data(&stand);
    for address in [POD, POD6] {
        let client = pod.outside(&["nc", address, "8080"]);
        assert!(
            echoed(client, path.clone()).await == bytes,
            "{address}: not what was sent"
        );
    }
    container.kill(None, 9, true).await.unwrap();
    assert_eq!(code(&container).await, 137);
    container.delete().await.unwrap();
    sandbox.stop().await.unwrap();
    assert!(!pod.cable_is_there(), "the namespace went with its sandbox");
    stand.assert_clean();
}

#[tokio::test]
async fn a_machine_that_cannot_be_given_them_says_so() {
    let microvm = |config: &mut Config| config.hypervisor.machine_type = MachineType::Microvm;
    let Some((stand, _pod, sandbox, container)) = interfaces_appear(microvm).await else {
        return;
    };
    let error = container.start().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{}", error.chain());
    assert!(error.chain().contains("q35"), "{}", error.chain());
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

//! Messages of the host's: whatever it says, what is not right is refused before anything is done.

use std::path::Path;

use agent_protocol as p;
use protobuf::{Message, MessageField};

use super::translate;
use crate::policy::Policy;
use crate::sandbox::spec;

fn network() -> p::Network {
    p::Network {
        interfaces: vec![p::Interface {
            name: "eth0".into(),
            mac: "02:00:00:00:00:01".into(),
            mtu: 1400,
            addresses: vec![p::Address {
                ip: "10.0.0.2/24".into(),
                broadcast: "10.0.0.255".into(),
                peer: "10.0.0.1".into(),
                ..Default::default()
            }],
            sysctls: [("ipv4.rp_filter".into(), "1".into())].into(),
            ..Default::default()
        }],
        routes: vec![
            p::Route {
                destination: "fd00::/64".into(),
                gateway: "fe80::1".into(),
                device: "eth0".into(),
                table: 100,
                ..Default::default()
            },
            p::Route {
                destination: "10.9.0.0/16".into(),
                hops: ["10.0.0.1", "fe80::2"]
                    .map(|gateway| p::Hop {
                        gateway: gateway.into(),
                        device: "eth0".into(),
                        weight: 2,
                        ..Default::default()
                    })
                    .into(),
                ..Default::default()
            },
        ],
        neighbours: vec![p::Neighbour {
            ip: "10.0.0.1".into(),
            mac: "02:00:00:00:00:02".into(),
            device: "eth0".into(),
            ..Default::default()
        }],
        sysctls: [("ipv4.ip_local_port_range".into(), "1024 2048".into())].into(),
        rules: vec![p::Rule {
            table: 100,
            source: "::/0".into(),
            destination: "::/0".into(),
            input: "lo".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn storages() -> p::CreateContainerRequest {
    let storage = |driver: &str, source: &str, options: &[&str]| p::Storage {
        driver: driver.into(),
        source: source.into(),
        fstype: "ext4".into(),
        options: options.iter().map(ToString::to_string).collect(),
        mount_point: "/run/kata/shared/c1/rootfs".into(),
        ..Default::default()
    };
    p::CreateContainerRequest {
        container_id: "c1".into(),
        spec: br#"{"ociVersion":"1.0.2","root":{"path":"/run/kata/c1"},"process":{"cwd":"/","args":["x"],"user":{"uid":0,"gid":0}}}"#
            .to_vec(),
        storages: vec![
            storage("virtio-fs", "share", &["ro"]),
            storage("block", "serial:d1", &["noatime"]),
            storage("overlay", "", &["lowerdir=/run/kata/a:/run/kata/b", "upperdir=/run/kata/u", "workdir=/run/kata/w"]),
            storage("hugetlbfs", "", &["pagesize=2097152", "size=4194304"]),
            storage("bind", "/run/kata/x", &["rbind", "nosuid"]),
        ],
        devices: vec![p::DiskDevice {
            source: "serial:d2".into(),
            path: "/dev/data".into(),
            access: "rwm".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[test]
fn networks() {
    let seeds = [network().write_to_bytes().unwrap(), Vec::new()];
    fuzz::target("networks-for-a-guest", seeds, |input| {
        let Ok(message) = p::Network::parse_from_bytes(input) else {
            return;
        };
        let Ok(network) = translate::network(&MessageField::some(message)) else {
            return;
        };
        for (file, _) in &network.sysctls {
            assert!(
                !file.starts_with('/') && !file.contains("..") && !file.contains("//"),
                "{file:?}"
            );
        }
        for (devices, route) in &network.routes {
            assert_eq!(devices.len(), route.hops.len().max(1), "{route:?}");
        }
        for interface in &network.interfaces {
            // It becomes a part of a path, and two dots are one only by themselves.
            assert!(
                !interface.name.contains('/') && interface.name != "." && interface.name != "..",
                "{interface:?}"
            );
            for sysctl in &interface.sysctls {
                assert!(!sysctl.key.contains(['/', '.']), "{sysctl:?}");
            }
        }
    });
}

#[test]
fn storages_and_specifications() {
    let mut only_a_spec = storages();
    only_a_spec.storages.clear();
    let seeds = [storages(), only_a_spec].map(|request| request.write_to_bytes().unwrap());
    fuzz::target("storages-for-a-guest", seeds, |input| {
        let Ok(request) = p::CreateContainerRequest::parse_from_bytes(input) else {
            return;
        };
        let agent = Path::new("/somewhere/else");
        if let Ok(storages) = translate::storages(&request.storages) {
            for storage in &storages {
                let place = storage.mount_point();
                assert!(place.starts_with(p::GUEST_DIR) && !place.to_string_lossy().contains("/../"));
            }
        }
        let _ = translate::devices(&request.devices);
        let _ = spec::check_id("container_id", &request.container_id);
        if let Ok(spec) = spec::container(&request.spec, agent) {
            let root = spec.root().as_ref().map(|root| root.path().to_owned()).unwrap();
            assert!(
                root.starts_with(agent) && !root.to_string_lossy().contains("/../"),
                "{}",
                root.display()
            );
        }
        let _ = (spec::process(&request.spec), spec::resources(&request.spec));
        let _ = translate::stdio(&request.stdio);
    });
}

#[test]
fn policies() {
    let seeds = [
        "package agent_policy\n\ndefault ExecProcessRequest := false\ndefault GetMetricsRequest = true # x\n",
        "package agent_policy\ndefault CopyFileRequest := true\ndefault WaitProcessRequest := true\n",
        "package other\ndefault ExecProcessRequest := maybe\n",
    ];
    fuzz::target("policies", seeds, |input| {
        let Ok(policy) = Policy::parse(input) else {
            return;
        };
        assert!(policy.allows("Hello"), "or nobody could ask for anything");
        // What is not named is refused: one that allows it names it.
        if !input.windows(11).any(|part| part == b"ExecProcess") {
            assert!(!policy.allows("ExecProcess") && !policy.allows("OpenConsole"));
        }
    });
}

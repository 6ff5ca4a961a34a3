//! The network that an agent is told to have, in a namespace of its own, with a second one at the other end of its cables.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;

use crate::support::{SOON, Sandbox};

/// Two network namespaces. In the first are two devices with the wrong names: the one that is called "eth0" is to be
/// "net1", whose address is 10.77.1.2, and the other way round. Their other ends are in the second.
pub struct Cables {
    pub inside: String,
    outside: String,
}

const ETH0: &str = "02:00:00:00:77:01";
const NET1: &str = "02:00:00:00:77:02";

impl Cables {
    pub fn lay() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "kata-agent-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let cables = Self {
            inside: format!("{name}-in"),
            outside: format!("{name}-out"),
        };
        ip(&format!("netns add {}", cables.inside));
        ip(&format!("netns add {}", cables.outside));
        cables.lay_one("eth0", NET1, "there1", "10.77.1.1/24");
        cables.lay_one("net1", ETH0, "there0", "10.77.0.1/24");
        cables.outside("addr add fd00:77::1/64 dev there0 nodad");
        cables
    }

    fn lay_one(&self, name: &str, mac: &str, other: &str, address: &str) {
        self.outside(&format!(
            "link add {other} type veth peer name {name} address {mac} netns {}",
            self.inside
        ));
        self.outside(&format!("addr add {address} dev {other}"));
        self.outside(&format!("link set {other} up"));
    }

    fn inside(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.inside))
    }

    fn outside(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.outside))
    }

    /// Whether an address answers, seen from the second namespace.
    fn answers(&self, address: &str) -> bool {
        Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.outside))
            .args(["busybox", "ping", "-c", "1", "-W", "5", address])
            .output()
            .is_ok_and(|output| output.status.success())
    }
}

impl Drop for Cables {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Runs ip(8), which answers with what it prints.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .unwrap_or_else(|e| panic!("this test needs iproute2: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn interface(name: &str, mac: &str, addresses: &[&str]) -> p::Interface {
    let address = |ip: &&str| p::Address {
        ip: (*ip).into(),
        ..Default::default()
    };
    p::Interface {
        name: name.into(),
        mac: mac.into(),
        mtu: 1400,
        up: true,
        addresses: addresses.iter().map(address).collect(),
        ..Default::default()
    }
}

fn route(destination: &str, gateway: &str, device: &str) -> p::Route {
    p::Route {
        destination: destination.into(),
        gateway: gateway.into(),
        device: device.into(),
        scope: if gateway.is_empty() && !destination.contains(':') {
            253
        } else {
            0
        },
        protocol: 3,
        ..Default::default()
    }
}

fn pod() -> p::Network {
    let mut source = route("10.88.0.0/16", "10.77.0.1", "eth0");
    source.source = "10.77.0.2".into();
    source.mtu = 1300;
    source.metric = 9;
    let elsewhere =
        [("10.77.1.0/24", ""), ("0.0.0.0/0", "10.77.1.1")].map(|(destination, gateway)| p::Route {
            table: 1000,
            ..route(destination, gateway, "net1")
        });
    p::Network {
        interfaces: vec![
            interface("eth0", ETH0, &["10.77.0.2/24", "fd00:77::2/64"]),
            interface("net1", NET1, &["10.77.1.2/24"]),
        ],
        routes: vec![
            route("10.77.0.0/24", "", "eth0"),
            route("fd00:77::/64", "", "eth0"),
            route("0.0.0.0/0", "10.77.0.1", "eth0"),
            route("::/0", "fd00:77::1", "eth0"),
            source,
        ]
        .into_iter()
        .chain(elsewhere)
        .collect(),
        rules: vec![p::Rule {
            priority: 100,
            table: 1000,
            source: "10.77.1.2/32".into(),
            destination: "0.0.0.0/0".into(),
            ..Default::default()
        }],
        neighbours: vec![p::Neighbour {
            ip: "10.77.0.9".into(),
            mac: "02:00:00:00:77:09".into(),
            device: "eth0".into(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn with(network: p::Network) -> p::CreateSandboxRequest {
    p::CreateSandboxRequest {
        sandbox_id: "s".into(),
        network: Some(network).into(),
        ..Default::default()
    }
}

fn update(network: p::Network) -> p::UpdateNetworkRequest {
    p::UpdateNetworkRequest {
        network: Some(network).into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_sandbox_has_the_network_it_was_told_to_have() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    sandbox.agent.create_sandbox(with(pod()), SOON).await.unwrap();

    let links = cables.inside("link");
    for (name, mac) in [("eth0", ETH0), ("net1", NET1)] {
        let at = links
            .find(&format!(" {name}@"))
            .unwrap_or_else(|| panic!("no {name} in {links}"));
        let link: String = links[at..].lines().take(2).collect();
        assert!(link.contains(mac) && link.contains("mtu 1400"), "{links}");
    }
    let routes = cables.inside("route");
    let expected = [
        "default via 10.77.0.1 dev eth0",
        "10.77.0.0/24 dev eth0 scope link",
        "10.88.0.0/16 via 10.77.0.1 dev eth0 src 10.77.0.2 metric 9 mtu 1300",
    ];
    for (line, expected) in routes.lines().zip(expected) {
        assert_eq!(line.trim_end(), expected, "{routes}");
    }
    assert!(!routes.contains("10.77.1"), "only what was listed: {routes}");
    let from_net1 = cables.inside("route get 192.0.2.1 from 10.77.1.2");
    assert!(
        from_net1.contains("via 10.77.1.1 dev net1 table 1000"),
        "the rule decides: {from_net1}"
    );
    assert!(
        cables
            .inside("-6 route")
            .contains("default via fd00:77::1 dev eth0")
    );
    assert!(
        cables
            .inside("neigh")
            .contains("10.77.0.9 dev eth0 lladdr 02:00:00:00:77:09 PERMANENT")
    );
    assert!(
        !cables.inside("-6 addr").contains("tentative"),
        "addresses are used at once"
    );
    assert!(cables.inside("addr show lo").contains("127.0.0.1"));
    assert!(cables.answers("10.77.0.2"));
    assert!(cables.answers("fd00:77::2"));

    sandbox.agent.update_network(update(pod()), SOON).await.unwrap();
    assert_eq!(cables.inside("route"), routes, "the same again changes nothing");
    assert_eq!(cables.inside("rule").lines().count(), 4);
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_device_that_appears_later_is_waited_for() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let early = sandbox
        .agent
        .update_network(update(pod()), SOON)
        .await
        .unwrap_err();
    assert_eq!(early.kind, ErrorKind::FailedPrecondition, "{early}");
    sandbox
        .agent
        .create_sandbox(with(p::Network::default()), SOON)
        .await
        .unwrap();

    let mac = "02:00:00:00:77:03";
    cables.outside(&format!("link add there2 type veth peer name late address {mac}"));
    cables.outside("addr add 10.77.2.1/24 dev there2");
    cables.outside("link set there2 up");
    let late = p::Network {
        interfaces: vec![interface("net2", mac, &["10.77.2.2/24"])],
        routes: vec![route("10.77.2.0/24", "", "net2")],
        ..Default::default()
    };
    let update = update(late);
    let updated = sandbox.agent.update_network(update, SOON);
    let others = async {
        // Answered while the update waits.
        let absent = sandbox.signal("c", "", 9).await.unwrap_err();
        assert_eq!(absent.kind, ErrorKind::NotFound);
        cables.outside(&format!("link set late netns {}", cables.inside));
    };
    let (updated, ()) = tokio::join!(updated, others);
    updated.unwrap();
    assert!(cables.answers("10.77.2.2"));
    sandbox.destroy().await;
}

#[tokio::test]
async fn what_the_kernel_refuses_is_told_in_its_words() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let mut network = pod();
    network.routes = vec![route("0.0.0.0/0", "192.0.2.1", "eth0")];
    let error = sandbox
        .agent
        .create_sandbox(with(network), SOON)
        .await
        .unwrap_err();
    assert!(
        error
            .message
            .contains("add route to 0.0.0.0/0 via 192.0.2.1 on eth0: ")
            && error.message.contains("invalid gateway"),
        "{error}"
    );
    let mut network = pod();
    network.routes = vec![route("0.0.0.0/0", "", "eth7")];
    let error = sandbox
        .agent
        .create_sandbox(with(network), SOON)
        .await
        .unwrap_err();
    assert!(
        error.kind == ErrorKind::NotFound && error.message.contains("eth7"),
        "{error}"
    );
    // It is as blank as before, and can still be made.
    sandbox.agent.create_sandbox(with(pod()), SOON).await.unwrap();
    assert!(cables.answers("10.77.0.2"));
    sandbox.destroy().await;
}

#[tokio::test]
async fn an_interface_has_sysctls_of_its_own() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let set = |name: &str, value: &str| {
        let mut network = pod();
        network.interfaces[1].sysctls = [(name.to_owned(), value.to_owned())].into();
        network
    };
    let error = sandbox
        .agent
        .create_sandbox(with(set("ipv4.no_such", "1")), SOON)
        .await
        .unwrap_err();
    assert!(error.message.contains("conf/net1/no_such"), "{error}");
    let network = set("ipv4.arp_notify", "1");
    sandbox.agent.create_sandbox(with(network), SOON).await.unwrap();
    for (interface, expected) in [("net1", "1\n"), ("eth0", "0\n")] {
        let path = format!("/proc/sys/net/ipv4/conf/{interface}/arp_notify");
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", cables.inside))
            .args(["cat", &path])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{interface}");
    }
    sandbox.destroy().await;
}

#[tokio::test]
async fn routes_share_packets_and_the_namespace_has_its_sysctls() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let mut network = pod();
    let hop = |gateway: &str, device: &str, weight| p::Hop {
        gateway: gateway.into(),
        device: device.into(),
        weight,
        // No address leads there in this table.
        on_link: device == "net1",
        ..Default::default()
    };
    for (destination, hops) in [
        (
            "10.90.0.0/16",
            [hop("10.77.0.1", "eth0", 2), hop("10.77.1.1", "net1", 1)],
        ),
        (
            "fd00:90::/64",
            [hop("fd00:77::1", "eth0", 1), hop("fd00:77::9", "eth0", 3)],
        ),
    ] {
        network.routes.push(p::Route {
            hops: hops.into(),
            ..route(destination, "via its hops", "")
        });
        network.routes.last_mut().unwrap().gateway.clear();
    }
    network.interfaces[1].no_arp = true;
    network.sysctls = [
        ("core.somaxconn", "7"),
        ("ipv4.ip_local_port_range", "1000 2000"),
        ("ipv4.ip_forward", "1"),
        ("ipv4.ip_unprivileged_port_start", "500"),
        ("ipv4.no_such_thing", "1"),
        // Of all that do not say otherwise.
        ("ipv6.conf.all.disable_ipv6", "1"),
        ("ipv4.ip_default_ttl", "0"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into();
    let network = with(network);
    sandbox.agent.create_sandbox(network, SOON).await.unwrap();
    let four = cables.inside("route show 10.90.0.0/16");
    for part in [
        "via 10.77.0.1 dev eth0 weight 2",
        "via 10.77.1.1 dev net1 weight 1",
    ] {
        assert!(four.contains(part), "{four}");
    }
    let six = cables.inside("-6 route show fd00:90::/64");
    assert!(six.contains("via fd00:77::9 dev eth0 weight 3"), "{six}");
    assert!(cables.inside("link show net1").contains("NOARP"));
    assert!(!cables.inside("link show eth0").contains("NOARP"));
    for (path, expected) in [
        ("core/somaxconn", "7"),
        ("ipv4/ip_local_port_range", "1000\t2000"),
        ("ipv4/conf/eth0/forwarding", "1"),
    ] {
        let output = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", cables.inside))
            .args(["cat", &format!("/proc/sys/net/{path}")])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected, "{path}");
    }
    sandbox.destroy().await;

    let mut wrong = pod();
    wrong.sysctls = [("core/../x.y".to_owned(), "1".to_owned())].into();
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let error = sandbox.agent.create_sandbox(with(wrong), SOON).await.unwrap_err();
    assert!(error.message.contains("network.sysctls"), "{error}");
    sandbox.destroy().await;
}

#[tokio::test]
async fn an_interface_without_ipv6_has_none() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let mut network = pod();
    network.interfaces[1].no_ipv6 = true;
    sandbox.agent.create_sandbox(with(network), SOON).await.unwrap();
    assert!(!cables.inside("-6 addr show net1").contains("inet6"));
    assert!(cables.inside("-6 addr show eth0").contains("fe80:"));
    sandbox.destroy().await;
}

#[tokio::test]
async fn an_agent_in_its_hosts_network_leaves_that_alone() {
    let sandbox = Sandbox::blank().await;
    let error = sandbox.agent.create_sandbox(with(pod()), SOON).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    sandbox
        .agent
        .create_sandbox(with(p::Network::default()), SOON)
        .await
        .unwrap();
    let error = sandbox
        .agent
        .update_network(update(pod()), SOON)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    sandbox.destroy().await;
}

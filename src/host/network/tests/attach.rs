//! Interfaces that are connected, used and given back.

use super::super::{Attached, Model};
use super::pod::{ADDRESS, Card, MAC, OUTSIDE, Pod, attach, threads_inside, until};

async fn attached(pod: &Pod, model: Model, queues: u32) -> Attached {
    attach(&pod.path(), Some(model), queues).await.unwrap()
}

/// The hardware address of an interface of the outside.
fn outside_mac(pod: &Pod, interface: &str) -> [u8; 6] {
    let text = pod.outside(&format!("-o link show {interface}"));
    let mac = text
        .split("link/ether ")
        .nth(1)
        .unwrap()
        .split(' ')
        .next()
        .unwrap();
    mac.parse::<netlink::Mac>().unwrap().0
}

#[tokio::test]
async fn frames_go_both_ways_and_the_interface_stays_as_it_was() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let pod = Pod::new();
        let before = pod.picture();
        let mut attached = attached(&pod, model, 1).await;
        let devices = attached.devices();
        assert_eq!(devices.len(), 1, "{devices:?}");
        let card = Card::of(&devices[0]);
        assert_eq!(card.queues(), 1);
        assert_eq!(
            card.asks_for(ADDRESS, OUTSIDE),
            outside_mac(&pod, "there"),
            "{model:?}"
        );
        for line in before
            .lines()
            .filter(|line| line.contains("eth0") && !line.contains("qdisc"))
        {
            assert!(
                pod.picture().contains(line),
                "{model:?}: {line} is not in {}",
                pod.picture()
            );
        }

        drop((card, devices));
        attached.release().await.unwrap();
        attached.release().await.expect("a second time");
        drop(attached);
        assert_eq!(pod.picture(), before, "{model:?}");
    }
}

#[tokio::test]
async fn traffic_control_is_what_tc_says() {
    let pod = Pod::new();
    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let index: String = pod
        .inside("-o link show eth0")
        .chars()
        .take_while(|c| *c != ':')
        .collect();
    let tap = format!("kata{index}");
    for (from, to) in [("eth0", tap.as_str()), (&tap, "eth0")] {
        let filters = pod.filters(from);
        let expected = format!("mirred (Egress Redirect to device {to}) stolen");
        assert!(
            filters.contains("protocol all") && filters.contains(&expected),
            "{filters}"
        );
    }
    let link = pod.inside(&format!("-d link show {tap}"));
    for part in ["mtu 1400", "vnet_hdr on", "persist off", "addrgenmode none"] {
        assert!(link.contains(part), "{part}: {link}");
    }
    attached.release().await.unwrap();
    assert_eq!(pod.filters("eth0"), "");
}

#[tokio::test]
async fn the_guest_is_told_what_the_namespace_has() {
    let pod = Pod::new();
    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let guest = attached.guest();
    assert_eq!(guest.interfaces.len(), 1);
    let eth0 = &guest.interfaces[0];
    assert_eq!(
        (eth0.name.as_str(), eth0.mac.as_str(), eth0.mtu),
        ("eth0", MAC, 1400)
    );
    assert!(eth0.up && !eth0.no_ipv6);
    let addresses: Vec<_> = eth0.addresses.iter().map(|address| address.ip.as_str()).collect();
    assert!(
        addresses.contains(&"10.78.0.2/24") && addresses.contains(&"fd00:78::2/64"),
        "{addresses:?}"
    );
    assert!(
        addresses.iter().any(|ip| ip.starts_with("fe80::")),
        "{addresses:?}"
    );
    assert_eq!(eth0.addresses[0].broadcast, "10.78.0.255");
    let routes: Vec<_> = guest
        .routes
        .iter()
        .map(|route| format!("{} {} {}", route.destination, route.gateway, route.metric))
        .collect();
    for expected in [
        "0.0.0.0/0 10.78.0.1 0",
        "10.78.0.0/24  0",
        "::/0 fd00:78::1 7",
        "fd00:78::/64  256",
    ] {
        assert!(
            routes.iter().any(|route| route == expected),
            "{expected} is not in {routes:?}"
        );
    }
    assert_eq!(guest.neighbours.len(), 1);
    assert_eq!(guest.neighbours[0].ip, "10.78.0.9");
    assert!(attached.left_out().is_empty());
    attached.release().await.unwrap();
}

#[tokio::test]
async fn queues_are_as_many_as_asked_for() {
    for model in [Model::TcFilter, Model::Macvtap] {
        let pod = Pod::new();
        let mut attached = attached(&pod, model, 4).await;
        let card = Card::of(&attached.devices()[0]);
        assert_eq!(card.queues(), 4);
        assert_eq!(
            card.asks_for(ADDRESS, OUTSIDE),
            outside_mac(&pod, "there"),
            "{model:?}"
        );
        attached.release().await.unwrap();
    }
}

#[tokio::test]
async fn several_interfaces_of_different_kinds() {
    let pod = Pod::new();
    let second = std::net::Ipv4Addr::new(10, 78, 1, 2);
    pod.outside("link add uplink type veth peer name peer");
    pod.outside("link set uplink up");
    pod.outside("link set peer up");
    pod.outside("addr add 10.78.1.1/24 dev peer");
    pod.outside("link add link uplink name net1 type macvlan mode bridge");
    pod.take("net1");
    pod.inside("link set net1 up");
    pod.inside(&format!("addr add {second}/24 dev net1"));
    // The port of a bridge is not connected: its bridge is.
    pod.inside("link add port type veth peer name inner");
    pod.inside("link add name br0 type bridge");
    pod.inside("link set port master br0");
    pod.inside("link set port up");
    pod.inside("link set br0 up");
    // Made for a virtual machine, by somebody else.
    pod.inside("tuntap add vm0 mode tap");

    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let names: Vec<_> = attached
        .guest()
        .interfaces
        .iter()
        .map(|i| i.name.as_str())
        .collect();
    assert_eq!(names, ["eth0", "net1", "br0", "vm0"]);
    let devices = attached.devices();
    assert_eq!(devices.len(), 4);
    let ids: std::collections::BTreeSet<_> = devices.iter().map(|device| format!("{device:?}")).collect();
    assert_eq!(ids.len(), 4, "each has its own name");
    let first = Card::of(&devices[0]);
    assert_eq!(first.asks_for(ADDRESS, OUTSIDE), outside_mac(&pod, "there"));
    let outside = std::net::Ipv4Addr::new(10, 78, 1, 1);
    assert_eq!(
        Card::of(&devices[1]).asks_for(second, outside),
        outside_mac(&pod, "peer")
    );
    assert_eq!(pod.filters("vm0"), "");
    attached.release().await.unwrap();
}

/// An ipvlan, as a plugin leaves it: "net1" with the address 10.78.1.2, whose other end has 10.78.1.1. Answers whether this kernel
/// has such devices. Where it has none, a macvlan stands for it, without ARP where an ipvlan would have none.
fn ipvlan(pod: &Pod, mode: &str) -> bool {
    pod.outside("link add uplink type veth peer name peer");
    pod.outside("link set uplink up");
    pod.outside("link set peer up");
    pod.outside("addr add 10.78.1.1/24 dev peer");
    let made = std::process::Command::new("ip")
        .args([
            "-n",
            pod.outside_name(),
            "link",
            "add",
            "link",
            "uplink",
            "name",
            "net1",
        ])
        .args(["type", "ipvlan", "mode", mode])
        .output()
        .unwrap();
    let is_real = made.status.success();
    if !is_real {
        let error = String::from_utf8_lossy(&made.stderr);
        assert!(error.contains("Unknown device type"), "{error}");
        pod.outside("link add link uplink name net1 type macvlan mode bridge");
        if mode != "l2" {
            pod.outside("link set net1 arp off");
        }
    }
    pod.take("net1");
    pod.inside("link set net1 up");
    pod.inside("addr add 10.78.1.2/24 dev net1");
    is_real
}

#[tokio::test]
async fn an_ipvlan_is_connected_whatever_the_model_and_asks_for_addresses_in_mode_l2_alone() {
    for mode in ["l2", "l3"] {
        let pod = Pod::new();
        let is_real = ipvlan(&pod, mode);
        let model = if is_real { Model::Macvtap } else { Model::TcFilter };
        let mut attached = attached(&pod, model, 1).await;
        let interfaces = &attached.guest().interfaces;
        let at = interfaces.iter().position(|found| found.name == "net1").unwrap();
        assert_eq!(interfaces[at].no_arp, mode != "l2", "{mode}");
        let filters = pod.filters("net1");
        assert!(
            filters.contains("mirred (Egress Redirect to device kata"),
            "{mode}: {filters}"
        );
        if mode == "l2" {
            let card = Card::of(&attached.devices()[at]);
            let [own, other] = [2, 1].map(|last| std::net::Ipv4Addr::new(10, 78, 1, last));
            assert_eq!(card.asks_for(own, other), outside_mac(&pod, "peer"));
        }
        attached.release().await.unwrap();
        assert_eq!(pod.filters("net1"), "");
    }
}

#[tokio::test]
async fn what_appears_later_is_connected_later() {
    let pod = Pod::new();
    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let nothing = attached.look_again().await.unwrap();
    assert!(
        nothing.devices.is_empty() && nothing.guest.interfaces.is_empty() && nothing.guest.routes.is_empty()
    );

    let address = std::net::Ipv4Addr::new(10, 78, 2, 2);
    pod.outside("link add there2 type veth peer name net2");
    pod.outside("link set there2 up");
    pod.outside("addr add 10.78.2.1/24 dev there2");
    pod.take("net2");
    pod.inside("link set net2 up");
    pod.inside(&format!("addr add {address}/24 dev net2"));
    let appeared = attached.look_again().await.unwrap();
    assert_eq!(appeared.guest.interfaces.len(), 1);
    assert_eq!(appeared.guest.interfaces[0].name, "net2");
    assert!(appeared.guest.routes.iter().all(|route| route.device == "net2"));
    let card = Card::of(&appeared.devices[0]);
    let outside = std::net::Ipv4Addr::new(10, 78, 2, 1);
    assert_eq!(card.asks_for(address, outside), outside_mac(&pod, "there2"));
    assert_eq!(
        attached.devices().len(),
        1,
        "what was given away is not given twice"
    );
    attached.release().await.unwrap();
    assert_eq!(pod.filters("net2"), "");
}

#[tokio::test]
async fn without_a_model_nothing_is_touched() {
    let pod = Pod::new();
    let before = pod.picture();
    let mut attached = attach(&pod.path(), None, 1).await.unwrap();
    assert_eq!(pod.picture(), before);
    assert!(attached.devices().is_empty() && attached.guest().interfaces.is_empty());
    attached.release().await.unwrap();
}

#[tokio::test]
async fn an_interface_without_ipv6_is_told_as_such() {
    let pod = Pod::new();
    let status = std::process::Command::new("nsenter")
        .arg(format!("--net={}", pod.path().display()))
        .args(["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6"])
        .status();
    assert!(status.unwrap().success());
    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let eth0 = &attached.guest().interfaces[0];
    assert!(eth0.no_ipv6);
    assert_eq!(eth0.addresses.len(), 1, "{:?}", eth0.addresses);
    attached.release().await.unwrap();
}

#[tokio::test]
async fn what_somebody_has_set_for_an_interface_is_told() {
    let pod = Pod::new();
    let script = "cd /proc/sys/net && echo 1 >ipv4/conf/eth0/proxy_arp && echo 0 >ipv6/conf/eth0/accept_ra &&\
                  echo 2 >ipv4/conf/default/rp_filter && echo 2 >ipv4/conf/eth0/rp_filter";
    let status = std::process::Command::new("nsenter")
        .arg(format!("--net={}", pod.path().display()))
        .args(["sh", "-c", script])
        .status();
    assert!(status.unwrap().success());
    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let expected = [("ipv4.proxy_arp", "1"), ("ipv6.accept_ra", "0")];
    assert_eq!(
        attached.guest().interfaces[0].sysctls,
        expected
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    );
    attached.release().await.unwrap();
}

#[tokio::test]
async fn routes_with_several_hops_and_sysctls_of_the_namespace_are_told() {
    let pod = Pod::new();
    pod.inside("route add 10.90.0.0/16 nexthop via 10.78.0.1 weight 2 nexthop via 10.78.0.9 weight 1");
    pod.inside("-6 route add fd00:90::/64 nexthop via fd00:78::1 nexthop via fd00:78::9 weight 3");
    let script = "cd /proc/sys/net && echo 7 >core/somaxconn && echo '2000 3000' >ipv4/ip_local_port_range &&\
                  echo 1 >ipv4/ip_forward && echo 80,90-95 >ipv4/ip_local_reserved_ports && echo 1 >ipv6/bindv6only";
    let status = std::process::Command::new("nsenter")
        .arg(format!("--net={}", pod.path().display()))
        .args(["sh", "-c", script])
        .status();
    assert!(status.unwrap().success());
    let mut attached = attached(&pod, Model::TcFilter, 1).await;
    let guest = attached.guest();
    for (destination, hops) in [
        ("10.90.0.0/16", [("10.78.0.1", 2), ("10.78.0.9", 1)]),
        ("fd00:90::/64", [("fd00:78::1", 1), ("fd00:78::9", 3)]),
    ] {
        let route = guest
            .routes
            .iter()
            .find(|route| route.destination == destination)
            .unwrap();
        let told: Vec<_> = route
            .hops
            .iter()
            .map(|hop| (hop.gateway.as_str(), hop.weight))
            .collect();
        assert_eq!(told, hops);
        assert!(
            route.device.is_empty() && route.hops.iter().all(|hop| hop.device == "eth0"),
            "{route}"
        );
    }
    for (name, value) in [
        ("core.somaxconn", "7"),
        ("ipv4.ip_local_port_range", "2000 3000"),
        ("ipv4.ip_forward", "1"),
        ("ipv4.ip_local_reserved_ports", "80,90-95"),
        ("ipv6.bindv6only", "1"),
    ] {
        assert_eq!(
            guest.sysctls.get(name).map(String::as_str),
            Some(value),
            "{:?}",
            guest.sysctls
        );
    }
    assert!(
        !guest.sysctls.contains_key("ipv4.tcp_keepalive_time"),
        "{:?}",
        guest.sysctls
    );
    assert!(attached.left_out().is_empty(), "{:?}", attached.left_out());
    attached.release().await.unwrap();
}

#[tokio::test]
async fn threads_end_with_their_work() {
    let pod = Pod::new();
    for _ in 0..20 {
        attached(&pod, Model::TcFilter, 1).await.release().await.unwrap();
    }
    until("no thread is left in a namespace", || threads_inside() == 0);
}

#[tokio::test]
async fn a_new_namespace_has_a_loopback_device_and_takes_what_comes() {
    let mut attached = Attached::hold(None, Some(Model::TcFilter), 1).await.unwrap();
    attached.connect().await.unwrap();
    assert!(attached.devices().is_empty() && attached.record().is_none());
    let pod = Pod::new();
    let inside = |arguments: &str| {
        let fd = attached.namespace.descriptor();
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            std::os::fd::AsRawFd::as_raw_fd(&*fd)
        );
        let output = std::process::Command::new("nsenter")
            .args([&format!("--net={path}"), "ip"])
            .args(arguments.split(' '))
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments}: {output:?}");
        (path, String::from_utf8(output.stdout).unwrap())
    };
    let (path, lo) = inside("addr show lo");
    assert!(lo.contains("127.0.0.1"), "{lo}");
    pod.inside(&format!("link set eth0 netns {path}"));
    inside("link set eth0 up");
    inside(&format!("addr add {ADDRESS}/24 dev eth0"));
    let appeared = attached.look_again().await.unwrap();
    let card = Card::of(&appeared.devices[0]);
    assert_eq!(card.asks_for(ADDRESS, OUTSIDE), outside_mac(&pod, "there"));
    attached.release().await.unwrap();
}

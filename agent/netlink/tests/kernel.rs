//! What is asked of the kernel, compared with what ip(8) and tc(8) say of it, each test in a network namespace of its own.
//! Needs root and iproute2.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails loudly, its support code too"
)]

use std::process::Command;

use netlink::{
    Address, AddressFlags, Hop, Link, LinkChange, LinkKind, Mac, Macvtap, Neighbour, RT_TABLE_MAIN, Route,
    RouteKind, Rule, Socket,
};
use nix::sched::{CloneFlags, unshare};

/// Runs `test` in a new network namespace, which ends with its thread. It has a pair of veths, "left" and "right".
fn in_namespace(test: impl FnOnce(Socket) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace (is this root?)");
        run("ip link add left type veth peer name right");
        test(Socket::open().expect("a socket"));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().expect("a program"))
        .args(words)
        .output()
        .unwrap_or_else(|e| panic!("this test needs iproute2: {command}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

fn link(socket: &mut Socket, name: &str) -> Link {
    let links = socket.links().expect("links");
    let found = links.iter().find(|link| link.name == name).cloned();
    found.unwrap_or_else(|| panic!("no {name} in {links:?}"))
}

#[test]
fn devices_are_seen_and_changed() {
    in_namespace(|mut socket| {
        run("ip tuntap add t mode tap");
        run("ip link add name br type bridge");
        run("ip link set right master br");
        let (a, b) = (link(&mut socket, "left"), link(&mut socket, "right"));
        assert_eq!(a.kind, LinkKind::Other("veth".into()));
        assert!(a.ethernet && !a.loopback && !a.up && a.master.is_none());
        assert_eq!(b.master, Some(link(&mut socket, "br").index));
        run("ip tuntap add many mode tap multi_queue");
        for (name, multi_queue) in [("t", false), ("many", true)] {
            let expected = LinkKind::Tap {
                queues: 0,
                multi_queue,
            };
            assert_eq!(link(&mut socket, name).kind, expected);
        }
        let lo = link(&mut socket, "lo");
        assert!(lo.loopback && !lo.ethernet && lo.mac.is_none());

        socket
            .change_link(
                b.index,
                &LinkChange {
                    up: Some(true),
                    ..LinkChange::default()
                },
            )
            .expect("a change");
        let mac = Mac([2, 0, 0, 0, 0, 7]);
        let change = LinkChange {
            name: Some("eth0".into()),
            mac: Some(mac),
            mtu: Some(1400),
            up: Some(true),
            no_arp: true,
            no_link_local: true,
        };
        socket.change_link(a.index, &change).expect("a change");
        let changed = link(&mut socket, "eth0");
        assert_eq!(
            (changed.index, changed.mac, changed.mtu, changed.up),
            (a.index, Some(mac), 1400, true)
        );
        assert!(changed.no_arp && !a.no_arp && !link(&mut socket, "right").no_arp);
        // The other end gets its address some time after it has a carrier; by then this one would have had its own.
        let begun = std::time::Instant::now();
        let addresses = loop {
            let addresses = socket.addresses().expect("addresses");
            if addresses.iter().any(|address| address.index == b.index) {
                break addresses;
            }
            assert!(begun.elapsed().as_secs() < 20, "{addresses:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert!(
            addresses.iter().all(|address| address.index != a.index),
            "{addresses:?}"
        );
    });
}

#[test]
fn a_refusal_says_why() {
    in_namespace(|mut socket| {
        let a = link(&mut socket, "left").index;
        let rename = LinkChange {
            name: Some("right".into()),
            ..LinkChange::default()
        };
        assert_eq!(
            socket.change_link(a, &rename).expect_err("taken").number,
            libc::EEXIST
        );
        let absent = socket.change_link(999, &rename).expect_err("absent");
        assert_eq!(absent.number, libc::ENODEV);
        let small = LinkChange {
            mtu: Some(1),
            ..LinkChange::default()
        };
        let error = socket.change_link(a, &small).expect_err("too small");
        assert!(error.words.is_some(), "{error}");
        // The socket is as good as before.
        assert!(socket.links().expect("links").len() >= 3);
    });
}

#[test]
fn addresses_routes_and_neighbours_are_as_asked() {
    in_namespace(|mut socket| {
        let a = link(&mut socket, "left").index;
        for index in [a, link(&mut socket, "right").index] {
            let up = LinkChange {
                up: Some(true),
                ..LinkChange::default()
            };
            socket.change_link(index, &up).expect("a change");
        }
        let flags = AddressFlags::NO_DAD.and(AddressFlags::NO_PREFIX_ROUTE);
        for (ip, prefix) in [("10.9.8.7", 24), ("fd00:9::7", 64)] {
            let address = Address {
                index: a,
                ip: ip.parse().expect("an address"),
                prefix,
                peer: None,
                broadcast: None,
                scope: 0,
                flags,
            };
            socket.put_address(&address).expect("an address");
            socket.put_address(&address).expect("the same again");
            let found = socket.addresses().expect("addresses");
            assert!(
                found.iter().any(|found| found.ip == address.ip
                    && found.prefix == prefix
                    && found.flags.has(AddressFlags::NO_PREFIX_ROUTE)),
                "{found:?}"
            );
        }
        assert!(
            !run("ip route").contains("10.9.8"),
            "no route that nobody asked for"
        );

        let link_route = Route {
            table: RT_TABLE_MAIN,
            kind: RouteKind::Unicast,
            destination: "169.254.1.1".parse().expect("an address"),
            prefix: 32,
            gateway: None,
            index: a,
            hops: Vec::new(),
            source: None,
            metric: 0,
            mtu: 0,
            scope: 253,
            protocol: 3,
            on_link: false,
        };
        let default = Route {
            destination: "0.0.0.0".parse().expect("an address"),
            prefix: 0,
            gateway: Some("169.254.1.1".parse().expect("an address")),
            source: Some("10.9.8.7".parse().expect("an address")),
            mtu: 1300,
            metric: 7,
            scope: 0,
            ..link_route.clone()
        };
        let six = Route {
            destination: "::".parse().expect("an address"),
            prefix: 0,
            gateway: Some("fd00:1::1".parse().expect("an address")),
            on_link: true,
            metric: 1024,
            scope: 0,
            ..link_route.clone()
        };
        let elsewhere = Route {
            table: 1000,
            ..default.clone()
        };
        let hop = |gateway: &str, weight| Hop {
            index: a,
            gateway: Some(gateway.parse().expect("an address")),
            weight,
            on_link: false,
        };
        let shared = Route {
            destination: "10.20.0.0".parse().expect("an address"),
            prefix: 16,
            index: 0,
            hops: vec![hop("10.9.8.1", 1), hop("10.9.8.2", 3)],
            scope: 0,
            ..link_route.clone()
        };
        let shared_six = Route {
            destination: "fd00:20::".parse().expect("an address"),
            prefix: 64,
            metric: 1024,
            hops: vec![hop("fd00:9::1", 1), hop("fd00:9::2", 256)],
            ..shared.clone()
        };
        let near = Route {
            destination: "10.9.8.0".parse().expect("an address"),
            prefix: 24,
            ..link_route.clone()
        };
        let near_six = Route {
            destination: "fd00:9::".parse().expect("an address"),
            prefix: 64,
            metric: 256,
            scope: 0,
            ..link_route.clone()
        };
        let error = socket.put_route(&default).expect_err("its next hop is nowhere");
        assert_eq!(error.number, libc::ENETUNREACH, "{error}");
        for route in [
            &link_route,
            &default,
            &six,
            &elsewhere,
            &near,
            &near_six,
            &shared,
            &shared_six,
        ] {
            socket.put_route(route).expect("a route");
            socket.put_route(route).expect("the same again");
            let routes = socket.routes().expect("routes");
            assert_eq!(
                routes.iter().filter(|found| *found == route).count(),
                1,
                "{route:?} in {routes:?}"
            );
        }
        let table = run("ip route");
        assert!(
            table.contains("default via 169.254.1.1 dev left src 10.9.8.7 metric 7 mtu 1300"),
            "{table}"
        );
        assert!(run("ip -6 route").contains("default via fd00:1::1 dev left metric 1024 onlink"));
        let hops = run("ip route show 10.20.0.0/16");
        assert!(
            hops.contains("via 10.9.8.1 dev left weight 1")
                && hops.contains("via 10.9.8.2 dev left weight 3"),
            "{hops}"
        );
        assert!(run("ip route show table 1000").contains("default via 169.254.1.1 dev left"));

        let neighbour = Neighbour {
            index: a,
            ip: "169.254.1.1".parse().expect("an address"),
            mac: Mac([0xee; 6]),
        };
        socket.put_neighbour(&neighbour).expect("a neighbour");
        assert_eq!(socket.neighbours().expect("neighbours"), [neighbour]);
        assert!(run("ip neigh").contains("169.254.1.1 dev left lladdr ee:ee:ee:ee:ee:ee PERMANENT"));
    });
}

#[test]
fn rules_are_beside_the_initial_ones() {
    in_namespace(|mut socket| {
        let initial = socket.rules().expect("rules");
        assert!(
            initial.len() >= 4 && initial.iter().all(Rule::is_initial),
            "{initial:?}"
        );
        let four = Rule {
            priority: 100,
            table: 1000,
            source: "10.9.8.7".parse().expect("an address"),
            source_prefix: 32,
            destination: "0.0.0.0".parse().expect("an address"),
            destination_prefix: 0,
            input: String::new(),
            output: "left".into(),
            mark: 1,
            mask: 0xff,
            suppress: Some(8),
            invert: true,
            more: false,
        };
        let six = Rule {
            table: 100,
            source: "::".parse().expect("an address"),
            source_prefix: 0,
            destination: "fd00:9::".parse().expect("an address"),
            destination_prefix: 64,
            input: "lo".into(),
            output: String::new(),
            mark: 0,
            mask: 0,
            suppress: None,
            invert: false,
            ..four.clone()
        };
        // The kernel takes and tells the bits behind those of a network.
        let with_more_bits = Rule {
            priority: 101,
            source_prefix: 16,
            ..four.clone()
        };
        for rule in [&four, &six, &with_more_bits] {
            socket.put_rule(rule).expect("a rule");
            socket.put_rule(rule).expect("the same again");
            let rules = socket.rules().expect("rules");
            assert_eq!(
                rules.iter().filter(|found| *found == rule).count(),
                1,
                "{rule:?} in {rules:?}"
            );
        }
        assert!(
            run("ip rule").contains(
                "100:\tnot from 10.9.8.7 fwmark 0x1/0xff oif left lookup 1000 suppress_prefixlength 8"
            ),
            "{}",
            run("ip rule")
        );
        run("ip rule add uidrange 7-8 table 1000 priority 90");
        let rules = socket.rules().expect("rules");
        assert_eq!(rules.iter().filter(|rule| rule.more).count(), 1, "{rules:?}");
    });
}

#[test]
fn everything_is_redirected_until_it_is_not() {
    in_namespace(|mut socket| {
        let (a, b) = (link(&mut socket, "left").index, link(&mut socket, "right").index);
        assert!(socket.redirect(a, b).is_err(), "it needs its queueing discipline");
        socket.add_ingress(a).expect("a queueing discipline");
        assert_eq!(
            socket.add_ingress(a).expect_err("there is one").number,
            libc::EEXIST
        );
        socket.redirect(a, b).expect("a filter");
        let filters = run("tc filter show dev left ingress");
        assert!(
            filters.contains("protocol all") && filters.contains("u32"),
            "{filters}"
        );
        assert!(
            filters.contains("mirred (Egress Redirect to device right) stolen"),
            "{filters}"
        );
        socket.remove_ingress(a).expect("it is removed");
        assert!(socket.remove_ingress(a).is_err());
        assert_eq!(run("tc filter show dev left ingress"), "");
    });
}

#[test]
fn a_macvtap_comes_and_goes() {
    in_namespace(|mut socket| {
        let a = link(&mut socket, "left");
        let macvtap = Macvtap {
            name: "tap",
            parent: a.index,
            mtu: 1400,
        };
        socket.add_macvtap(&macvtap).expect("a macvtap");
        let made = link(&mut socket, "tap");
        assert_eq!(
            (made.mac, made.mtu, made.kind),
            (a.mac, 1400, LinkKind::Other("macvtap".into()))
        );
        assert!(run("ip -d link show tap").contains("mode passthru"));
        socket.remove_link(made.index).expect("it is removed");
        assert_eq!(
            socket.remove_link(made.index).expect_err("gone").number,
            libc::ENODEV
        );
    });
}

#[test]
fn a_long_list_is_complete() {
    in_namespace(|mut socket| {
        let a = link(&mut socket, "left").index;
        for n in 0..1000_u32 {
            let address = Address {
                index: a,
                ip: std::net::Ipv4Addr::from(0x0a00_0001 + n).into(),
                prefix: 32,
                peer: None,
                broadcast: None,
                scope: 0,
                flags: AddressFlags::default(),
            };
            socket.put_address(&address).expect("an address");
        }
        assert_eq!(socket.addresses().expect("addresses").len(), 1000);
    });
}

//! From a scan to the guest's settings, case by case.

use netlink::{
    Address, AddressFlags, Hop, Link, LinkKind, Mac, Neighbour, RT_TABLE_MAIN, Route, RouteKind, Rule,
};

use super::super::view::{Known, Scan, View, Way, of};

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.into(),
        kind: LinkKind::Other("veth".into()),
        ethernet: true,
        loopback: false,
        up: true,
        no_arp: false,
        mac: Some(Mac([2, 0, 0, 0, 0, index as u8])),
        mtu: 1500,
        master: None,
    }
}

fn address(index: u32, ip: &str, prefix: u8) -> Address {
    Address {
        index,
        ip: ip.parse().unwrap(),
        prefix,
        peer: None,
        broadcast: None,
        scope: 0,
        flags: AddressFlags::PERMANENT,
    }
}

fn route(index: u32, destination: &str, prefix: u8, gateway: &str) -> Route {
    Route {
        table: RT_TABLE_MAIN,
        kind: RouteKind::Unicast,
        destination: destination.parse().unwrap(),
        prefix,
        gateway: gateway.parse().ok(),
        index,
        hops: Vec::new(),
        source: None,
        metric: 0,
        mtu: 0,
        scope: 0,
        protocol: 3,
        on_link: false,
    }
}

fn seen(scan: &Scan) -> View {
    of(scan, &Known::default()).unwrap()
}

/// These are connected, under their names in the guest.
fn known<const N: usize>(connected: [(u32, &str); N]) -> Known {
    Known {
        connected: connected.map(|(index, name)| (index, name.to_owned())).into(),
        ..Known::default()
    }
}

#[test]
fn which_links_are_connected() {
    type Change = fn(&mut Link);
    let cases: [(&str, Change, bool, Option<Way>); 10] = [
        ("a veth", |_| {}, false, Some(Way::Model)),
        (
            "a card",
            |link| link.kind = LinkKind::Device,
            false,
            Some(Way::Model),
        ),
        (
            "an ipvlan, on which no macvtap can be",
            |link| link.kind = LinkKind::Other("ipvlan".into()),
            false,
            Some(Way::Filters),
        ),
        ("the loopback device", |link| link.loopback = true, true, None),
        ("a port of a bridge", |link| link.master = Some(7), true, None),
        (
            "what is down, without address",
            |link| link.up = false,
            false,
            None,
        ),
        (
            "what is down, with an address",
            |link| link.up = false,
            true,
            Some(Way::Model),
        ),
        (
            "a tunnel that nobody has set up",
            |link| {
                link.ethernet = false;
                link.mac = None;
            },
            false,
            None,
        ),
        (
            "a tap that somebody uses",
            |link| {
                link.kind = LinkKind::Tap {
                    queues: 1,
                    multi_queue: false,
                }
            },
            true,
            Some(Way::Model),
        ),
        (
            "a tap that waits, though it is down and a port",
            |link| {
                link.kind = LinkKind::Tap {
                    queues: 0,
                    multi_queue: true,
                };
                link.up = false;
                link.master = Some(7);
            },
            false,
            Some(Way::Itself { multi_queue: true }),
        ),
    ];
    for (what, change, addressed, expected) in cases {
        let mut one = link(2, "eth0");
        change(&mut one);
        let scan = Scan {
            links: vec![one],
            addresses: addressed
                .then(|| address(2, "10.0.0.2", 24))
                .into_iter()
                .collect(),
            ..Scan::default()
        };
        let view = seen(&scan);
        assert_eq!(view.interfaces.first().map(|i| i.way), expected, "{what}");
        assert_eq!(view.guest.interfaces.len(), view.interfaces.len(), "{what}");
    }
}

#[test]
fn interfaces_are_in_the_order_of_their_numbers_and_known_ones_are_left_out() {
    let scan = Scan {
        links: vec![link(9, "c"), link(3, "a"), link(4, "b")],
        ..Scan::default()
    };
    let names = |view: View| -> Vec<_> { view.guest.interfaces.into_iter().map(|i| i.name).collect() };
    assert_eq!(names(seen(&scan)), ["a", "b", "c"]);
    assert_eq!(
        names(
            of(
                &scan,
                &Known {
                    own: [9].into(),
                    ..known([(3, "a")])
                }
            )
            .unwrap()
        ),
        ["b"]
    );
}

#[test]
fn which_addresses_the_guest_is_told() {
    let with = |ip, flags| Address {
        flags,
        ..address(2, ip, 64)
    };
    let permanent = AddressFlags::PERMANENT;
    let cases = [
        (with("10.0.0.2", AddressFlags::default()), true),
        (with("10.0.0.3", AddressFlags::SECONDARY), true),
        (with("fd00::2", permanent), true),
        (with("fe80::2", permanent), true),
        (with("fd00::3", AddressFlags::default()), false),
        (with("fd00::4", permanent.and(AddressFlags::SECONDARY)), false),
        (with("fd00::5", permanent.and(AddressFlags::DAD_FAILED)), false),
    ];
    for (address, expected) in cases {
        let scan = Scan {
            links: vec![link(2, "eth0")],
            addresses: vec![address.clone()],
            ..Scan::default()
        };
        assert_eq!(
            !seen(&scan).guest.interfaces[0].addresses.is_empty(),
            expected,
            "{address:?}"
        );
    }
    let peered = Address {
        peer: Some("10.0.0.1".parse().unwrap()),
        broadcast: Some("10.0.0.255".parse().unwrap()),
        scope: 253,
        ..address(2, "10.0.0.2", 32)
    };
    let scan = Scan {
        links: vec![link(2, "eth0")],
        addresses: vec![peered],
        ..Scan::default()
    };
    let told = &seen(&scan).guest.interfaces[0].addresses[0];
    assert_eq!(
        (
            told.ip.as_str(),
            told.peer.as_str(),
            told.broadcast.as_str(),
            told.scope
        ),
        ("10.0.0.2/32", "10.0.0.1", "10.0.0.255", 253)
    );
}

#[test]
fn routes_to_gateways_come_first_and_the_rest_keep_their_order() {
    let announced = Route {
        protocol: 9,
        ..route(2, "::", 0, "fe80::1")
    };
    let hop = |index, gateway: &str| Hop {
        index,
        gateway: gateway.parse().ok(),
        weight: 3,
        on_link: false,
    };
    let shared = |destination, hops: [Hop; 2]| Route {
        hops: hops.into(),
        ..route(0, destination, 16, "")
    };
    let refused = Route {
        kind: RouteKind::Refused,
        ..route(0, "10.8.0.0", 16, "")
    };
    let scan = Scan {
        links: vec![
            link(2, "eth0"),
            Link {
                up: false,
                ..link(3, "down")
            },
        ],
        routes: vec![
            route(2, "0.0.0.0", 0, "169.254.1.1"),
            route(2, "169.254.1.1", 32, ""),
            route(3, "10.1.0.0", 16, ""),
            announced,
            shared("10.9.0.0", [hop(2, "169.254.1.1"), hop(3, "")]),
            shared("10.10.0.0", [hop(2, "169.254.1.1"), hop(2, "")]),
            shared("10.11.0.0", [hop(3, ""), hop(3, "")]),
            refused,
            route(2, "10.2.0.0", 16, "169.254.1.1"),
            route(2, "10.3.0.0", 16, ""),
        ],
        ..Scan::default()
    };
    let view = seen(&scan);
    let told: Vec<_> = view.guest.routes.iter().map(|r| r.destination.as_str()).collect();
    assert_eq!(
        told,
        [
            "169.254.1.1/32",
            "10.3.0.0/16",
            "0.0.0.0/0",
            "10.10.0.0/16",
            "10.2.0.0/16"
        ]
    );
    for route in &view.guest.routes {
        let hops: Vec<_> = route
            .hops
            .iter()
            .map(|hop| (hop.gateway.as_str(), hop.device.as_str(), hop.weight))
            .collect();
        match route.destination.as_str() {
            "10.10.0.0/16" => assert_eq!(hops, [("169.254.1.1", "eth0", 3), ("", "eth0", 3)]),
            _ => assert!(hops.is_empty() && route.device == "eth0", "{route}"),
        }
    }
    assert_eq!(
        view.left_out,
        [
            "the route to 10.9.0.0/16 has next hops on interfaces that are not connected",
            "the route to 10.8.0.0/16 leads to no interface"
        ]
    );
    assert!(
        of(&scan, &known([(2, "eth0")])).unwrap().left_out.is_empty(),
        "told once"
    );
}

/// With Docker 26 a pod's networks come one after the other, and a route may lead to old and new ones.
#[test]
fn a_route_with_hops_on_old_and_new_interfaces_is_told_with_the_new_ones() {
    let hop = |index| Hop {
        index,
        gateway: None,
        weight: 0,
        on_link: false,
    };
    let shared = |destination, hops: &[u32]| Route {
        hops: hops.iter().copied().map(hop).collect(),
        ..route(0, destination, 16, "")
    };
    let down = Link {
        up: false,
        ..link(4, "down")
    };
    let scan = |routes: Vec<Route>| Scan {
        links: vec![
            link(2, "renamed"),
            link(3, "eth1"),
            down.clone(),
            link(9, "kata2"),
        ],
        routes,
        ..Scan::default()
    };
    let mut before = Known {
        own: [9].into(),
        ..known([(2, "eth0")])
    };
    before.routes = vec![agent_protocol::Route {
        destination: "10.7.0.0/16".into(),
        ..Default::default()
    }];
    let not_connected = "has next hops on interfaces that are not connected";
    // Hops; the devices that the guest is told, or why it is not told.
    type Told = Result<Vec<&'static str>, &'static str>;
    let table: [(&str, &[u32], Told); 7] = [
        ("10.1.0.0", &[2, 3], Ok(vec!["eth0", "eth1"])),
        ("10.2.0.0", &[3, 2, 3], Ok(vec!["eth1", "eth0", "eth1"])),
        ("10.3.0.0", &[3, 3], Ok(vec!["eth1", "eth1"])),
        // The guest has it already, or could not have it before either.
        ("10.4.0.0", &[2, 2], Ok(vec![])),
        ("10.5.0.0", &[2, 4], Ok(vec![])),
        ("10.6.0.0", &[3, 4], Err(not_connected)),
        // Through the old one alone it is told.
        ("10.7.0.0", &[2, 3], Err("replaces one that the guest keeps")),
    ];
    for (destination, hops, expected) in table {
        let view = of(&scan(vec![shared(destination, hops)]), &before).unwrap();
        let devices: Vec<_> = view
            .guest
            .routes
            .iter()
            .flat_map(|route| route.hops.iter().map(|hop| hop.device.as_str()))
            .collect();
        let left_out: Vec<String> = match expected {
            Ok(_) => vec![],
            Err(why) => vec![format!("the route to {destination}/16 {why}")],
        };
        assert_eq!(devices, expected.unwrap_or_default(), "{destination}");
        assert_eq!(view.left_out, left_out, "{destination}");
    }
}

#[test]
fn every_property_of_a_route_is_told() {
    let full = Route {
        source: Some("10.0.0.2".parse().unwrap()),
        metric: 5,
        mtu: 1400,
        scope: 253,
        protocol: 2,
        on_link: true,
        ..route(2, "10.1.0.0", 16, "fe80::1")
    };
    let routed = Link {
        no_arp: true,
        ..link(2, "eth0")
    };
    let scan = Scan {
        links: vec![routed],
        routes: vec![full],
        neighbours: vec![
            Neighbour {
                index: 2,
                ip: "fe80::1".parse().unwrap(),
                mac: Mac([0xee; 6]),
            },
            Neighbour {
                index: 7,
                ip: "10.0.0.1".parse().unwrap(),
                mac: Mac([0xee; 6]),
            },
        ],
        no_ipv6: [2].into(),
        common_sysctls: [("ipv4.ip_forward".into(), "1".into())].into(),
        sysctls: [2, 7]
            .map(|index| (index, [("ipv4.rp_filter".into(), index.to_string())].into()))
            .into(),
        ..Scan::default()
    };
    let guest = seen(&scan).guest;
    let told = &guest.routes[0];
    assert_eq!(
        (
            told.gateway.as_str(),
            told.source.as_str(),
            told.metric,
            told.mtu,
            told.scope,
            told.protocol,
            told.on_link
        ),
        ("fe80::1", "10.0.0.2", 5, 1400, 253, 2, true)
    );
    assert_eq!(guest.neighbours.len(), 1, "only behind what is connected");
    assert_eq!(
        (
            guest.neighbours[0].mac.as_str(),
            guest.neighbours[0].device.as_str()
        ),
        ("ee:ee:ee:ee:ee:ee", "eth0")
    );
    assert!(guest.interfaces[0].no_ipv6 && guest.interfaces[0].no_arp);
    assert_eq!(guest.sysctls, [("ipv4.ip_forward".into(), "1".into())].into());
    assert!(
        of(&scan, &known([(7, "x")])).unwrap().guest.sysctls.is_empty(),
        "told once"
    );
    assert_eq!(
        guest.interfaces[0].sysctls,
        [("ipv4.rp_filter".into(), "2".into())].into()
    );
}

#[test]
fn rules_and_other_tables_are_told() {
    let from = |priority, table, source: &str, source_prefix| Rule {
        priority,
        table,
        source: source.parse().unwrap(),
        source_prefix,
        destination: if source.contains(':') { "::" } else { "0.0.0.0" }
            .parse()
            .unwrap(),
        destination_prefix: 0,
        input: String::new(),
        output: String::new(),
        mark: 0,
        mask: 0,
        suppress: None,
        invert: false,
        more: false,
    };
    let elsewhere = Route {
        table: 100,
        ..route(2, "0.0.0.0", 0, "10.0.0.1")
    };
    let refused = Route {
        table: 100,
        kind: RouteKind::Refused,
        ..route(0, "10.8.0.0", 16, "")
    };
    let exotic = Rule {
        more: true,
        ..from(50, 100, "0.0.0.0", 0)
    };
    let suppressing = Rule {
        suppress: Some(0),
        ..from(60, RT_TABLE_MAIN, "::", 0)
    };
    let scan = Scan {
        links: vec![link(2, "eth0")],
        routes: vec![route(2, "10.0.0.0", 24, ""), elsewhere, refused],
        rules: vec![
            from(0, 255, "0.0.0.0", 0),
            exotic,
            suppressing,
            from(100, 100, "10.0.0.2", 32),
            from(32_766, RT_TABLE_MAIN, "::", 0),
        ],
        ..Scan::default()
    };
    let view = seen(&scan);
    let tables: Vec<_> = view.guest.routes.iter().map(|route| route.table).collect();
    assert_eq!(tables, [0, 100]);
    let rules = view.guest.rules.iter().map(|rule| {
        format!(
            "{}: {} to {} lookup {} from {} bits",
            rule.priority, rule.source, rule.destination, rule.table, rule.least_prefix
        )
    });
    assert_eq!(
        rules.collect::<Vec<_>>(),
        [
            "60: ::/0 to ::/0 lookup 254 from 1 bits",
            "100: 10.0.0.2/32 to 0.0.0.0/0 lookup 100 from 0 bits"
        ]
    );
    assert_eq!(
        view.left_out,
        [
            "the route to 10.8.0.0/16 in table 100 leads to no interface",
            "the rule of priority 50 for table 100 selects packets by more than addresses, interfaces and marks"
        ]
    );
    let nothing_new = of(&scan, &known([(2, "eth0")])).unwrap();
    assert!(nothing_new.guest.rules.is_empty() && nothing_new.left_out.is_empty());
}

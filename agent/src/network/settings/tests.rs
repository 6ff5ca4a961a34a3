//! What is read of the host's words, and what is refused.

use proptest::prelude::*;

use super::*;

fn refused<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn addresses_are_read_with_their_network() {
    let words = AddressWords {
        ip: "10.1.2.3/24",
        broadcast: "10.1.2.255",
        ..AddressWords::default()
    };
    let read = address(&words).unwrap();
    assert_eq!((read.ip.to_string().as_str(), read.prefix), ("10.1.2.3", 24));
    assert!(read.flags.has(AddressFlags::NO_PREFIX_ROUTE));
    for (ip, peer, broadcast) in [
        ("10.1.2.3", "", ""),
        ("10.1.2.3/33", "", ""),
        ("10.1.2.3/+8", "", ""),
        ("10.1.2.3/", "", ""),
        ("10.1.2/24", "", ""),
        ("fd00::1/129", "", ""),
        ("fd00::1/64", "10.0.0.1", ""),
        ("fd00::1/64", "", "fd00::2"),
        ("10.1.2.3/24", "", "x"),
    ] {
        let words = AddressWords {
            ip,
            peer,
            broadcast,
            scope: 0,
        };
        let error = refused(address(&words));
        assert!(error.starts_with("network.address."), "{words:?}: {error}");
    }
    let scope = AddressWords { scope: 256, ..words };
    assert!(refused(address(&scope)).contains("256"));
}

#[test]
fn routes_are_read_with_their_device() {
    let words = RouteWords {
        destination: "0.0.0.0/0",
        gateway: "fe80::1",
        device: "eth0",
        source: "10.1.2.3",
        metric: 5,
        ..RouteWords::default()
    };
    let (devices, read) = route(&words).unwrap();
    assert_eq!(
        (devices, read.prefix, read.metric),
        (vec!["eth0".to_owned()], 0, 5)
    );
    assert_eq!(
        read.gateway,
        Some("fe80::1".parse().unwrap()),
        "the other family's"
    );
    for (part, wrong) in [
        (
            "destination",
            RouteWords {
                destination: "10.0.0.1/8",
                ..words
            },
        ),
        (
            "destination",
            RouteWords {
                destination: "fd00::/x",
                ..words
            },
        ),
        (
            "gateway",
            RouteWords {
                gateway: "gw",
                ..words
            },
        ),
        (
            "source",
            RouteWords {
                source: "fd00::1",
                ..words
            },
        ),
        ("name", RouteWords { device: "", ..words }),
        (
            "protocol",
            RouteWords {
                protocol: 1000,
                ..words
            },
        ),
    ] {
        let error = refused(route(&wrong));
        assert!(error.contains(part), "{wrong:?}: {error}");
    }
}

#[test]
fn routes_share_packets_among_hops() {
    let hop = |gateway, device, weight| HopWords {
        gateway,
        device,
        weight,
        on_link: false,
    };
    let good = [hop("10.0.0.1", "eth0", 1), hop("fe80::1", "eth1", 256)];
    let words = RouteWords {
        destination: "10.9.0.0/16",
        hops: &good,
        ..RouteWords::default()
    };
    let (devices, read) = route(&words).unwrap();
    assert_eq!(devices, ["eth0", "eth1"]);
    let weights: Vec<_> = read.hops.iter().map(|hop| (hop.weight, hop.index)).collect();
    assert_eq!(weights, [(1, 0), (256, 0)]);
    let many = [good[0]; 65];
    for (wrong, why) in [
        (
            RouteWords {
                hops: &good[..1],
                ..words
            },
            "only one",
        ),
        (RouteWords { hops: &many, ..words }, "more than 64"),
        (
            RouteWords {
                device: "eth0",
                ..words
            },
            "beside",
        ),
        (
            RouteWords {
                gateway: "10.0.0.1",
                ..words
            },
            "beside",
        ),
        (
            RouteWords {
                hops: &[hop("", "eth0", 0), good[1]],
                ..words
            },
            "weight of 0",
        ),
        (
            RouteWords {
                hops: &[hop("", "eth0", 257), good[1]],
                ..words
            },
            "weight of 257",
        ),
        (
            RouteWords {
                hops: &[hop("x", "eth0", 1), good[1]],
                ..words
            },
            "not an IP address",
        ),
        (
            RouteWords {
                hops: &[hop("", "a/b", 1), good[1]],
                ..words
            },
            "cannot name",
        ),
    ] {
        let error = refused(route(&wrong));
        assert!(error.contains(why), "{wrong:?}: {error}");
    }
}

#[test]
fn sysctls_of_the_namespace_are_below_its_directory() {
    for (name, value, file) in [
        ("ipv4.ip_forward", "1", "ipv4/ip_forward"),
        ("core.somaxconn", "128", "core/somaxconn"),
        ("ipv4.ping_group_range", "0\t2147483647", "ipv4/ping_group_range"),
        (
            "ipv4.ip_local_reserved_ports",
            "80,8000-8010",
            "ipv4/ip_local_reserved_ports",
        ),
        ("ipv4.ip_local_reserved_ports", "", "ipv4/ip_local_reserved_ports"),
        ("ipv6.conf.all.accept_ra", "-1", "ipv6/conf/all/accept_ra"),
    ] {
        assert_eq!(
            namespace_sysctl(name, value).unwrap(),
            (file.to_owned(), value.to_owned())
        );
    }
    for (name, value) in [
        ("somaxconn", "1"),
        ("ipv4..ip_forward", "1"),
        ("ipv4.../x", "1"),
        ("ipv4.a/b", "1"),
        (".ipv4.x", "1"),
        ("ipv4.X", "1"),
        ("ipv4.tcp_congestion_control", "cubic"),
        ("ipv4.ip_forward", "1\n2"),
        ("ipv4.ip_forward", &"1".repeat(2000)),
    ] {
        assert!(
            refused(namespace_sysctl(name, value)).starts_with("network.sysctls"),
            "{name}"
        );
    }
}

#[test]
fn rules_are_of_one_family_and_lead_to_a_table() {
    let words = RuleWords {
        table: 100,
        source: "10.1.0.0/16",
        destination: "0.0.0.0/0",
        input: "lo",
        least_prefix: 1,
        ..RuleWords::default()
    };
    let read = rule(&words).unwrap();
    assert_eq!((read.source_prefix, read.destination_prefix), (16, 0));
    assert_eq!((read.input.as_str(), read.suppress), ("lo", Some(0)));
    let any_route = RuleWords {
        least_prefix: 0,
        ..words
    };
    assert_eq!(rule(&any_route).unwrap().suppress, None);
    for (part, wrong) in [
        ("table", RuleWords { table: 0, ..words }),
        (
            "source",
            RuleWords {
                source: "10.1.0.1/33",
                ..words
            },
        ),
        (
            "destination",
            RuleWords {
                destination: "::/0",
                ..words
            },
        ),
        (
            "name",
            RuleWords {
                output: "a/b",
                ..words
            },
        ),
    ] {
        let error = refused(rule(&wrong));
        assert!(error.contains(part), "{wrong:?}: {error}");
    }
}

#[test]
fn names_are_those_that_the_kernel_takes() {
    for good in ["eth0", "net-1", "a", "0123456789abcde", "eth0.100", "x@y"] {
        assert_eq!(name(good).unwrap(), good);
    }
    for bad in [
        "",
        "0123456789abcdef",
        "a b",
        "a/b",
        ".",
        "..",
        "lo",
        "a:1",
        "ä",
        "a\0",
        "a\n",
    ] {
        assert!(refused(name(bad)).contains("interface"), "{bad:?}");
    }
}

#[test]
fn a_hardware_address_is_one_devices() {
    mac("mac", "02:00:00:00:00:01").unwrap();
    for bad in [
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "02:00",
    ] {
        assert!(refused(mac("mac", bad)).starts_with("mac: "), "{bad}");
    }
}

#[test]
fn sysctls_are_numbers_of_an_interface() {
    let read = sysctl("ipv6.accept_ra", "-1").unwrap();
    assert_eq!(
        (read.family, read.key.as_str(), read.value.as_str()),
        ("ipv6", "accept_ra", "-1")
    );
    for (name, value) in [
        ("ipv4.", "1"),
        ("ipv5.rp_filter", "1"),
        ("rp_filter", "1"),
        ("ipv4.../../../kernel/panic", "1"),
        ("ipv4.a/b", "1"),
        ("ipv4.rp_filter", "x"),
        ("ipv4.rp_filter", ""),
    ] {
        let error = refused(sysctl(name, value));
        assert!(error.starts_with("network.interface.sysctls"), "{name}: {error}");
    }
}

#[test]
fn names_are_used_once() {
    let interface = Interface {
        name: "eth0".into(),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        mtu: None,
        up: true,
        no_ipv6: false,
        no_arp: false,
        addresses: vec![],
        sysctls: vec![],
    };
    let of = |interfaces| Network {
        interfaces,
        ..Network::default()
    };
    of(vec![interface.clone()]).check().unwrap();
    let twice = of(vec![interface.clone(), interface.clone()]);
    assert!(refused(twice.check()).contains("same name"));
    assert!(of(vec![interface; 65]).check().is_err());
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".*") {
        let _ = address(&AddressWords { ip: &text, ..AddressWords::default() });
        let _ = route(&RouteWords { destination: &text, device: &text, ..RouteWords::default() });
        let _ = neighbour(&text, &text, &text);
        let _ = rule(&RuleWords { source: &text, destination: &text, input: &text, ..RuleWords::default() });
    }

    #[test]
    fn a_network_has_no_bits_behind_it(octets in any::<[u8; 16]>(), prefix in 0_u8..=128) {
        let network = network_of(octets.into(), prefix);
        prop_assert_eq!(network_of(network, prefix), network);
        let words = format!("{network}/{prefix}");
        route(&RouteWords { destination: &words, device: "eth0", ..RouteWords::default() }).unwrap();
    }
}

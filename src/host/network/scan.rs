//! What is in the network namespace of the calling thread.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use netlink::{Link, Socket};

use super::refused;
use super::view::Scan;
use crate::error::Result;

/// Reads it all.
pub(super) fn read(kernel: &mut Socket) -> Result<Scan> {
    let links = kernel.links().map_err(refused("list its interfaces"))?;
    Ok(Scan {
        addresses: kernel.addresses().map_err(refused("list its addresses"))?,
        routes: kernel.routes().map_err(refused("list its routes"))?,
        rules: kernel.rules().map_err(refused("list its rules"))?,
        neighbours: kernel.neighbours().map_err(refused("list its neighbours"))?,
        no_ipv6: links
            .iter()
            .filter(|link| !has_ipv6(&link.name))
            .map(|link| link.index)
            .collect::<BTreeSet<_>>(),
        sysctls: sysctls(&links),
        common_sysctls: common_sysctls(),
        links,
    })
}

/// Of interfaces, what plugins and administrators tune and a guest has as well.
const SYSCTLS: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &[
            "accept_local",
            "accept_redirects",
            "accept_source_route",
            "arp_accept",
            "arp_announce",
            "arp_filter",
            "arp_ignore",
            "arp_notify",
            "forwarding",
            "log_martians",
            "promote_secondaries",
            "proxy_arp",
            "route_localnet",
            "rp_filter",
            "secure_redirects",
            "send_redirects",
            "src_valid_mark",
        ],
    ),
    (
        "ipv6",
        &[
            "accept_ra",
            "accept_ra_defrtr",
            "accept_ra_pinfo",
            "accept_redirects",
            "accept_source_route",
            "autoconf",
            "forwarding",
            "hop_limit",
            "ndisc_notify",
            "proxy_ndp",
            "router_solicitations",
            "use_tempaddr",
        ],
    ),
];

/// Of a namespace, what plugins and administrators tune, with what a new one has (some kernels differ).
const COMMON_SYSCTLS: &[(&str, &[&str])] = &[
    ("core.somaxconn", &["4096", "128"]),
    ("ipv4.conf.all.accept_local", &["0"]),
    ("ipv4.conf.all.accept_redirects", &["1"]),
    ("ipv4.conf.all.accept_source_route", &["0"]),
    ("ipv4.conf.all.arp_accept", &["0"]),
    ("ipv4.conf.all.arp_announce", &["0"]),
    ("ipv4.conf.all.arp_filter", &["0"]),
    ("ipv4.conf.all.arp_ignore", &["0"]),
    ("ipv4.conf.all.arp_notify", &["0"]),
    ("ipv4.conf.all.log_martians", &["0"]),
    ("ipv4.conf.all.proxy_arp", &["0"]),
    ("ipv4.conf.all.route_localnet", &["0"]),
    ("ipv4.conf.all.rp_filter", &["0"]),
    ("ipv4.conf.all.secure_redirects", &["1"]),
    ("ipv4.conf.all.send_redirects", &["1"]),
    ("ipv4.conf.all.src_valid_mark", &["0"]),
    ("ipv4.fib_multipath_hash_policy", &["0"]),
    ("ipv4.fib_multipath_use_neigh", &["0"]),
    ("ipv4.fwmark_reflect", &["0"]),
    ("ipv4.icmp_echo_ignore_all", &["0"]),
    ("ipv4.icmp_echo_ignore_broadcasts", &["1"]),
    ("ipv4.igmp_max_memberships", &["20"]),
    ("ipv4.ip_default_ttl", &["64"]),
    ("ipv4.ip_forward", &["0"]),
    ("ipv4.ip_local_port_range", &["32768 60999"]),
    ("ipv4.ip_local_reserved_ports", &[""]),
    ("ipv4.ip_no_pmtu_disc", &["0"]),
    ("ipv4.ip_nonlocal_bind", &["0"]),
    ("ipv4.ip_unprivileged_port_start", &["1024"]),
    ("ipv4.ping_group_range", &["1 0"]),
    ("ipv4.tcp_abort_on_overflow", &["0"]),
    ("ipv4.tcp_ecn", &["2"]),
    ("ipv4.tcp_fastopen", &["1"]),
    ("ipv4.tcp_fin_timeout", &["60"]),
    ("ipv4.tcp_fwmark_accept", &["0"]),
    ("ipv4.tcp_keepalive_intvl", &["75"]),
    ("ipv4.tcp_keepalive_probes", &["9"]),
    ("ipv4.tcp_keepalive_time", &["7200"]),
    ("ipv4.tcp_mtu_probing", &["0"]),
    ("ipv4.tcp_notsent_lowat", &["4294967295"]),
    ("ipv4.tcp_orphan_retries", &["0"]),
    ("ipv4.tcp_retries1", &["3"]),
    ("ipv4.tcp_retries2", &["15"]),
    ("ipv4.tcp_rmem", &["4096 131072 6291456", "4096 131072 33554432"]),
    ("ipv4.tcp_sack", &["1"]),
    ("ipv4.tcp_slow_start_after_idle", &["1"]),
    ("ipv4.tcp_syn_retries", &["6"]),
    ("ipv4.tcp_synack_retries", &["5"]),
    ("ipv4.tcp_syncookies", &["1"]),
    ("ipv4.tcp_timestamps", &["1"]),
    ("ipv4.tcp_tw_reuse", &["2"]),
    ("ipv4.tcp_window_scaling", &["1"]),
    ("ipv4.tcp_wmem", &["4096 16384 4194304"]),
    ("ipv6.bindv6only", &["0"]),
    ("ipv6.conf.all.accept_ra", &["1"]),
    ("ipv6.conf.all.accept_redirects", &["1"]),
    ("ipv6.conf.all.disable_ipv6", &["0"]),
    ("ipv6.conf.all.forwarding", &["0"]),
    ("ipv6.fib_multipath_hash_policy", &["0"]),
    ("ipv6.ip_nonlocal_bind", &["0"]),
    ("unix.max_dgram_qlen", &["10"]),
];

/// Those that are not as a new namespace has them. What is not there nobody has set.
fn common_sysctls() -> BTreeMap<String, String> {
    let differs = |(name, usual): &(&str, &[&str])| {
        let text = fs::read_to_string(format!("/proc/sys/net/{}", name.replace('.', "/"))).ok()?;
        let value = text.split_whitespace().collect::<Vec<_>>().join(" ");
        (!usual.contains(&value.as_str())).then(|| ((*name).to_owned(), value))
    };
    COMMON_SYSCTLS.iter().filter_map(differs).collect()
}

/// Those that somebody has set for one interface: they are not as the namespace gives them to a new one.
fn sysctls(links: &[Link]) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut differ: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
    if links.iter().all(|link| link.loopback) {
        return differ;
    }
    for (family, keys) in SYSCTLS {
        let value = |interface: &str, key: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/{family}/conf/{interface}/{key}"));
            // What is not there nobody has set.
            text.ok().map(|text| text.trim().to_owned())
        };
        for key in keys {
            let usual = value("default", key);
            for link in links.iter().filter(|link| !link.loopback) {
                let own = value(&link.name, key);
                if let Some(own) = own.filter(|own| usual.as_ref().is_some_and(|usual| usual != own)) {
                    let of_link = differ.entry(link.index).or_default();
                    of_link.insert(format!("{family}.{key}"), own);
                }
            }
        }
    }
    differ
}

/// Whether IPv6 is on. A kernel that has none has no such file.
fn has_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "0")
}

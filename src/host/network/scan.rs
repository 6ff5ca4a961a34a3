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

/// Those that somebody has set for one interface: they are not as the namespace gives them to a new one.
fn sysctls(links: &[Link]) -> BTreeMap<u32, BTreeMap<String, String>> {
    let mut differ: BTreeMap<u32, BTreeMap<String, String>> = BTreeMap::new();
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

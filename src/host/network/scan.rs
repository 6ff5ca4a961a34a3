//! What is in the network namespace of the calling thread.

use std::collections::BTreeSet;
use std::fs;

use netlink::Socket;

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
        links,
    })
}

/// Whether IPv6 is on. A kernel that has none has no such file.
fn has_ipv6(interface: &str) -> bool {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    fs::read_to_string(path).is_ok_and(|value| value.trim() == "0")
}

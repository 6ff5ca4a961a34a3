//! The guest's network: devices found by their hardware address, named, given addresses, routes, neighbours and rules.
//!
//! Everything is asked of the kernel by rtnetlink, whose answers do not keep the agent's one thread waiting; only a device
//! that has not appeared yet is waited for. Must not know of the wire, nor where the settings come from.

mod settings;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::time::Duration;

use netlink::{Link, LinkChange, Socket};

use crate::error::{Error, Result};
use crate::uevent;
pub use settings::{
    AddressWords, HopWords, Interface, Network, RouteWords, RuleWords, Sysctl, address, mac, name,
    namespace_sysctl, neighbour, route, rule, sysctl,
};

/// How long a device may take to appear after the host plugged it in.
const DEVICE_DEADLINE: Duration = Duration::from_secs(10);

/// Sets the sysctls of the network namespace of the process, before anything is added to it: to forward sets others anew. Answers
/// with those that the kernel does not take, which another kernel may well have: it does there as it always does.
pub fn set_sysctls(network: &Network) -> Vec<String> {
    let mut wanted: Vec<_> = network.sysctls.iter().collect();
    let mut refused = Vec::new();
    // One may have to wait for another: ports to be used lie above those that are privileged.
    for _ in 0..2 {
        refused.clear();
        wanted.retain(|(file, value)| {
            let result = std::fs::write(format!("/proc/sys/net/{file}"), value);
            let error = result.err().filter(|error| error.kind() != ErrorKind::NotFound);
            refused.extend(
                error
                    .as_ref()
                    .map(|error| format!("net/{file} = {value:?}: {error}")),
            );
            error.is_some()
        });
    }
    refused
}

/// Adds this to the network namespace of the process. What is there already stays, and is no error.
///
/// # Errors
/// [`Error::NoDevice`] for an interface whose device does not appear or a route through one that is not there,
/// [`Error::Network`] with what the kernel refuses.
pub async fn add(network: &Network) -> Result<()> {
    if network.is_empty() {
        return Ok(());
    }
    let mut kernel = Socket::open().map_err(Error::network("open a socket to rtnetlink"))?;
    let mut devices = Vec::new();
    let mut taken = BTreeSet::new();
    for interface in &network.interfaces {
        let device = find(&mut kernel, interface, &taken).await?;
        taken.insert(device.index);
        devices.push((interface, device));
    }
    give_names(&mut kernel, &devices)?;
    for (interface, device) in &devices {
        configure(&mut kernel, interface, device.index)?;
    }
    let numbers = numbers(&mut kernel)?;
    for (names, route) in &network.routes {
        let mut route = route.clone();
        let mut indexes = names.iter().map(|name| number(&numbers, name));
        if route.hops.is_empty() {
            route.index = indexes.next().transpose()?.unwrap_or(0);
        }
        for (hop, index) in route.hops.iter_mut().zip(indexes) {
            hop.index = index?;
        }
        kernel
            .put_route(&route)
            .map_err(Error::network(told(&route, &names.join(" and "))))?;
    }
    for (device, neighbour) in &network.neighbours {
        let neighbour = netlink::Neighbour {
            index: number(&numbers, device)?,
            ..neighbour.clone()
        };
        kernel.put_neighbour(&neighbour).map_err(Error::network(format!(
            "add neighbour {} on {device}",
            neighbour.ip
        )))?;
    }
    for rule in &network.rules {
        kernel.put_rule(rule).map_err(Error::network(format!(
            "add the rule of priority {} for table {} (a guest's kernel needs IP_MULTIPLE_TABLES, and IPV6_MULTIPLE_TABLES)",
            rule.priority, rule.table
        )))?;
    }
    Ok(())
}

/// The device of an interface. Of several with the same hardware address, as some kinds of them have it, the first that no
/// other interface of the request has.
async fn find(kernel: &mut Socket, interface: &Interface, taken: &BTreeSet<u32>) -> Result<Link> {
    let mac = interface.mac;
    let look = || {
        let links = kernel.links().map_err(Error::network("list network devices"));
        let is_it = |link: &Link| link.mac == Some(mac) && !taken.contains(&link.index);
        match links {
            Ok(links) => links.into_iter().find(is_it).map(Ok),
            Err(error) => Some(Err(error)),
        }
    };
    let device = format!(
        "with the address {mac}, for the network interface {},",
        interface.name
    );
    uevent::wait_for(&device, DEVICE_DEADLINE, look).await?
}

/// Gives the devices their names. What has a wrong one gets a name of our own first, because two may have each other's.
fn give_names(kernel: &mut Socket, devices: &[(&Interface, Link)]) -> Result<()> {
    let wrong = || {
        devices
            .iter()
            .filter(|(interface, device)| interface.name != device.name)
    };
    let mut rename = |device: &Link, name: String| {
        let action = format!("rename {} to {name}", device.name);
        let change = LinkChange {
            name: Some(name),
            ..LinkChange::default()
        };
        kernel
            .change_link(device.index, &change)
            .map_err(Error::network(action))
    };
    for (_, device) in wrong() {
        rename(device, format!("kata{}", device.index))?;
    }
    for (interface, device) in wrong() {
        rename(device, interface.name.clone())?;
    }
    Ok(())
}

fn configure(kernel: &mut Socket, interface: &Interface, index: u32) -> Result<()> {
    let name = &interface.name;
    if interface.no_ipv6 {
        set_ipv6(name, "disable_ipv6", "1")?;
    } else {
        // The namespace may have it off, and this interface on.
        set_ipv6(name, "disable_ipv6", "0")?;
        // The address that the kernel makes by itself is to be used at once as well.
        set_ipv6(name, "accept_dad", "0")?;
    }
    for sysctl in &interface.sysctls {
        set(name, sysctl)?;
    }
    let link_local = |address: &netlink::Address| match address.ip {
        core::net::IpAddr::V6(ip) => ip.is_unicast_link_local(),
        core::net::IpAddr::V4(_) => false,
    };
    let change = LinkChange {
        mtu: interface.mtu,
        up: Some(interface.up),
        no_arp: interface.no_arp,
        // It would be the host's only by chance.
        no_link_local: !interface.no_ipv6 && interface.addresses.iter().any(link_local),
        ..LinkChange::default()
    };
    kernel
        .change_link(index, &change)
        .map_err(Error::network(format!("set up network interface {name}")))?;
    for address in &interface.addresses {
        let address = netlink::Address {
            index,
            ..address.clone()
        };
        let action = format!("add address {}/{} to {name}", address.ip, address.prefix);
        kernel.put_address(&address).map_err(Error::network(action))?;
    }
    Ok(())
}

/// Sets a sysctl that somebody has set on the host.
fn set(interface: &str, sysctl: &Sysctl) -> Result<()> {
    let Sysctl { family, key, value } = sysctl;
    match *family {
        "ipv6" => set_ipv6(interface, key, value),
        family => {
            let path = format!("/proc/sys/net/{family}/conf/{interface}/{key}");
            std::fs::write(&path, value).map_err(Error::file("write", path))
        }
    }
}

/// Sets an IPv6 sysctl of an interface; a kernel without IPv6 has none.
fn set_ipv6(interface: &str, key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/{key}");
    match std::fs::write(&path, value) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("write", path)(error)),
        _ => Ok(()),
    }
}

/// Numbers of all devices by their names, which they have by now.
fn numbers(kernel: &mut Socket) -> Result<BTreeMap<String, u32>> {
    let links = kernel.links().map_err(Error::network("list network devices"))?;
    Ok(links.into_iter().map(|link| (link.name, link.index)).collect())
}

fn number(numbers: &BTreeMap<String, u32>, device: &str) -> Result<u32> {
    numbers
        .get(device)
        .copied()
        .ok_or_else(|| Error::NoDevice(format!("{device:?} in the guest's network")))
}

/// A route in words.
fn told(route: &netlink::Route, device: &str) -> String {
    let table = match route.table {
        netlink::RT_TABLE_MAIN => String::new(),
        table => format!(" in table {table}"),
    };
    let to = format!("add route to {}/{}{table}", route.destination, route.prefix);
    match route.gateway {
        Some(gateway) => format!("{to} via {gateway} on {device}"),
        None => format!("{to} on {device}"),
    }
}

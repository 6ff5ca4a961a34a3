//! What the host says about the network, checked: everything that can be refused without asking the kernel is refused here,
//! before anything is changed. Pure.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::collections::BTreeSet;

use netlink::{AddressFlags, Mac, RouteKind};

use crate::error::{Error, Result};

/// Interfaces of one request: more than a machine has slots for.
const MAX_INTERFACES: usize = 64;

/// Next hops of one route: more than anybody shares packets among.
const MAX_HOPS: usize = 64;

const HOPS: &str = "network.route.hops";

/// A network, or what is to be added to one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Interfaces, in the order in which their devices are looked for.
    pub interfaces: Vec<Interface>,
    /// Routes, in the order in which they are added; each with the name of its device, or those of its next hops', whose numbers
    /// are not known yet.
    pub routes: Vec<(Vec<String>, netlink::Route)>,
    /// Permanent neighbours, likewise.
    pub neighbours: Vec<(String, netlink::Neighbour)>,
    /// Rules that say which table is asked for what.
    pub rules: Vec<netlink::Rule>,
    /// Sysctls of the namespace: files below `/proc/sys/net`, and what is written.
    pub sysctls: Vec<(String, String)>,
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name it gets.
    pub name: String,
    /// How its device is found.
    pub mac: Mac,
    /// Bytes.
    pub mtu: Option<u32>,
    /// Whether it is brought up.
    pub up: bool,
    /// Whether IPv6 is switched off.
    pub no_ipv6: bool,
    /// Nobody is asked for hardware addresses on it.
    pub no_arp: bool,
    /// Addresses; the number of the device is not known yet.
    pub addresses: Vec<netlink::Address>,
    /// Its own sysctls.
    pub sysctls: Vec<Sysctl>,
}

/// A sysctl of an interface, in `/proc/sys/net/<family>/conf/<interface>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// `ipv4` or `ipv6`.
    pub family: &'static str,
    /// Name of the file.
    pub key: String,
    /// What is written.
    pub value: String,
}

/// The words of an address on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct AddressWords<'a> {
    /// With its network.
    pub ip: &'a str,
    /// May be empty.
    pub peer: &'a str,
    /// May be empty.
    pub broadcast: &'a str,
    /// `RT_SCOPE_*`.
    pub scope: u32,
}

/// The words of a route on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct RouteWords<'a> {
    /// A network.
    pub destination: &'a str,
    /// May be empty.
    pub gateway: &'a str,
    /// Name of an interface; empty with several next hops.
    pub device: &'a str,
    /// Next hops, if there are several.
    pub hops: &'a [HopWords<'a>],
    /// May be empty.
    pub source: &'a str,
    /// Preference.
    pub metric: u32,
    /// Bytes.
    pub mtu: u32,
    /// `RT_SCOPE_*`.
    pub scope: u32,
    /// `RTPROT_*`.
    pub protocol: u32,
    /// The gateway is on the link.
    pub on_link: bool,
    /// 0: the main one.
    pub table: u32,
}

/// The words of one of several next hops.
#[derive(Debug, Clone, Copy, Default)]
pub struct HopWords<'a> {
    /// May be empty.
    pub gateway: &'a str,
    /// Name of an interface.
    pub device: &'a str,
    /// Its share of the packets.
    pub weight: u32,
    /// The gateway is on the link.
    pub on_link: bool,
}

/// The words of a rule on the wire.
#[derive(Debug, Clone, Copy, Default)]
pub struct RuleWords<'a> {
    /// Order.
    pub priority: u32,
    /// Where packets are sent to.
    pub table: u32,
    /// A network.
    pub source: &'a str,
    /// A network.
    pub destination: &'a str,
    /// Name of an interface; may be empty.
    pub input: &'a str,
    /// Name of an interface; may be empty.
    pub output: &'a str,
    /// Of packets.
    pub mark: u32,
    /// Bits of the mark that matter.
    pub mask: u32,
    /// For all other packets.
    pub invert: bool,
    /// Bits of a route that counts.
    pub least_prefix: u32,
}

impl Network {
    /// Nothing is to be done.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what concerns several parts.
    ///
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check(self) -> Result<Self> {
        let names: BTreeSet<_> = self.interfaces.iter().map(|i| &i.name).collect();
        if self.interfaces.len() > MAX_INTERFACES {
            return Err(Error::invalid(
                "network.interfaces",
                format!("{}, more than {MAX_INTERFACES}", self.interfaces.len()),
            ));
        }
        if names.len() < self.interfaces.len() {
            return Err(Error::invalid("network.interfaces", "two have the same name"));
        }
        Ok(self)
    }
}

/// The name of an interface.
///
/// # Errors
/// [`Error::Invalid`]: what the kernel would refuse, or other programs could not name.
pub fn name(name: &str) -> Result<String> {
    /// IFNAMSIZ, without the zero byte.
    const LONGEST: usize = 15;
    let plain = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if name.is_empty()
        || name.len() > LONGEST
        || !name.chars().all(plain)
        || [".", "..", "lo"].contains(&name)
    {
        return Err(Error::invalid(
            "network.interface.name",
            format!("{name:?} cannot name an interface (1 to {LONGEST} characters, no space, '/' or ':')"),
        ));
    }
    Ok(name.to_owned())
}

/// A sysctl of an interface, from its name ("ipv4.rp_filter") and value.
///
/// # Errors
/// [`Error::Invalid`].
pub fn sysctl(name: &str, value: &str) -> Result<Sysctl> {
    const FIELD: &str = "network.interface.sysctls";
    let plain = |key: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        !key.is_empty() && key.bytes().all(fits)
    };
    let (family, key) = match name.split_once('.') {
        Some(("ipv4", key)) if plain(key) => ("ipv4", key),
        Some(("ipv6", key)) if plain(key) => ("ipv6", key),
        _ => {
            return Err(Error::invalid(
                FIELD,
                format!("{name:?} is not of the form ipv4.<name> or ipv6.<name>"),
            ));
        }
    };
    if value.parse::<i64>().is_err() {
        return Err(Error::invalid(FIELD, format!("{name}: {value:?} is no number")));
    }
    Ok(Sysctl {
        family,
        key: key.to_owned(),
        value: value.to_owned(),
    })
}

/// A sysctl of the network namespace, from its name ("ipv4.ip_forward") and value: the file below `/proc/sys/net`, and what is
/// written there.
///
/// # Errors
/// [`Error::Invalid`].
pub fn namespace_sysctl(name: &str, value: &str) -> Result<(String, String)> {
    const FIELD: &str = "network.sysctls";
    /// More than the longest of the kernel's, a list of ports.
    const LONGEST: usize = 1024;
    let is_part = |part: &str| {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        !part.is_empty() && part.bytes().all(fits)
    };
    if !name.contains('.') || !name.split('.').all(is_part) {
        return Err(Error::invalid(FIELD, format!("{name:?} is not the name of one")));
    }
    // Numbers, ranges and lists of them.
    let is_plain = |c: char| c.is_ascii_digit() || "-, \t".contains(c);
    if value.len() > LONGEST || !value.chars().all(is_plain) {
        return Err(Error::invalid(
            FIELD,
            format!("{name}: {value:?} has other than numbers"),
        ));
    }
    Ok((name.replace('.', "/"), value.to_owned()))
}

/// A hardware address that one device can have.
///
/// # Errors
/// [`Error::Invalid`].
pub fn mac(field: &'static str, text: &str) -> Result<Mac> {
    let mac: Mac = text
        .parse()
        .map_err(|error| Error::invalid(field, format!("{text:?}: {error}")))?;
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return Err(Error::invalid(field, format!("{mac} is no single device's")));
    }
    Ok(mac)
}

/// A plain address.
///
/// # Errors
/// [`Error::Invalid`].
pub fn ip(field: &'static str, text: &str) -> Result<IpAddr> {
    text.parse()
        .map_err(|_| Error::invalid(field, format!("{text:?} is not an IP address")))
}

/// One that may be absent.
fn optional(field: &'static str, text: &str) -> Result<Option<IpAddr>> {
    match text {
        "" => Ok(None),
        text => ip(field, text).map(Some),
    }
}

/// An address with its network: `10.1.2.3/24`.
fn ip_and_prefix(field: &'static str, text: &str) -> Result<(IpAddr, u8)> {
    let wrong = || Error::invalid(field, format!("{text:?} is not of the form <address>/<bits>"));
    let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
    let address = ip(field, address)?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    match bits.parse() {
        Ok(bits) if bits <= most && !text.contains('+') => Ok((address, bits)),
        _ => Err(wrong()),
    }
}

fn same_family(field: &'static str, one: IpAddr, other: Option<IpAddr>) -> Result<()> {
    match other {
        Some(other) if other.is_ipv4() != one.is_ipv4() => Err(Error::invalid(
            field,
            format!("{other} is not of the family of {one}"),
        )),
        _ => Ok(()),
    }
}

fn small(field: &'static str, number: u32) -> Result<u8> {
    u8::try_from(number).map_err(|_| Error::invalid(field, format!("{number} is more than 255")))
}

/// An address of an interface.
///
/// # Errors
/// [`Error::Invalid`].
pub fn address(words: &AddressWords<'_>) -> Result<netlink::Address> {
    let (ip, prefix) = ip_and_prefix("network.address.ip", words.ip)?;
    let peer = optional("network.address.peer", words.peer)?;
    same_family("network.address.peer", ip, peer)?;
    let broadcast = optional("network.address.broadcast", words.broadcast)?;
    same_family("network.address.broadcast", ip, broadcast)?;
    Ok(netlink::Address {
        index: 0,
        ip,
        prefix,
        peer,
        broadcast: match broadcast {
            None => None,
            Some(IpAddr::V4(broadcast)) => Some(broadcast),
            Some(IpAddr::V6(_)) => {
                return Err(Error::invalid(
                    "network.address.broadcast",
                    "IPv6 has no broadcast",
                ));
            }
        },
        scope: small("network.address.scope", words.scope)?,
        // The host has asked already whether somebody else has it, and sends the routes.
        flags: AddressFlags::NO_DAD.and(AddressFlags::NO_PREFIX_ROUTE),
    })
}

/// A route.
///
/// # Errors
/// [`Error::Invalid`].
pub fn route(words: &RouteWords<'_>) -> Result<(Vec<String>, netlink::Route)> {
    const DESTINATION: &str = "network.route.destination";
    let (destination, prefix) = network(DESTINATION, words.destination)?;
    let source = optional("network.route.source", words.source)?;
    same_family("network.route.source", destination, source)?;
    let hops = words.hops.iter().map(hop).collect::<Result<Vec<_>>>()?;
    let alone = words.gateway.is_empty() && words.device.is_empty() && !words.on_link;
    let devices = match words.hops {
        [] => vec![name(words.device)?],
        [_] => return Err(Error::invalid(HOPS, "is only one")),
        hops if hops.len() > MAX_HOPS => {
            return Err(Error::invalid(HOPS, format!("are more than {MAX_HOPS}")));
        }
        _ if !alone => {
            return Err(Error::invalid(
                HOPS,
                "are beside a gateway or device of the route itself",
            ));
        }
        hops => hops.iter().map(|hop| name(hop.device)).collect::<Result<_>>()?,
    };
    let route = netlink::Route {
        table: match words.table {
            0 => netlink::RT_TABLE_MAIN,
            table => table,
        },
        kind: RouteKind::Unicast,
        destination,
        prefix,
        gateway: optional("network.route.gateway", words.gateway)?,
        index: 0,
        hops,
        source,
        metric: words.metric,
        mtu: words.mtu,
        scope: small("network.route.scope", words.scope)?,
        protocol: small("network.route.protocol", words.protocol)?,
        on_link: words.on_link,
    };
    Ok((devices, route))
}

/// One of several next hops, of a device whose number is not known yet.
fn hop(words: &HopWords<'_>) -> Result<netlink::Hop> {
    let weight = u16::try_from(words.weight)
        .ok()
        .filter(|weight| (1..=256).contains(weight));
    Ok(netlink::Hop {
        index: 0,
        gateway: optional(HOPS, words.gateway)?,
        weight: weight.ok_or_else(|| Error::invalid(HOPS, format!("a weight of {}", words.weight)))?,
        on_link: words.on_link,
    })
}

/// A rule.
///
/// # Errors
/// [`Error::Invalid`].
pub fn rule(words: &RuleWords<'_>) -> Result<netlink::Rule> {
    const DESTINATION: &str = "network.rule.destination";
    // The kernel takes bits behind those of the network, and compares without them.
    let (source, source_prefix) = ip_and_prefix("network.rule.source", words.source)?;
    let (destination, destination_prefix) = ip_and_prefix(DESTINATION, words.destination)?;
    same_family(DESTINATION, source, Some(destination))?;
    if words.table == 0 {
        return Err(Error::invalid("network.rule.table", "there is no table 0"));
    }
    let interface = |text: &str| match text {
        // What the guest itself sends comes by its loopback device.
        "" | "lo" => Ok(text.to_owned()),
        text => name(text),
    };
    Ok(netlink::Rule {
        priority: words.priority,
        table: words.table,
        source,
        source_prefix,
        destination,
        destination_prefix,
        input: interface(words.input)?,
        output: interface(words.output)?,
        mark: words.mark,
        mask: words.mask,
        suppress: words.least_prefix.checked_sub(1),
        invert: words.invert,
        more: false,
    })
}

/// A network: an address without bits behind those of the network.
fn network(field: &'static str, text: &str) -> Result<(IpAddr, u8)> {
    let (ip, prefix) = ip_and_prefix(field, text)?;
    if network_of(ip, prefix) != ip {
        return Err(Error::invalid(
            field,
            format!("{text}: bits are set behind the first {prefix}"),
        ));
    }
    Ok((ip, prefix))
}

/// The address with all bits behind the first `prefix` cleared.
fn network_of(ip: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

/// A permanent neighbour.
///
/// # Errors
/// [`Error::Invalid`].
pub fn neighbour(address: &str, hardware: &str, device: &str) -> Result<(String, netlink::Neighbour)> {
    let neighbour = netlink::Neighbour {
        index: 0,
        ip: ip("network.neighbour.ip", address)?,
        mac: mac("network.neighbour.mac", hardware)?,
    };
    Ok((name(device)?, neighbour))
}

#[cfg(test)]
mod tests;

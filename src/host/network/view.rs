//! From what is in a network namespace to what is connected of it, and what the guest is told. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use agent_protocol as p;
use core::net::IpAddr;
use netlink::{
    Address, AddressFlags, Hop, Link, LinkKind, Mac, Neighbour, RT_TABLE_MAIN, Route, RouteKind, Rule,
};

use crate::error::{Error, ErrorKind, Result};

/// `RTPROT_RA`: a router has announced it, and will to the guest.
const ANNOUNCED: u8 = 9;

/// What is in a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scan {
    pub(super) links: Vec<Link>,
    pub(super) addresses: Vec<Address>,
    /// Of all tables but the kernel's own.
    pub(super) routes: Vec<Route>,
    /// Those that it began with included.
    pub(super) rules: Vec<Rule>,
    /// The permanent ones.
    pub(super) neighbours: Vec<Neighbour>,
    /// Numbers of the links on which IPv6 is switched off.
    pub(super) no_ipv6: BTreeSet<u32>,
    /// Sysctls of links that somebody has set, by the links' numbers: "ipv4.rp_filter".
    pub(super) sysctls: BTreeMap<u32, BTreeMap<String, String>>,
    /// Sysctls of the namespace that somebody has set: "ipv4.ip_forward".
    pub(super) common_sysctls: BTreeMap<String, String>,
}

/// An interface to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interface {
    /// Number of the link.
    pub(super) index: u32,
    /// Its name, also in the guest.
    pub(super) name: String,
    /// Its address, also in the guest.
    pub(super) mac: Mac,
    /// Bytes.
    pub(super) mtu: u32,
    /// How.
    pub(super) way: Way,
}

/// How an interface is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By whatever the administrator prefers.
    Model,
    /// By traffic control alone: no other device can be put on it.
    Filters,
    /// It is a tap that somebody has made for a virtual machine.
    Itself {
        /// It can have several queues.
        multi_queue: bool,
    },
}

/// What follows from a scan.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct View {
    pub(super) interfaces: Vec<Interface>,
    pub(super) guest: p::Network,
    /// What the guest is not told, in words.
    pub(super) left_out: Vec<String>,
}

/// What is connected already, on a second look.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// Numbers of links that are connected, and their names in the guest.
    pub(super) connected: BTreeMap<u32, String>,
    /// Numbers of links that are our own.
    pub(super) own: BTreeSet<u32>,
    /// Routes that the guest has been told.
    pub(super) routes: Vec<p::Route>,
}

impl Known {
    /// Whether this is the first look.
    fn is_nothing(&self) -> bool {
        self.connected.is_empty() && self.own.is_empty()
    }

    fn has(&self, index: u32) -> bool {
        self.connected.contains_key(&index) || self.own.contains(&index)
    }

    /// Whether the guest's kernel would take this route for one that it has.
    fn has_equal(&self, route: &p::Route) -> bool {
        let key = |route: &p::Route| (route.destination.clone(), route.table, route.metric);
        self.routes.iter().any(|told| key(told) == key(route))
    }
}

/// What to connect, and what to tell the guest.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for an interface with an address that carries no Ethernet frames.
pub(super) fn of(scan: &Scan, known: &Known) -> Result<View> {
    let mut view = View::default();
    let mut names = BTreeMap::new();
    let mut links: Vec<_> = scan.links.iter().filter(|link| !known.has(link.index)).collect();
    links.sort_by_key(|link| link.index);
    for link in links {
        let addresses: Vec<_> = scan
            .addresses
            .iter()
            .filter(|address| address.index == link.index)
            .collect();
        let Some(interface) = interface(link, &addresses)? else {
            continue;
        };
        let no_ipv6 = scan.no_ipv6.contains(&link.index);
        view.guest.interfaces.push(p::Interface {
            name: link.name.clone(),
            mac: interface.mac.to_string(),
            mtu: link.mtu,
            up: true,
            no_ipv6,
            no_arp: link.no_arp,
            addresses: addresses.into_iter().filter_map(told_address).collect(),
            sysctls: sysctls(scan, link.index),
            ..Default::default()
        });
        view.interfaces.push(interface);
        names.insert(link.index, link.name.as_str());
    }
    // A second look is for what has appeared.
    if known.is_nothing() {
        view.guest.sysctls = scan.common_sysctls.clone().into_iter().collect();
    }
    routes(scan, known, &names, &mut view);
    // Without an interface there is nothing that they could decide.
    if !names.is_empty() {
        rules(scan, known, &mut view);
    }
    view.guest.neighbours = scan
        .neighbours
        .iter()
        .filter_map(|neighbour| Some(told_neighbour(neighbour, names.get(&neighbour.index)?)))
        .collect();
    Ok(view)
}

fn sysctls(scan: &Scan, index: u32) -> HashMap<String, String> {
    let set = scan.sysctls.get(&index).into_iter().flatten();
    set.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether and how a link is connected.
fn interface(link: &Link, addresses: &[&Address]) -> Result<Option<Interface>> {
    let way = match link.kind {
        LinkKind::Tap {
            queues: 0,
            multi_queue,
        } => Way::Itself { multi_queue },
        LinkKind::Other(ref kind) if kind == "ipvlan" => Way::Filters,
        LinkKind::Tap { .. } | LinkKind::Device | LinkKind::Other(_) => Way::Model,
    };
    // The port of a bridge is connected by its bridge; what is down is nobody's, unless it waits for us.
    let of_use = match way {
        Way::Itself { .. } => true,
        Way::Model | Way::Filters => link.master.is_none() && (link.up || !addresses.is_empty()),
    };
    if link.loopback || !of_use {
        return Ok(None);
    }
    match link.mac.filter(|_| link.ethernet) {
        Some(mac) => Ok(Some(Interface {
            index: link.index,
            name: link.name.clone(),
            mac,
            mtu: link.mtu,
            way,
        })),
        // Tunnels that every new namespace has, and nobody has set up.
        None if addresses.is_empty() => Ok(None),
        None => Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the interface {} carries no Ethernet frames and cannot be given to a virtual machine; use another kind of \
                 interface, or internetworking_model = \"none\"",
                link.name
            ),
        )),
    }
}

/// An address, unless the guest finds or makes it by itself.
fn told_address(address: &Address) -> Option<p::Address> {
    let flags = address.flags;
    let not_ours = match address.ip {
        IpAddr::V4(_) => false,
        // Announced by a router, made for privacy, or somebody else's.
        IpAddr::V6(_) => {
            !flags.has(AddressFlags::PERMANENT)
                || flags.has(AddressFlags::SECONDARY)
                || flags.has(AddressFlags::DAD_FAILED)
        }
    };
    (!not_ours).then(|| p::Address {
        ip: format!("{}/{}", address.ip, address.prefix),
        peer: words(address.peer),
        broadcast: words(address.broadcast),
        scope: u32::from(address.scope),
        ..Default::default()
    })
}

fn words(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

/// The routes through interfaces that are connected. Those to the gateways first, because the kernel refuses a gateway
/// that it cannot reach; the others keep their order, which decides among equals.
fn routes(scan: &Scan, known: &Known, names: &BTreeMap<u32, &str>, view: &mut View) {
    let mut told = Vec::new();
    for route in scan.routes.iter().filter(|route| route.protocol != ANNOUNCED) {
        match devices(route, names, known) {
            Ok(Some(devices)) => told.push((route, devices)),
            Ok(None) => {}
            Err(Reason::News(why)) => view.left_out.push(left_out(route, why)),
            Err(Reason::Old(why)) if known.is_nothing() => view.left_out.push(left_out(route, why)),
            Err(Reason::Old(_)) => {}
        }
    }
    let through_gateway = |route: &Route| {
        let mut hops = route.hops.iter();
        route.gateway.is_some() || hops.any(|hop| hop.gateway.is_some())
    };
    let (through, direct): (Vec<_>, Vec<_>) = told.into_iter().partition(|(route, _)| through_gateway(route));
    for (route, devices) in direct.into_iter().chain(through) {
        let told = told_route(route, &devices);
        if known.has_equal(&told) && !told.hops.is_empty() {
            view.left_out
                .push(left_out(route, "replaces one that the guest keeps"));
        } else {
            view.guest.routes.push(told);
        }
    }
}

/// Why a route is not told.
enum Reason {
    /// Something that was so on the first look.
    Old(&'static str),
    /// Something that a new interface has brought along.
    News(&'static str),
}

/// The names of the devices that a route leads to: one, or one for each of its hops, of which some may be connected already. `None`:
/// it is told already, or its interface is not connected.
fn devices<'a>(
    route: &Route,
    names: &BTreeMap<u32, &'a str>,
    known: &'a Known,
) -> std::result::Result<Option<Vec<&'a str>>, Reason> {
    let new = |index: &u32| names.get(index).copied();
    if route.kind != RouteKind::Unicast {
        return Err(Reason::Old("leads to no interface"));
    }
    if route.hops.is_empty() {
        return match (new(&route.index), route.index) {
            (Some(name), _) => Ok(Some(vec![name])),
            (None, 0) => Err(Reason::Old("leads to no interface")),
            (None, _) => Ok(None),
        };
    }
    let known = |index: &u32| known.connected.get(index).map(String::as_str);
    let all = route.hops.iter().map(|hop| &hop.index);
    let found: Vec<_> = all
        .clone()
        .filter_map(|index| new(index).or_else(|| known(index)))
        .collect();
    let why = "has next hops on interfaces that are not connected";
    match (all.clone().any(|index| new(index).is_some()), found.len()) {
        (true, count) if count == route.hops.len() => Ok(Some(found)),
        (true, _) => Err(Reason::News(why)),
        (false, count) if count == 0 || count == route.hops.len() => Ok(None),
        (false, _) => Err(Reason::Old(why)),
    }
}

fn left_out(route: &Route, why: &str) -> String {
    let table = match route.table {
        RT_TABLE_MAIN => String::new(),
        table => format!(" in table {table}"),
    };
    format!("the route to {}/{}{table} {why}", route.destination, route.prefix)
}

/// The rules that somebody has made. What they name need not be there.
fn rules(scan: &Scan, known: &Known, view: &mut View) {
    for rule in scan.rules.iter().filter(|rule| !rule.is_initial()) {
        if !rule.more {
            view.guest.rules.push(told_rule(rule));
        } else if known.is_nothing() {
            view.left_out.push(format!(
                "the rule of priority {} for table {} selects packets by more than addresses, interfaces and marks",
                rule.priority, rule.table
            ));
        }
    }
}

fn told_rule(rule: &Rule) -> p::Rule {
    p::Rule {
        priority: rule.priority,
        table: rule.table,
        source: format!("{}/{}", rule.source, rule.source_prefix),
        destination: format!("{}/{}", rule.destination, rule.destination_prefix),
        input: rule.input.clone(),
        output: rule.output.clone(),
        mark: rule.mark,
        mask: rule.mask,
        invert: rule.invert,
        least_prefix: rule.suppress.map_or(0, |bits| bits.saturating_add(1)),
        ..Default::default()
    }
}

fn told_route(route: &Route, devices: &[&str]) -> p::Route {
    let hop = |(hop, device): (&Hop, &&str)| p::Hop {
        gateway: words(hop.gateway),
        device: (*device).to_owned(),
        weight: u32::from(hop.weight),
        on_link: hop.on_link,
        ..Default::default()
    };
    p::Route {
        hops: route.hops.iter().zip(devices).map(hop).collect(),
        destination: format!("{}/{}", route.destination, route.prefix),
        gateway: words(route.gateway),
        device: match devices {
            [device] if route.hops.is_empty() => (*device).to_owned(),
            _ => String::new(),
        },
        source: words(route.source),
        metric: route.metric,
        mtu: route.mtu,
        scope: u32::from(route.scope),
        protocol: u32::from(route.protocol),
        on_link: route.on_link,
        table: match route.table {
            RT_TABLE_MAIN => 0,
            table => table,
        },
        ..Default::default()
    }
}

fn told_neighbour(neighbour: &Neighbour, device: &str) -> p::Neighbour {
    p::Neighbour {
        ip: neighbour.ip.to_string(),
        mac: neighbour.mac.to_string(),
        device: device.to_owned(),
        ..Default::default()
    }
}

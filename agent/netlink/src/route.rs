//! Routes (`RTM_*ROUTE`, linux/rtnetlink.h): those of all tables but the kernel's own.

use std::net::IpAddr;

use crate::error::Result;
use crate::message::{Nest, Request, attributes, family, find, ip, octets, u16_at, u32_at, unspecified};
use crate::socket::{Mode, Socket};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_VIA: u16 = 18;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;

pub(crate) const RT_TABLE_DEFAULT: u32 = 253;
/// The table that is asked where no rule says another.
pub const RT_TABLE_MAIN: u32 = 254;
/// The kernel's own: what it is addressed by.
pub(crate) const RT_TABLE_LOCAL: u32 = 255;

/// In the byte for a table: its number is larger.
const RT_TABLE_COMPAT: u8 = 252;

const RTM_F_CLONED: u32 = 0x200;
const RTNH_F_ONLINK: u32 = 4;

/// Bytes of `struct rtmsg`.
const BODY: usize = 12;

/// Bytes of `struct rtnexthop`.
const HOP: usize = 8;

/// What happens to packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// They are sent.
    Unicast,
    /// They are dropped, silently or with one answer or another.
    Refused,
    /// Anything else that a table can hold.
    Other,
}

/// One of several next hops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// Number of the device that it leads to.
    pub index: u32,
    /// Whom packets are sent to; may be of the other family.
    pub gateway: Option<IpAddr>,
    /// How many packets it gets, beside the others: 1 to 256.
    pub weight: u16,
    /// It is on the link, though no address says so.
    pub on_link: bool,
}

impl Hop {
    /// The first of a list, which is a `struct rtnexthop` and attributes each. `None`: the list is at its end.
    fn take(list: &mut &[u8]) -> Option<Self> {
        let length = usize::from(u16_at(list, 0)?);
        let attrs = list.get(HOP..length)?;
        let mut hop = Self {
            index: u32_at(list, 4)?,
            gateway: None,
            weight: u16::from(*list.get(3)?) + 1,
            on_link: u32::from(*list.get(2)?) & RTNH_F_ONLINK != 0,
        };
        for (kind, value) in attributes(attrs) {
            match kind {
                RTA_GATEWAY => hop.gateway = ip(value),
                // struct rtvia, as of a route.
                RTA_VIA => hop.gateway = ip(value.get(2..)?),
                _ => {}
            }
        }
        *list = list.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(hop)
    }

    /// Adds it to a list, in a route of this family.
    fn put(&self, family: u8, list: &mut Vec<u8>) {
        let gateway = match self.gateway {
            None => Nest::default(),
            Some(gateway) => {
                let (kind, value) = gateway_for(family, gateway);
                Nest::default().with(kind, &value)
            }
        };
        // A gateway is a few bytes.
        let length = u16::try_from(HOP + gateway.bytes().len()).unwrap_or(u16::MAX);
        list.extend_from_slice(&length.to_ne_bytes());
        list.push(if self.on_link { RTNH_F_ONLINK as u8 } else { 0 });
        list.push(u8::try_from(self.weight.saturating_sub(1)).unwrap_or(u8::MAX));
        list.extend_from_slice(&self.index.to_ne_bytes());
        list.extend_from_slice(gateway.bytes());
    }
}

/// The attribute that names a gateway in a route of this family.
fn gateway_for(family: u8, gateway: IpAddr) -> (u16, Vec<u8>) {
    let own = crate::message::family(gateway);
    if own == family {
        return (RTA_GATEWAY, octets(gateway));
    }
    // struct rtvia: a family of two bytes, an address.
    let mut via = u16::from(own).to_ne_bytes().to_vec();
    via.extend(octets(gateway));
    (RTA_VIA, via)
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Its table.
    pub table: u32,
    /// What happens.
    pub kind: RouteKind,
    /// Network.
    pub destination: IpAddr,
    /// Its leading bits.
    pub prefix: u8,
    /// Next hop; may be of the other family.
    pub gateway: Option<IpAddr>,
    /// Number of the device that it leads to; 0: none, or one for each of its next hops.
    pub index: u32,
    /// Its next hops, where it has several. Packets are shared among them.
    pub hops: Vec<Hop>,
    /// Source address of our own packets.
    pub source: Option<IpAddr>,
    /// Preference, lower first.
    pub metric: u32,
    /// Largest packet, bytes; 0: the device's.
    pub mtu: u32,
    /// How far it reaches: 0 everywhere, 253 on the link (`RT_SCOPE_*`). Always 0 for IPv6.
    pub scope: u8,
    /// Who made it (`RTPROT_*`): 2 the kernel, 3 an administrator at boot, 9 a router.
    pub protocol: u8,
    /// The next hop is on the link, though no address says so.
    pub on_link: bool,
}

impl Route {
    /// `body` is a `struct rtmsg` and what follows. `None`: of no interest here.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let flags = u32_at(body, 8)?;
        let attrs = body.get(BODY..)?;
        let table = find(attrs, RTA_TABLE)
            .and_then(|value| u32_at(value, 0))
            .unwrap_or_else(|| u32::from(body[4]));
        if table == RT_TABLE_LOCAL || flags & RTM_F_CLONED != 0 {
            return None;
        }
        let mut route = Self {
            table,
            kind: match body[7] {
                libc::RTN_UNICAST => RouteKind::Unicast,
                libc::RTN_BLACKHOLE | libc::RTN_UNREACHABLE | libc::RTN_PROHIBIT => RouteKind::Refused,
                _ => RouteKind::Other,
            },
            destination: unspecified(body[0])?,
            prefix: body[1],
            gateway: None,
            index: 0,
            hops: Vec::new(),
            source: None,
            metric: 0,
            mtu: 0,
            scope: body[6],
            protocol: body[5],
            on_link: flags & RTNH_F_ONLINK != 0,
        };
        for (kind, value) in attributes(attrs) {
            match kind {
                RTA_DST => route.destination = ip(value)?,
                RTA_OIF => route.index = u32_at(value, 0)?,
                RTA_GATEWAY => route.gateway = ip(value),
                // struct rtvia: a family of two bytes, an address.
                RTA_VIA => route.gateway = ip(value.get(2..)?),
                RTA_PRIORITY => route.metric = u32_at(value, 0)?,
                RTA_PREFSRC => route.source = ip(value),
                RTA_METRICS => route.mtu = find(value, RTAX_MTU).and_then(|mtu| u32_at(mtu, 0)).unwrap_or(0),
                RTA_MULTIPATH => {
                    let mut list = value;
                    route.hops = std::iter::from_fn(|| Hop::take(&mut list)).collect();
                }
                _ => {}
            }
        }
        if !route.hops.is_empty() {
            // They are the hops' to say.
            (route.index, route.gateway) = (0, None);
        }
        Some(route)
    }

    pub(crate) fn request(&self) -> Request {
        let mut body = [0; BODY];
        body[0] = family(self.destination);
        body[1] = self.prefix;
        // The attribute says all of it.
        body[4] = u8::try_from(self.table).unwrap_or(RT_TABLE_COMPAT);
        body[5] = self.protocol;
        body[6] = self.scope;
        body[7] = libc::RTN_UNICAST;
        if self.on_link {
            body[8..12].copy_from_slice(&RTNH_F_ONLINK.to_ne_bytes());
        }
        let mut request = Request::new(RTM_NEWROUTE, Mode::Append.flags(), &body)
            .with(RTA_DST, &octets(self.destination))
            .with(RTA_TABLE, &self.table.to_ne_bytes());
        if self.hops.is_empty() {
            request = request.with(RTA_OIF, &self.index.to_ne_bytes());
            if let Some(gateway) = self.gateway {
                let (kind, value) = gateway_for(body[0], gateway);
                request = request.with(kind, &value);
            }
        } else {
            let mut list = Vec::new();
            self.hops.iter().for_each(|hop| hop.put(body[0], &mut list));
            request = request.with(RTA_MULTIPATH, &list);
        }
        if let Some(source) = self.source {
            request = request.with(RTA_PREFSRC, &octets(source));
        }
        if self.metric != 0 {
            request = request.with(RTA_PRIORITY, &self.metric.to_ne_bytes());
        }
        if self.mtu != 0 {
            let metrics = Nest::default().with(RTAX_MTU, &self.mtu.to_ne_bytes());
            request = request.with_nest(RTA_METRICS, metrics);
        }
        request
    }
}

impl Socket {
    /// All tables but the kernel's own, IPv4 and IPv6, in the kernel's order.
    ///
    /// # Errors
    /// The kernel's.
    pub fn routes(&mut self) -> Result<Vec<Route>> {
        self.dump(RTM_GETROUTE, &[0; BODY], Route::parse)
    }

    /// Adds a unicast route beside those of the same destination. One that is there already is success.
    ///
    /// # Errors
    /// The kernel's: ENETUNREACH for a next hop that is on no link, EINVAL for a source address that is not ours.
    pub fn put_route(&mut self, route: &Route) -> Result<()> {
        match self.request(route.request()) {
            Err(error) if error.number == libc::EEXIST => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_can_be_read_back() {
        let default = Route {
            table: RT_TABLE_MAIN,
            kind: RouteKind::Unicast,
            destination: "0.0.0.0".parse().unwrap(),
            prefix: 0,
            gateway: Some("10.1.2.1".parse().unwrap()),
            index: 2,
            hops: Vec::new(),
            source: Some("10.1.2.3".parse().unwrap()),
            metric: 100,
            mtu: 1400,
            scope: 0,
            protocol: 3,
            on_link: true,
        };
        let mixed = Route {
            gateway: Some("fe80::1".parse().unwrap()),
            ..default.clone()
        };
        let link = Route {
            table: 1000,
            destination: "fd00::".parse().unwrap(),
            prefix: 64,
            gateway: None,
            source: None,
            mtu: 0,
            metric: 256,
            on_link: false,
            protocol: 2,
            ..default.clone()
        };
        let hop = |index, gateway: Option<&str>, weight| Hop {
            index,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            weight,
            on_link: weight == 256,
        };
        let shared = Route {
            gateway: None,
            index: 0,
            on_link: false,
            hops: vec![
                hop(2, Some("10.1.2.1"), 1),
                hop(3, Some("fe80::1"), 256),
                hop(4, None, 7),
            ],
            ..default.clone()
        };
        for route in [default, mixed, link, shared] {
            let bytes = route.request().finish(1);
            assert_eq!(Route::parse(&bytes[16..]), Some(route));
        }
    }

    #[test]
    fn the_kernels_table_and_cached_routes_are_of_no_interest() {
        let body = |table: u8, flags: u32| {
            let mut body = [libc::AF_INET as u8, 0, 0, 0, table, 2, 0, 1, 0, 0, 0, 0];
            body[8..].copy_from_slice(&flags.to_ne_bytes());
            body
        };
        assert_eq!(Route::parse(&body(254, 0)).unwrap().table, RT_TABLE_MAIN);
        assert_eq!(Route::parse(&body(255, 0)), None);
        assert_eq!(Route::parse(&body(254, RTM_F_CLONED)), None);
        let in_attribute = Request::new(24, 0, &body(252, 0)).with(RTA_TABLE, &1000_u32.to_ne_bytes());
        assert_eq!(Route::parse(&in_attribute.finish(1)[16..]).unwrap().table, 1000);
    }
}

//! Network devices (`RTM_*LINK`, linux/if_link.h).

use std::fmt;
use std::str::FromStr;

use crate::error::Result;
use crate::message::{Nest, Request, attributes, find, text, u16_at, u32_at};
use crate::socket::{Mode, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IFLA_MACVLAN_MODE: u16 = 1;
const IFLA_TUN_TYPE: u16 = 3;
const IFLA_TUN_MULTI_QUEUE: u16 = 7;
const IFLA_TUN_NUM_QUEUES: u16 = 8;

/// Bytes of `struct ifinfomsg`.
const BODY: usize = 16;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text is not `aa:bb:cc:dd:ee:ff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an Ethernet address of the form aa:bb:cc:dd:ee:ff")]
pub struct NotAMac;

impl FromStr for Mac {
    type Err = NotAMac;

    fn from_str(text: &str) -> std::result::Result<Self, NotAMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(NotAMac)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(NotAMac);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| NotAMac)?;
        }
        match parts.next() {
            None => Ok(Self(bytes)),
            Some(_) => Err(NotAMac),
        }
    }
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// The kernel names no kind: a card, or what a driver takes for one.
    Device,
    /// A tap.
    Tap {
        /// Descriptors that are open on it; none of a persistent tap that waits for its user.
        queues: u32,
        /// It can have several.
        multi_queue: bool,
    },
    /// The kernel's name of any other kind: "veth", "macvlan", "ipvlan", "bridge", "dummy" …
    Other(String),
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its network namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: LinkKind,
    /// It carries Ethernet frames.
    pub ethernet: bool,
    /// The loopback device.
    pub loopback: bool,
    /// Set up by an administrator.
    pub up: bool,
    /// Nobody is asked for hardware addresses on it.
    pub no_arp: bool,
    /// Hardware address, of an Ethernet device.
    pub mac: Option<Mac>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Number of the bridge or bond that it is a port of.
    pub master: Option<u32>,
}

impl Link {
    /// `body` is a `struct ifinfomsg` and what follows.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        const ARPHRD_ETHER: u16 = 1;
        let flags = u32_at(body, 8)?;
        let mut link = Self {
            index: u32_at(body, 4)?,
            name: String::new(),
            kind: LinkKind::Device,
            ethernet: u16_at(body, 2)? == ARPHRD_ETHER,
            loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
            up: flags & libc::IFF_UP as u32 != 0,
            no_arp: flags & libc::IFF_NOARP as u32 != 0,
            mac: None,
            mtu: 0,
            master: None,
        };
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                IFLA_IFNAME => link.name = text(value)?,
                IFLA_ADDRESS if link.ethernet => link.mac = value.try_into().ok().map(Mac),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_MASTER => link.master = u32_at(value, 0),
                IFLA_LINKINFO => link.kind = kind_of(value),
                _ => {}
            }
        }
        Some(link)
    }
}

fn kind_of(info: &[u8]) -> LinkKind {
    const IFF_TAP: u8 = 2;
    let data = find(info, IFLA_INFO_DATA).unwrap_or_default();
    match find(info, IFLA_INFO_KIND).and_then(text) {
        None => LinkKind::Device,
        Some(kind) if kind == "tun" && find(data, IFLA_TUN_TYPE) == Some(&[IFF_TAP]) => LinkKind::Tap {
            queues: find(data, IFLA_TUN_NUM_QUEUES)
                .and_then(|value| u32_at(value, 0))
                .unwrap_or_default(),
            multi_queue: find(data, IFLA_TUN_MULTI_QUEUE) == Some(&[1]),
        },
        Some(kind) => LinkKind::Other(kind),
    }
}

fn body(index: u32, flags: u32, change: u32) -> [u8; BODY] {
    let mut body = [0; BODY];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[8..12].copy_from_slice(&flags.to_ne_bytes());
    body[12..16].copy_from_slice(&change.to_ne_bytes());
    body
}

/// What is to change of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LinkChange {
    /// A new name. Older kernels refuse to rename a device that is up.
    pub name: Option<String>,
    /// A new hardware address.
    pub mac: Option<Mac>,
    /// Largest packet, bytes.
    pub mtu: Option<u32>,
    /// Up or down.
    pub up: Option<bool>,
    /// Nobody is asked for hardware addresses on it: whoever is reached, the frame goes to the device's own address.
    pub no_arp: bool,
    /// The kernel makes no IPv6 link-local address of its own when the device comes up, and so never speaks first.
    pub no_link_local: bool,
}

/// A macvtap to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Macvtap<'a> {
    /// Its name.
    pub name: &'a str,
    /// Number of the device that it shares.
    pub parent: u32,
    /// Largest packet, bytes.
    pub mtu: u32,
}

impl Socket {
    /// All devices of the network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn links(&mut self) -> Result<Vec<Link>> {
        self.dump(RTM_GETLINK, &body(0, 0, 0), Link::parse)
    }

    /// Changes the device with this number.
    ///
    /// # Errors
    /// The kernel's: ENODEV, EEXIST for a name that is taken, EINVAL for an MTU.
    pub fn change_link(&mut self, index: u32, change: &LinkChange) -> Result<()> {
        const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
        if change.no_link_local {
            // First, because within one request the kernel brings a device up before it looks at this.
            let mode = Nest::default().with(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            let families = Nest::default().with_nest(libc::AF_INET6 as u16, mode);
            let request = Request::new(RTM_SETLINK, Mode::Change.flags(), &body(index, 0, 0));
            match self.request(request.with_nest(IFLA_AF_SPEC, families)) {
                // The device, or the kernel, has no IPv6.
                Err(error) if error.number == libc::EAFNOSUPPORT => {}
                result => result?,
            }
        }
        let up = libc::IFF_UP as u32;
        let (mut flags, mut mask) = match change.up {
            None => (0, 0),
            Some(true) => (up, up),
            Some(false) => (0, up),
        };
        if change.no_arp {
            flags |= libc::IFF_NOARP as u32;
            mask |= libc::IFF_NOARP as u32;
        }
        let mut request = Request::new(RTM_SETLINK, Mode::Change.flags(), &body(index, flags, mask));
        if let Some(name) = &change.name {
            request = request.with_text(IFLA_IFNAME, name);
        }
        if let Some(mac) = change.mac {
            request = request.with(IFLA_ADDRESS, &mac.0);
        }
        if let Some(mtu) = change.mtu {
            request = request.with(IFLA_MTU, &mtu.to_ne_bytes());
        }
        self.request(request)
    }

    /// Makes a macvtap in mode passthru: it has its parent's hardware address and sees everything that its parent receives.
    ///
    /// # Errors
    /// The kernel's: EEXIST for a name that is taken, EOPNOTSUPP without the driver, EBUSY when the parent has one already.
    pub fn add_macvtap(&mut self, macvtap: &Macvtap<'_>) -> Result<()> {
        const MODE_PASSTHRU: u32 = 8;
        let mode = Nest::default().with(IFLA_MACVLAN_MODE, &MODE_PASSTHRU.to_ne_bytes());
        let info = Nest::default()
            .with_text(IFLA_INFO_KIND, "macvtap")
            .with_nest(IFLA_INFO_DATA, mode);
        let request = Request::new(RTM_NEWLINK, Mode::Create.flags(), &body(0, 0, 0))
            .with_text(IFLA_IFNAME, macvtap.name)
            .with(IFLA_LINK, &macvtap.parent.to_ne_bytes())
            .with(IFLA_MTU, &macvtap.mtu.to_ne_bytes())
            .with_nest(IFLA_LINKINFO, info);
        self.request(request)
    }

    /// Removes the device with this number.
    ///
    /// # Errors
    /// The kernel's: ENODEV.
    pub fn remove_link(&mut self, index: u32) -> Result<()> {
        self.request(Request::new(
            RTM_DELLINK,
            Mode::Change.flags(),
            &body(index, 0, 0),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ethernet_addresses_are_read_strictly() {
        let mac: Mac = "02:00:0a:FF:01:7f".parse().unwrap();
        assert_eq!(mac, Mac([2, 0, 10, 255, 1, 127]));
        assert_eq!(mac.to_string(), "02:00:0a:ff:01:7f");
        for bad in [
            "",
            "02",
            "02:00:0a:ff:01",
            "02:00:0a:ff:01:7f:00",
            "2:0:a:f:1:7",
            "02:00:0a:ff:01:+f",
            "02-00-0a-ff-01-7f",
        ] {
            assert_eq!(bad.parse::<Mac>(), Err(NotAMac), "{bad:?}");
        }
    }
}

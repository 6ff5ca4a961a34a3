//! Addresses of network devices (`RTM_*ADDR`, linux/if_addr.h).

use std::net::{IpAddr, Ipv4Addr};

use crate::error::Result;
use crate::message::{Request, attributes, family, ip, octets, u32_at};
use crate::socket::{Mode, Socket};

const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;

/// Bytes of `struct ifaddrmsg`.
const BODY: usize = 8;

/// `IFA_F_*`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AddressFlags(u32);

impl AddressFlags {
    /// IPv4: another address of the same network came first. IPv6: made for privacy, for a time.
    pub const SECONDARY: Self = Self(0x01);
    /// Used at once, without asking whether somebody else has it.
    pub const NO_DAD: Self = Self(0x02);
    /// Somebody else has it: it is not used.
    pub const DAD_FAILED: Self = Self(0x08);
    /// It has no end.
    pub const PERMANENT: Self = Self(0x80);
    /// The kernel makes no route to its network.
    pub const NO_PREFIX_ROUTE: Self = Self(0x200);

    /// All of `other`'s are set.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Those of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An address of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The device's number.
    pub index: u32,
    /// The address.
    pub ip: IpAddr,
    /// Leading bits that are its network's.
    pub prefix: u8,
    /// The other end, where the network has two.
    pub peer: Option<IpAddr>,
    /// Where IPv4 broadcasts go.
    pub broadcast: Option<Ipv4Addr>,
    /// How far it is valid: 0 everywhere, 253 on the link (`RT_SCOPE_*`). IPv6 decides by itself.
    pub scope: u8,
    /// Its flags.
    pub flags: AddressFlags,
}

impl Address {
    /// `body` is a `struct ifaddrmsg` and what follows.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let mut flags = u32::from(*body.get(2)?);
        let (mut address, mut local, mut broadcast) = (None, None, None);
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                IFA_ADDRESS => address = ip(value),
                IFA_LOCAL => local = ip(value),
                IFA_BROADCAST => broadcast = ip(value),
                IFA_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let own = local.or(address)?;
        Some(Self {
            index: u32_at(body, 4)?,
            ip: own,
            prefix: *body.get(1)?,
            peer: address.filter(|&address| address != own),
            broadcast: match broadcast {
                Some(IpAddr::V4(broadcast)) => Some(broadcast),
                _ => None,
            },
            scope: *body.get(3)?,
            flags: AddressFlags(flags),
        })
    }

    fn request(&self) -> Request {
        let mut body = [0; BODY];
        body[0] = family(self.ip);
        body[1] = self.prefix;
        body[3] = self.scope;
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        let mut request = Request::new(RTM_NEWADDR, Mode::Replace.flags(), &body)
            .with(IFA_LOCAL, &octets(self.ip))
            .with(IFA_ADDRESS, &octets(self.peer.unwrap_or(self.ip)))
            .with(IFA_FLAGS, &self.flags.0.to_ne_bytes());
        if let Some(broadcast) = self.broadcast {
            request = request.with(IFA_BROADCAST, &broadcast.octets());
        }
        request
    }
}

impl Socket {
    /// All addresses of the network namespace, IPv4 and IPv6.
    ///
    /// # Errors
    /// The kernel's.
    pub fn addresses(&mut self) -> Result<Vec<Address>> {
        self.dump(RTM_GETADDR, &[0; BODY], Address::parse)
    }

    /// Gives a device an address, or an address that it has new properties.
    ///
    /// # Errors
    /// The kernel's: ENODEV; EACCES and others where IPv6 is disabled.
    pub fn put_address(&mut self, address: &Address) -> Result<()> {
        self.request(address.request())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::find;

    /// What the kernel would answer about what it was asked to add: the formats are the same.
    fn answered(address: &Address) -> Address {
        let bytes = address.request().finish(1);
        assert_eq!(find(&bytes[24..], IFA_LOCAL), Some(&octets(address.ip)[..]));
        Address::parse(&bytes[16..]).unwrap()
    }

    #[test]
    fn what_is_asked_for_can_be_read_back() {
        let plain = Address {
            index: 3,
            ip: "10.1.2.3".parse().unwrap(),
            prefix: 24,
            peer: None,
            broadcast: Some("10.1.2.255".parse().unwrap()),
            scope: 0,
            flags: AddressFlags::NO_PREFIX_ROUTE.and(AddressFlags::NO_DAD),
        };
        let peered = Address {
            prefix: 32,
            peer: Some("10.1.2.4".parse().unwrap()),
            broadcast: None,
            ..plain.clone()
        };
        let six = Address {
            ip: "fd00::7".parse().unwrap(),
            prefix: 64,
            broadcast: None,
            ..plain.clone()
        };
        for address in [plain, peered, six] {
            assert_eq!(answered(&address), address);
            assert!(address.flags.has(AddressFlags::NO_DAD) && !address.flags.has(AddressFlags::PERMANENT));
        }
    }
}

//! Neighbours (`RTM_*NEIGH`, linux/neighbour.h): the permanent ones, which nobody asks for.

use std::net::IpAddr;

use crate::error::Result;
use crate::link::Mac;
use crate::message::{Request, family, find, ip, octets, u16_at, u32_at};
use crate::socket::{Mode, Socket};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const NUD_PERMANENT: u16 = 0x80;
const NTF_PROXY: u8 = 0x08;

/// Bytes of `struct ndmsg`.
const BODY: usize = 12;

/// A neighbour whose hardware address an administrator has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// Number of the device behind which it is.
    pub index: u32,
    /// Its address.
    pub ip: IpAddr,
    /// Its hardware address.
    pub mac: Mac,
}

impl Neighbour {
    /// `body` is a `struct ndmsg` and what follows. `None`: not a permanent neighbour.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let (state, flags) = (u16_at(body, 8)?, *body.get(10)?);
        if state & NUD_PERMANENT == 0 || flags & NTF_PROXY != 0 {
            return None;
        }
        let attributes = body.get(BODY..)?;
        Some(Self {
            index: u32_at(body, 4)?,
            ip: find(attributes, NDA_DST).and_then(ip)?,
            mac: Mac(find(attributes, NDA_LLADDR)?.try_into().ok()?),
        })
    }

    fn request(&self) -> Request {
        let mut body = [0; BODY];
        body[0] = family(self.ip);
        body[4..8].copy_from_slice(&self.index.to_ne_bytes());
        body[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        Request::new(RTM_NEWNEIGH, Mode::Replace.flags(), &body)
            .with(NDA_DST, &octets(self.ip))
            .with(NDA_LLADDR, &self.mac.0)
    }
}

impl Socket {
    /// All permanent neighbours of the network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>> {
        self.dump(RTM_GETNEIGH, &[0; BODY], Neighbour::parse)
    }

    /// Makes a neighbour permanent, or gives it another hardware address.
    ///
    /// # Errors
    /// The kernel's: ENODEV.
    pub fn put_neighbour(&mut self, neighbour: &Neighbour) -> Result<()> {
        self.request(neighbour.request())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_can_be_read_back() {
        for ip in ["169.254.1.1", "fe80::1"] {
            let neighbour = Neighbour {
                index: 4,
                ip: ip.parse().unwrap(),
                mac: Mac([2, 0, 0, 0, 0, 1]),
            };
            let mut bytes = neighbour.request().finish(1);
            assert_eq!(Neighbour::parse(&bytes[16..]), Some(neighbour));
            // Learned, not set.
            bytes[24] = 2;
            assert_eq!(Neighbour::parse(&bytes[16..]), None);
        }
    }
}

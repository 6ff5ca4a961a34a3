//! Messages as bytes (netlink(7)): a header, a fixed body, attributes of type, length and value, padded to four bytes. Pure.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::error::{Error, Result};

/// Bytes of `struct nlmsghdr`.
pub const HEADER: usize = 16;

/// The bits of an attribute's type that are flags (nested, byte order).
const TYPE_FLAGS: u16 = 0xc000;
const NESTED: u16 = 0x8000;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of this type (`RTM_*`) with these flags (`NLM_F_*`) and this body.
    pub fn new(kind: u16, flags: u16, body: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(body);
        pad(&mut bytes);
        Self { bytes }
    }

    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.bytes, kind, value);
        self
    }

    /// Adds a text, with the zero byte that the kernel expects at its end.
    pub fn with_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    /// Adds an attribute that consists of attributes.
    pub fn with_nest(self, kind: u16, nest: Nest) -> Self {
        self.with(kind | NESTED, &nest.bytes)
    }

    /// The message, numbered.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }
}

/// Attributes inside an attribute.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nest {
    bytes: Vec<u8>,
}

impl Nest {
    /// Adds an attribute.
    pub fn with(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.bytes, kind, value);
        self
    }

    /// Adds a text, with a zero byte.
    pub fn with_text(self, kind: u16, text: &str) -> Self {
        let mut value = text.as_bytes().to_vec();
        value.push(0);
        self.with(kind, &value)
    }

    /// Adds a nested attribute.
    pub fn with_nest(self, kind: u16, nest: Self) -> Self {
        self.with(kind | NESTED, &nest.bytes)
    }

    /// What it is so far.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // Nothing that is sent comes near 64 KiB; what did would be refused by the kernel as malformed.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    pad(bytes);
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// A message of the kernel's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// `RTM_*` or `NLMSG_*`.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Number of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Takes one message from the front of what was received.
    ///
    /// # Errors
    /// It is cut short.
    pub fn take(bytes: &mut &'a [u8]) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let length = u32_at(bytes, 0).ok_or_else(Error::malformed)? as usize;
        let message = bytes.get(HEADER..length).ok_or_else(Error::malformed)?;
        let taken = Self {
            kind: u16_at(bytes, 4).unwrap_or_default(),
            flags: u16_at(bytes, 6).unwrap_or_default(),
            sequence: u32_at(bytes, 8).unwrap_or_default(),
            body: message,
        };
        *bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Ok(Some(taken))
    }

    /// The error in an `NLMSG_ERROR`; `None` is an acknowledgement.
    ///
    /// # Errors
    /// It is cut short.
    pub fn refusal(&self) -> Result<Option<Error>> {
        /// The request is not repeated in full behind its header.
        const CAPPED: u16 = 0x100;
        /// Attributes follow.
        const TLVS: u16 = 0x200;
        const MSG: u16 = 1;
        let code = u32_at(self.body, 0).ok_or_else(Error::malformed)?.cast_signed();
        if code == 0 {
            return Ok(None);
        }
        let repeated = match u32_at(self.body, 4) {
            Some(length) if self.flags & CAPPED == 0 => (length as usize).next_multiple_of(4),
            _ => HEADER,
        };
        let words = match self.body.get(repeated.saturating_add(4)..) {
            Some(attributes) if self.flags & TLVS != 0 => find(attributes, MSG)
                .and_then(text)
                .filter(|words| !words.is_empty()),
            _ => None,
        };
        Ok(Some(Error::new(code.saturating_neg(), words)))
    }
}

/// Attributes, one after the other, up to the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & !TYPE_FLAGS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this type.
pub fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// A text without its zero byte.
pub fn text(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|&byte| byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).ok().map(str::to_owned)
}

/// Two bytes in the host's order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let value = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

/// Four bytes in the host's order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let value = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// An address, by its length.
pub fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Some(Ipv4Addr::from(octets).into());
    }
    let octets = <[u8; 16]>::try_from(value).ok()?;
    Some(Ipv6Addr::from(octets).into())
}

/// The bytes of an address.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().into(),
        IpAddr::V6(ip) => ip.octets().into(),
    }
}

/// `AF_INET` or `AF_INET6`.
pub fn family(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => libc::AF_INET as u8,
        IpAddr::V6(_) => libc::AF_INET6 as u8,
    }
}

/// The address of this family that stands for none.
pub fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        libc::AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_a_header_a_body_and_padded_attributes() {
        let nest = Nest::default().with_text(1, "u32");
        let bytes = Request::new(16, 5, &[1, 2, 3, 4])
            .with(3, &[9])
            .with_nest(2, nest)
            .finish(7);
        let expected: Vec<u8> = [
            // length, type, flags, sequence, port
            &40_u32.to_ne_bytes()[..],
            &16_u16.to_ne_bytes(),
            &5_u16.to_ne_bytes(),
            &7_u32.to_ne_bytes(),
            &0_u32.to_ne_bytes(),
            &[1, 2, 3, 4],
            &5_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            &[9, 0, 0, 0],
            &12_u16.to_ne_bytes(),
            &0x8002_u16.to_ne_bytes(),
            &8_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"u32\0",
        ]
        .concat();
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_refusal_has_its_number_and_its_words() {
        let request = Request::new(24, 5, &[0; 12]).finish(1);
        let words = Nest::default().with_text(1, "Nexthop has invalid gateway").bytes;
        let code = (-libc::ENETUNREACH).to_ne_bytes();
        for (flags, repeated) in [(0x200, &request[..]), (0x300, &request[..HEADER])] {
            let body = [&code, repeated, &words].concat();
            let message = Message {
                kind: 2,
                flags,
                sequence: 1,
                body: &body,
            };
            let error = message.refusal().unwrap().unwrap();
            assert_eq!(error.number, libc::ENETUNREACH);
            assert_eq!(error.words.as_deref(), Some("Nexthop has invalid gateway"));
        }
        let acknowledged = Message {
            kind: 2,
            flags: 0x100,
            sequence: 1,
            body: &[0; 20],
        };
        assert_eq!(acknowledged.refusal(), Ok(None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let total: usize = attributes(&bytes).map(|(_, value)| value.len() + 4).sum();
            prop_assert!(total <= bytes.len());
            let mut rest = &bytes[..];
            while let Ok(Some(message)) = Message::take(&mut rest) {
                let _ = message.refusal();
            }
        }

        #[test]
        fn what_was_put_is_found(kind in 0_u16..0x3fff, value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let nest = Nest::default().with(kind ^ 1, &[1, 2, 3]).with(kind, &value);
            prop_assert_eq!(find(&nest.bytes, kind), Some(&value[..]));
        }

        #[test]
        fn addresses_keep_their_bytes(v4 in any::<[u8; 4]>(), v6 in any::<[u8; 16]>()) {
            for address in [IpAddr::from(v4), IpAddr::from(v6)] {
                prop_assert_eq!(ip(&octets(address)), Some(address));
            }
        }
    }
}

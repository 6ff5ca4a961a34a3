//! Rules (`RTM_*RULE`, linux/fib_rules.h): which routing table is asked for which packets.

use std::net::IpAddr;

use crate::error::Result;
use crate::message::{Request, attributes, family, ip, octets, text, u32_at, unspecified};
use crate::route::{RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN};
use crate::socket::{Mode, Socket};

const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;

const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_PROTOCOL: u16 = 21;

const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;

/// `FRA_SUPPRESS_*` that suppress nothing.
const NOTHING: u32 = u32::MAX;

/// Bytes of `struct fib_rule_hdr`.
const BODY: usize = 12;

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Lower ones are asked first.
    pub priority: u32,
    /// The table that it sends packets to.
    pub table: u32,
    /// Where they come from: a network. Of 0 bits: anywhere, and the address says the family only.
    pub source: IpAddr,
    /// Its leading bits.
    pub source_prefix: u8,
    /// Where they go to, likewise, of the same family.
    pub destination: IpAddr,
    /// Its leading bits.
    pub destination_prefix: u8,
    /// Name of the device that they came by; empty: any.
    pub input: String,
    /// Name of the device that a socket is bound to; empty: any.
    pub output: String,
    /// What their mark is, in the bits of `mask`.
    pub mark: u32,
    /// 0: whatever the mark.
    pub mask: u32,
    /// Routes of the table with at most so many leading bits do not count.
    pub suppress: Option<u32>,
    /// It is for all other packets.
    pub invert: bool,
    /// There is more to it than is said here.
    pub more: bool,
}

impl Rule {
    /// `body` is a `struct fib_rule_hdr` and what follows. `None`: not of IPv4 or IPv6.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let any = unspecified(*body.first()?)?;
        let flags = u32_at(body, 8)?;
        let mut rule = Self {
            priority: 0,
            table: u32::from(body[4]),
            source: any,
            source_prefix: body[2],
            destination: any,
            destination_prefix: body[1],
            input: String::new(),
            output: String::new(),
            mark: 0,
            mask: 0,
            suppress: None,
            invert: flags & FIB_RULE_INVERT != 0,
            // A type of service, or something else than to ask a table.
            more: body[3] != 0 || body[7] != FR_ACT_TO_TBL,
        };
        for (kind, value) in attributes(body.get(BODY..)?) {
            match kind {
                FRA_DST => rule.destination = ip(value)?,
                FRA_SRC => rule.source = ip(value)?,
                FRA_IIFNAME => rule.input = text(value)?,
                FRA_OIFNAME => rule.output = text(value)?,
                FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
                FRA_FWMARK => rule.mark = u32_at(value, 0)?,
                FRA_FWMASK => rule.mask = u32_at(value, 0)?,
                FRA_TABLE => rule.table = u32_at(value, 0)?,
                FRA_SUPPRESS_PREFIXLEN => rule.suppress = u32_at(value, 0).filter(|bits| *bits != NOTHING),
                FRA_SUPPRESS_IFGROUP => rule.more |= u32_at(value, 0)? != NOTHING,
                FRA_PAD | FRA_PROTOCOL => {}
                _ => rule.more = true,
            }
        }
        Some(rule)
    }

    /// One of those that every network namespace begins with.
    pub fn is_initial(&self) -> bool {
        let plain = self.source_prefix == 0
            && self.destination_prefix == 0
            && self.input.is_empty()
            && self.output.is_empty()
            && self.mask == 0
            && self.suppress.is_none()
            && !self.invert
            && !self.more;
        let initial = [
            (0, RT_TABLE_LOCAL),
            (32_766, RT_TABLE_MAIN),
            (32_767, RT_TABLE_DEFAULT),
        ];
        plain && initial.contains(&(self.priority, self.table))
    }

    fn request(&self) -> Request {
        let mut body = [0; BODY];
        body[0] = family(self.source);
        body[1] = self.destination_prefix;
        body[2] = self.source_prefix;
        body[7] = FR_ACT_TO_TBL;
        if self.invert {
            body[8..12].copy_from_slice(&FIB_RULE_INVERT.to_ne_bytes());
        }
        let mut request = Request::new(RTM_NEWRULE, Mode::Create.flags(), &body)
            .with(FRA_PRIORITY, &self.priority.to_ne_bytes())
            .with(FRA_TABLE, &self.table.to_ne_bytes());
        if self.source_prefix != 0 {
            request = request.with(FRA_SRC, &octets(self.source));
        }
        if self.destination_prefix != 0 {
            request = request.with(FRA_DST, &octets(self.destination));
        }
        if !self.input.is_empty() {
            request = request.with_text(FRA_IIFNAME, &self.input);
        }
        if !self.output.is_empty() {
            request = request.with_text(FRA_OIFNAME, &self.output);
        }
        if self.mask != 0 {
            request = request
                .with(FRA_FWMARK, &self.mark.to_ne_bytes())
                .with(FRA_FWMASK, &self.mask.to_ne_bytes());
        }
        if let Some(bits) = self.suppress {
            request = request.with(FRA_SUPPRESS_PREFIXLEN, &bits.to_ne_bytes());
        }
        request
    }
}

impl Socket {
    /// The rules of IPv4 and IPv6, those that every namespace begins with included.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        match self.dump(RTM_GETRULE, &[0; BODY], Rule::parse) {
            // A kernel with one table for each family has none.
            Err(error) if error.number == libc::EOPNOTSUPP => Ok(Vec::new()),
            result => result,
        }
    }

    /// Adds a rule. One that is there already is success.
    ///
    /// # Errors
    /// The kernel's: EOPNOTSUPP or EAFNOSUPPORT for one that has no rules.
    pub fn put_rule(&mut self, rule: &Rule) -> Result<()> {
        match self.request(rule.request()) {
            Err(error) if error.number == libc::EEXIST => Ok(()),
            result => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Rule {
        Rule {
            priority: 100,
            table: 1000,
            source: "0.0.0.0".parse().unwrap(),
            source_prefix: 0,
            destination: "0.0.0.0".parse().unwrap(),
            destination_prefix: 0,
            input: String::new(),
            output: String::new(),
            mark: 0,
            mask: 0,
            suppress: None,
            invert: false,
            more: false,
        }
    }

    fn read(request: Request) -> Rule {
        Rule::parse(&request.finish(1)[16..]).unwrap()
    }

    #[test]
    fn what_is_asked_for_can_be_read_back() {
        let full = Rule {
            source: "10.1.2.3".parse().unwrap(),
            source_prefix: 32,
            destination: "10.9.0.0".parse().unwrap(),
            destination_prefix: 16,
            input: "net1".into(),
            output: "net2".into(),
            mark: 0,
            mask: 0xff00,
            suppress: Some(0),
            invert: true,
            ..plain()
        };
        let six = Rule {
            source: "fd00::".parse().unwrap(),
            source_prefix: 64,
            destination: "::".parse().unwrap(),
            ..plain()
        };
        for rule in [plain(), full, six] {
            assert_eq!(read(rule.request()), rule);
        }
    }

    #[test]
    fn what_is_not_understood_is_more() {
        const UID_RANGE: u16 = 20;
        assert!(read(plain().request().with(UID_RANGE, &[0; 8])).more);
        assert!(!read(plain().request().with(FRA_PROTOCOL, &[3])).more);
        assert!(
            !read(
                plain()
                    .request()
                    .with(FRA_SUPPRESS_IFGROUP, &NOTHING.to_ne_bytes())
            )
            .more
        );
        assert!(read(plain().request().with(FRA_SUPPRESS_IFGROUP, &[0; 4])).more);
        let mut blackhole = plain().request().finish(1);
        blackhole[16 + 7] = 6;
        assert!(Rule::parse(&blackhole[16..]).unwrap().more);
    }

    #[test]
    fn initial_ones_are_known_by_all_that_they_say() {
        let main = Rule {
            priority: 32_766,
            table: 254,
            ..plain()
        };
        assert!(main.is_initial() && !plain().is_initial());
        let narrower = Rule {
            output: "net1".into(),
            ..main.clone()
        };
        let elsewhere = Rule { table: 100, ..main };
        assert!(!narrower.is_initial() && !elsewhere.is_initial());
    }
}

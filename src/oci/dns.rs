//! What a `resolv.conf` says, read as tolerantly as the C library reads it (resolv.conf(5)). Pure.

// `core`'s has addresses only, no sockets.
use core::net::IpAddr;

use crate::model::Dns;

/// More than a resolver uses of each, and few enough to be no burden.
const MAX_WORDS: usize = 32;

/// Longest word that is taken: a domain name has 253 bytes.
const MAX_WORD: usize = 255;

/// Reads a file. What a resolver would not understand is passed over.
pub(super) fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines() {
        // A keyword starts the line; anything else is a comment or nothing.
        if line.starts_with([' ', '\t', '#', ';']) {
            continue;
        }
        let mut words = line.split_ascii_whitespace();
        let keyword = words.next();
        let mut words = words.filter(|word| word.len() <= MAX_WORD && !word.contains(char::is_control));
        match keyword {
            Some("nameserver") => dns
                .servers
                .extend(words.next().filter(|word| is_address(word)).map(str::to_owned)),
            // Of several lines of these two, the last one counts.
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("domain") => dns.searches = words.next().map(str::to_owned).into_iter().collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    for list in [&mut dns.servers, &mut dns.searches, &mut dns.options] {
        list.truncate(MAX_WORDS);
    }
    dns
}

/// An IPv4 or IPv6 address, the latter with a zone perhaps.
fn is_address(word: &str) -> bool {
    let (address, zone) = match word.split_once('%') {
        Some((address, zone)) => (address, Some(zone)),
        None => (word, None),
    };
    match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => zone.is_none(),
        Ok(IpAddr::V6(_)) => zone != Some(""),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Dns {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Dns {
            servers: owned(servers),
            searches: owned(searches),
            options: owned(options),
        }
    }

    #[test]
    fn what_a_resolver_reads() {
        let table = [
            ("", dns(&[], &[], &[])),
            (
                "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
                dns(
                    &["10.96.0.10"],
                    &["default.svc.cluster.local", "svc.cluster.local"],
                    &["ndots:5"],
                ),
            ),
            (
                "# by hand\n; too\r\nnameserver\t::1\r\nnameserver fe80::1%eth0 ignored\n",
                dns(&["::1", "fe80::1%eth0"], &[], &[]),
            ),
            (
                "nameserver dns.example\nnameserver 1.2.3\nnameserver\n nameserver 1.1.1.1\nnameserver 1.1.1.1%x\n",
                dns(&[], &[], &[]),
            ),
            ("search a b\ndomain c d\n", dns(&[], &["c"], &[])),
            ("domain c\nsearch a b\n", dns(&[], &["a", "b"], &[])),
            ("search a\nsearch\n", dns(&[], &[], &[])),
            ("options a\noptions b c", dns(&[], &[], &["a", "b", "c"])),
            (
                "sortlist 1.2.3.4\nNAMESERVER 1.1.1.1\nnameserver1.1.1.1\n",
                dns(&[], &[], &[]),
            ),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text:?}");
        }
    }

    proptest! {
        /// The agent writes the words back into a file: none may become two, or a line of its own.
        #[test]
        fn every_word_is_one_word(text in "(nameserver|search|domain|options|#)?[ \ta-z0-9.:%\n\r\0\u{85}]{0,200}") {
            let dns = parse(&text);
            for word in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
                prop_assert!(!word.is_empty() && !word.contains(|c: char| c.is_whitespace() || c.is_control()));
            }
            prop_assert!(dns.servers.len() <= MAX_WORDS && dns.searches.len() <= MAX_WORDS);
        }
    }
}

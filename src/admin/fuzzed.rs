//! What comes over an administrator's socket, and what a hostile guest says of its own kernel.

use std::collections::BTreeSet;

use super::frames::{self, Frame};
use super::{http, proc};

#[test]
fn requests_and_answers() {
    let seeds = [
        &b"GET /metrics?name=a%20b&x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"[..],
        b"PUT /policy HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n\r\n",
    ];
    fuzz::target("administrators-http", seeds, |input| {
        if let Ok(Some((request, length))) = http::request(input) {
            assert!(
                length <= input.len() && request.body <= http::MOST_BODY,
                "{request:?}"
            );
        }
        if let Ok(Some((_, length))) = http::head(input) {
            assert!(length <= input.len());
        }
        // What is told as incomplete is that: a beginning is never refused for what is missing.
        if let Ok(Some((_, length))) = http::request(input) {
            for end in 0..length.min(64) {
                let part = input.get(..end).unwrap_or_default();
                assert!(matches!(http::request(part), Ok(None)), "{end} of {length}");
            }
        }
    });
}

#[test]
fn console_frames() {
    let seeds = [
        Frame::Data(b"ls\n".to_vec()),
        Frame::Size(24, 80),
        Frame::End,
        Frame::Exit(137),
    ];
    fuzz::target("console-frames", seeds.map(|frame| frame.encode()), |input| {
        let Some((head, content)) = input.split_first_chunk::<{ frames::HEAD }>() else {
            return;
        };
        let Ok(length) = Frame::length(*head) else {
            return;
        };
        assert!(length <= frames::MOST);
        let Some(content) = content.get(..length) else {
            return;
        };
        if let Ok(frame) = Frame::decode(*head, content.to_vec()) {
            assert_eq!(frame.encode(), input[..frames::HEAD + length]);
        }
    });
}

#[test]
fn figures_of_a_guest() {
    let seeds = [
        "MemTotal:  2048 kB\nMemFree: 1 kB\nHugePages_Total: 0\nActive(anon): 5 kB\n",
        "nr_free_pages 7\npgpgin 18446744073709551615\n",
        "Inter-| Receive |\n face |bytes packets\n  eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n lo:0 0 0\n",
        " 254 0 vda 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15\n",
        "cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4\nintr 5\n",
        "0.50 0.25 0.10 2/80 1234\n",
        "42 (a ) b) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 100 4096 17\n",
    ];
    fuzz::target("figures-of-a-guest", seeds, |input| {
        let text = String::from_utf8_lossy(input);
        let harmless = |name: &str| {
            assert!(
                !name.is_empty() && !name.contains(|c: char| c.is_control() || c == '"' || c == '\\'),
                "{name:?}"
            );
        };
        let lines = proc::lines(&text);
        let names: BTreeSet<_> = lines.iter().map(|(name, _)| name).collect();
        assert_eq!(names.len(), lines.len(), "{lines:?}");
        let (load, tasks) = proc::load(&text);
        for (name, value) in [lines, load, tasks, proc::stat(&text, 4096.0)].concat() {
            harmless(&name);
            assert!(value.is_finite(), "{name}: {value}");
        }
        for named in [proc::network(&text), proc::disks(&text), proc::processors(&text)] {
            // A figure that is there twice makes a scraper refuse all of them.
            let names: BTreeSet<_> = named.iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), named.len(), "{named:?}");
            for (name, items) in &named {
                harmless(name);
                assert!(items.iter().all(|(_, value)| value.is_finite()), "{items:?}");
            }
        }
        proc::traffic(&text);
    });
}

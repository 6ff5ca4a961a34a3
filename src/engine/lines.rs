//! Output becomes lines of a log in CRI's format, which podman calls `k8s-file`: time, stream, whether the line is whole, text.
//! Pure.

use std::time::SystemTime;

/// Bytes of a line that are kept until its end is there; a longer one is cut into parts.
const LONGEST: usize = 16 * 1024;

/// What one stream has said since its last line.
#[derive(Debug)]
pub(super) struct Lines {
    stream: &'static str,
    begun: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: &'static str) -> Self {
        Self {
            stream,
            begun: Vec::new(),
        }
    }

    /// Adds to `log` the lines that end in `data`.
    pub(super) fn add(&mut self, data: &[u8], at: SystemTime, log: &mut Vec<u8>) {
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let mut rest = text;
            while self.begun.len() + rest.len() > LONGEST {
                let (head, tail) = rest.split_at(LONGEST.saturating_sub(self.begun.len()));
                self.begun.extend_from_slice(head);
                self.write("P", at, log);
                rest = tail;
            }
            self.begun.extend_from_slice(rest);
            if is_whole {
                self.write("F", at, log);
            }
        }
    }

    /// There will be no more: what has no end is written as the part of a line that it is.
    pub(super) fn end(&mut self, at: SystemTime, log: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.write("P", at, log);
        }
    }

    fn write(&mut self, tag: &str, at: SystemTime, log: &mut Vec<u8>) {
        let time = humantime::format_rfc3339_nanos(at);
        log.extend_from_slice(format!("{time} {} {tag} ", self.stream).as_bytes());
        log.append(&mut self.begun);
        log.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(1_475_712_577, 669_794_202)
    }

    fn logged(chunks: &[&[u8]]) -> String {
        let mut lines = Lines::new("stdout");
        let mut log = Vec::new();
        for chunk in chunks {
            lines.add(chunk, at(), &mut log);
        }
        lines.end(at(), &mut log);
        String::from_utf8(log).unwrap()
    }

    #[test]
    fn a_line_is_logged_when_it_has_ended() {
        let time = "2016-10-06T00:09:37.669794202Z stdout";
        for (chunks, expected) in [
            (&[&b"log line\n"[..]][..], vec!["F log line"]),
            (&[b"one\ntw", b"o\n"], vec!["F one", "F two"]),
            (&[b"\n\n"], vec!["F ", "F "]),
            (&[b"no end"], vec!["P no end"]),
            (&[], vec![]),
        ] {
            let expected: String = expected.iter().map(|line| format!("{time} {line}\n")).collect();
            assert_eq!(logged(chunks), expected);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut() {
        let long = vec![b'x'; 2 * LONGEST + 1];
        let log = logged(&[&long, b"\n"]);
        let lines: Vec<_> = log.lines().map(|line| line.get(38..).unwrap()).collect();
        assert_eq!(
            lines.iter().map(|line| line.len()).collect::<Vec<_>>(),
            [LONGEST + 2, LONGEST + 2, 3]
        );
        assert!(lines[0].starts_with("P x") && lines[1].starts_with("P x") && lines[2] == "F x");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_however_it_is_cut(
            text in prop::collection::vec(prop::sample::select(&b"ab\n"[..]), 0..200),
            cuts in prop::collection::vec(0..200usize, 0..6),
        ) {
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            let mut chunks = Vec::new();
            let mut from = 0;
            for cut in cuts {
                chunks.push(&text[from..cut]);
                from = cut;
            }
            chunks.push(&text[from..]);
            let mut read = Vec::new();
            for line in logged(&chunks).lines() {
                let mut fields = line.splitn(4, ' ').skip(2);
                let tag = fields.next().unwrap();
                read.extend_from_slice(fields.next().unwrap().as_bytes());
                if tag == "F" {
                    read.push(b'\n');
                }
            }
            prop_assert_eq!(read, text);
        }
    }
}

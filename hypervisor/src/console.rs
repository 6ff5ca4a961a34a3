//! What a guest prints on its console, made harmless.
//!
//! The guest is hostile: its output is unbounded in length, rate and content. Here it becomes lines of printable
//! text, cut to a length, of which the last few are kept and a limited number per second is logged. Pure.

use std::collections::VecDeque;

/// Longest line that is kept, in bytes; the rest of a longer one is dropped.
pub const MAX_LINE: usize = 512;

/// Lines that are kept for the report of the VMM's end.
pub const KEPT_LINES: usize = 64;

/// Lines that are logged per second; more are counted and dropped.
const LOGGED_PER_SECOND: u32 = 200;

/// Cuts a byte stream into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes of the stream and hands each line that is complete to `line`.
    pub fn push(&mut self, bytes: &[u8], mut line: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, complete) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let room = MAX_LINE.saturating_sub(self.partial.len());
            self.partial.extend_from_slice(&text[..text.len().min(room)]);
            if complete {
                self.finish(&mut line);
            }
        }
    }

    /// The stream has ended: hands over what follows the last newline.
    pub fn finish(&mut self, line: impl FnOnce(String)) {
        let text = printable(&self.partial);
        self.partial.clear();
        if !text.is_empty() {
            line(text);
        }
    }
}

/// Text without control characters, escape sequences and trailing space. Replacing a byte that is not UTF-8 can make the
/// text longer, so it is cut again.
fn printable(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut escape = Escape::None;
    for character in String::from_utf8_lossy(bytes).chars() {
        escape = match (escape, character) {
            (_, '\u{1b}') => Escape::Begun,
            (Escape::Begun, '[') => Escape::Control,
            (Escape::Begun, _) => Escape::None,
            // A control sequence (ECMA-48) ends with a character of `@` to `~`.
            (Escape::Control, '@'..='~') => Escape::None,
            (Escape::Control, _) => Escape::Control,
            (Escape::None, '\t') => {
                text.push(' ');
                Escape::None
            }
            (Escape::None, character) => {
                if !character.is_control()
                    && !reorders(character)
                    && text.len() + character.len_utf8() <= MAX_LINE
                {
                    text.push(character);
                }
                Escape::None
            }
        };
    }
    text.truncate(text.trim_end().len());
    text
}

/// Characters that change the order in which a terminal shows its line (Unicode's bidirectional controls).
fn reorders(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[derive(Clone, Copy)]
enum Escape {
    None,
    Begun,
    Control,
}

/// The last lines of a stream.
#[derive(Debug, Default)]
pub struct Tail {
    lines: VecDeque<String>,
}

impl Tail {
    /// Adds a line, dropping the oldest one where there are too many.
    pub fn push(&mut self, line: String) {
        if self.lines.len() == KEPT_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The lines, oldest first.
    pub fn to_vec(&self) -> Vec<String> {
        self.lines.iter().cloned().collect()
    }
}

/// Lets a limited number of lines through per second. Time is handed in, in whole seconds of any clock.
#[derive(Debug, Default)]
pub struct Limit {
    second: u64,
    passed: u32,
    dropped: u64,
}

/// What [`Limit`] says of a line.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Log it; so many lines before it were not.
    Pass {
        /// Lines dropped since the last one that passed.
        dropped: u64,
    },
    /// Do not log it.
    Drop,
}

impl Limit {
    /// Judges a line that arrives at `second`.
    pub fn judge(&mut self, second: u64) -> Verdict {
        if second != self.second {
            self.second = second;
            self.passed = 0;
        }
        if self.passed == LOGGED_PER_SECOND {
            self.dropped += 1;
            return Verdict::Drop;
        }
        self.passed += 1;
        Verdict::Pass {
            dropped: std::mem::take(&mut self.dropped),
        }
    }
}

/// Alarming lines that may be logged at once, where ordinary ones are not; then one a second. A guest can make them up.
const ALARMS: u64 = 50;

/// Decides which alarming lines an administrator is shown without debugging.
#[derive(Debug, Default)]
pub struct Alarms {
    second: u64,
    spent: u64,
}

impl Alarms {
    /// Whether one that comes at `second` is to be shown.
    pub fn allow(&mut self, second: u64) -> bool {
        self.spent = self.spent.saturating_sub(second.saturating_sub(self.second));
        self.second = second;
        let allowed = self.spent < ALARMS;
        self.spent += u64::from(allowed);
        allowed
    }
}

/// Whether a kernel says something in this line that an administrator should see without debugging: the beginnings of
/// Linux' messages for a panic, an oops and the OOM killer.
pub fn is_alarming(line: &str) -> bool {
    [
        "Kernel panic",
        "BUG:",
        "Oops:",
        "Out of memory:",
        "general protection fault",
        "Call Trace:",
    ]
    .iter()
    .any(|beginning| line.contains(beginning))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        for chunk in chunks {
            lines.push(chunk, |line| all.push(line));
        }
        lines.finish(|line| all.push(line));
        all
    }

    #[test]
    fn a_stream_becomes_lines() {
        let cases: &[(&[&[u8]], &[&str])] = &[
            (&[b"a\nb\r\n", b"c"], &["a", "b", "c"]),
            (&[b"spl", b"it\n"], &["split"]),
            (&[b"\n\n \r\n"], &[]),
            (&[b"\x1b[1;31mred\x1b[0m\n"], &["red"]),
            (&[b"\x1bcclear\x07\x00\x08!\n"], &["clear!"]),
            (&[b"a\tb\n"], &["a b"]),
            (&[b"\xff\xfe\n"], &["\u{fffd}\u{fffd}"]),
            (&["x\u{202e}y\n".as_bytes()], &["xy"]),
        ];
        for (chunks, expected) in cases {
            assert_eq!(lines_of(chunks), *expected, "{chunks:?}");
        }
    }

    #[test]
    fn the_tail_keeps_the_last_lines() {
        let mut tail = Tail::default();
        for number in 0..1000 {
            tail.push(number.to_string());
        }
        let kept = tail.to_vec();
        assert_eq!(kept.len(), KEPT_LINES);
        assert_eq!(kept.last().map(String::as_str), Some("999"));
        assert_eq!(kept.first().cloned(), Some((1000 - KEPT_LINES).to_string()));
    }

    #[test]
    fn a_flood_is_logged_at_a_limited_rate_and_counted() {
        let mut limit = Limit::default();
        let passed = (0..10_000).filter(|_| limit.judge(7) != Verdict::Drop).count();
        assert_eq!(passed, LOGGED_PER_SECOND as usize);
        assert_eq!(
            limit.judge(8),
            Verdict::Pass {
                dropped: 10_000 - u64::from(LOGGED_PER_SECOND)
            }
        );
        assert_eq!(limit.judge(8), Verdict::Pass { dropped: 0 });
    }

    proptest! {
        #[test]
        fn whatever_a_guest_prints_is_short_and_printable(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..2000), 0..8)) {
            let chunks: Vec<&[u8]> = chunks.iter().map(Vec::as_slice).collect();
            let mut lines = Lines::default();
            let mut check = |line: String| {
                assert!(line.len() <= MAX_LINE);
                assert!(!line.chars().any(char::is_control));
            };
            for chunk in &chunks {
                lines.push(chunk, &mut check);
                assert!(lines.partial.capacity() <= 4 * MAX_LINE);
            }
            lines.finish(check);
            prop_assert_eq!(lines_of(&chunks), lines_of(&[&chunks.concat()]), "chunking changes nothing");
        }
    }
}

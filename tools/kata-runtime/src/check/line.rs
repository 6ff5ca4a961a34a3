//! What `check` says of one part of the host, and what all lines together mean. Pure.

use std::fmt;

use serde::Serialize;

/// How good a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// A container can be created, but something is worse than it could be.
    Warn,
    /// No container can be created.
    Fail,
}

/// One part of the host.
#[derive(Debug, Serialize)]
pub struct Line {
    /// Which.
    pub part: &'static str,
    /// How good it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do about it; empty where nothing is to be done.
    pub remedy: String,
}

impl Line {
    /// A line.
    pub fn new(part: &'static str, verdict: Verdict, found: impl fmt::Display, remedy: &str) -> Self {
        Self {
            part,
            verdict,
            found: found.to_string(),
            remedy: remedy.to_owned(),
        }
    }

    /// Nothing is to be done.
    pub fn pass(part: &'static str, found: impl fmt::Display) -> Self {
        Self::new(part, Verdict::Pass, found, "")
    }

    /// It works, and could work better.
    pub fn warn(part: &'static str, found: impl fmt::Display, remedy: &str) -> Self {
        Self::new(part, Verdict::Warn, found, remedy)
    }

    /// Nothing works.
    pub fn fail(part: &'static str, found: impl fmt::Display, remedy: &str) -> Self {
        Self::new(part, Verdict::Fail, found, remedy)
    }
}

/// What all lines mean.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// A container can be created.
    pub can_create: bool,
    /// Guest code is executed by hardware.
    pub hardware_virtualization: bool,
    /// Of each part.
    pub checks: Vec<Line>,
}

impl Answer {
    /// Of these lines.
    pub fn new(checks: Vec<Line>, hardware_virtualization: bool) -> Self {
        Self {
            can_create: checks.iter().all(|line| line.verdict != Verdict::Fail),
            hardware_virtualization,
            checks,
        }
    }

    /// Whether this is what was hoped for.
    pub fn is_good(&self, strict: bool) -> bool {
        self.can_create && (self.hardware_virtualization || !strict)
    }

    /// In one sentence.
    pub fn summary(&self) -> &'static str {
        match (self.can_create, self.hardware_virtualization) {
            (false, _) => "No container can be created: see the lines that fail.",
            (true, true) => "Containers can be created, with hardware virtualization.",
            (true, false) => {
                "Containers can be created. There is no hardware virtualization: guest code is translated, which is slower."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_is_enough_and_strict_asks_for_hardware() {
        let pass = || Line::pass("a", "");
        let warn = || Line::warn("b", "", "do");
        let fail = || Line::fail("c", "", "do");
        for (checks, hardware, good, good_strictly) in [
            (vec![pass(), warn()], true, true, true),
            (vec![pass(), warn()], false, true, false),
            (vec![pass(), fail()], true, false, false),
        ] {
            let answer = Answer::new(checks, hardware);
            assert_eq!(answer.is_good(false), good);
            assert_eq!(answer.is_good(true), good_strictly);
        }
    }
}

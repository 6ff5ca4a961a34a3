//! The table at the end: what each case came to with each runtime.

use std::fmt;
use std::time::Duration;

use crate::suite::{Case, Runtime};

/// What a case came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
}

/// Results as they come in.
#[derive(Debug, Default)]
pub struct Table(Vec<(Runtime, &'static str, &'static str, Outcome, Duration)>);

impl Table {
    /// Adds a result.
    pub fn add(&mut self, runtime: Runtime, case: &Case, outcome: Outcome, took: Duration) {
        self.0.push((runtime, case.chapter, case.name, outcome, took));
    }

    /// Whether there is something to show.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn cell(&self, runtime: Runtime, case: &Case) -> String {
        if let Some((only, _)) = case.only
            && only != runtime
        {
            return "-".into();
        }
        let found = self
            .0
            .iter()
            .find(|(ran, chapter, name, ..)| (*ran, *chapter, *name) == (runtime, case.chapter, case.name));
        match found {
            Some((.., Outcome::Passed, took)) => format!("ok {:6.2} s", took.as_secs_f64()),
            Some((.., Outcome::Failed, took)) => format!("FAILED {:.2} s", took.as_secs_f64()),
            None => "not run".into(),
        }
    }
}

/// The table, for these cases.
pub struct Shown<'a>(pub &'a Table, pub &'a [Case]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(table, cases) = self;
        let title = "case";
        writeln!(
            f,
            "\n{title:<58} {:<16} {}",
            Runtime::Runc.name(),
            Runtime::Kata.name()
        )?;
        for case in *cases {
            if !table
                .0
                .iter()
                .any(|row| (row.1, row.2) == (case.chapter, case.name))
            {
                continue;
            }
            let name = format!("{}::{}", case.chapter, case.name);
            let (runc, kata) = (table.cell(Runtime::Runc, case), table.cell(Runtime::Kata, case));
            let why = case.only.map(|(_, why)| why).unwrap_or_default();
            writeln!(
                f,
                "{}",
                format!("{name:<58} {runc:<16} {kata:<16} {why}").trim_end()
            )?;
        }
        for runtime in [Runtime::Runc, Runtime::Kata] {
            let of = |outcome| {
                table
                    .0
                    .iter()
                    .filter(|row| row.0 == runtime && row.3 == outcome)
                    .count()
            };
            let (passed, failed) = (of(Outcome::Passed), of(Outcome::Failed));
            writeln!(f, "{}: {passed} passed, {failed} failed", runtime.name())?;
        }
        Ok(())
    }
}

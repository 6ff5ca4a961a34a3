//! Tells the one who waits what is being done, and for how long it has been going on.

use std::time::Instant;

/// The steps of a subcommand.
#[derive(Debug)]
pub struct Steps {
    of: &'static str,
    begin: Instant,
}

impl Steps {
    /// Those of the subcommand with this name, which begins now.
    pub fn of(subcommand: &'static str) -> Self {
        Self {
            of: subcommand,
            begin: Instant::now(),
        }
    }

    /// Tells that the next one begins.
    pub fn next(&self, name: &str) {
        eprintln!("{}: [{:4} s] {name}", self.of, self.begin.elapsed().as_secs());
    }
}

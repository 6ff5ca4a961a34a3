//! `cargo xtask test`: every test, with what they need built first, and one line at the end that counts them.

use std::fmt;
use std::io::{BufRead as _, BufReader};
use std::process::{ExitCode, ExitStatus};
use std::thread;

use anyhow::{Result, anyhow};

use crate::deps::{self, Purpose};
use crate::program::Program;
use crate::steps::Steps;
use crate::{Workspace, guest};

/// Run every test, the end-to-end ones included. On a machine that lacks a part, name it in KATA_TEST_SKIP.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Builds, tests and counts. The last line of standard output is `<n> passed, <n> failed`.
///
/// # Errors
/// What the tests need can't be built.
pub fn run(_: Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let steps = Steps::of("test");
    let step = |name| steps.next(name);
    step("packages");
    deps::packages(&[Purpose::Build, Purpose::Run, Purpose::Test])?;
    let cargo_test = || {
        Program::cargo()
            .args(["test", "--workspace", "--no-fail-fast"])
            // A backtrace's sixty lines push what other tests say out of a log that is cut.
            .env("RUST_BACKTRACE", "0")
            .dir(workspace.root())
    };
    step("guest image; programs and tests, compiling");
    // Crates are optimized one part after the other at a build's end: two builds keep both cores busy then. They share no
    // directory of cargo's.
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            deps::tools(&workspace, deps::DAEMONS)?;
            guest::build(&workspace, None, false)
        });
        let tests = workspace
            .build_programs()
            .and_then(|()| cargo_test().args(["--no-run"]).run());
        let guest = guest
            .join()
            .map_err(|_| anyhow!("the build of the guest image panicked"))
            .flatten();
        tests?;
        guest.map(drop)
    })?;
    step("tests, running");
    let mut total = Total::default();
    let mut failures = Failures::default();
    let status = run_and_watch(cargo_test(), |line| {
        println!("{line}");
        total.add(line);
        failures.add(line);
    })?;
    step("done");
    print!("{failures}");
    if !status.success() && total.failed == 0 {
        eprintln!("test: a test program ended without a result of its own; cargo says which above");
    }
    println!("{total}");
    Ok(if status.success() && total.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Runs a program, and shows `watch` each line that it prints when it comes. Answers how it ended.
fn run_and_watch(program: Program, mut watch: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = program.spawn_piped()?;
    if let Some(output) = child.stdout.take() {
        // A test may print what is no text.
        for line in BufReader::new(output).split(b'\n') {
            watch(&String::from_utf8_lossy(&line?));
        }
    }
    Ok(child.wait()?)
}

/// What the test runners said, summed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Total {
    passed: u64,
    failed: u64,
}

impl Total {
    /// Adds a runner's closing line, `test result: ok. 3 passed; 0 failed; …`. Other lines add nothing.
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split("; ") {
            match count.split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                _ => {}
            }
        }
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Lines of each failure that the end repeats. The rest is further up.
const LINES_OF_A_FAILURE: usize = 12;

/// What the test runners said of what failed: told once more at the end, where one looks first, and where a log that was
/// cut off still has it.
#[derive(Debug, Default)]
struct Failures {
    of: Vec<Vec<String>>,
    /// Whether the lines that come belong to a failure.
    inside: bool,
}

impl Failures {
    /// Adds a line of a runner. A failure begins with `---- name ----`, as libtest and those who mimic it print it, and
    /// ends where the next one or the list of names begins.
    fn add(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" ----") {
            self.inside = true;
            self.of.push(vec![line.to_owned()]);
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.inside = false;
        } else if self.inside
            && let Some(last) = self.of.last_mut()
            && !line.is_empty()
            && last.len() < LINES_OF_A_FAILURE
        {
            last.push(line.to_owned());
        }
    }
}

impl fmt::Display for Failures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.of.iter().flatten() {
            writeln!(f, "{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_repeats_what_failed() {
        let mut failures = Failures::default();
        for line in [
            "test a ... FAILED",
            "",
            "failures:",
            "",
            "---- a stdout ----",
            "the cause",
            "",
            "more",
            "---- b ----",
            "another cause",
            "",
            "failures:",
            "    a",
            "    b",
            "test result: FAILED. 0 passed; 2 failed",
            "---- not the head of one",
        ] {
            failures.add(line);
        }
        assert_eq!(
            failures.to_string(),
            "---- a stdout ----\nthe cause\nmore\n---- b ----\nanother cause\n"
        );
        for _ in 0..2 * LINES_OF_A_FAILURE {
            failures.add("---- c ----");
            (0..20).for_each(|_| failures.add("a line"));
        }
        assert!(failures.of.iter().all(|lines| lines.len() <= LINES_OF_A_FAILURE));
    }

    #[test]
    fn only_closing_lines_of_runners_count() {
        let mut total = Total::default();
        for line in [
            "running 3 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s",
            "  test result: ok. 100 passed; 0 failed",
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.5s",
            "5 passed; 5 failed",
        ] {
            total.add(line);
        }
        assert_eq!(total, Total { passed: 5, failed: 4 });
        assert_eq!(total.to_string(), "5 passed, 4 failed");
    }

    #[test]
    fn lines_are_seen_and_the_end_is_told() {
        let mut lines = Vec::new();
        let program = Program::new("sh").args(["-c", "echo one; printf '\\377two'; exit 3"]);
        let status = run_and_watch(program, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(status.code(), Some(3));
        assert_eq!(lines, ["one", "\u{fffd}two"]);
    }
}

//! `cargo xtask fuzz`: the fuzz targets of all crates, each driven by libFuzzer for a while. What they do in an ordinary test is
//! in the crate `fuzz`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::Workspace;
use crate::deps::{self, Purpose};
use crate::program::Program;
use crate::steps::Steps;

/// Fuzz the parsers of what others say: change inputs, and keep those that reach new code.
///
/// What is reached is kept in target/fuzz/corpus for the next time; an input that makes a target fail is put into
/// target/fuzz/found. Put it into tests/fuzz/corpus/<target>: then it is a test.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only targets whose name contains this.
    #[arg(value_name = "TARGET")]
    only: Option<String>,

    /// How long each target runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    time: u32,
}

/// Counters in every branch, and what is compared with what. Stable compilers have the pass; cargo-fuzz uses the same.
const FLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1";

/// Modules with targets.
const MODULE: &str = "fuzzed::";

/// Lines of a failure that are shown.
const LINES_OF_A_FAILURE: usize = 30;

/// Builds the targets and runs them one after the other.
///
/// # Errors
/// They can't be built, or there is none of that name.
pub fn run(args: Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let steps = Steps::of("fuzz");
    steps.next("packages");
    deps::packages(&[Purpose::Build])?;
    steps.next("targets, compiling");
    let directory = workspace.target().join("fuzz");
    let mut targets = Vec::new();
    for program in build(&workspace, &directory)? {
        let list = Program::new(&program).args(["--list"]).read()?;
        targets.extend(named(&list, args.only.as_deref()).map(|test| (program.clone(), test.to_owned())));
    }
    ensure!(
        !targets.is_empty(),
        "no target is called {:?}",
        args.only.unwrap_or_default()
    );
    let mut failed = 0;
    for (program, test) in targets {
        steps.next(&test);
        if !fuzz(&directory, &program, &test, args.time)? {
            failed += 1;
        }
    }
    steps.next("done");
    println!("{failed} failed");
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds the tests of every crate that has targets.
fn build(workspace: &Workspace, directory: &Path) -> Result<Vec<PathBuf>> {
    let metadata = Program::cargo()
        .args(["metadata", "--format-version=1", "--no-deps"])
        .dir(workspace.root())
        .read()?;
    let host = Program::new("rustc").args(["--print", "host-tuple"]).read()?;
    let with = with_targets(&metadata)?;
    let mut built = Vec::new();
    for (what, is_library) in [("--lib", true), ("--bins", false)] {
        let packages = with.iter().filter(|(_, library)| *library == is_library);
        let cargo = Program::cargo()
            .args(["test", "--no-run", what, "--message-format=json", "--target-dir"])
            .args([directory.join("build")])
            // Of the targets alone: what runs while they are compiled has no counters.
            .args(["--target", host.trim()])
            .args(packages.flat_map(|(package, _)| ["--package", package]))
            .env("RUSTFLAGS", FLAGS)
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .dir(workspace.root());
        built.extend(programs(&cargo.read()?)?);
    }
    Ok(built)
}

/// The packages that use the crate `fuzz`, and whether they are libraries: what is beside those has no targets.
fn with_targets(metadata: &str) -> Result<Vec<(String, bool)>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        dependencies: Vec<Dependency>,
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Dependency {
        name: String,
    }
    let metadata: Metadata = serde_json::from_str(metadata).context("understand cargo metadata")?;
    let packages = metadata.packages.into_iter();
    let with = packages.filter(|package| package.dependencies.iter().any(|other| other.name == "fuzz"));
    let is_library = |package: &Package| {
        let mut kinds = package.targets.iter().flat_map(|target| &target.kind);
        kinds.any(|kind| kind == "lib")
    };
    Ok(with
        .map(|package| (package.name.clone(), is_library(&package)))
        .collect())
}

/// The tests that cargo says it has built.
fn programs(messages: &str) -> Result<Vec<PathBuf>> {
    #[derive(Deserialize)]
    struct Message {
        #[serde(default)]
        executable: Option<PathBuf>,
    }
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Message = serde_json::from_str(line).context("understand cargo's messages")?;
        programs.extend(message.executable);
    }
    Ok(programs)
}

/// The targets in a list of tests.
fn named<'a>(list: &'a str, only: Option<&'a str>) -> impl Iterator<Item = &'a str> {
    list.lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .filter(|test| test.starts_with(MODULE) || test.contains(&format!("::{MODULE}")))
        .filter(move |test| only.is_none_or(|only| test.contains(only)))
}

/// Runs a target. Answers whether it has held.
fn fuzz(directory: &Path, program: &Path, test: &str, seconds: u32) -> Result<bool> {
    let path = directory.join(format!("{}.log", test.replace("::", ".")));
    let log = File::create(&path).with_context(|| format!("write {}", path.display()))?;
    let result = Program::new(program)
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("KATA_FUZZ_DIR", directory)
        .env("KATA_FUZZ_SECONDS", seconds.to_string())
        .nice()
        .into_file(&log)?
        .run();
    let said = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let said = String::from_utf8_lossy(&said);
    println!("{test}: {}", figures(&said));
    if result.is_err() {
        let lines: Vec<_> = said.lines().collect();
        let from = lines.len().saturating_sub(LINES_OF_A_FAILURE);
        println!(
            "{}\n{test} has FAILED; all of it: {}",
            lines[from..].join("\n"),
            path.display()
        );
    }
    Ok(result.is_ok())
}

/// What libFuzzer says of a run, in short.
fn figures(said: &str) -> String {
    let executions = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    // The last of its lines, like `#4096 pulse cov: 812 ft: 2040 corp: 301/21Kb …`.
    let mut last = said.lines().rev().filter_map(|line| line.split_once(" cov: "));
    let reached = last.next().map(|(_, rest)| rest);
    let (edges, corpus) = match reached
        .map(|rest| rest.split_whitespace().collect::<Vec<_>>())
        .as_deref()
    {
        Some([edges, "ft:", _, "corp:", corpus, ..]) => (*edges, *corpus),
        _ => ("?", "?"),
    };
    format!("{executions} executions, {edges} edges, corpus of {corpus}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_tests_in_their_modules() {
        let list =
            "fuzzed::a: test\nx::fuzzed::b: test\nx::fuzzed_not::c: test\nx::d: test\nfuzzed::e: benchmark\n";
        assert_eq!(
            named(list, None).collect::<Vec<_>>(),
            ["fuzzed::a", "x::fuzzed::b"]
        );
        assert_eq!(named(list, Some("::b")).collect::<Vec<_>>(), ["x::fuzzed::b"]);
    }

    #[test]
    fn what_cargo_says_is_understood() {
        let metadata = r#"{"packages": [
            {"name": "a", "dependencies": [{"name": "fuzz"}], "targets": [{"kind": ["bin"]}, {"kind": ["lib"]}]},
            {"name": "b", "dependencies": [{"name": "fuzz"}], "targets": [{"kind": ["bin"]}]},
            {"name": "fuzz", "dependencies": [], "targets": [{"kind": ["lib"]}]}]}"#;
        let expected = [("a".to_owned(), true), ("b".to_owned(), false)];
        assert_eq!(with_targets(metadata).unwrap(), expected);
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null}\n\
            {\"reason\":\"compiler-artifact\",\"executable\":\"/x/a-1\"}\n{\"reason\":\"build-finished\"}\n";
        assert_eq!(programs(messages).unwrap(), [Path::new("/x/a-1")]);
    }

    #[test]
    fn figures_are_those_of_the_end() {
        let said = "#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 30Mb\n\
            #99\tDONE   cov: 812 ft: 2040 corp: 301/21Kb exec/s: 9 rss: 40Mb\nDone 99 runs\n\
            stat::number_of_executed_units: 99\n";
        assert_eq!(figures(said), "99 executions, 812 edges, corpus of 301/21Kb");
        assert_eq!(figures("none"), "? executions, ? edges, corpus of ?");
    }
}

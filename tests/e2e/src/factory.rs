//! The same tests with machines that are copies, or were kept ready: `KATA_TEST_FACTORY=template` or `cache`.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cell::Inside;
use crate::configuration::Configuration;
use crate::deadlines;
use crate::parts::Target;
use crate::program::Program;

/// The variable that says where the machines of a test come from: `boot`, `template` or `cache`. Without it a suite decides.
pub const VARIABLE: &str = "KATA_TEST_FACTORY";

/// Where the templates of a cell are, in its directory on disk.
const TEMPLATES: &str = "templates";

/// Where machines of a cell are kept ready: it has a `/run` of its own.
const CACHE: &str = "/run/kata-cache";

/// How many are kept ready for a suite.
const KEPT: u64 = 2;

/// Where machines come from, if they are not booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// They are copies of a template.
    Template,
    /// They were kept ready, as copies of one.
    Cache,
}

/// Where machines are to come from; `usual`: unless the variable says.
///
/// # Errors
/// The variable says something else.
pub fn wanted(usual: Option<Kind>) -> Result<Option<Kind>> {
    match env::var(VARIABLE).as_deref() {
        Err(_) | Ok("") => Ok(usual),
        Ok("boot") => Ok(None),
        Ok("template") => Ok(Some(Kind::Template)),
        Ok("cache") => Ok(Some(Kind::Cache)),
        Ok(other) => bail!("{VARIABLE} is {other:?}, and neither boot, template nor cache"),
    }
}

/// What a configuration says where machines come from there.
pub fn configured(cell: &Inside, configuration: Configuration, kind: Kind) -> Configuration {
    with(cell, configuration, kind, "")
}

/// The same with a directory of its own, so that the end of one is none of another's.
pub fn configured_below(
    cell: &Inside,
    configuration: Configuration,
    kind: Kind,
    name: &str,
) -> Configuration {
    with(cell, configuration, kind, &format!("-{name}"))
}

fn with(cell: &Inside, configuration: Configuration, kind: Kind, suffix: &str) -> Configuration {
    let templates = cell.directory.join(format!("{TEMPLATES}{suffix}"));
    let configuration = configuration.template(&templates.to_string_lossy());
    match kind {
        Kind::Template => configuration,
        Kind::Cache => configuration.cache(&format!("{CACHE}{suffix}/cache.sock"), KEPT),
    }
}

/// Makes the template of a configuration, and has machines be kept ready; waits until they are.
///
/// # Errors
/// It can't be made.
pub fn prepare(target: &Target, configuration: &Path) -> Result<()> {
    call(target, configuration, "init").map(drop)
}

/// Waits until nothing is being made any more. Answers with the processes of what is kept ready, and of who keeps it.
///
/// # Errors
/// It can't be made.
pub fn settled(target: &Target, configuration: &Path) -> Result<Vec<u32>> {
    prepare(target, configuration)?;
    let status = call(target, configuration, "status")?;
    let pids = status.lines().filter_map(|line| {
        let rest = ["VM cache server pid = ", "VM pid = "]
            .iter()
            .find_map(|beginning| line.strip_prefix(beginning))?;
        rest.split(' ').next()?.parse().ok()
    });
    Ok(pids.collect())
}

/// Says how many machines came from where they should, and takes away what was made for that.
///
/// # Errors
/// There were machines, and none did.
pub fn finish(target: &Target, configuration: &Path, kind: Kind) -> Result<()> {
    let status = call(target, configuration, "status")?;
    call(target, configuration, "destroy")?;
    eprintln!("e2e: {}", status.trim().replace('\n', "; "));
    let (beginning, unused, missed) = match kind {
        Kind::Template => ("starts: ", "0 copied, 0 booted", "0 copied"),
        Kind::Cache => ("taken: ", "0 hits, 0 misses", "0 hits"),
    };
    let starts = status
        .lines()
        .find_map(|line| line.strip_prefix(beginning))
        .with_context(|| format!("the status tells no starts: {status}"))?;
    ensure!(
        starts == unused || !starts.starts_with(missed),
        "no machine came from where it should: {status}"
    );
    Ok(())
}

fn call(target: &Target, configuration: &Path, verb: &str) -> Result<String> {
    Program::new(target.programs().join("kata-runtime"))
        .args(["--config".as_ref(), configuration.as_os_str()])
        .args(["factory", verb])
        .within(deadlines::RUN)
        .read()
}

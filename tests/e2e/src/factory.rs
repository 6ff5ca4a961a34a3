//! The same tests with machines that are copies: `KATA_TEST_FACTORY=template`.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::configuration::Configuration;
use crate::deadlines;
use crate::parts::Target;
use crate::program::Program;

/// The variable that says where the machines of a test come from: `boot`, as without it, or `template`.
pub const VARIABLE: &str = "KATA_TEST_FACTORY";

/// Where the templates of a cell are: it has a `/run` of its own.
const TEMPLATES: &str = "/run/kata-template";

/// Whether machines are to be copies.
///
/// # Errors
/// The variable says something else.
pub fn is_wanted() -> Result<bool> {
    match env::var(VARIABLE).as_deref() {
        Err(_) | Ok("" | "boot") => Ok(false),
        Ok("template") => Ok(true),
        Ok(other) => bail!("{VARIABLE} is {other:?}, and neither boot nor template"),
    }
}

/// What a configuration says where machines are copies.
pub fn configured(configuration: Configuration) -> Configuration {
    configuration.template(TEMPLATES)
}

/// The same with a directory of its own, so that the end of one is none of another's.
pub fn configured_below(configuration: Configuration, name: &str) -> Configuration {
    configuration.template(&format!("{TEMPLATES}-{name}"))
}

/// Makes the template of a configuration.
///
/// # Errors
/// It can't be made.
pub fn prepare(target: &Target, configuration: &Path) -> Result<()> {
    call(target, configuration, "init").map(drop)
}

/// Says how many machines were copies, and takes the template away.
///
/// # Errors
/// There were machines, and none was a copy.
pub fn finish(target: &Target, configuration: &Path) -> Result<()> {
    let status = call(target, configuration, "status")?;
    call(target, configuration, "destroy")?;
    eprintln!("e2e: {}", status.trim().replace('\n', "; "));
    let starts = status
        .lines()
        .find_map(|line| line.strip_prefix("starts: "))
        .with_context(|| format!("the status tells no starts: {status}"))?;
    ensure!(
        starts == "0 copied, 0 booted" || !starts.starts_with("0 copied"),
        "no machine was a copy: {status}"
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

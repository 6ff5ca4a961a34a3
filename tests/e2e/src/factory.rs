//! The same tests with machines that are copies, or were kept ready: `KATA_TEST_FACTORY=template` or `cache`.

use std::env;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::cell::Inside;
use crate::configuration::Configuration;
use crate::deadlines;
use crate::parts::Target;
use crate::program::Program;

/// The variable that says where the machines of a test come from: `boot`, `template` or `cache`. Without it a suite decides.
pub const VARIABLE: &str = "KATA_TEST_FACTORY";

/// Where the templates of a cell are, in its directory on disk.
const TEMPLATES: &str = "templates";

/// Where machines of a cell are kept ready: it has a `/run` of its own. Not the default, where a case that destroys what another
/// configuration has made would end who keeps them.
const CACHE: &str = "/run/kept-for-cases";

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
    Ok(pids(&status, "VM cache server pid = ")
        .chain(pids(&status, "VM pid = "))
        .collect())
}

/// The process that keeps machines ready.
///
/// # Errors
/// There is none.
pub fn keeper(target: &Target, configuration: &Path) -> Result<u32> {
    let status = call(target, configuration, "status")?;
    let keeper = pids(&status, "VM cache server pid = ").next();
    keeper.with_context(|| format!("nobody keeps machines ready: {status}"))
}

fn pids<'a>(status: &'a str, beginning: &'a str) -> impl Iterator<Item = u32> + 'a {
    let rest = status
        .lines()
        .filter_map(move |line| line.strip_prefix(beginning));
    rest.filter_map(|rest| rest.split(' ').next()?.parse().ok())
}

/// Says how many machines came from where they should, and takes away what was made for that.
///
/// # Errors
/// More than `others` were booted, which is what a copy that cannot be made comes to; or there were machines, and none was kept
/// ready.
pub fn finish(target: &Target, configuration: &Path, kind: Kind, others: u64) -> Result<()> {
    let status = call(target, configuration, "status");
    call(target, configuration, "destroy")?;
    let status = status?;
    eprintln!("e2e: {}", status.trim().replace('\n', "; "));
    let [_, booted] = counts(&status, "starts: ")?;
    ensure!(
        booted <= others,
        "{booted} machines were booted, and {others} of them should be no copies: {status}"
    );
    if kind == Kind::Cache {
        let [hits, misses] = counts(&status, "taken: ")?;
        ensure!(
            hits > 0 || misses == 0,
            "no machine was one that was kept ready: {status}"
        );
    }
    Ok(())
}

/// The two numbers of a line of the status that begins so.
fn counts(status: &str, beginning: &str) -> Result<[u64; 2]> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(beginning))
        .with_context(|| format!("the status has no {beginning:?}: {status}"))?;
    let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
    numbers
        .try_into()
        .map_err(|_| anyhow!("understand {line:?}, which has not two numbers"))
}

fn call(target: &Target, configuration: &Path, verb: &str) -> Result<String> {
    Program::new(target.programs().join("kata-runtime"))
        .args(["--config".as_ref(), configuration.as_os_str()])
        .args(["factory", verb])
        .within(deadlines::RUN)
        .read()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_status_tells_is_found() {
        let status = "vm factory is on: template 4c6a\nstarts: 15 copied, 4 booted\nVM cache is on: 2 of 2 ready\n\
            VM cache server pid = 20\nVM pid = 102 Cpu = 1 Memory = 2048MiB, a copy, ready 4s ago\n\
            VM pid = 104 Cpu = 1 Memory = 2048MiB, booted, ready 0s ago\ntaken: 47 hits, 19 misses\n";
        assert_eq!(counts(status, "starts: ").unwrap(), [15, 4]);
        assert_eq!(counts(status, "taken: ").unwrap(), [47, 19]);
        let missing = counts("vm factory is off\n", "taken: ").unwrap_err().to_string();
        assert!(missing.contains("vm factory is off"), "{missing}");
        assert!(counts("taken: no hits\n", "taken: ").is_err());
        assert_eq!(pids(status, "VM cache server pid = ").collect::<Vec<_>>(), [20]);
        assert_eq!(pids(status, "VM pid = ").collect::<Vec<_>>(), [102, 104]);
    }
}

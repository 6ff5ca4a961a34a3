//! All cases, in the order in which they are run.

mod annotations;
mod events;
mod exec;
mod faults;
mod life;
mod logs;
mod many;
mod names;
mod namespaces;
mod network;
mod process;
mod resources;
mod security;
mod stats;
mod volumes;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::container::Container;
use crate::suite::Case;

/// A chapter: the functions of a module as cases. A case that is for one runtime alone says which, and why.
macro_rules! chapter {
    ($name:literal: $($case:ident $(($runtime:ident: $why:literal))?),+ $(,)?) => {
        pub const CASES: &[$crate::suite::Case] = &[
            $($crate::suite::Case {
                chapter: $name,
                name: stringify!($case),
                only: $crate::cases::chapter!(@only $($runtime $why)?),
                run: $case,
            },)+
            $crate::suite::Case {
                chapter: $name,
                name: "leaves_nothing",
                only: None,
                run: |bed| bed.clear(),
            },
        ];
    };
    (@only) => { None };
    (@only $runtime:ident $why:literal) => { Some(($crate::suite::Runtime::$runtime, $why)) };
}
pub(crate) use chapter;

/// Every case.
pub fn all() -> Vec<Case> {
    [
        life::CASES,
        exec::CASES,
        logs::CASES,
        process::CASES,
        security::CASES,
        names::CASES,
        volumes::CASES,
        namespaces::CASES,
        resources::CASES,
        stats::CASES,
        network::CASES,
        events::CASES,
        annotations::CASES,
        many::CASES,
        faults::CASES,
    ]
    .concat()
}

/// Checks that two texts are the same.
fn same(got: &str, wanted: &str) -> Result<()> {
    ensure!(got == wanted, "{got:?} instead of {wanted:?}");
    Ok(())
}

/// Runs a script, and answers for how long a processor worked for it, as its shell says.
fn processor_time(container: &Container, script: &str) -> Result<Duration> {
    told_by_times(&container.sh(&format!("{script}; times"))?)
}

/// What a shell's `times` tells of itself and of its children, each in user and in system mode: `0m1.250s 0m0.100s`.
fn told_by_times(said: &str) -> Result<Duration> {
    let seconds = said.split_whitespace().map(|time| {
        let (minutes, seconds) = time.trim_end_matches('s').split_once('m').context("a time")?;
        Ok(minutes.parse::<f64>()? * 60.0 + seconds.parse::<f64>()?)
    });
    let seconds = seconds.sum::<Result<f64>>().with_context(|| said.to_owned())?;
    Ok(Duration::try_from_secs_f64(seconds)?)
}

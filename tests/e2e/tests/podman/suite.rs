//! Which cases there are for which runtime, and how one is run.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use e2e::cell::Inside;
use e2e::parts::{Part, Target};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::bed::Bed;
use crate::cases;

/// An OCI runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The one that proves the cases.
    Runc,
    /// Ours.
    Kata,
}

impl Runtime {
    /// Its name in the names of cases.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Kata => "kata",
        }
    }

    fn needs(self) -> &'static [Part] {
        match self {
            Self::Runc => &[
                Part::Podman,
                Part::Netavark,
                Part::CniPlugins,
                Part::Busybox,
                Part::Runc,
            ],
            Self::Kata => &[
                Part::Podman,
                Part::Netavark,
                Part::CniPlugins,
                Part::Busybox,
                Part::OciRuntime,
                Part::GuestImage,
                Part::Qemu,
                Part::Virtiofsd,
            ],
        }
    }
}

/// A case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Path of the module that it is in.
    pub group: &'static str,
    /// What it shows.
    pub name: &'static str,
    /// The one runtime that it is for, and why.
    pub only: Option<(Runtime, &'static str)>,
    /// Runs it.
    pub run: fn(&Bed) -> Result<()>,
}

impl Case {
    /// Its name with the module's, by which a group of them can be run.
    fn title(&self) -> String {
        let group = self.group.rsplit("::").next().unwrap_or_default();
        format!("{group}::{}", self.name)
    }

    /// What it needs beyond what its runtime does.
    fn needs(&self) -> &'static [Part] {
        match self.title().split("::").next() {
            Some("containerd") => &[Part::Containerd],
            Some("docker") => &[Part::Docker],
            _ => &[],
        }
    }
}

/// What the trials share.
struct Shared {
    /// Until the first case.
    inside: Option<Inside>,
    bed: Option<Result<Bed, String>>,
}

/// Runs the cases that the command line names; or lists them, outside of a cell.
pub fn run(inside: Option<Inside>) -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // One after the other, on this thread: they share a storage, and a census.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Mutex::new(Shared { inside, bed: None }));
    let mut trials = Vec::new();
    for runtime in [Runtime::Runc, Runtime::Kata] {
        for case in cases::all() {
            if case.only.is_some_and(|(only, _)| only != runtime) {
                continue;
            }
            let mut needs = runtime.needs().iter().chain(case.needs());
            let skipped = needs.any(|part| part.is_skipped());
            let shared = Arc::clone(&shared);
            let trial = Trial::test(format!("{}::{}", runtime.name(), case.title()), move || {
                let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
                shared
                    .run(runtime, &case)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            });
            trials.push(trial.with_ignored_flag(skipped));
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(Ok(bed)) = &shared.bed {
        bed.close()?;
    }
    Ok(conclusion.exit_code())
}

impl Shared {
    fn run(&mut self, runtime: Runtime, case: &Case) -> Result<()> {
        for part in runtime.needs().iter().chain(case.needs()) {
            part.check(&Target::here())?;
        }
        let inside = &mut self.inside;
        let bed = self.bed.get_or_insert_with(|| {
            let inside = inside.take().context("there is no cell");
            inside.and_then(Bed::new).map_err(|error| format!("{error:#}"))
        });
        let bed = bed
            .as_mut()
            .map_err(|error| anyhow!("nothing can be run: {error}"))?;
        bed.turn_to(runtime);
        let result = (case.run)(bed).and_then(|()| bed.nothing_left());
        if let Err(error) = &result {
            // At once as well as at the end.
            eprintln!("\n{}::{}: {error:#}", runtime.name(), case.title());
            bed.give_up();
        }
        result
    }
}

//! Which cases there are for which runtime, and how one is run.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow};
use e2e::cell::Inside;
use e2e::parts::{Part, Target};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::bed::Bed;
use crate::cases;
use crate::table::{Outcome, Shown, Table};
use crate::world::World;

/// What runs pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The one that proves the cases.
    Runc,
    /// Ours.
    Kata,
}

impl Runtime {
    /// Its name in containerd's configuration, and in the names of cases.
    pub fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Kata => "kata",
        }
    }

    fn needs(self) -> &'static [Part] {
        match self {
            Self::Runc => &[Part::Runc],
            Self::Kata => &[Part::Shim, Part::GuestImage, Part::Qemu, Part::Virtiofsd],
        }
    }
}

/// A case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// What it is about. The cases of a chapter may share a pod.
    pub chapter: &'static str,
    /// What it shows.
    pub name: &'static str,
    /// The one runtime that it is for, and why.
    pub only: Option<(Runtime, &'static str)>,
    /// Runs it.
    pub run: fn(&mut Bed) -> Result<()>,
}

/// What the trials share.
struct Shared {
    /// Until the first case; with its failure if it could not be made.
    inside: Option<Inside>,
    bed: Option<Result<Bed, String>>,
    table: Table,
}

/// Runs the cases that the command line names; or lists them, outside of a cell.
pub fn run(inside: Option<Inside>) -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // One after the other, on this thread: they share pods, and a machine.
    arguments.test_threads = Some(1);
    let shared = Arc::new(Mutex::new(Shared {
        inside,
        bed: None,
        table: Table::default(),
    }));
    let cases = cases::all();
    let mut trials = Vec::new();
    for runtime in [Runtime::Runc, Runtime::Kata] {
        let skipped = runtime.needs().iter().any(|part| part.is_skipped());
        for &case in cases
            .iter()
            .filter(|case| case.only.is_none_or(|(only, _)| only == runtime))
        {
            let shared = Arc::clone(&shared);
            let name = format!("{}::{}::{}", runtime.name(), case.chapter, case.name);
            let trial = Trial::test(name, move || {
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
    if !shared.table.is_empty() {
        println!("{}", Shown(&shared.table, &cases));
    }
    if let Some(Ok(bed)) = &shared.bed {
        bed.world.close()?;
    }
    Ok(conclusion.exit_code())
}

impl Shared {
    fn run(&mut self, runtime: Runtime, case: &Case) -> Result<()> {
        let begin = Instant::now();
        let result = self.run_in_bed(runtime, case);
        let outcome = match &result {
            Ok(()) => Outcome::Passed,
            Err(error) => {
                // At once as well as at the end, which may be half an hour away.
                eprintln!("\n{}::{}::{}: {error:#}", runtime.name(), case.chapter, case.name);
                Outcome::Failed
            }
        };
        self.table.add(runtime, case, outcome, begin.elapsed());
        result
    }

    fn run_in_bed(&mut self, runtime: Runtime, case: &Case) -> Result<()> {
        for part in runtime.needs() {
            part.check(&Target::here())?;
        }
        let inside = &mut self.inside;
        let bed = self.bed.get_or_insert_with(|| {
            let inside = inside
                .take()
                .context("there is no cell")
                .map_err(|error| error.to_string())?;
            World::new(inside)
                .and_then(Bed::new)
                .map_err(|error| format!("{error:#}"))
        });
        let bed = bed
            .as_mut()
            .map_err(|error| anyhow!("nothing can be run: {error}"))?;
        let log = bed.world.log_length()?;
        bed.turn_to(runtime);
        let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(bed)));
        let result = outcome.unwrap_or_else(|panic| Err(anyhow!("panic: {}", text(&*panic))));
        result.map_err(|error| {
            // Before its pod is removed, which is not what one wants to read about.
            let told = bed.world.warnings_since(log);
            bed.give_up();
            anyhow!("{error:#}\ncontainerd said:\n{told}")
        })
    }
}

fn text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "of unknown content",
    }
}

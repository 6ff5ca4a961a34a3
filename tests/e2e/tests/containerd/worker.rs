//! In a cell: takes the names of cases from standard input, and answers each with its failure, or `null`.

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::panic::{self, AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use e2e::cell::Inside;

use crate::bed::Bed;
use crate::cases;

pub fn run(inside: Inside) -> Result<ExitCode> {
    // What a panic says belongs into the case's result, with its place.
    panic::set_hook(Box::new(|info| *panic_text() = info.to_string()));
    let mut bed = Bed::new(inside)?;
    for name in stdin().lock().lines() {
        let failure = case(&mut bed, &name?).err().map(|error| format!("{error:#}"));
        writeln!(stdout(), "{}", serde_json::to_string(&failure)?)?;
    }
    bed.close()?;
    Ok(ExitCode::SUCCESS)
}

/// Runs one case, and then looks for what it left.
fn case(bed: &mut Bed, name: &str) -> Result<()> {
    let entry = cases::all().into_iter().find(|entry| entry.full_name() == name);
    let entry = entry.with_context(|| format!("there is no case {name}"))?;
    let log = bed.log_length()?;
    let outcome = catch_unwind(AssertUnwindSafe(|| entry.run(bed)));
    outcome
        .unwrap_or_else(|_| Err(anyhow!("{}", panic_text())))
        .and_then(|()| bed.nothing_left())
        .map_err(|error| anyhow!("{error:#}\n{}", bed.situation(log)))
}

/// What the last panic said.
fn panic_text() -> MutexGuard<'static, String> {
    static TEXT: Mutex<String> = Mutex::new(String::new());
    TEXT.lock().unwrap_or_else(PoisonError::into_inner)
}

//! In a cell: takes the names of cases from standard input, and answers each with its failure, or `null`.

use std::any::Any;
use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use e2e::cell::Inside;

use crate::bed::Bed;
use crate::cases;

pub fn run(inside: Inside) -> Result<ExitCode> {
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
        .unwrap_or_else(|panic| Err(anyhow!("panic: {}", text(&*panic))))
        .and_then(|()| bed.nothing_left())
        .map_err(|error| anyhow!("{error:#}\n{}", bed.situation(log)))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "of unknown content",
    }
}

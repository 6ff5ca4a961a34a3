//! B9, B10, B11 and B14: what copies cost when there are several, in memory and in time, and whether a large one costs more.
//! That they are copies is seen in what the runtime says of each.

use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, anyhow, ensure};
use e2e::census;

use crate::Amount;
use crate::bed::{Bed, Copies, Runtime};
use crate::host::memory_of;
use crate::report::{Figure, Results};
use crate::split::milliseconds;
use crate::statistics::{Ratio, median, slope};

/// Sandboxes of a kind that are alive when memory is measured, and that are started at once.
const ALIVE: usize = 8;

/// Sandboxes that are started one after the other to see whether each takes longer.
const GROWTH: usize = 16;

/// Memory of a large and of a small machine, MiB.
const SIZES: [u64; 2] = [2048, 256];

/// B9: memory of all processes of a sandbox, with their share of what several map.
///
/// # Errors
/// A container does not start or does not go, or its machine is not what it should be.
pub fn memory(bed: &Bed, _: &Amount, results: &mut Results) -> Result<()> {
    with_copies(bed, None, |copies| {
        let mut alive = Vec::new();
        for _ in 0..ALIVE {
            for is_copy in [true, false] {
                let id = bed.name("alive");
                match is_copy {
                    true => start(bed, copies, &id)?,
                    false => bed.start(Runtime::Kata, &[], &id).map(milliseconds)?,
                };
                origin(bed, &id, if is_copy { "clone" } else { "boot" })?;
                alive.push((is_copy, id));
            }
        }
        let of = |wanted: bool| -> Result<Vec<f64>> {
            let those = alive.iter().filter(|(is_copy, _)| *is_copy == wanted);
            those.map(|(_, id)| memory_of_sandbox(id)).collect()
        };
        let (copied, booted) = (of(true)?, of(false)?);
        let what = format!("memory (PSS) of a sandbox's processes, copy / boot, {ALIVE} of each alive");
        let ratio = Ratio::of(&copied, &booted);
        let figure = Figure::new("B9", &what, "KiB", &copied, &booted, ratio);
        results.figures.push(figure);
        alive.iter().try_for_each(|(_, id)| bed.remove(id))
    })
}

/// B10: a copy of a large machine beside one of a small machine.
///
/// # Errors
/// As [`memory`].
pub fn size(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    let [large, small] = SIZES;
    with_copies(bed, Some(large), |large_copies| {
        with_copies(bed, Some(small), |small_copies| {
            let (mut larges, mut smalls) = (Vec::new(), Vec::new());
            // The first round warms caches.
            for round in 0..=amount.cold {
                for (copies, samples) in [(large_copies, &mut larges), (small_copies, &mut smalls)] {
                    let id = bed.name("size");
                    let took = start(bed, copies, &id)?;
                    origin(bed, &id, "clone")?;
                    bed.remove(&id)?;
                    if round > 0 {
                        samples.push(took);
                    }
                }
            }
            results.figures.push(Figure::new(
                "B10",
                &format!("ctr run --detach of a copy, {large} MiB / {small} MiB"),
                "ms",
                &larges,
                &smalls,
                Ratio::of(&larges, &smalls),
            ));
            Ok(())
        })
    })
}

/// B11 and B14: several at once beside one after the other, and whether one takes longer the more there are.
///
/// # Errors
/// As [`memory`].
pub fn number(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    with_copies(bed, None, |copies| {
        let (mut serial, mut parallel) = (Vec::new(), Vec::new());
        let (mut slopes, mut medians) = (Vec::new(), Vec::new());
        // The first round warms caches.
        for round in 0..=amount.rounds {
            let ids: Vec<_> = (0..ALIVE).map(|_| bed.name("serial")).collect();
            let begin = Instant::now();
            ids.iter().try_for_each(|id| start(bed, copies, id).map(drop))?;
            let one_by_one = milliseconds(begin.elapsed());
            gone(bed, &ids)?;

            let ids: Vec<_> = (0..ALIVE).map(|_| bed.name("parallel")).collect();
            let at_once = start_at_once(bed, copies, &ids)?;
            gone(bed, &ids)?;

            let ids: Vec<_> = (0..GROWTH).map(|_| bed.name("growth")).collect();
            let mut times = Vec::new();
            for id in &ids {
                times.push(start(bed, copies, id)?);
            }
            gone(bed, &ids)?;
            if round > 0 {
                serial.push(one_by_one);
                parallel.push(at_once);
                let points: Vec<_> = (1_u32..).map(f64::from).zip(times.iter().copied()).collect();
                slopes.push(slope(&points).context("there are several")?);
                medians.push(median(&times).context("there are several")?);
            }
        }
        results.figures.push(Figure::new(
            "B11",
            &format!("starts of {ALIVE} copies, at once / one after the other"),
            "ms",
            &parallel,
            &serial,
            Ratio::of(&parallel, &serial),
        ));
        results.figures.push(Figure::new(
            "B14",
            &format!("what a start takes longer for each copy that runs, of {GROWTH} / a start"),
            "ms",
            &slopes,
            &medians,
            Ratio::of(&slopes, &medians),
        ));
        Ok(())
    })
}

/// Does something with a template, which is there only as long.
fn with_copies(bed: &Bed, memory_mib: Option<u64>, act: impl FnOnce(&Copies) -> Result<()>) -> Result<()> {
    let copies = bed.copies_of(memory_mib)?;
    let done = act(&copies);
    copies.end().and(done)
}

/// Starts a copy whose container goes on by itself, and answers how long that took, milliseconds.
fn start(bed: &Bed, copies: &Copies, id: &str) -> Result<f64> {
    let run = bed.run_copied(copies, &["--detach", "--null-io"], id, &["sleep", "1000000"]);
    let begin = Instant::now();
    run.read()?;
    Ok(milliseconds(begin.elapsed()))
}

/// The same for several at the same time; how long it took until the last one ran.
fn start_at_once(bed: &Bed, copies: &Copies, ids: &[String]) -> Result<f64> {
    let programs: Vec<_> = ids
        .iter()
        .map(|id| bed.run_copied(copies, &["--detach", "--null-io"], id, &["sleep", "1000000"]))
        .collect();
    let begin = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = programs
            .into_iter()
            .map(|program| scope.spawn(move || program.read().map(drop)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow!("a thread that starts a container has panicked")))
        })
    })?;
    Ok(milliseconds(begin.elapsed()))
}

/// Checks that all were copies, and removes them.
fn gone(bed: &Bed, ids: &[String]) -> Result<()> {
    ids.iter().try_for_each(|id| origin(bed, id, "clone"))?;
    ids.iter().try_for_each(|id| bed.remove(id))
}

fn origin(bed: &Bed, id: &str, wanted: &str) -> Result<()> {
    let trace = bed.trace(id, |_| true)?;
    ensure!(
        trace.origin == wanted,
        "the machine of {id} is a {}, not a {wanted}",
        trace.origin
    );
    Ok(())
}

/// The PSS of all processes whose arguments name a sandbox, KiB: its shim, VMM and daemons.
fn memory_of_sandbox(id: &str) -> Result<f64> {
    let mut sum = 0.0;
    let mut count = 0;
    for process in census::processes()? {
        let names_it = |word: &String| {
            word.split(|c: char| !c.is_ascii_alphanumeric() && c != '-')
                .any(|part| part == id)
        };
        if process.command.iter().any(names_it) {
            sum += memory_of(process.pid.try_into()?, "Pss")?;
            count += 1;
        }
    }
    ensure!(
        count >= 2,
        "{id} has {count} processes, and must have a shim and a VMM at least"
    );
    Ok(sum)
}

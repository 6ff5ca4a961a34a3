//! `random-reads FILE DEPTHxROUNDS...`: reads 4 KiB at each of 1024 random places of a file, past the cache, with DEPTH of them on
//! their way at a time; prints for each DEPTH how many seconds one of ROUNDS rounds took.
//!
//! It runs in a container whose processor may be emulated. There an interpreter takes as long for one call as a disk for a read, and
//! drives out of the host's caches what is to be measured. It knows nothing of containers.

mod places;
mod sys;

use std::env;
use std::error::Error;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::time::Instant;

use places::{PAGE, places};
use sys::Reader;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let Some((path, amounts)) = arguments.split_first().filter(|(_, amounts)| !amounts.is_empty()) else {
        return Err("usage: random-reads FILE DEPTHxROUNDS...".into());
    };
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .map_err(|error| format!("open {path}: {error}"))?;
    let places = places(file.metadata()?.len() / PAGE as u64)?;
    for amount in amounts {
        let seconds = time(&file, &places, amount).map_err(|error| format!("{amount}: {error}"))?;
        println!("{seconds}");
    }
    Ok(())
}

fn time(file: &File, places: &[u64], amount: &str) -> Result<f64, Box<dyn Error>> {
    let (depth, rounds) = amount
        .split_once('x')
        .ok_or("a depth and a number of rounds, like 32x40")?;
    let rounds: u32 = rounds.parse()?;
    let mut reader = Reader::new(depth.parse()?)?;
    // In the first, an emulated processor translates what it executes, and the host reads what it has not in memory.
    reader.read(file, places)?;
    let begin = Instant::now();
    for _ in 0..rounds {
        reader.read(file, places)?;
    }
    Ok(begin.elapsed().as_secs_f64() / f64::from(rounds))
}

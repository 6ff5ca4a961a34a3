//! The verbs that are one question to the daemon.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

use super::Context;
use crate::signal;
use crate::wire::{Ask, LONGEST};

/// A container.
#[derive(Debug, clap::Args)]
pub struct Named {
    /// Name of the container.
    pub id: String,
}

/// Start the process of a container that was created.
#[derive(Debug, clap::Args)]
pub struct Start {
    #[command(flatten)]
    named: Named,
}

/// Freeze a container.
#[derive(Debug, clap::Args)]
pub struct Pause {
    #[command(flatten)]
    named: Named,
}

/// Thaw a container.
#[derive(Debug, clap::Args)]
pub struct Resume {
    #[command(flatten)]
    named: Named,
}

/// Send a signal to a container's process.
#[derive(Debug, clap::Args)]
pub struct Kill {
    /// To all processes of the container.
    #[arg(short, long)]
    all: bool,
    /// Name of the container.
    id: String,
    /// The signal, by name or number.
    #[arg(default_value = "TERM")]
    signal: String,
}

/// Set limits of a container.
#[derive(Debug, clap::Args)]
pub struct Update {
    /// File with OCI resources as JSON; - is the standard input. Other options are not looked at then.
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Weight of its CPU time.
    #[arg(long, visible_alias = "cpu-share", value_name = "SHARES")]
    cpu_shares: Option<u64>,
    /// Microseconds of CPU time in a period; -1: no limit.
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Microseconds of a period.
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// CPUs that it may use.
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that it may use.
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Bytes of memory, also as 64M or 1GiB; -1: no limit.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory: Option<i64>,
    /// Bytes of memory that are left to it when memory is short.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory_reservation: Option<i64>,
    /// Bytes of memory and swap space together.
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = bytes)]
    memory_swap: Option<i64>,
    /// Weight of its input and output: 10 to 1000.
    #[arg(long, value_name = "WEIGHT")]
    blkio_weight: Option<u16>,
    /// Processes.
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Name of the container.
    id: String,
}

/// Starts.
///
/// # Errors
/// The daemon's.
pub fn start(args: &Start, context: &Context) -> Result<ExitCode> {
    done(context, &args.named.id, Ask::Start)
}

/// Freezes.
///
/// # Errors
/// The daemon's.
pub fn pause(args: &Pause, context: &Context) -> Result<ExitCode> {
    done(context, &args.named.id, Ask::Pause)
}

/// Thaws.
///
/// # Errors
/// The daemon's.
pub fn resume(args: &Resume, context: &Context) -> Result<ExitCode> {
    done(context, &args.named.id, Ask::Resume)
}

/// Sends a signal.
///
/// # Errors
/// The daemon's.
pub fn kill(args: &Kill, context: &Context) -> Result<ExitCode> {
    let ask = Ask::Kill {
        signal: signal::number(&args.signal)?,
        all: args.all,
    };
    done(context, &args.id, ask)
}

/// Sets limits.
///
/// # Errors
/// They are none, or the daemon's.
pub fn update(args: &Update, context: &Context) -> Result<ExitCode> {
    let resources = match &args.resources {
        Some(path) => read(path)?,
        None => resources(args),
    };
    done(context, &args.id, Ask::Update { resources })
}

fn done(context: &Context, id: &str, ask: Ask) -> Result<ExitCode> {
    context.ask(id, ask)?;
    Ok(ExitCode::SUCCESS)
}

fn read(path: &PathBuf) -> Result<Value> {
    let doing = || format!("--resources {}", path.display());
    let mut text = String::new();
    let longest = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    if path.as_os_str() == "-" {
        io::stdin().lock().take(longest).read_to_string(&mut text)
    } else {
        File::open(path).and_then(|file| file.take(longest).read_to_string(&mut text))
    }
    .with_context(doing)?;
    serde_json::from_str(&text).with_context(doing)
}

fn resources(args: &Update) -> Value {
    let object = |pairs: &[(&str, Option<Value>)]| -> Option<Value> {
        let said: Map<String, Value> = pairs
            .iter()
            .filter_map(|(key, value)| Some(((*key).to_owned(), value.clone()?)))
            .collect();
        (!said.is_empty()).then_some(Value::Object(said))
    };
    object(&[
        (
            "cpu",
            object(&[
                ("shares", args.cpu_shares.map(Value::from)),
                ("quota", args.cpu_quota.map(Value::from)),
                ("period", args.cpu_period.map(Value::from)),
                ("cpus", args.cpuset_cpus.clone().map(Value::from)),
                ("mems", args.cpuset_mems.clone().map(Value::from)),
            ]),
        ),
        (
            "memory",
            object(&[
                ("limit", args.memory.map(Value::from)),
                ("reservation", args.memory_reservation.map(Value::from)),
                ("swap", args.memory_swap.map(Value::from)),
            ]),
        ),
        (
            "blockIO",
            object(&[("weight", args.blkio_weight.map(Value::from))]),
        ),
        ("pids", object(&[("limit", args.pids_limit.map(Value::from))])),
    ])
    .unwrap_or_else(|| json!({}))
}

/// A number of bytes, with or without a unit of 1024s.
fn bytes(text: &str) -> Result<i64, String> {
    let refuse = || format!("{text:?} is no number of bytes: 67108864, 64M or -1 would be");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let (number, unit) = text.split_at(digits.len());
    let number: i64 = number.parse().map_err(|_| refuse())?;
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return Err(refuse()),
    };
    match number {
        -1 if unit.is_empty() => Ok(-1),
        0.. => number.checked_mul(1 << (10 * power)).ok_or_else(refuse),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_for_runc() {
        for (text, expected) in [
            ("0", 0),
            ("-1", -1),
            ("67108864", 64 << 20),
            ("64m", 64 << 20),
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("2g", 2 << 30),
            ("5b", 5),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "m",
            "-2",
            "-1m",
            "1x",
            "1.5g",
            "9999999999g",
            "64 M",
            "64bb",
            "64ib",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}

//! Where the time of `ctr run` goes, told by two that do not know each other: the phases are what the runtime has measured,
//! the whole is between times of day. What the phases do not explain is seen. Pure.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use e2e::trace::Trace;
use serde_json::Value;

/// The parts that nobody measures, by name.
const BEFORE: &str = "containerd, until the request to create";
const UNATTRIBUTED: &str = "in no phase";
const AFTER: &str = "the end, and containerd";

/// The record of a request to create.
pub const CREATING: &str = "creating";

/// A start, and its end, in parts.
#[derive(Debug, Clone, PartialEq)]
pub struct Split {
    /// Name, milliseconds; in their order, with what is in no phase. Together they are the whole of `ctr run`.
    pub parts: Vec<(&'static str, f64)>,
    /// From the request to create to the first output, milliseconds.
    pub total: f64,
    /// What no phase explains of it; negative where phases overlap.
    pub unattributed: f64,
}

impl Split {
    /// From the records of a sandbox, and when its client was started and had ended.
    ///
    /// # Errors
    /// A record is missing.
    pub fn of(records: &[Value], trace: &Trace, client: (SystemTime, SystemTime)) -> Result<Self> {
        let creating = time_of(records, CREATING)?;
        let output = time_of(records, "first output")?;
        let mut phases = trace.phases.clone();
        phases.push((
            "first output",
            trace.first_output.context("the container had an output")?,
        ));
        let mut parts = vec![(BEFORE, between(client.0, creating))];
        parts.extend(phases.iter().map(|&(name, took)| (name, milliseconds(took))));
        let total = between(creating, output);
        let explained: f64 = parts.iter().skip(1).map(|(_, took)| took).sum();
        let unattributed = total - explained;
        parts.push((UNATTRIBUTED, unattributed));
        parts.push((AFTER, between(output, client.1)));
        Ok(Self {
            parts,
            total,
            unattributed,
        })
    }
}

/// When the first record with this message was written.
///
/// # Errors
/// There is none, or its time can't be understood.
pub fn time_of(records: &[Value], message: &str) -> Result<SystemTime> {
    let record = records.iter().find(|record| record["msg"] == message);
    let record = record.with_context(|| format!("the log has no record {message:?}"))?;
    let text = record["ts"].as_str().context("a record has a time")?;
    humantime::parse_rfc3339(text).with_context(|| format!("understand the time {text:?}"))
}

/// In milliseconds; negative where the times are in the other order.
pub fn between(begin: SystemTime, end: SystemTime) -> f64 {
    match end.duration_since(begin) {
        Ok(took) => milliseconds(took),
        Err(error) => -milliseconds(error.duration()),
    }
}

/// As a number.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"msg":"creating","sandbox":"a","ts":"2026-01-01T00:00:00.100Z"}
{"msg":"started","sandbox":"a","spec":1000,"host":9000,"vmm_start":90000,"boot":1700000,"agent":100000,"create":40000,"start":10000,"ts":"2026-01-01T00:00:02.090Z"}
{"msg":"first output","sandbox":"a","microseconds":10000,"ts":"2026-01-01T00:00:02.100000001Z"}"#;

    fn client() -> (SystemTime, SystemTime) {
        let begin = humantime::parse_rfc3339("2026-01-01T00:00:00Z").unwrap();
        (begin, begin + Duration::from_millis(2200))
    }

    #[test]
    fn the_parts_are_the_whole() {
        let trace = Trace::read(LOG).unwrap();
        let split = Split::of(&e2e::trace::records(LOG), &trace, client()).unwrap();
        assert!((split.total - 2000.0).abs() < 0.1);
        assert!((split.unattributed - 40.0).abs() < 0.1, "{split:?}");
        let sum: f64 = split.parts.iter().map(|(_, took)| took).sum();
        assert!((sum - 2200.0).abs() < 0.1, "{split:?}");
        let (name, before) = split.parts[0];
        assert_eq!(name, BEFORE);
        assert!((before - 100.0).abs() < 0.1);
    }

    #[test]
    fn a_record_that_is_missing_is_named() {
        let trace = Trace::read(LOG).unwrap();
        let mut records = e2e::trace::records(LOG);
        records.remove(0);
        let error = Split::of(&records, &trace, client()).unwrap_err();
        assert!(error.to_string().contains(CREATING), "{error}");
    }

    #[test]
    fn times_in_the_wrong_order_are_not_hidden() {
        let (begin, end) = client();
        assert!((between(end, begin) + 2200.0).abs() < 0.1);
    }
}

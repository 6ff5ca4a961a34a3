//! What the runtime's log says of a container's start. Pure.

use std::time::Duration;

use serde_json::Value;

/// The phases of a start in their order: key of the record, name for people.
pub const PHASES: &[(&str, &str)] = &[
    ("spec", "spec"),
    ("host", "host"),
    ("vmm_start", "VMM start"),
    ("boot", "boot"),
    ("agent", "agent ready"),
    ("create", "create"),
    ("start", "start"),
];

/// What is known of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The guest kernel's release.
    pub guest_kernel: String,
    /// The virtual machine monitor and its version.
    pub vmm: String,
    /// Its machine.
    pub machine: String,
    /// What executes the guest.
    pub accelerator: String,
    /// Why it is that one.
    pub reason: String,
    /// Whether it was booted (`boot`), copied (`clone`) or kept ready (`cache`).
    pub origin: String,
    /// Name for people, wall time.
    pub phases: Vec<(&'static str, Duration)>,
    /// From the start of the first process to its first output.
    pub first_output: Option<Duration>,
}

impl Trace {
    /// Finds it in a log, in which a line may be anybody's. The records of ours are JSON. Nothing without the main one.
    pub fn read(log: &str) -> Option<Self> {
        Self::of_records(&records(log))
    }

    /// The same, of this sandbox alone.
    pub fn of_sandbox(log: &str, id: &str) -> Option<Self> {
        let mut records = records(log);
        records.retain(|record| record["sandbox"] == id);
        Self::of_records(&records)
    }

    fn of_records(records: &[Value]) -> Option<Self> {
        let record = |message: &str| records.iter().find(|record| record["msg"] == message);
        let text = |record: &Value, key: &str| record[key].as_str().unwrap_or("unknown").to_owned();
        let time = |record: &Value, key: &str| record[key].as_u64().map(Duration::from_micros);
        let started = record("started")?;
        Some(Self {
            guest_kernel: record("the agent answers")
                .map_or_else(|| "unknown".into(), |hello| text(hello, "kernel")),
            vmm: text(started, "vmm"),
            machine: text(started, "machine"),
            accelerator: text(started, "accelerator"),
            reason: text(started, "reason"),
            origin: text(started, "origin"),
            phases: PHASES
                .iter()
                .filter_map(|&(key, name)| Some((name, time(started, key)?)))
                .collect(),
            first_output: record("first output").and_then(|record| time(record, "microseconds")),
        })
    }
}

/// The records of ours in a log: a line each, JSON.
pub fn records(log: &str) -> Vec<Value> {
    log.lines()
        .filter(|line| line.starts_with('{'))
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"time="2026" level=info msg="starting containerd"
{"msg":"the agent answers","sandbox":"a","level":"INFO","version":"0.1.0","kernel":"6.1.0-cloud","uptime_us":900}
{broken
{"msg":"started","sandbox":"a","spec":400,"host":12000,"vmm_start":95000,"boot":1900000,"agent":3000,"create":20000,"start":10000,"unit":"microseconds","vmm":"qemu 7.2","machine":"q35","accelerator":"tcg","reason":"/dev/kvm is missing"}
time="2026" level=info msg="shim disconnected"
{"msg":"first output","sandbox":"a","microseconds":5000}
{"msg":"started","sandbox":"b","spec":1}
"#;

    #[test]
    fn the_records_are_found_among_others() {
        let trace = Trace::read(LOG).unwrap();
        assert_eq!(trace.guest_kernel, "6.1.0-cloud");
        assert_eq!(trace.phases.len(), PHASES.len());
        assert_eq!(trace.phases[2], ("VMM start", Duration::from_millis(95)));
        assert_eq!(trace.first_output, Some(Duration::from_millis(5)));
        assert_eq!(Trace::of_sandbox(LOG, "a"), Some(trace));
    }

    #[test]
    fn those_of_another_sandbox_are_not_taken() {
        let trace = Trace::of_sandbox(LOG, "b").unwrap();
        assert_eq!(trace.phases, [("spec", Duration::from_micros(1))]);
        assert_eq!(trace.first_output, None);
        assert_eq!(trace.guest_kernel, "unknown");
        assert_eq!(Trace::of_sandbox(LOG, "c"), None);
    }

    #[test]
    fn without_the_main_record_there_is_none() {
        assert_eq!(Trace::read(""), None);
        assert_eq!(Trace::read(r#"{"msg":"first output","microseconds":5000}"#), None);
    }
}

//! What the runtime's log says of a container's start, and a table of it. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

/// The phases: key of the record, name in the table.
const PHASES: &[(&str, &str)] = &[
    ("spec", "spec"),
    ("host", "host"),
    ("vmm_start", "VMM start"),
    ("boot", "boot"),
    ("agent", "agent ready"),
    ("create", "create"),
    ("start", "start"),
];

/// Width of the longest bar.
const BAR: usize = 40;

/// What is known of a start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    guest_kernel: String,
    vmm: String,
    machine: String,
    accelerator: String,
    reason: String,
    phases: Vec<(&'static str, Duration)>,
    /// From the start of the first process to its first output.
    pub first_output: Option<Duration>,
}

impl Report {
    /// Finds it in a log, in which a line may be anybody's. The records of ours are JSON. Nothing without the main one.
    pub fn read(log: &str) -> Option<Self> {
        let records: Vec<Value> = log
            .lines()
            .filter(|line| line.starts_with('{'))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
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
            phases: PHASES
                .iter()
                .filter_map(|&(key, name)| Some((name, time(started, key)?)))
                .collect(),
            first_output: record("first output").and_then(|record| time(record, "microseconds")),
        })
    }

    /// For a person. `whole` is how long the client saw it take.
    pub fn table(&self, host_kernel: &str, whole: Duration) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "  {name:14}{value}");
        };
        line("guest kernel", &self.guest_kernel);
        line("host kernel", host_kernel);
        line("VMM", &format!("{}, machine {}", self.vmm, self.machine));
        line("accelerator", &format!("{}: {}", self.accelerator, self.reason));
        line("", "");
        let mut rows = self.phases.clone();
        rows.extend(self.first_output.map(|took| ("first output", took)));
        let sum: Duration = rows.iter().map(|(_, took)| *took).sum();
        let longest = rows.iter().map(|(_, took)| *took).max().unwrap_or_default();
        for (name, took) in rows {
            let share = took.as_secs_f64() / longest.as_secs_f64().max(f64::MIN_POSITIVE);
            let bar = "█".repeat((share * BAR as f64).round() as usize);
            line(name, format!("{}  {bar}", milliseconds(took)).trim_end());
        }
        line("together", &milliseconds(sum));
        line(
            "ctr run --rm",
            &format!("{}  with containerd's part, and the end", milliseconds(whole)),
        );
        // Blank lines without spaces.
        text.lines()
            .map(|line| format!("{}\n", line.trim_end()))
            .collect()
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:8.1} ms", time.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"time="2026" level=info msg="starting containerd"
{"msg":"the agent answers","level":"INFO","version":"0.1.0","kernel":"6.1.0-cloud","uptime_us":900}
{broken
{"msg":"started","spec":400,"host":12000,"vmm_start":95000,"boot":1900000,"agent":3000,"create":20000,"start":10000,"unit":"microseconds","vmm":"qemu 7.2","machine":"q35","accelerator":"tcg","reason":"/dev/kvm is missing"}
time="2026" level=info msg="shim disconnected"
{"msg":"first output","microseconds":5000}
"#;

    #[test]
    fn the_records_are_found_among_others() {
        let report = Report::read(LOG).unwrap();
        assert_eq!(report.guest_kernel, "6.1.0-cloud");
        assert_eq!(report.phases.len(), PHASES.len());
        assert_eq!(report.phases[2], ("VMM start", Duration::from_millis(95)));
        assert_eq!(report.first_output, Some(Duration::from_millis(5)));
    }

    #[test]
    fn without_the_main_record_there_is_no_report() {
        assert_eq!(Report::read(""), None);
        assert_eq!(
            Report::read(r#"{"msg":"first output","microseconds":5000}"#),
            None
        );
    }

    #[test]
    fn the_table_has_what_one_wants_to_know() {
        let table = Report::read(LOG)
            .unwrap()
            .table("6.12.0", Duration::from_millis(2500));
        let expected = "  \
  guest kernel  6.1.0-cloud
  host kernel   6.12.0
  VMM           qemu 7.2, machine q35
  accelerator   tcg: /dev/kvm is missing

  spec               0.4 ms
  host              12.0 ms
  VMM start         95.0 ms  ██
  boot            1900.0 ms  ████████████████████████████████████████
  agent ready        3.0 ms
  create            20.0 ms
  start             10.0 ms
  first output       5.0 ms
  together        2045.4 ms
  ctr run --rm    2500.0 ms  with containerd's part, and the end
";
        assert_eq!(table, expected);
    }
}

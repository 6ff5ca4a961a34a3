//! A table of what the runtime's log says of a container's start. Pure.

use std::fmt::Write as _;
use std::time::Duration;

use e2e::trace::Trace;

/// Width of the longest bar.
const BAR: usize = 40;

/// For a person. `whole` is how long the client saw it take.
pub fn table(trace: &Trace, host_kernel: &str, whole: Duration) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:14}{value}");
    };
    line("guest kernel", &trace.guest_kernel);
    line("host kernel", host_kernel);
    line("VMM", &format!("{}, machine {}", trace.vmm, trace.machine));
    line("accelerator", &format!("{}: {}", trace.accelerator, trace.reason));
    line("", "");
    let mut rows = trace.phases.clone();
    rows.extend(trace.first_output.map(|took| ("first output", took)));
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
    fn the_table_has_what_one_wants_to_know() {
        let trace = Trace::read(LOG).unwrap();
        let table = table(&trace, "6.12.0", Duration::from_millis(2500));
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

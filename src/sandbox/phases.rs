//! Where the time of a start goes: measured once, logged once, and kept for whoever asks.

use std::sync::Arc;
use std::time::Duration;

use hypervisor::VmReport;
use slog::{Logger, info};
use tokio::sync::watch;

use super::Phase;

/// The phases of a sandbox's start and of its first container's. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Phases {
    list: watch::Sender<Vec<Phase>>,
    report: Arc<VmReport>,
    log: Logger,
}

impl Phases {
    /// Begins with what was measured before the virtual machine could report.
    pub(crate) fn new(list: Vec<Phase>, report: VmReport, log: Logger) -> Self {
        Self {
            list: watch::Sender::new(list),
            report: Arc::new(report),
            log,
        }
    }

    /// Adds a phase, if it is the first of its name: later containers do not count. Says whether it was.
    pub(crate) fn record(&self, name: &'static str, took: Duration) -> bool {
        self.list.send_if_modified(|list| {
            let first = list.iter().all(|phase| phase.name != name);
            if first {
                list.push(Phase { name, took });
            }
            first
        })
    }

    /// The first container runs: everything is known, and one record tells it.
    pub(crate) fn started(&self, took: Duration) {
        if !self.record("start", took) {
            return;
        }
        let of = |name: &str| {
            let list = self.list.borrow();
            let phase = list.iter().find(|phase| phase.name == name);
            phase.map_or(0, |phase| phase.took.as_micros() as u64)
        };
        info!(self.log, "started";
            "spec" => of("spec"),
            "host" => of("host"),
            "vmm_start" => of("vmm"),
            "boot" => of("boot"),
            "agent" => of("agent"),
            "create" => of("create"),
            "start" => of("start"),
            "unit" => "microseconds",
            "vmm" => &self.report.vmm,
            "machine" => &self.report.machine,
            "accelerator" => &self.report.accelerator,
            "origin" => %self.report.origin,
            "reason" => &self.report.reason);
    }

    /// The first output is there, so long after the request to start. What the start took of that is not counted twice;
    /// the rest is answered.
    pub(crate) fn first_output(&self, took: Duration) -> Duration {
        let start = {
            let list = self.list.borrow();
            let start = list.iter().find(|phase| phase.name == "start");
            // None: it has come before the answer to the request.
            start.map_or(took, |phase| phase.took)
        };
        let rest = took.saturating_sub(start);
        // A later container's start is none of the phases.
        if self.record("first output", rest) {
            rest
        } else {
            took
        }
    }

    /// The phases so far.
    pub(crate) fn list(&self) -> Vec<Phase> {
        self.list.borrow().clone()
    }

    /// What runs, and why.
    pub(crate) fn report(&self) -> VmReport {
        VmReport::clone(&self.report)
    }
}

#[cfg(test)]
mod tests {
    use slog::{Discard, o};

    use super::*;

    fn phases() -> Phases {
        let report = VmReport {
            vmm: String::new(),
            machine: String::new(),
            accelerator: String::new(),
            reason: String::new(),
            origin: hypervisor::Origin::Boot,
        };
        Phases::new(Vec::new(), report, Logger::root(Discard, o!()))
    }

    fn sum(phases: &Phases) -> Duration {
        phases.list().iter().map(|phase| phase.took).sum()
    }

    /// The phases of a start follow each other, so their sum is the whole.
    #[test]
    fn the_time_of_the_start_is_not_in_the_first_output_as_well() {
        let (start, output) = (Duration::from_millis(10), Duration::from_millis(25));
        let phases = phases();
        phases.started(start);
        assert_eq!(phases.first_output(output), output - start);
        assert_eq!(sum(&phases), output);
        assert_eq!(phases.first_output(output), output, "of another container");
        assert_eq!(sum(&phases), output);
    }

    #[test]
    fn output_before_the_answer_to_the_start_took_no_time() {
        let phases = phases();
        assert_eq!(phases.first_output(Duration::from_millis(9)), Duration::ZERO);
        phases.started(Duration::from_millis(10));
        assert_eq!(sum(&phases), Duration::from_millis(10));
    }
}

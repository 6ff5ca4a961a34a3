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
            "reason" => &self.report.reason);
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

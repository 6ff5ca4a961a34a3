//! Whether KVM is worth using, decided by letting it execute guest code.
//!
//! That `/dev/kvm` opens and creates VMs says little: there are hosts (nested ones without hardware support) where it
//! does, and then interprets the guest's kernel, minutes per boot. QEMU's translator is faster than that.

mod cache;
mod sys;

use std::fs;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use configuration::Accelerator;
use serde::{Deserialize, Serialize};
use slog::{Logger, debug, info};

use self::cache::Cache;
use crate::{Error, ErrorKind, deadlines};

/// Guest instructions per second from which KVM is hardware's work. CPUs reach 1000 million and more, instruction
/// emulators a few million; QEMU's translator, the alternative, some 100 million.
const HARDWARE: u64 = 100_000_000;

/// How guest code will be executed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// By KVM, else by QEMU's translator.
    pub kvm: bool,
    /// Why, in one sentence.
    pub reason: String,
}

/// What was found out about KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// It executed guest code.
    Measured {
        /// This fast.
        instructions_per_second: u64,
    },
    /// It did not.
    Failed {
        /// What happened.
        problem: String,
    },
}

/// Decides what `wanted` means on this host. The first time after a boot this takes up to `deadlines::PROBE`; what was
/// found is kept in `run_dir`.
pub fn choose(wanted: Accelerator, run_dir: &Path, log: &Logger) -> Result<Choice, Error> {
    if wanted == Accelerator::Tcg {
        return Ok(Choice {
            kvm: false,
            reason: "the configuration asks for TCG".into(),
        });
    }
    let (usable, reason) = judge(&find(run_dir, log));
    match (wanted, usable) {
        (Accelerator::Kvm, false) => Err(Error::new(
            ErrorKind::FailedPrecondition,
            format!("the configuration asks for KVM, but {reason}; set `accelerator` to \"auto\" or \"tcg\""),
        )),
        _ => Ok(Choice { kvm: usable, reason }),
    }
}

/// The same for a monitor that has nothing but KVM. `kvm: false` says that its guests are emulated all the same, by KVM.
pub fn only_kvm(vmm: &str, wanted: Accelerator, run_dir: &Path, log: &Logger) -> Result<Choice, Error> {
    if wanted == Accelerator::Tcg {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "{vmm} has no translator; set `accelerator` to \"auto\" or \"kvm\", or use hypervisor_name = \"qemu\""
            ),
        ));
    }
    choose(wanted, run_dir, log)
}

/// Whether KVM is worth using, and why.
fn judge(finding: &Finding) -> (bool, String) {
    match finding {
        Finding::Measured {
            instructions_per_second: rate,
        } if *rate >= HARDWARE => (
            true,
            format!(
                "KVM executes {} million guest instructions per second",
                millions(*rate)
            ),
        ),
        Finding::Measured {
            instructions_per_second: rate,
        } => (
            false,
            format!(
                "KVM executes only {} million guest instructions per second, as an emulator does (hardware: over {})",
                millions(*rate),
                millions(HARDWARE),
            ),
        ),
        Finding::Failed { problem } => (false, format!("KVM cannot be used: {problem}")),
    }
}

/// With one digit after the point where that is all there is.
fn millions(rate: u64) -> String {
    let millions = rate as f64 / 1e6;
    if millions < 10.0 {
        format!("{millions:.1}")
    } else {
        format!("{millions:.0}")
    }
}

fn find(run_dir: &Path, log: &Logger) -> Finding {
    // Whether the device can be opened is not worth remembering, and may change any time.
    if let Err(error) = fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        return Finding::Failed {
            problem: format!("/dev/kvm cannot be opened: {error}"),
        };
    }
    let cache = Cache::new(run_dir);
    if let Some(finding) = cache.as_ref().ok().and_then(Cache::get) {
        return finding;
    }
    let finding = probe();
    info!(log, "KVM was probed"; "finding" => ?finding);
    if let Err(error) = cache.and_then(|cache| cache.put(&finding)) {
        debug!(log, "the finding could not be kept, the next start will probe again"; "error" => %error);
    }
    finding
}

/// Measures KVM on a thread of its own, which is given up if KVM does not come back from the guest at all.
fn probe() -> Finding {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new()
        .name("kvm-probe".into())
        .stack_size(128 * 1024)
        .spawn(move || {
            // A quarter of the time is for slices to begin in; the rest is slack for the last one and for a busy host.
            let _ = sender.send(sys::instructions_per_second(HARDWARE, deadlines::PROBE / 4));
        });
    if let Err(error) = spawned {
        return Finding::Failed {
            problem: format!("the probe could not be started: {error}"),
        };
    }
    match receiver.recv_timeout(deadlines::PROBE) {
        Ok(Ok(instructions_per_second)) => Finding::Measured {
            instructions_per_second,
        },
        Ok(Err(problem)) => Finding::Failed {
            problem: problem.to_string(),
        },
        Err(_) => Finding::Failed {
            problem: format!("the probe did not end within {:?}", deadlines::PROBE),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use slog::{Discard, o};

    use super::*;

    #[test]
    fn only_hardware_speed_is_worth_kvm() {
        let measured = |instructions_per_second| Finding::Measured {
            instructions_per_second,
        };
        let table = [
            (measured(2_500_000_000), true, "2500 million"),
            (measured(HARDWARE), true, "100 million"),
            (measured(HARDWARE - 1_000_000), false, "only 99 million"),
            (measured(1_300_000), false, "only 1.3 million"),
            (measured(0), false, "only 0.0 million"),
            (
                Finding::Failed {
                    problem: "KVM_CREATE_VM failed".into(),
                },
                false,
                "KVM_CREATE_VM failed",
            ),
        ];
        for (finding, usable, words) in table {
            let (verdict, reason) = judge(&finding);
            assert_eq!(verdict, usable, "{reason}");
            assert!(reason.contains(words), "{reason}");
        }
    }

    /// What this machine's KVM is like is not this test's business; that the probe is quick and consistent is.
    #[test]
    fn the_probe_keeps_its_deadline_and_its_finding() {
        let directory = tempfile::tempdir().unwrap();
        let log = Logger::root(Discard, o!());
        let begun = Instant::now();
        let auto = choose(Accelerator::Auto, directory.path(), &log).unwrap();
        assert!(
            begun.elapsed() < deadlines::PROBE + Duration::from_millis(100),
            "{:?}",
            begun.elapsed()
        );
        println!("{auto:?} after {:?}", begun.elapsed());

        let begun = Instant::now();
        assert_eq!(choose(Accelerator::Auto, directory.path(), &log).unwrap(), auto);
        assert!(
            begun.elapsed() < Duration::from_millis(20),
            "{:?} from memory",
            begun.elapsed()
        );

        match choose(Accelerator::Kvm, directory.path(), &log) {
            Ok(choice) => assert!(auto.kvm && choice == auto),
            Err(error) => {
                assert!(!auto.kvm);
                assert_eq!(error.kind, ErrorKind::FailedPrecondition);
                assert!(error.to_string().contains(&auto.reason), "{error}");
            }
        }
        assert!(!choose(Accelerator::Tcg, directory.path(), &log).unwrap().kvm);
    }
}

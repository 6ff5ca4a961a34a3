//! What every driver promises, of those whose monitors have a REST API: Cloud Hypervisor, and Firecracker with and without its
//! jailer.
//!
//! Where there is no real program, its part is played by a double (`contract`): this very program under another name, which is as
//! strict as the published description of the API and runs the real agent as the guest. The descriptions are looked for in
//! `$KATA_API_DIR`, else beside the repository; where they are missing, the tests fail unless `KATA_TEST_SKIP` names
//! `api-descriptions`.
//!
//! Real programs (`make test-driver`): `$KATA_TEST_CLH`, `$KATA_TEST_FIRECRACKER` and `$KATA_TEST_JAILER`. They need KVM, and the
//! guest image of `conformance`; the jailed one needs both of the last two. `$KATA_TEST_KERNEL_PARAMS` is added to the kernel's command line,
//! `$KATA_TEST_PATIENCE` multiplies what is waited for.

// Tests may fail loudly; clippy's exception for tests does not reach functions that tests share.
#![allow(clippy::expect_used, clippy::panic)]

mod contract;
#[macro_use]
#[allow(
    dead_code,
    unused_imports,
    reason = "the rest of it is tried with other drivers"
)]
mod suite;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Trial};
use suite::Subject;

/// Trials of the suite's functions for one subject.
macro_rules! promises {
    ($from:ident, $subject:expr => $($promise:ident)*) => {
        vec![$(
            trial($subject, stringify!($promise), async |subject| $from::$promise(subject).await),
        )*]
    };
}

fn main() -> ExitCode {
    // Under another name this is a monitor.
    contract::double::play();
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for subject in [Subject::Clh, Subject::Firecracker, Subject::Jailed] {
        trials.extend(of_all(subject));
        if !subject.is_real() {
            trials.extend(of_doubles(subject));
        }
    }
    trials.extend(promises! { suite, Subject::Clh => a_machine_grows_up_to_its_limit_and_not_beyond });
    for subject in [Subject::Firecracker, Subject::Jailed] {
        trials.extend(
            promises! { contract, subject => what_firecracker_lacks_is_refused_before_anything_starts },
        );
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn of_all(subject: Subject) -> Vec<Trial> {
    let mut trials = of_every_driver! { promises! suite, subject => };
    trials.extend(promises! { suite, subject =>
        a_missing_kernel_is_named
        a_panic_of_the_guest_is_told_with_its_last_words
        a_disk_is_plugged_and_unplugged
        copies_go_on_where_the_saved_vm_stopped
        a_damaged_vm_is_not_copied
        only_what_was_started_to_be_saved_is
        a_fingerprint_is_of_everything_that_matters
    });
    trials
}

fn of_doubles(subject: Subject) -> Vec<Trial> {
    let mut trials = promises! { contract, subject =>
        a_monitor_that_is_too_old_is_refused_in_one_sentence
        every_request_is_sent_and_wrong_ones_are_refused
    };
    trials.extend(promises! { suite, subject =>
        a_control_socket_that_stays_silent_has_a_deadline
        a_guest_that_powers_off_is_told
    });
    trials
}

/// A trial of a promise.
fn trial(subject: Subject, name: &str, promise: impl AsyncFnOnce(Subject) + Send + 'static) -> Trial {
    let name = format!("{}::{name}", subject.name());
    Trial::test(name, move || {
        if subject.present() {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(promise(subject));
        }
        Ok(())
    })
}

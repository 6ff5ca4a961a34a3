//! What every driver promises, tried with the real thing: the fake driver with the real agent, QEMU with a real guest.
//!
//! The parts that this needs, and where they are looked for:
//! - the guest image: `$KATA_GUEST_DIR`, else `target/guest` (`cargo xtask guest`);
//! - the agent's program: `$KATA_AGENT_BIN`, else `target/debug/kata-agent` (`cargo build -p agent`);
//! - QEMU: `/usr/bin/qemu-system-x86_64`;
//! - virtiofsd and vhost-device-vsock: `$KATA_VIRTIOFSD` and `$KATA_VHOST_VSOCK`, else `target/tools/bin` (`cargo xtask deps`).
//!
//! A part that is missing fails the test, unless `KATA_TEST_SKIP` names it: `guest-image`, `agent`, `qemu`, `virtiofsd`,
//! `vhost-device-vsock`.

// Tests may fail loudly; clippy's exception for tests does not reach functions that tests share.
#![allow(clippy::expect_used, clippy::panic)]

#[macro_use]
#[allow(
    dead_code,
    unused_imports,
    reason = "the rest of it is tried with other drivers"
)]
mod suite;

/// Runs the suite for one subject.
macro_rules! conformance {
    ($module:ident: $($test:ident)*) => {
        mod $module {
            use crate::suite::{self, Subject};

            const SUBJECT: Subject = Subject::named(stringify!($module));

            $(
                #[tokio::test]
                async fn $test() {
                    if SUBJECT.present() {
                        suite::$test(SUBJECT).await;
                    }
                }
            )*
        }
    };
    ($($module:ident)*) => {
        $(
            of_every_driver! { conformance! $module: }
        )*
    };
}

conformance! { fake q35 microvm }

/// Promises of some subjects only.
macro_rules! only {
    ($($subject:ident: $test:ident)*) => {
        $(
            #[tokio::test]
            async fn $test() {
                const SUBJECT: Subject = Subject::named(stringify!($subject));
                if SUBJECT.present() {
                    suite::$test(SUBJECT).await;
                }
            }
        )*
    };
}

mod only_q35 {
    use crate::suite::{self, Subject};

    only! {
        q35: what_qemu_says_of_its_arguments_is_in_the_error
        q35: a_missing_kernel_is_named
        q35: a_control_socket_that_stays_silent_has_a_deadline
        q35: a_panic_of_the_guest_is_told_with_its_last_words
        q35: a_guest_that_powers_off_is_told
        q35: a_disk_is_plugged_and_unplugged
        q35: a_machine_grows_up_to_its_limit_and_not_beyond
        q35: daemons_serve_vsock_and_a_directory
        q35: copies_go_on_where_the_saved_vm_stopped
        q35: a_copy_grows
        q35: a_damaged_vm_is_not_copied
        q35: only_what_was_started_to_be_saved_is
        q35: the_memory_of_a_copy_counts_in_its_cgroups
        q35: a_fingerprint_is_of_everything_that_matters
    }
}

mod only_microvm {
    use crate::suite::{self, Subject};

    only! {
        microvm: a_panic_of_the_guest_is_told_with_its_last_words
        microvm: a_guest_that_powers_off_is_told
        microvm: daemons_serve_vsock_and_a_directory
    }
}

mod only_fake {
    use crate::suite::{self, Subject};

    only! {
        fake: a_flood_of_output_is_bounded
        fake: a_machine_grows_up_to_its_limit_and_not_beyond
    }
}

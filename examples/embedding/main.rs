//! How a container engine embeds the runtime: one short example for each thing that it asks for. Each is a test as well.
//!
//! They run on the driver `fake`, whose guest is the real agent, as a process: no virtual machine, but root and `/bin/busybox`
//! (busybox-static) are needed, and `cargo build -p agent`. `cargo run --example embedding` runs all of them, and
//! `cargo test -p runtime --example embedding` each as a test.

#![expect(
    clippy::unwrap_used,
    reason = "an example is a test as well, and fails loudly"
)]

mod bench;
mod control;
mod find;
mod life;
mod pods;
mod processes;
mod streams;

use std::error::Error;

/// Of an example.
type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

macro_rules! examples {
    ($($file:ident::$name:ident)*) => {
        #[tokio::main(flavor = "current_thread")]
        async fn main() -> Result {
            if processes::is_other() {
                return processes::other().await;
            }
            $(
                println!("{}", stringify!($name));
                $file::$name(&bench::Bench::new()?).await?;
            )*
            Ok(())
        }

        #[cfg(test)]
        mod tests {
            $(
                #[tokio::test]
                async fn $name() -> super::Result {
                    super::bench::within(super::$file::$name(&super::bench::Bench::new()?)).await
                }
            )*

            /// The other process of the examples that have one.
            #[tokio::test]
            async fn other_process() -> super::Result {
                match super::processes::is_other() {
                    true => super::processes::other().await,
                    false => Ok(()),
                }
            }
        }
    };
}

examples! {
    life::run_a_container
    life::a_container_is_created_once
    life::a_creation_that_fails_takes_no_id
    life::stop_with_a_timeout
    life::signal
    life::remove
    streams::log_and_reopen
    streams::attach
    streams::exec
    streams::exec_sync
    streams::exec_sync_with_a_timeout
    control::pause_and_resume
    control::update_and_stats
    pods::two_containers_in_one_machine
    pods::port_forward
    pods::remove_all_or_nothing
    pods::shutdown
    find::lookup_by_short_id
    find::list_with_filters
    processes::in_step_with_another_process
    processes::driven_by_another_process
    processes::left_by_a_dead_process
}

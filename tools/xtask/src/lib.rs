//! The subcommands of `cargo xtask`, one per file.
//!
//! A new one is a file with `Args` and `run`, declared below, and one line in the list of subcommands.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

mod bench;
mod check;
mod deps;
mod digest;
mod fuzz;
mod guest;
mod install;
mod program;
mod run;
mod stage;
mod steps;
mod test;
pub mod tidy;
mod uninstall;
mod workspace;

pub use workspace::Workspace;

/// Makes the command line out of the modules: the documentation of `Args` is the subcommand's help.
macro_rules! subcommands {
    ($($variant:ident = $module:ident,)*) => {
        #[derive(Debug, Parser)]
        #[command(name = "cargo xtask", about, disable_help_subcommand = true)]
        enum Subcommand {
            $($variant($module::Args),)*
        }

        /// Runs the subcommand that the command line names.
        ///
        /// # Errors
        /// Why it could not do its work. That a check or a test has failed is an exit code, and told already.
        pub fn run() -> Result<ExitCode> {
            match Subcommand::parse() {
                $(Subcommand::$variant(args) => $module::run(args),)*
            }
        }
    };
}

subcommands! {
    Bench = bench,
    Check = check,
    Deps = deps,
    Fuzz = fuzz,
    Guest = guest,
    Install = install,
    Run = run,
    Test = test,
    Tidy = tidy,
    Uninstall = uninstall,
}

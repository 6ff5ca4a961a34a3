//! `kata-agent`: the guest's init, or an ordinary process on a host for tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        agent::run::guest();
    }
    match agent::run::process(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kata-agent: {error}\nusage: {}", agent::run::USAGE);
            ExitCode::FAILURE
        }
    }
}

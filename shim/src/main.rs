//! `containerd-shim-kata-v2`: containerd's shim v2 API in front of the `runtime` crate.
//!
//! An edge: it turns containerd's and CRI-O's ways to call it into requests of the runtime, and the runtime's answers
//! back. It decides nothing about containers, and knows no hypervisor and no agent.

mod arguments;
mod bootstrap;
mod bundle;
mod connections;
mod deadlines;
mod delete;
mod error;
mod events;
#[cfg(test)]
mod fuzzed;
mod group;
mod info;
mod input;
mod log;
mod options;
mod pod;
mod podconfig;
mod sandboxes;
mod serve;
mod service;
mod socket;
mod start;
mod stats;
mod stdio;
mod sys;
mod timestamp;
mod translate;

use std::env;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use runtime::error::story;

use arguments::{Action, USAGE};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever started us shows this to a person, on one line.
            eprintln!("containerd-shim-kata-v2: {}", story(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = arguments::parse(env::args_os().skip(1)).map_err(|error| anyhow!(error))?;
    match arguments.action {
        Action::Serve => serve::serve(&arguments),
        Action::Start => start::start(arguments),
        Action::Delete => delete::delete(&arguments),
        Action::Info => info::info(),
        Action::Version => info::version(),
        Action::Features => info::features(),
        Action::Help => {
            print!("{USAGE}");
            Ok(())
        }
    }
}

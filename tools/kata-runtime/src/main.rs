//! `kata-runtime`: the administrator's tool. One verb per file; a verb is `Args` and `run`.
//!
//! Must not know containerd's types.

mod check;
mod config;
mod env;
mod host;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use configuration::Config;

/// Containers in virtual machines of their own: looks at this host, its configuration and its parts.
#[derive(Debug, Parser)]
#[command(name = "kata-runtime", version, about)]
struct Arguments {
    /// The configuration file. Without it: what KATA_CONF_FILE names, or else the first of
    /// --show-default-config-paths.
    #[arg(long, global = true, value_name = "FILE", visible_alias = "kata-config")]
    config: Option<PathBuf>,

    /// Print where the configuration is looked for, first to last.
    #[arg(long, visible_alias = "kata-show-default-config-paths")]
    show_default_config_paths: bool,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Args),
    Config(config::Args),
    Env(env::Args),
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("kata-runtime: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.show_default_config_paths {
        for place in Config::places() {
            println!("{}", place.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let load = || {
        let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
        match &arguments.config {
            // What a person names outranks the environment here, as on any command line.
            Some(named) => Config::load(None, Some(named)),
            None => Config::load(None, environment.as_deref()),
        }
    };
    match arguments.verb {
        Some(Verb::Check(args)) => check::run(&args, load()),
        Some(Verb::Config(args)) => config::run(&args, load),
        Some(Verb::Env(args)) => env::run(&args, &load()?),
        None => {
            anyhow::bail!("no command; `kata-runtime --help` lists them")
        }
    }
}

//! `kata-runtime`: an OCI runtime, and the administrator's tool. One verb per file; a verb is `Args` and `run`.
//!
//! Must not know containerd's types.

mod bundle;
mod check;
mod client;
mod config;
mod daemon;
mod deadlines;
mod env;
mod host;
mod launch;
mod oci;
mod place;
mod report;
mod signal;
mod table;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use configuration::Config;

use oci::Context;
use place::Root;
use report::{Format, Report};

/// What `--version` prints. Callers take the last word of the first line for the version.
const VERSION: &str = concat!(
    "kata-runtime version ",
    env!("CARGO_PKG_VERSION"),
    "\nspec: 1.0.2"
);

/// Containers in virtual machines of their own: an OCI runtime, and a look at this host, its configuration and its parts.
#[derive(Debug, Parser)]
#[command(name = "kata-runtime", about, disable_version_flag = true)]
struct Arguments {
    /// The configuration file. Without it: what KATA_CONF_FILE names, or else the first of
    /// --show-default-config-paths.
    #[arg(long, global = true, value_name = "FILE", visible_alias = "kata-config")]
    config: Option<PathBuf>,

    /// Print where the configuration is looked for, first to last.
    #[arg(long, visible_alias = "kata-show-default-config-paths")]
    show_default_config_paths: bool,

    /// Print the version.
    #[arg(short, long)]
    version: bool,

    /// Directory where containers are known.
    #[arg(long, value_name = "DIRECTORY", default_value = place::DEFAULT)]
    root: PathBuf,

    /// File that failures are written to as well.
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// Form of that file.
    #[arg(long, value_enum, default_value = "text")]
    log_format: Format,

    /// Accepted, for callers that pass it.
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Log more.
    #[arg(long)]
    debug: bool,

    /// Accepted: a cgroup of systemd's is found by the form of its path.
    #[arg(long)]
    systemd_cgroup: bool,

    /// Accepted: whether there is a cgroup, the specification says.
    #[arg(long, value_name = "NAME")]
    cgroup_manager: Option<String>,

    /// Accepted, if it does not ask for what cannot be had.
    #[arg(long, value_name = "BOOL")]
    rootless: Option<String>,

    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(check::Args),
    Config(config::Args),
    Env(env::Args),
    Create(oci::create::Args),
    #[command(hide = true)]
    Daemon(daemon::Args),
    Delete(oci::delete::Args),
    Events(oci::query::Events),
    Exec(oci::exec::Args),
    Features(oci::features::Args),
    Kill(oci::simple::Kill),
    List(oci::list::Args),
    Pause(oci::simple::Pause),
    Ps(oci::query::Ps),
    Resume(oci::simple::Resume),
    Run(oci::run::Args),
    Spec(oci::spec::Args),
    Start(oci::simple::Start),
    State(oci::query::State),
    Update(oci::simple::Update),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = Report {
        file: arguments.log.clone(),
        format: arguments.log_format,
    };
    match run(arguments) {
        Ok(code) => code,
        Err(error) => {
            report.failure(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<ExitCode> {
    if arguments.version {
        println!("{VERSION}");
        return Ok(ExitCode::SUCCESS);
    }
    if arguments.show_default_config_paths {
        for place in Config::places() {
            println!("{}", place.display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    // What a person names outranks the environment here, as on any command line.
    let environment = std::env::var_os("KATA_CONF_FILE").map(PathBuf::from);
    let named = arguments.config.clone().or(environment);
    let load = || Config::load(None, named.as_deref());
    let Some(verb) = arguments.verb else {
        anyhow::bail!("no command; `kata-runtime --help` lists them")
    };
    let context = Context {
        root: Root::new(&arguments.root)?,
        config: arguments.config.clone(),
        debug: arguments.debug,
    };
    match verb {
        Verb::Check(args) => check::run(&args, load()),
        Verb::Config(args) => config::run(&args, || Config::explained(None, named.as_deref())),
        Verb::Env(args) => env::run(&args, &load()?),
        Verb::Create(args) => oci::create::run(&args, &context),
        Verb::Daemon(args) => daemon::run(&args, context.root, context.debug),
        Verb::Delete(args) => oci::delete::run(&args, &context),
        Verb::Events(args) => oci::query::events(&args, &context),
        Verb::Exec(args) => oci::exec::run(&args, &context),
        Verb::Features(args) => oci::features::run(&args),
        Verb::Kill(args) => oci::simple::kill(&args, &context),
        Verb::List(args) => oci::list::run(&args, &context),
        Verb::Pause(args) => oci::simple::pause(&args, &context),
        Verb::Ps(args) => oci::query::ps(&args, &context),
        Verb::Resume(args) => oci::simple::resume(&args, &context),
        Verb::Run(args) => oci::run::run(&args, &context),
        Verb::Spec(args) => oci::spec::run(&args),
        Verb::Start(args) => oci::simple::start(&args, &context),
        Verb::State(args) => oci::query::state(&args, &context),
        Verb::Update(args) => oci::simple::update(&args, &context),
    }
}

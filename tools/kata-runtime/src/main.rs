//! `kata-runtime`: an OCI runtime, and the administrator's tool. One verb per file; a verb is `Args` and `run`.
//!
//! Must not know containerd's types.

mod admin;
mod bundle;
mod check;
mod client;
mod config;
mod daemon;
mod deadlines;
mod env;
mod factory;
mod generate;
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
use clap::{CommandFactory as _, Parser, Subcommand};
use configuration::Config;

use runtime::admin::Survey;

use oci::Context;
use place::Root;
use report::{Format, Report};

/// What `--version` prints. Callers take the last word of the first line for the version.
const VERSION: &str = concat!(
    "kata-runtime version ",
    env!("CARGO_PKG_VERSION"),
    "\nspec: 1.0.2"
);

/// What `exec` exits with when there was no process whose status that could be, as runc does.
const NOT_EXECUTED: u8 = 255;

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
    Completions(generate::Completions),
    Config(config::Args),
    Console(admin::console::Args),
    Env(env::Args),
    Create(oci::create::Args),
    #[command(hide = true)]
    Daemon(daemon::Args),
    Delete(oci::delete::Args),
    DirectVolume(admin::volume::Args),
    Events(oci::query::Events),
    Exec(oci::exec::Args),
    Factory(factory::Args),
    Features(oci::features::Args),
    Gc(admin::gc::Args),
    Inspect(admin::inspect::Args),
    Iptables(admin::rules::Iptables),
    Kill(oci::simple::Kill),
    List(oci::list::Args),
    Logs(admin::logs::Args),
    #[command(hide = true)]
    Manual(generate::Manual),
    Metrics(admin::metrics::Args),
    Pause(oci::simple::Pause),
    Policy(admin::rules::Policy),
    Ps(oci::query::Ps),
    Resume(oci::simple::Resume),
    Run(oci::run::Args),
    Spec(oci::spec::Args),
    Start(oci::simple::Start),
    State(oci::query::State),
    Stats(admin::stats::Args),
    Update(oci::simple::Update),
}

impl Verb {
    /// How many descriptors beyond the standard ones are for the process that it starts.
    fn preserves(&self) -> u32 {
        match self {
            Self::Create(args) => args.how.preserve_fds,
            Self::Exec(args) => args.preserve_fds,
            Self::Run(args) => args.how.preserve_fds,
            _ => 0,
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let report = Report {
        file: arguments.log.clone(),
        format: arguments.log_format,
    };
    let failure = match arguments.verb {
        Some(Verb::Exec(_)) => ExitCode::from(NOT_EXECUTED),
        _ => ExitCode::FAILURE,
    };
    run(arguments).unwrap_or_else(|error| {
        report.failure(&format!("{error:#}"));
        failure
    })
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
    if matches!(arguments.verb, Some(Verb::Create(_) | Verb::Run(_))) {
        launch::no_activation()?;
    }
    // Before anything is opened.
    let descriptors = launch::preserved(arguments.verb.as_ref().map_or(0, Verb::preserves))?;
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
        descriptors: descriptors.into(),
    };
    match verb {
        Verb::Check(args) => check::run(&args, load()),
        Verb::Completions(args) => generate::completions(&args, Arguments::command()),
        Verb::Config(args) => config::run(&args, || Config::explained(None, named.as_deref())),
        Verb::Console(args) => admin::console::run(&args, &args.place.survey(load)?),
        Verb::DirectVolume(args) => admin::volume::run(&args, || args.place.survey(load)),
        Verb::Env(args) => env::run(&args, &load()?),
        Verb::Create(args) => oci::create::run(&args, &context),
        Verb::Daemon(args) => daemon::run(&args, context.root, context.debug),
        Verb::Delete(args) => oci::delete::run(&args, &context),
        Verb::Events(args) => oci::query::events(&args, &context),
        Verb::Exec(args) => match args.names_console(&context).and_then(|id| meant(id, load)) {
            Some(survey) => admin::console::run(&admin::console::Args::shell(args.name()), &survey),
            None => oci::exec::run(&args, &context),
        },
        Verb::Factory(args) => factory::run(&args, load()?, named.as_deref()),
        Verb::Features(args) => oci::features::run(&args),
        Verb::Gc(args) => {
            let mut config = load()?;
            config.runtime.run_dir = args.place.run_dir(|| Ok(config.clone()))?;
            let survey = Survey::take(&config.runtime.run_dir)?;
            admin::gc::run(&args, config, &survey)
        }
        Verb::Inspect(args) => admin::inspect::run(&args, &args.place.survey(load)?),
        Verb::Iptables(args) => admin::rules::iptables(&args, &args.place.survey(load)?),
        Verb::Kill(args) => oci::simple::kill(&args, &context),
        Verb::List(args) => oci::list::run(
            &args,
            &context,
            admin::Place::default().survey(load).ok().as_ref(),
        ),
        Verb::Logs(args) => admin::logs::run(&args, &args.place.survey(load)?, &context.root),
        Verb::Manual(args) => generate::manual(&args, Arguments::command()),
        Verb::Metrics(args) => admin::metrics::run(&args, &args.place.survey(load)?),
        Verb::Pause(args) => oci::simple::pause(&args, &context),
        Verb::Policy(args) => admin::rules::policy(&args, &args.place.survey(load)?),
        Verb::Ps(args) => match args.unknown(&context).and_then(|id| meant(id, load)) {
            Some(survey) => admin::ps::run(args.name(), args.form(), &survey),
            None => oci::query::ps(&args, &context),
        },
        Verb::Resume(args) => oci::simple::resume(&args, &context),
        Verb::Run(args) => oci::run::run(&args, &context),
        Verb::Spec(args) => oci::spec::run(&args),
        Verb::Start(args) => oci::simple::start(&args, &context),
        Verb::State(args) => oci::query::state(&args, &context, || admin::Place::default().survey(load).ok()),
        Verb::Stats(args) => admin::stats::run(&args, || args.place.survey(load)),
        Verb::Update(args) => oci::simple::update(&args, &context),
    }
}

/// What there is of sandboxes, if one of them is meant by this name: verbs that an OCI runtime has are about its own containers
/// first.
fn meant(id: &str, load: impl FnOnce() -> Result<Config, configuration::Error>) -> Option<Survey> {
    let survey = admin::Place::default().survey(load).ok()?;
    let found = admin::block_on(admin::find::target(&survey, id));
    found.is_ok().then_some(survey)
}

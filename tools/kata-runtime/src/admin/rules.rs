//! `iptables` and `policy`: rules in the guest.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use runtime::admin::Survey;
use runtime::admin::client::Client;

use super::{Place, block_on, find, told};

/// Print or replace the rules of the guest's packet filter.
#[derive(Debug, clap::Args)]
pub struct Iptables {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    order: IptablesOrder,
}

#[derive(Debug, clap::Subcommand)]
enum IptablesOrder {
    /// Print the rules, as iptables-save does.
    Get {
        #[command(flatten)]
        of: Of,
    },
    /// Replace the rules, as iptables-restore does.
    Set {
        #[command(flatten)]
        of: Of,
        /// File with the rules; `-`: the standard input.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The rules for IPv6.
    #[arg(long)]
    v6: bool,
    /// Sandbox, or a container in it.
    #[arg(long, value_name = "ID", visible_alias = "sandbox")]
    sandbox_id: String,
}

/// Set what the guest's agent may be asked for.
#[derive(Debug, clap::Args)]
pub struct Policy {
    #[command(flatten)]
    pub place: Place,
    #[command(subcommand)]
    order: PolicyOrder,
}

#[derive(Debug, clap::Subcommand)]
enum PolicyOrder {
    /// Replace the policy.
    Set {
        /// Sandbox, or a container in it.
        #[arg(long, value_name = "ID", visible_alias = "sandbox")]
        sandbox_id: String,
        /// File with the policy, lines like `default ExecProcessRequest := false` (a subset of Kata's); `-`: the standard input.
        file: PathBuf,
    },
}

/// Prints or replaces rules.
///
/// # Errors
/// There is no such sandbox, or it refuses.
pub fn iptables(args: &Iptables, survey: &Survey) -> Result<ExitCode> {
    let (of, method, body) = match &args.order {
        IptablesOrder::Get { of } => (of, "GET", Vec::new()),
        IptablesOrder::Set { of, file } => (of, "PUT", content(file)?),
    };
    let path = if of.v6 { "/ip6tables" } else { "/iptables" };
    ask(survey, &of.sandbox_id, method, path, &body)
}

/// Replaces a policy.
///
/// # Errors
/// There is no such sandbox, or it refuses.
pub fn policy(args: &Policy, survey: &Survey) -> Result<ExitCode> {
    let PolicyOrder::Set { sandbox_id, file } = &args.order;
    ask(survey, sandbox_id, "PUT", "/policy", &content(file)?)
}

fn ask(survey: &Survey, id: &str, method: &str, path: &str, body: &[u8]) -> Result<ExitCode> {
    let answer = block_on(async {
        let found = find::target(survey, id).await?.sandbox;
        let client = Client::new(&found).map_err(told)?;
        client.request(method, path, None, body).await.map_err(told)
    })?;
    std::io::stdout()
        .write_all(&answer)
        .context("cannot print the answer")?;
    Ok(ExitCode::SUCCESS)
}

fn content(file: &Path) -> Result<Vec<u8>> {
    if file == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("cannot read the standard input")?;
        return Ok(bytes);
    }
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}

//! `exec`: a process more in a container.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::{Map, Value, json};
use standin::Life;

use super::Context;
use super::create::write_pid;
use super::terminal::Raw;
use crate::bundle;
use crate::launch::{self, Draft, Guise, Streams};
use crate::wire::Ask;

/// Start a process more in a container.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Unix socket that gets the process's terminal.
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// File for the pid of the process that stands for it.
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// File with the OCI process as JSON. Without it: the command line, in the surroundings of the container's process.
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,
    /// Do not wait for its end.
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal.
    #[arg(short, long)]
    tty: bool,
    /// Working directory.
    #[arg(long, value_name = "DIRECTORY")]
    cwd: Option<String>,
    /// Set an environment variable.
    #[arg(short, long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// User, and group, by number.
    #[arg(short, long, value_name = "UID[:GID]")]
    user: Option<String>,
    /// Additional groups, by number.
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// Add a capability.
    #[arg(short, long, value_name = "NAME")]
    cap: Vec<String>,
    /// It gets no more privileges than it has.
    #[arg(long)]
    no_new_privs: bool,
    /// Accepted: labels of the host's kernel do not reach a guest.
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Accepted: profiles of the host's kernel do not reach a guest.
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// Descriptors for the process. They cannot be brought into a virtual machine: only 0 can be had.
    #[arg(long, value_name = "N", default_value_t = 0)]
    preserve_fds: u32,
    /// Accepted: the process is in the container's cgroup.
    #[arg(long, value_name = "PATH")]
    cgroup: Option<String>,
    /// Accepted: a process is not added to a paused container.
    #[arg(long)]
    ignore_paused: bool,
    /// Name of the container.
    id: String,
    /// Program and arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    /// The name.
    pub fn name(&self) -> &str {
        &self.id
    }

    /// The name, if no container of this root has it and nothing is said of what to run: then it may be that of a sandbox, whose
    /// console is meant.
    pub fn names_console(&self, context: &Context) -> Option<&str> {
        let says_nothing = self.process.is_none() && self.command.is_empty();
        let unknown = says_nothing && matches!(context.find(&self.id), Ok(None) | Err(_));
        unknown.then_some(&self.id)
    }
}

/// Starts one. Without `--detach` the exit status is the process's.
///
/// # Errors
/// It did not start.
pub fn run(args: &Args, context: &Context) -> Result<ExitCode> {
    if args.preserve_fds > 0 {
        bail!(
            "--preserve-fds {}: descriptors cannot be brought into a virtual machine",
            args.preserve_fds
        );
    }
    let target = context.target(&args.id)?;
    let daemon = target.daemon()?;
    let spec = process(args, &target.record.bundle)?;
    let terminal = spec.get("terminal").and_then(Value::as_bool).unwrap_or(false);
    if args.console_socket.is_some() && !terminal {
        bail!("--console-socket is for a process with a terminal (--tty)");
    }
    launch::keep_descriptors()?;
    if args.detach || args.console_socket.is_some() {
        let streams = match (&args.console_socket, terminal) {
            (Some(socket), _) => Streams::console(socket)?,
            (None, false) => Streams::own(false)?,
            (None, true) => bail!("--detach --tty: --console-socket must say who gets the terminal"),
        };
        let guise = Guise {
            arguments: arguments(&spec),
            root: None,
        };
        let draft = Draft::detached(streams, &guise)?;
        let pid = draft.pid();
        draft.submit(daemon, &args.id, |process| Ask::Exec { spec, process })?;
        if let Some(path) = &args.pid_file {
            write_pid(path, pid)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (draft, ours) = Draft::attached(Streams::own(terminal)?)?;
    let stdin = io::stdin();
    let raw = terminal.then(|| Raw::set(&stdin)).flatten();
    if let Some(path) = &args.pid_file {
        write_pid(path, draft.pid())?;
    }
    draft.submit(daemon, &args.id, |process| Ask::Exec { spec, process })?;
    // Until here a signal ends us, and the process with us.
    let life = Life::begin(ours, raw.is_some().then_some(stdin.as_fd()), None)
        .context("signals cannot be passed on")?;
    let status = life.live();
    drop(raw);
    Ok(ExitCode::from(status))
}

/// The OCI process that is asked for.
fn process(args: &Args, bundle: &std::path::Path) -> Result<Value> {
    if let Some(path) = &args.process {
        let doing = || format!("--process {}", path.display());
        let text = fs::read_to_string(path).with_context(doing)?;
        let mut process: Value = serde_json::from_str(&text).with_context(doing)?;
        if args.tty {
            process["terminal"] = json!(true);
        }
        return Ok(process);
    }
    if args.command.is_empty() {
        bail!("exec needs a program, or --process");
    }
    let config: Value = serde_json::from_slice(&bundle::config(bundle)?)
        .with_context(|| format!("{}/config.json", bundle.display()))?;
    // The surroundings of the container's own process, but for its terminal.
    let mut process = config.get("process").cloned().unwrap_or_else(|| json!({}));
    let fields = process
        .as_object_mut()
        .context("config.json: process is no object")?;
    fields.insert("args".into(), json!(args.command));
    fields.insert("terminal".into(), json!(args.tty));
    fields.remove("consoleSize");
    if let Some(cwd) = &args.cwd {
        fields.insert("cwd".into(), json!(cwd));
    }
    if args.no_new_privs {
        fields.insert("noNewPrivileges".into(), json!(true));
    }
    extend(fields, "env", &args.env);
    if let Some(user) = &args.user {
        fields.insert("user".into(), self::user(user, &args.additional_gids)?);
    } else if !args.additional_gids.is_empty() {
        fields
            .entry("user")
            .or_insert_with(|| json!({"uid": 0, "gid": 0}))["additionalGids"] = json!(args.additional_gids);
    }
    if !args.cap.is_empty() {
        let capabilities = fields.entry("capabilities").or_insert_with(|| json!({}));
        if let Some(sets) = capabilities.as_object_mut() {
            for set in ["bounding", "effective", "inheritable", "permitted", "ambient"] {
                extend(sets, set, &args.cap);
            }
        }
    }
    Ok(process)
}

fn arguments(process: &Value) -> Vec<String> {
    let arguments = process.get("args").and_then(Value::as_array);
    arguments
        .into_iter()
        .flatten()
        .filter_map(|argument| argument.as_str().map(str::to_owned))
        .collect()
}

/// Adds texts to a list.
fn extend(fields: &mut Map<String, Value>, key: &str, more: &[String]) {
    if more.is_empty() {
        return;
    }
    let list = fields.entry(key).or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        list.extend(more.iter().map(|text| json!(text)));
    }
}

fn user(text: &str, groups: &[u32]) -> Result<Value> {
    let (uid, gid) = text.split_once(':').unwrap_or((text, "0"));
    let number = |text: &str| {
        text.parse::<u32>().with_context(|| {
            format!("--user {text:?} is not a number: names are in the container's own files")
        })
    };
    Ok(json!({"uid": number(uid)?, "gid": number(gid)?, "additionalGids": groups}))
}

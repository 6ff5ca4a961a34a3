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
    /// So many descriptors, 3 and following, are the process's as well: pipes, connected sockets, terminals and files as streams.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub preserve_fds: u32,
    /// Cgroup of the process below the container's. There is none: it is in the container's own.
    #[arg(long, value_name = "PATH", value_parser = own_cgroup)]
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
        let draft = Draft::detached(streams, &guise)?.carrying(context.descriptors.take())?;
        let pid = draft.pid();
        draft.submit(daemon, &args.id, |process| Ask::Exec { spec, process })?;
        if let Some(path) = &args.pid_file {
            write_pid(path, pid)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (draft, ours) = Draft::attached(Streams::own(terminal)?)?;
    let draft = draft.carrying(context.descriptors.take())?;
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
    changed(args, config.get("process").cloned().unwrap_or_else(|| json!({})))
}

/// The surroundings of the container's own process, but for its terminal, with what the command line says otherwise.
fn changed(args: &Args, mut process: Value) -> Result<Value> {
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
    if let Some(known) = fields.get_mut("env").and_then(Value::as_array_mut) {
        // A program finds the first of a name, a shell the last.
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        let new: Vec<String> = args.env.iter().map(|variable| name(variable)).collect();
        known.retain(|variable| {
            variable
                .as_str()
                .is_none_or(|variable| !new.contains(&name(variable)))
        });
    }
    extend(fields, "env", &args.env);
    if args.user.is_some() || !args.additional_gids.is_empty() {
        let user = fields
            .entry("user")
            .or_insert_with(|| json!({"uid": 0, "gid": 0}));
        let user = user
            .as_object_mut()
            .context("config.json: process.user is no object")?;
        if let Some(named) = &args.user {
            let (uid, gid) = self::user(named)?;
            user.insert("uid".into(), json!(uid));
            // As runc has it: without one, the group stays what it is.
            if let Some(gid) = gid {
                user.insert("gid".into(), json!(gid));
            }
        }
        if !args.additional_gids.is_empty() {
            let more = user.entry("additionalGids").or_insert_with(|| json!([]));
            if let Some(more) = more.as_array_mut() {
                more.extend(args.additional_gids.iter().map(|gid| json!(gid)));
            }
        }
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

/// The container's own cgroup, and no other.
fn own_cgroup(path: &str) -> Result<String, &'static str> {
    match path {
        "" | "/" => Ok(path.to_owned()),
        _ => Err("a process is in its container's own cgroup, in the guest; leave it out"),
    }
}

/// A user, and the group that is named with it.
fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |text: &str| {
        text.parse::<u32>().with_context(|| {
            format!("--user {text:?} is not a number: names are in the container's own files")
        })
    };
    Ok(match text.split_once(':') {
        Some((uid, gid)) => (number(uid)?, Some(number(gid)?)),
        None => (number(text)?, None),
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn the_command_line_changes_what_it_names_as_with_runc() {
        let own = json!({
            "args": ["sleep"], "terminal": true, "consoleSize": {"width": 1, "height": 1}, "cwd": "/srv",
            "env": ["PATH=/bin", "X=old", "XY=kept"],
            "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
            "capabilities": {"bounding": ["CAP_KILL"]},
        });
        let changed = |words: &[&str]| {
            let line = ["exec"].iter().chain(words).chain(&["c", "ls", "-l"]);
            changed(&Line::try_parse_from(line).unwrap().args, own.clone())
        };
        let plain = changed(&[]).unwrap();
        assert_eq!(plain["args"], json!(["ls", "-l"]));
        assert_eq!(
            (&plain["terminal"], &plain["cwd"]),
            (&json!(false), &json!("/srv"))
        );
        assert_eq!(plain["user"], own["user"]);
        assert_eq!(plain["env"], own["env"]);
        assert!(plain.get("consoleSize").is_none());
        for (words, pointer, expected) in [
            (
                &["--env", "X=new", "-e", "Y=1"][..],
                "/env",
                json!(["PATH=/bin", "XY=kept", "X=new", "Y=1"]),
            ),
            (
                &["--user", "7"],
                "/user",
                json!({"uid": 7, "gid": 2, "additionalGids": [3]}),
            ),
            (
                &["-u", "7:8", "-g", "9"],
                "/user",
                json!({"uid": 7, "gid": 8, "additionalGids": [3, 9]}),
            ),
            (&["--cwd", "/x"], "/cwd", json!("/x")),
            (&["-t"], "/terminal", json!(true)),
            (&["--no-new-privs"], "/noNewPrivileges", json!(true)),
            (
                &["--cap", "CAP_CHOWN"],
                "/capabilities/bounding",
                json!(["CAP_KILL", "CAP_CHOWN"]),
            ),
            (
                &["-c", "CAP_CHOWN"],
                "/capabilities/effective",
                json!(["CAP_CHOWN"]),
            ),
        ] {
            assert_eq!(
                changed(words).unwrap().pointer(pointer),
                Some(&expected),
                "{words:?}"
            );
        }
        for words in [&["--user", "root"], &["--user", "1:wheel"]] {
            assert!(changed(words).is_err(), "{words:?}");
        }
        for (path, is_own) in [("/", true), ("", true), ("below", false)] {
            let line = Line::try_parse_from(["exec", "--cgroup", path, "c", "ls"]);
            assert_eq!(line.is_ok(), is_own, "{path:?}");
        }
    }
}

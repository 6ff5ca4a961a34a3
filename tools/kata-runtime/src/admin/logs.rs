//! `logs`: what a sandbox's owner has logged, from wherever its caller keeps it.

use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result, bail};
use runtime::SandboxId;
use runtime::admin::Survey;
use serde_json::Value;

use super::{Form, Place, block_on, find};
use crate::daemon;
use crate::place::Root;

/// Units whose log has what shims say.
const UNITS: [&str; 3] = ["containerd", "crio", "docker"];

/// Print what a sandbox's owner and its guest's console have logged.
///
/// A shim logs by way of containerd, whose log is taken from the journal, or from --file; a daemon of this program's has a file of
/// its own.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Go on with what is logged from now on.
    #[arg(short, long)]
    follow: bool,
    /// Only so many lines from the end of the log are looked at.
    #[arg(short = 'n', long, value_name = "N")]
    tail: Option<u64>,
    /// The log, where it is not in the journal.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// As text, or each line as it was logged.
    #[arg(long, value_enum, default_value = "table")]
    format: Form,
    /// Sandbox, or a container in it. One that has gone has to be named in full.
    id: String,
}

/// Prints.
///
/// # Errors
/// There is no log to be found.
pub fn run(args: &Args, survey: &Survey, root: &Root) -> Result<ExitCode> {
    let found = block_on(find::target(survey, &args.id));
    let (id, of_daemon) = match &found {
        Ok(target) => {
            let found = &target.sandbox;
            let of_daemon = found.scope == root.scope()?;
            (
                found.id.clone(),
                of_daemon.then(|| daemon::log_path(root, &found.id)),
            )
        }
        // What it has logged may be there when it is not.
        Err(_) if args.file.is_some() => (SandboxId::new(args.id.as_str())?, None),
        Err(error) => bail!("{error:#}; with --file, one that has gone can be looked for by its whole name"),
    };
    // A daemon's own file has nothing of others in it.
    let whose = (args.file.is_some() || of_daemon.is_none()).then_some(id.as_str());
    let file = args.file.clone().or(of_daemon);
    let mut source = match &file {
        Some(file) => tail(args, file)?,
        None => journal(args),
    };
    let mut child = source
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| match &file {
            Some(_) => "cannot run tail".to_owned(),
            None => "cannot run journalctl; name the log of containerd with --file".to_owned(),
        })?;
    let lines = child.stdout.take().context("its output is open")?;
    let printed = print(args, BufReader::new(lines), whose);
    if printed.is_err() {
        // Nobody reads any more. It may have ended by itself.
        let _ = child.kill();
    }
    let status = child.wait().context("wait for the log's reader")?;
    match printed {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("cannot print the log"),
        Ok(()) if status.success() => Ok(ExitCode::SUCCESS),
        Ok(()) => bail!("the log cannot be read ({status}); name the log of containerd with --file"),
    }
}

fn tail(args: &Args, file: &Path) -> Result<Command> {
    std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut command = Command::new("tail");
    match args.tail {
        Some(lines) => command.arg(format!("--lines={lines}")),
        None => command.arg("--lines=+1"),
    };
    if args.follow {
        command.arg("--follow=name");
    }
    command.arg("--").arg(file);
    Ok(command)
}

fn journal(args: &Args) -> Command {
    let mut command = Command::new("journalctl");
    command.args(["--quiet", "--no-pager", "--output=cat"]);
    command.args(UNITS.map(|unit| format!("--unit={unit}")));
    if let Some(lines) = args.tail {
        command.arg(format!("--lines={lines}"));
    }
    if args.follow {
        command.arg("--follow");
    }
    command
}

fn print(args: &Args, mut lines: impl std::io::BufRead, whose: Option<&str>) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.trim_end();
        if whose.is_none_or(|id| is_about(text, id)) {
            match args.format {
                Form::Json => writeln!(out, "{text}")?,
                Form::Table => writeln!(out, "{}", readable(text))?,
            }
        }
        line.clear();
    }
    out.flush()
}

/// Whether a line has an id, and not only as a part of another one. Pure.
fn is_about(line: &str, id: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || "_.-".contains(c));
    line.match_indices(id).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        let after = line.get(at + id.len()..).and_then(|text| text.chars().next());
        !part(before) && !part(after)
    })
}

/// A line of JSON as a person reads it: time, level and message first. What is none stays as it is, without what a terminal would
/// obey. Pure.
fn readable(line: &str) -> String {
    let cleaned = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    };
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else {
        return cleaned(line);
    };
    let word = |value: Value| match value {
        Value::String(text) => text,
        value => value.to_string(),
    };
    let mut take = |names: [&str; 2]| names.iter().find_map(|name| fields.remove(*name)).map(word);
    let first = [
        take(["ts", "time"]),
        take(["level", "lvl"]),
        take(["msg", "message"]),
    ];
    let mut words: Vec<_> = first.into_iter().flatten().collect();
    words.extend(
        fields
            .into_iter()
            .map(|(key, value)| format!("{key}={}", word(value))),
    );
    cleaned(&words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_about_whole_ids() {
        for (line, expected) in [
            (r#"{"sandbox":"abc","msg":"x"}"#, true),
            ("sandbox=abc", true),
            ("abc", true),
            (r#"{"sandbox":"abcd"}"#, false),
            ("x-abc abc.1", false),
            ("x-abc abc", true),
            ("é abc é", true),
            ("", false),
        ] {
            assert_eq!(is_about(line, "abc"), expected, "{line}");
        }
    }

    #[test]
    fn a_line_is_readable_and_harmless() {
        assert_eq!(
            readable(r#"{"msg":"started","level":"INFO","ts":"12:00","pid":7,"who":"a\u001b[2Jb"}"#),
            "12:00 INFO started pid=7 who=a?[2Jb"
        );
        assert_eq!(readable("plain \u{1b}[31mtext"), "plain ?[31mtext");
    }
}

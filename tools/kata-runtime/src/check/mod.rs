//! `check`: whether a container can be created here, and if not, what to do.

mod line;
mod machine;
mod programs;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use configuration::{Config, HypervisorKind};
use hypervisor::Choice;
use slog::{Discard, Logger, o};

use crate::table::{self, Colour};
use line::{Answer, Line, Verdict};

/// Check whether this host can run containers. Exits with 0 if a container can be created.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// How the answer is printed.
    #[arg(long, value_enum, default_value = "table")]
    format: Form,
    /// Fail also where there is no hardware virtualization.
    #[arg(short, long)]
    strict: bool,
    /// Accepted, for callers that know Kata's: nothing is ever looked for in a network.
    #[arg(short, long, hide = true)]
    no_network_checks: bool,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Prints a line for each part.
///
/// # Errors
/// The answer cannot be printed.
pub fn run(args: &Args, config: Result<Config, configuration::Error>) -> Result<ExitCode> {
    let answer = answer(config);
    if args.json || args.format == Form::Json {
        let text = serde_json::to_string_pretty(&answer).context("encode the answer")?;
        println!("{text}");
    } else {
        let no_color = std::env::var_os("NO_COLOR");
        let colours = table::colours(std::io::stdout().is_terminal(), no_color.as_deref());
        print!("{}", printed(&answer, colours));
    }
    Ok(match answer.is_good(args.strict) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn answer(config: Result<Config, configuration::Error>) -> Answer {
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            let mut lines = vec![Line::fail(
                "configuration",
                error,
                "correct it; `kata-runtime config --explain KEY` tells what a key takes",
            )];
            lines.extend(machine::lines(false, None));
            return Answer::new(lines, false);
        }
    };
    let choice = hypervisor::choose_accelerator(
        config.hypervisor.accelerator,
        &config.runtime.run_dir,
        &Logger::root(Discard, o!()),
    );
    // One that is not to be used all the same does not run guests.
    let hardware =
        choice.as_ref().is_ok_and(|choice| choice.kvm) && config.hypervisor.kind != HypervisorKind::Fake;
    let mut lines = vec![sources(&config)];
    lines.extend(machine::lines(
        hardware,
        Some(config.hypervisor.default_memory_mib),
    ));
    lines.push(accelerator(choice));
    lines.extend(programs::machine(&config));
    lines.extend(programs::others());
    lines.push(programs::share(&config));
    lines.extend(programs::channels(&config));
    lines.push(run_directory(&config));
    Answer::new(lines, hardware)
}

fn sources(config: &Config) -> Line {
    const PART: &str = "configuration";
    let files: Vec<_> = config
        .sources
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    match files.as_slice() {
        [] => Line::pass(PART, "built-in defaults"),
        files => Line::pass(PART, files.join(", ")),
    }
}

fn accelerator(choice: Result<Choice, hypervisor::Error>) -> Line {
    const PART: &str = "accelerator";
    const REMEDY: &str = "enable virtualization in the firmware, or nested virtualization on the outer host; without it \
                          QEMU translates guest code, which works and is slower";
    match choice {
        Ok(Choice { kvm: true, reason }) => Line::pass(PART, format!("kvm: {reason}")),
        Ok(Choice { kvm: false, reason }) => Line::warn(PART, format!("tcg: {reason}"), REMEDY),
        Err(error) => Line::fail(PART, error, REMEDY),
    }
}

/// Where sandboxes are to be: the directory, or the first above it that there is, has to be writable.
fn run_directory(config: &Config) -> Line {
    const PART: &str = "run directory";
    let wanted = &config.runtime.run_dir;
    let found = wanted.display();
    let there = wanted.ancestors().find(|dir| dir.exists());
    let access = there.map(|dir| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK));
    match access {
        Some(Ok(())) => Line::pass(PART, found),
        Some(Err(error)) => Line::fail(PART, format!("{found}: {error}"), "set another `run_dir`"),
        None => Line::fail(PART, format!("{found}: not a path"), "set another `run_dir`"),
    }
}

/// A line for each part, the remedies below, and what it all means.
fn printed(answer: &Answer, colours: bool) -> String {
    let lines = &answer.checks;
    let width = lines.iter().map(|line| line.part.len()).max().unwrap_or(0);
    let mut text = String::new();
    for line in lines {
        let (word, colour) = match line.verdict {
            Verdict::Pass => ("pass", Colour::Green),
            Verdict::Warn => ("warn", Colour::Yellow),
            Verdict::Fail => ("FAIL", Colour::Red),
        };
        let word = table::coloured(word, colour, colours);
        text += &format!("{word}  {:width$}  {}\n", line.part, line.found);
        if !line.remedy.is_empty() && line.verdict != Verdict::Pass {
            text += &format!("      {:width$}  -> {}\n", "", line.remedy);
        }
    }
    text + "\n" + answer.summary() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_told_even_where_the_configuration_is_wrong() {
        let config = Config::load_from(Some("/nowhere/configuration.toml".as_ref()), None, &[]);
        let answer = answer(config);
        assert!(!answer.can_create);
        assert!(answer.checks.iter().any(|line| line.part == "cpu"));
        let text = printed(&answer, false);
        assert!(text.contains("FAIL  configuration"), "{text}");
        assert!(text.contains("-> correct it"), "{text}");
        assert!(!text.contains('\x1b'), "{text}");
        assert!(printed(&answer, true).contains("\x1b[31mFAIL\x1b[0m"));
    }

    #[test]
    fn the_defaults_are_judged_part_by_part() {
        let answer = answer(Config::defaults());
        for part in [
            "configuration",
            "user",
            "cpu",
            "module kvm",
            "module vhost_vsock",
            "device /dev/kvm",
            "device /dev/net/tun",
            "control groups",
            "memory",
            "accelerator",
            "hypervisor",
            "guest kernel",
            "guest image",
            "cloud hypervisor",
            "firecracker",
            "file sharing",
            "vsock, kernel",
            "vsock, daemon",
            "virtio-serial",
            "agent channel",
            "run directory",
        ] {
            let lines = answer.checks.iter().filter(|line| line.part == part);
            assert_eq!(lines.count(), 1, "{part}");
        }
        let lacking = |line: &&Line| line.verdict != Verdict::Pass && line.remedy.is_empty();
        let silent: Vec<_> = answer.checks.iter().filter(lacking).collect();
        assert!(silent.is_empty(), "nothing is said to be done: {silent:?}");
    }

    #[test]
    fn translated_code_runs_containers() {
        let choice = Ok(Choice {
            kvm: false,
            reason: "r".into(),
        });
        // Whether that is enough is asked of the whole answer.
        assert_eq!(accelerator(choice).verdict, Verdict::Warn);
    }
}

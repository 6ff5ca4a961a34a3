//! `check`: whether a container can be created here, and if not, what to do.

use std::fmt;
use std::io::IsTerminal as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use configuration::{AgentChannel, Config, HypervisorKind, SharedFs};
use hypervisor::Choice;
use serde::Serialize;
use slog::{Discard, Logger, o};

use crate::host;

/// Check whether this host can run containers. Exits with 0 if a container can be created.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Fail also where there is no hardware virtualization.
    #[arg(long)]
    strict: bool,
}

/// How good a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Pass,
    Warn,
    Fail,
}

/// One part of the host.
#[derive(Debug, Serialize)]
struct Line {
    part: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it; empty where nothing is to be done.
    remedy: String,
}

/// Prints a line for each part.
///
/// # Errors
/// The answer cannot be printed.
pub fn run(args: &Args, config: Result<Config, configuration::Error>) -> Result<ExitCode> {
    let mut lines = Vec::new();
    let mut has_hardware = false;
    match config {
        Ok(config) => {
            lines.push(sources(&config));
            let choice = hypervisor::choose_accelerator(
                config.hypervisor.accelerator,
                &config.runtime.run_dir,
                &Logger::root(Discard, o!()),
            );
            has_hardware = choice.as_ref().is_ok_and(|choice| choice.kvm);
            lines.push(accelerator(choice, args.strict));
            lines.extend(virtual_machine(&config));
            lines.push(share(&config));
            lines.push(channel(&config));
        }
        Err(error) => lines.push(Line::fail(
            "configuration",
            error.to_string(),
            "correct it; `kata-runtime config --explain KEY` tells what a key takes",
        )),
    }
    lines.push(match host::cgroups() {
        Ok(version) => Line::pass("control groups", version),
        Err(problem) => Line::warn("control groups", problem, "mount cgroup2 at /sys/fs/cgroup"),
    });
    lines.push(match host::device("/dev/net/tun") {
        Ok(()) => Line::pass("network", "/dev/net/tun"),
        Err(problem) => Line::warn(
            "network",
            format!("/dev/net/tun: {problem}"),
            "modprobe tun; without it pods have no network",
        ),
    });
    if args.json {
        let text = serde_json::to_string_pretty(&lines).context("encode the answer")?;
        println!("{text}");
    } else {
        print(&lines);
    }
    let fails = lines.iter().any(|line| line.verdict == Verdict::Fail) || (args.strict && !has_hardware);
    Ok(if fails {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl Line {
    fn new(part: &'static str, verdict: Verdict, found: impl fmt::Display, remedy: &str) -> Self {
        Self {
            part,
            verdict,
            found: found.to_string(),
            remedy: remedy.to_owned(),
        }
    }

    fn pass(part: &'static str, found: impl fmt::Display) -> Self {
        Self::new(part, Verdict::Pass, found, "")
    }

    fn warn(part: &'static str, found: impl fmt::Display, remedy: &str) -> Self {
        Self::new(part, Verdict::Warn, found, remedy)
    }

    fn fail(part: &'static str, found: impl fmt::Display, remedy: &str) -> Self {
        Self::new(part, Verdict::Fail, found, remedy)
    }
}

fn sources(config: &Config) -> Line {
    let files: Vec<_> = config
        .sources
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Line::pass("configuration", files.join(", "))
}

fn accelerator(choice: Result<Choice, hypervisor::Error>, strict: bool) -> Line {
    const REMEDY: &str = "enable virtualization in the firmware, or nested virtualization on the outer host; without it \
                          QEMU translates guest code, which works and is slower";
    match choice {
        Ok(Choice { kvm: true, reason }) => Line::pass("accelerator", format!("kvm: {reason}")),
        Ok(Choice { kvm: false, reason }) => {
            let verdict = if strict { Verdict::Fail } else { Verdict::Warn };
            Line::new("accelerator", verdict, format!("tcg: {reason}"), REMEDY)
        }
        Err(error) => Line::fail("accelerator", error, REMEDY),
    }
}

fn virtual_machine(config: &Config) -> Vec<Line> {
    let hypervisor = &config.hypervisor;
    if hypervisor.kind == HypervisorKind::Fake {
        let found = "the hypervisor is `fake`, which isolates nothing";
        return vec![Line::warn(
            "hypervisor",
            found,
            "for tests only: use [hypervisor.qemu]",
        )];
    }
    let file = |part, path: &Path, remedy: &str| match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Line::pass(part, path.display()),
        Ok(_) => Line::fail(part, format!("{}: not a regular file", path.display()), remedy),
        Err(error) => Line::fail(part, format!("{}: {error}", path.display()), remedy),
    };
    vec![
        match host::version(&hypervisor.path) {
            Ok(version) => Line::pass("hypervisor", format!("{} ({version})", hypervisor.path.display())),
            Err(problem) => Line::fail(
                "hypervisor",
                format!("{}: {problem}", hypervisor.path.display()),
                "install qemu-system-x86, or set `path`",
            ),
        },
        file(
            "guest kernel",
            &hypervisor.kernel,
            "build it with `make guest`, or set `kernel`",
        ),
        file(
            "guest image",
            &hypervisor.initrd,
            "build it with `make guest`, or set `initrd`",
        ),
    ]
}

fn share(config: &Config) -> Line {
    const PART: &str = "file sharing";
    if config.hypervisor.kind == HypervisorKind::Fake {
        return Line::pass(PART, "the guest is a process");
    }
    if config.hypervisor.shared_fs == SharedFs::None {
        let remedy =
            "set `shared_fs` to \"virtio-fs\": a container's root file system is shared with its guest";
        return Line::fail(PART, "shared_fs is \"none\"", remedy);
    }
    let daemon = &config.hypervisor.virtio_fs_daemon;
    match host::version(daemon) {
        Ok(version) => Line::pass(PART, format!("{} ({version})", daemon.display())),
        Err(problem) => Line::fail(
            PART,
            format!("{}: {problem}", daemon.display()),
            "install virtiofsd 1.10 or later, or set `virtio_fs_daemon`",
        ),
    }
}

fn channel(config: &Config) -> Line {
    const PART: &str = "agent channel";
    let kernel = host::device("/dev/vhost-vsock");
    let daemon = &config.hypervisor.vhost_user_vsock_daemon;
    match config.agent.channel {
        AgentChannel::Auto => Line::pass(
            PART,
            match (kernel, host::version(daemon)) {
                (Ok(()), _) => "the kernel's vsock".to_owned(),
                (Err(_), Ok(version)) => format!("vsock by {} ({version})", daemon.display()),
                (Err(_), Err(_)) => "virtio-serial".to_owned(),
            },
        ),
        AgentChannel::Vsock => match kernel {
            Ok(()) => Line::pass(PART, "the kernel's vsock"),
            Err(problem) => Line::fail(
                PART,
                format!("/dev/vhost-vsock: {problem}"),
                "modprobe vhost_vsock, or set `channel` to \"auto\"",
            ),
        },
        AgentChannel::VhostUserVsock => match host::version(daemon) {
            Ok(version) => Line::pass(PART, format!("{} ({version})", daemon.display())),
            Err(problem) => Line::fail(
                PART,
                format!("{}: {problem}", daemon.display()),
                "install vhost-device-vsock, or set `channel` to \"auto\"",
            ),
        },
        AgentChannel::VirtioSerial => Line::pass(PART, "virtio-serial"),
    }
}

fn print(lines: &[Line]) {
    let colours = std::io::stdout().is_terminal();
    let width = lines.iter().map(|line| line.part.len()).max().unwrap_or(0);
    for line in lines {
        let (word, colour) = match line.verdict {
            Verdict::Pass => ("pass", "32"),
            Verdict::Warn => ("warn", "33"),
            Verdict::Fail => ("FAIL", "31"),
        };
        let word = match colours {
            true => format!("\x1b[{colour}m{word}\x1b[0m"),
            false => word.to_owned(),
        };
        println!("{word}  {:width$}  {}", line.part, line.found);
        if !line.remedy.is_empty() {
            println!("      {:width$}  -> {}", "", line.remedy);
        }
    }
}

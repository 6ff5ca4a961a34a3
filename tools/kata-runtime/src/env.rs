//! `env`: this runtime, its configuration and this host, for a report of a problem.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use configuration::Config;
use serde_json::{Value, json};
use slog::{Discard, Logger, o};

use crate::host;

/// Print the runtime, its configuration and the host as JSON.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Prints.
///
/// # Errors
/// The answer cannot be printed.
pub fn run(_: &Args, config: &Config) -> Result<ExitCode> {
    let text = serde_json::to_string_pretty(&describe(config)).context("encode the answer")?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

fn describe(config: &Config) -> Value {
    let hypervisor = &config.hypervisor;
    let choice = hypervisor::choose_accelerator(
        hypervisor.accelerator,
        &config.runtime.run_dir,
        &Logger::root(Discard, o!()),
    );
    let accelerator = match choice {
        Ok(choice) => json!({ "kvm": choice.kvm, "reason": choice.reason }),
        Err(error) => json!({ "error": error.to_string() }),
    };
    let program = |path: &std::path::Path| match host::version(path) {
        Ok(version) => json!({ "path": path, "version": version }),
        Err(problem) => json!({ "path": path, "error": problem }),
    };
    json!({
        "runtime": { "version": env!("CARGO_PKG_VERSION"), "run_dir": config.runtime.run_dir },
        "configuration": { "sources": config.sources },
        "hypervisor": {
            "kind": hypervisor.kind.name(),
            "program": program(&hypervisor.path),
            "machine": format!("{:?}", hypervisor.machine_type).to_lowercase(),
            "accelerator": accelerator,
            "default_vcpus": hypervisor.default_vcpus,
            "default_memory_mib": hypervisor.default_memory_mib,
        },
        "guest": { "kernel": hypervisor.kernel, "initrd": hypervisor.initrd },
        "virtiofsd": program(&hypervisor.virtio_fs_daemon),
        "vsock_daemon": program(&hypervisor.vhost_user_vsock_daemon),
        "host": {
            "kernel": host::kernel(),
            "cpu": host::cpu(),
            "cgroups": host::cgroups().unwrap_or("none"),
            "kvm": host::device("/dev/kvm").is_ok(),
            "vhost_vsock": host::device("/dev/vhost-vsock").is_ok(),
            "tun": host::device("/dev/net/tun").is_ok(),
        },
    })
}

//! `env`: this runtime, its configuration and this host, for a report of a problem.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use configuration::Config;
use serde_json::{Value, json};
use slog::{Discard, Logger, o};

use crate::host::{self, Cpu};

/// Print the runtime, its configuration, the hypervisor, the agent, the guest image and the host.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// How it is printed.
    #[arg(long, value_enum, default_value = "toml")]
    format: Form,
}

/// How it is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// As Kata's.
    Toml,
    /// For programs.
    Json,
}

/// Prints.
///
/// # Errors
/// The answer cannot be printed.
pub fn run(args: &Args, config: &Config) -> Result<ExitCode> {
    let all = describe(config);
    if args.json || args.format == Form::Json {
        println!(
            "{}",
            serde_json::to_string_pretty(&all).context("encode the answer")?
        );
    } else {
        print!("{}", toml::to_string(&all).context("encode the answer")?);
    }
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
    let cpu = Cpu::read();
    let (distribution, distribution_version) = host::distribution();
    json!({
        "runtime": {
            "version": env!("CARGO_PKG_VERSION"),
            "oci_version": runtime::oci::OCI_VERSION,
            "path": std::env::current_exe().unwrap_or_default(),
            "run_dir": config.runtime.run_dir,
            "debug": config.runtime.enable_debug,
            "sandbox_cgroup_only": config.runtime.sandbox_cgroup_only,
            "static_sandbox_resource_mgmt": config.runtime.static_sandbox_resource_mgmt,
            "disable_guest_seccomp": config.runtime.disable_guest_seccomp,
            "disable_new_netns": config.runtime.disable_new_netns,
            "trace": config.runtime.enable_tracing,
            "experimental": config
                .runtime
                .experimental
                .iter()
                .map(|feature| format!("{feature:?}").to_lowercase())
                .collect::<Vec<_>>(),
        },
        "configuration": { "sources": config.sources },
        "hypervisor": {
            "kind": hypervisor.kind.name(),
            "machine": format!("{:?}", hypervisor.machine_type).to_lowercase(),
            "default_vcpus": hypervisor.default_vcpus,
            "default_memory_mib": hypervisor.default_memory_mib,
            "enable_annotations": hypervisor.enable_annotations,
            "debug": hypervisor.enable_debug,
            "program": program(&hypervisor.path),
            "accelerator": accelerator,
            "virtiofsd": program(&hypervisor.virtio_fs_daemon),
            "vsock_daemon": program(&hypervisor.vhost_user_vsock_daemon),
        },
        "agent": {
            "channel": format!("{:?}", config.agent.channel).to_lowercase(),
            "debug": config.agent.enable_debug,
        },
        "guest": {
            "kernel": hypervisor.kernel,
            "kernel_params": hypervisor.kernel_params,
            "initrd": hypervisor.initrd,
            "manifest": manifest(config),
        },
        "host": {
            "kernel": host::kernel(),
            "architecture": std::env::consts::ARCH,
            "cgroups": host::cgroups().unwrap_or("none"),
            "kvm": host::device("/dev/kvm").is_ok(),
            "vhost_vsock": host::device("/dev/vhost-vsock").is_ok(),
            "tun": host::device("/dev/net/tun").is_ok(),
            "distribution": { "name": distribution, "version": distribution_version },
            "cpu": {
                "model": cpu.model,
                "vendor": cpu.vendor,
                "virtualization": cpu.virtualization().unwrap_or("none"),
                "count": std::thread::available_parallelism().map_or(0, usize::from),
            },
            "memory": {
                "total_mib": host::total_mib().unwrap_or(0),
                "available_mib": host::available_mib().unwrap_or(0),
            },
        },
    })
}

/// What the list of its parts beside the image says; nothing where there is none.
fn manifest(config: &Config) -> Value {
    std::fs::read(config.hypervisor.initrd.with_file_name("manifest.json"))
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_else(|| json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TOML has no null, and wants tables after plain values.
    #[test]
    fn all_of_it_is_toml_as_well() {
        let all = describe(&Config::defaults().unwrap());
        let text = toml::to_string(&all).unwrap();
        let table: toml::Table = text.parse().unwrap();
        for part in ["runtime", "configuration", "hypervisor", "agent", "guest", "host"] {
            assert!(table.contains_key(part), "{part}: {text}");
        }
        assert_eq!(table["hypervisor"]["kind"].as_str(), Some("qemu"));
    }
}

//! `config`: what is in force, and what a key means.

use std::process::ExitCode;

use anyhow::{Result, bail};
use configuration::{Config, Key, Status};

/// Check the configuration and print what is in force, or explain keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Explain the keys of this name (`default_vcpus`, `agent.kata.channel`), or `all`.
    #[arg(long, value_name = "KEY")]
    explain: Option<String>,
    /// Print the documented file with the defaults.
    #[arg(long, conflicts_with = "explain")]
    template: bool,
}

/// Prints.
///
/// # Errors
/// The configuration is wrong, or there is no such key.
pub fn run(args: &Args, load: impl Fn() -> Result<Config, configuration::Error>) -> Result<ExitCode> {
    if args.template {
        print!("{}", Config::template());
    } else if let Some(name) = &args.explain {
        let keys: Vec<Key> = Config::explain().filter(|key| is_meant(key, name)).collect();
        if keys.is_empty() {
            bail!("there is no key {name}; `kata-runtime config --explain all` lists them");
        }
        for key in keys {
            println!("{}", explained(&key));
        }
    } else {
        let config = load()?;
        for source in &config.sources {
            println!("# from {}", source.display());
        }
        println!("{config:#?}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a key goes by this name, with or without its table.
fn is_meant(key: &Key, name: &str) -> bool {
    name == "all" || name == key.name || name == format!("{}.{}", key.table, key.name)
}

fn explained(key: &Key) -> String {
    let mut text = format!("[{}] {}\n", key.table, key.name);
    match key.status {
        Status::Supported => {
            text.push_str(&format!("  {}\n", key.doc));
            text.push_str(&format!("  takes {}; default {}\n", key.takes, key.default));
        }
        Status::Unsupported => {
            text.push_str(&format!("  known to Kata but not supported here: {}\n", key.doc))
        }
    }
    if let Some(annotation) = &key.annotation {
        text.push_str(&format!(
            "  a pod may set it as {annotation}, if enable_annotations allows\n"
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_by_its_name_with_and_without_its_table() {
        for name in ["default_vcpus", "hypervisor.qemu.default_vcpus"] {
            let keys: Vec<Key> = Config::explain().filter(|key| is_meant(key, name)).collect();
            assert_eq!(keys.len(), 1, "{name}");
            let text = explained(&keys[0]);
            assert!(text.contains("default 1"), "{text}");
            assert!(
                text.contains("io.katacontainers.config.hypervisor.default_vcpus"),
                "{text}"
            );
        }
        assert!(!Config::explain().any(|key| is_meant(&key, "no_such_key")));
    }

    #[test]
    fn a_key_that_only_kata_has_is_explained_as_such() {
        let key = Config::explain().find(|key| key.status == Status::Unsupported);
        let text = explained(&key.expect("Kata has more keys"));
        assert!(text.contains("not supported here"), "{text}");
    }
}

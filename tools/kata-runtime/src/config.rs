//! `config`: what is in force, and what a key means.

use std::process::ExitCode;

use anyhow::{Result, bail};
use configuration::{Config, Effective, Key, Status};
use serde_json::json;

/// Check the configuration and print what is in force, or explain keys.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Explain the keys of this name (`default_vcpus`, `agent.kata.channel`), or `all`.
    #[arg(long, value_name = "KEY")]
    explain: Option<String>,
    /// Only what is different from the built-in defaults.
    #[arg(long, conflicts_with_all = ["explain", "template"])]
    changed: bool,
    /// How the values are printed.
    #[arg(long, value_enum, default_value = "toml")]
    format: Form,
    /// Print the documented file with the defaults.
    #[arg(long, conflicts_with = "explain")]
    template: bool,
}

/// How values are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    /// A file that says the same, with where each value comes from beside it.
    Toml,
    /// For programs.
    Json,
}

/// A configuration, and what each key of it comes from.
type Explained = (Config, Vec<Effective>);

/// Prints.
///
/// # Errors
/// The configuration is wrong, or there is no such key.
pub fn run(args: &Args, load: impl Fn() -> Result<Explained, configuration::Error>) -> Result<ExitCode> {
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
        let (config, mut keys) = load()?;
        keys.retain(|key| key.is_given || !args.changed);
        match args.format {
            Form::Toml => print!("{}", toml(&config, &keys)),
            Form::Json => println!("{:#}", in_json(&config, &keys)),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A file that says the same.
fn toml(config: &Config, keys: &[Effective]) -> String {
    let mut text = String::new();
    for source in &config.sources {
        text += &format!("# from {}\n", source.display());
    }
    let assigned = |key: &Effective| format!("{} = {}", key.name, key.value);
    let width = keys
        .iter()
        .map(|key| assigned(key).chars().count())
        .max()
        .unwrap_or(0);
    // One that is long need not push all the others' remarks out of sight.
    let width = width.min(60);
    let mut table = "";
    for key in keys {
        if key.table != table {
            table = key.table;
            text += &format!("\n[{table}]\n");
        }
        text += &format!("{:width$}  # {}\n", assigned(key), key.origin);
    }
    text
}

fn in_json(config: &Config, keys: &[Effective]) -> serde_json::Value {
    let keys: Vec<_> = keys
        .iter()
        .map(|key| json!({"table": key.table, "key": key.name, "value": key.value, "from": key.origin}))
        .collect();
    json!({"sources": config.sources, "keys": keys})
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
    fn what_is_in_force_is_a_file_that_says_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("configuration.toml");
        std::fs::write(&file, "[hypervisor.qemu]\nkernel_params = \"a=\\\"b c\\\"\"\n").unwrap();
        let (config, keys) = Config::explained(None, Some(&file)).unwrap();
        let text = toml(&config, &keys);
        assert!(text.contains(&format!("# {}:2\n", file.display())), "{text}");
        std::fs::write(&file, &text).unwrap();
        assert_eq!(Config::load(None, Some(&file)).unwrap(), config);
    }

    #[test]
    fn a_key_that_only_kata_has_is_explained_as_such() {
        let key = Config::explain().find(|key| key.status == Status::Unsupported);
        let text = explained(&key.expect("Kata has more keys"));
        assert!(text.contains("not supported here"), "{text}");
    }
}

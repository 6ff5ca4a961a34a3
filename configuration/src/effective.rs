//! What is in force, key by key, and where it was said. Pure.

use crate::tree::{self, Place, Table, Value};
use crate::{AgentConfig, Config, FactoryConfig, HypervisorConfig, RuntimeConfig, agent, factory, runtime};

/// A key's value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Its table, such as `hypervisor.qemu`.
    pub table: &'static str,
    /// Its name in the table.
    pub name: &'static str,
    /// Its value, in TOML.
    pub value: String,
    /// Where it comes from: `built-in defaults`, or a file and a line.
    pub origin: String,
    /// Whether a file says it.
    pub is_given: bool,
}

/// The keys of a configuration, in the order of the template, out of the tree that it was made from.
pub(crate) fn list(config: &Config, whole: &Table) -> Vec<Effective> {
    let tables = [
        (config.hypervisor.kind.table(), HypervisorConfig::SETTINGS),
        (agent::TABLE, AgentConfig::SETTINGS),
        (runtime::TABLE, runtime::Selection::SETTINGS),
        (runtime::TABLE, RuntimeConfig::SETTINGS),
        (factory::TABLE, FactoryConfig::SETTINGS),
    ];
    let mut all = Vec::new();
    for (table, settings) in tables {
        for setting in settings {
            let Some(item) = tree::at(whole, &format!("{table}.{}", setting.key)) else {
                continue;
            };
            let written = toml(&item.value);
            let mut effective = Effective {
                table,
                name: setting.key,
                value: resolved(config, setting.key).unwrap_or_else(|| written.clone()),
                origin: item.place.to_string(),
                is_given: item.place != Place::BuiltIn,
            };
            if effective.value != written {
                effective.origin += &format!(" ({written}: what the host has)");
            }
            all.push(effective);
        }
    }
    all
}

/// What a key that depends on the host has come to.
fn resolved(config: &Config, key: &str) -> Option<String> {
    let hypervisor = &config.hypervisor;
    Some(match key {
        "default_vcpus" => hypervisor.default_vcpus.to_string(),
        "default_maxvcpus" => hypervisor.default_maxvcpus.to_string(),
        "default_maxmemory" => hypervisor.default_maxmemory_mib.to_string(),
        _ => return None,
    })
}

/// A value as a file would have it.
fn toml(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(flag) => flag.to_string(),
        Value::List(list) => format!("[{}]", list.iter().map(toml).collect::<Vec<_>>().join(", ")),
        Value::Other(_, text) => text.clone(),
        // No key takes one.
        Value::Table(_) => "{}".to_owned(),
    }
}

/// A basic string of TOML, whatever is in it.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_text_is_read_again_as_it_was(text in any::<String>()) {
            let table: toml::Table = format!("key = {}", quoted(&text)).parse().unwrap();
            prop_assert_eq!(table["key"].as_str(), Some(text.as_str()));
        }
    }

    #[test]
    fn lists_and_flags_are_toml() {
        let list = Value::List(vec![
            Value::Text("a\"b".into()),
            Value::Integer(-1),
            Value::Boolean(true),
        ]);
        assert_eq!(toml(&list), r#"["a\"b", -1, true]"#);
    }
}

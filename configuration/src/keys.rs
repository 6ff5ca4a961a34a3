//! All keys: those that can be set, those that only Kata has, and what to say of a key that is neither.

use crate::error::shown;
use crate::hypervisor::HypervisorKind;
use crate::runtime::Selection;
use crate::settings::Setting;
use crate::{
    AgentConfig, Config, FactoryConfig, HypervisorConfig, RuntimeConfig, agent, factory, kata, runtime,
};

/// What annotations that configure begin with.
pub(crate) const PREFIX: &str = "io.katacontainers.config.";

/// A key, explained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its table, such as `hypervisor.qemu`.
    pub table: &'static str,
    /// Its name in the table.
    pub name: &'static str,
    /// What it takes, in words. Empty if it is not supported.
    pub takes: String,
    /// Its default, in TOML. Empty if it is not supported.
    pub default: &'static str,
    /// What it means; if it is not supported, why, and what to do instead. On one line.
    pub doc: String,
    /// The annotation with which a pod may set it, if `enable_annotations` allows.
    pub annotation: Option<String>,
    /// Whether it can be set.
    pub status: Status,
}

/// Whether a key can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It can.
    Supported,
    /// Kata has it; here it is an error.
    Unsupported,
}

impl Config {
    /// Every key that is known, by table: those that can be set in the order of the template, then those that only Kata has.
    pub fn explain() -> impl Iterator<Item = Key> {
        let supported = settings().map(|(table, setting)| Key {
            table,
            name: setting.key,
            takes: (setting.takes)(),
            default: setting.default,
            doc: setting
                .doc
                .iter()
                .map(|line| line.trim())
                .collect::<Vec<_>>()
                .join(" "),
            annotation: setting.annotation.map(|name| format!("{PREFIX}{name}")),
            status: Status::Supported,
        });
        let unsupported = kata::keys().map(|(table, name, reason)| Key {
            table,
            name,
            takes: String::new(),
            default: "",
            doc: reason.to_owned(),
            annotation: None,
            status: Status::Unsupported,
        });
        supported.chain(unsupported)
    }
}

/// Every key that can be set, with its table.
pub(crate) fn settings() -> impl Iterator<Item = (&'static str, &'static Setting)> {
    let of = |table: &'static str, settings: &'static [Setting]| {
        settings.iter().map(move |setting| (table, setting))
    };
    of(HypervisorKind::Qemu.table(), HypervisorConfig::SETTINGS)
        .chain(of(agent::TABLE, AgentConfig::SETTINGS))
        .chain(of(runtime::TABLE, Selection::SETTINGS))
        .chain(of(runtime::TABLE, RuntimeConfig::SETTINGS))
        .chain(of(factory::TABLE, FactoryConfig::SETTINGS))
}

/// The table that describes the keys of `table`: all hypervisors have the same.
fn described(table: &str) -> &str {
    match table {
        _ if table.starts_with("hypervisor.") => HypervisorKind::Qemu.table(),
        _ => table,
    }
}

/// Whether `key` can be set in `table`.
pub(crate) fn is_key(table: &str, key: &str) -> bool {
    settings().any(|(other, setting)| other == described(table) && setting.key == key)
}

/// What to say of a `key` that can't be set in `table`.
pub(crate) fn unknown(table: &str, key: &str) -> String {
    let home = described(table);
    if let Some(reason) = kata::reason(home, key) {
        return format!("is known to Kata but not supported here: {reason}");
    }
    if let Some((other, _)) = settings().find(|(_, setting)| setting.key == key) {
        return format!("is a key of another table: move it to [{other}]");
    }
    let here = settings()
        .filter(|(other, _)| *other == home)
        .map(|(_, setting)| setting.key);
    match closest(key, here) {
        Some(close) => format!("is not a key: did you mean {close}?"),
        None => "is not a key: remove it".to_owned(),
    }
}

/// The one of `names` that `name` may have been meant to be.
pub(crate) fn closest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Comparing costs the product of the lengths; nobody's typing error is that long.
    if name.len() > 64 {
        return None;
    }
    let name = name.to_lowercase();
    names
        .map(|other| (strsim::osa_distance(&name, other), other))
        .filter(|(distance, other)| *distance <= 1 + other.len() / 6)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, other)| other)
}

/// The setting of an annotation without the prefix.
pub(crate) fn annotated(name: &str) -> Option<&'static Setting> {
    settings()
        .map(|(_, setting)| setting)
        .find(|setting| setting.annotation == Some(name))
}

/// An annotation without the prefix, as `enable_annotations` names it.
pub(crate) fn short(annotation: &str) -> &str {
    annotation.strip_prefix("hypervisor.").unwrap_or(annotation)
}

/// What is wrong with `name` in `enable_annotations`; `None` if it names an annotation.
pub(crate) fn annotation_problem(name: &str) -> Option<String> {
    let names = || settings().filter_map(|(_, setting)| setting.annotation.map(short));
    if names().any(|other| other == name) {
        return None;
    }
    if name.starts_with(PREFIX) || name.starts_with("hypervisor.") {
        let bare = short(name.strip_prefix(PREFIX).unwrap_or(name));
        return Some(format!("which is too long: write {:?}", shown(bare)));
    }
    if let Some(reason) = kata::annotation(name) {
        return Some(format!("which is known to Kata but not supported here: {reason}"));
    }
    if name.contains(['*', '.', '[', '?', '+', '|', '^', '$']) && closest(name, names()).is_none() {
        return Some("a pattern: name each annotation exactly".to_owned());
    }
    Some(match closest(name, names()) {
        Some(close) => format!("which is no annotation: did you mean {close:?}?"),
        None => format!(
            "which is no annotation: there are {}",
            names().collect::<Vec<_>>().join(", ")
        ),
    })
}

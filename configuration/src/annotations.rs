//! What a pod may change: annotations `io.katacontainers.config.*` that the administrator allows, by exact name, within
//! the administrator's bounds. Pure.
//!
//! A pod is not trusted: none of its values is used before all of them are checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Problems, shown};
use crate::host::Host;
use crate::keys::{self, PREFIX, closest};
use crate::kinds::{self, KernelParams, Kind as _};
use crate::settings::Setting;
use crate::{AgentConfig, Config, HypervisorConfig, RuntimeConfig, agent, kata, runtime, validate};

impl Config {
    /// The configuration of a pod with these annotations. Keys that do not begin with `io.katacontainers.config.` are
    /// not ours and are passed over.
    ///
    /// Kernel parameters are appended to the configured ones; any other value replaces the configured one. A number is
    /// bounded by the configured maximum, and a program must be in the list of valid ones.
    ///
    /// # Errors
    /// An annotation that is unknown, not in `enable_annotations`, or has a value that can't be used; the text names it.
    pub fn with_annotations(&self, annotations: &BTreeMap<String, String>) -> Result<Self, Error> {
        let mut config = self.clone();
        let mut problems = Problems::default();
        // Dotted keys that were set, and by what.
        let mut set = Vec::new();
        for (name, text) in annotations {
            let Some(short) = name.strip_prefix(PREFIX) else {
                continue;
            };
            match self.allowed(short).and_then(|setting| {
                let table = apply(&mut config, setting, text)?;
                self.bound(&config, setting.key)?;
                Ok(format!("{table}.{}", setting.key))
            }) {
                Ok(key) => set.push((key, name)),
                Err(problem) => {
                    problems.add((0, 0), || {
                        format!("the annotation {} {problem}", shown_name(name))
                    });
                    // How many there are is the pod's choice.
                    if problems.is_full() {
                        break;
                    }
                }
            }
        }
        problems.end(ErrorKind::Annotation)?;

        let mut problems = Problems::default();
        for conflict in validate::conflicts(&config) {
            let name = set
                .iter()
                .find(|(key, _)| conflict.keys.contains(key))
                .map(|(_, name)| name.as_str());
            problems.add((0, 0), || {
                let name = name.unwrap_or(PREFIX);
                format!("the annotation {name} cannot be used: {}", conflict.text(false))
            });
        }
        problems.end(ErrorKind::Annotation)?;
        let bounds = Host {
            cpus: self.hypervisor.default_maxvcpus,
            memory_mib: self.hypervisor.default_maxmemory_mib,
        };
        validate::resolve(&mut config, bounds);
        Ok(config)
    }

    /// The setting of an annotation that a pod may set; else why it may not.
    fn allowed(&self, short: &str) -> Result<&'static Setting, String> {
        let table = self.hypervisor.kind.table();
        let Some(setting) = keys::annotated(short) else {
            if let Some(reason) = kata::annotation(short) {
                return Err(format!("is known to Kata but not supported here: {reason}"));
            }
            let (section, key) = short.split_once('.').unwrap_or(("", short));
            if ["hypervisor", "agent", "runtime"].contains(&section)
                && keys::settings().any(|(_, setting)| setting.key == key)
            {
                return Err("sets what only the administrator can: remove it".to_owned());
            }
            let names = keys::settings().filter_map(|(_, setting)| setting.annotation);
            return Err(match closest(short, names) {
                Some(close) => format!("is unknown: did you mean {PREFIX}{close}?"),
                None => "is unknown: remove it".to_owned(),
            });
        };
        let name = keys::short(short);
        if self
            .hypervisor
            .enable_annotations
            .iter()
            .any(|allowed| allowed == name)
        {
            return Ok(setting);
        }
        Err(format!(
            "is not allowed: remove it, or let the administrator add {name:?} to {table}.enable_annotations"
        ))
    }

    /// Checks the value of `key` in `config` against our bounds.
    fn bound(&self, config: &Self, key: &str) -> Result<(), String> {
        let (ours, theirs) = (&self.hypervisor, &config.hypervisor);
        let listed = |path: &PathBuf, list: &[PathBuf], key: &str| {
            if list.contains(path) {
                return Ok(());
            }
            let (table, path) = (ours.kind.table(), path.display().to_string());
            Err(format!("is {:?}, which is not in {table}.{key}", shown(&path)))
        };
        match key {
            "path" => listed(
                &theirs.path,
                &ours.valid_hypervisor_paths,
                "valid_hypervisor_paths",
            ),
            "virtio_fs_daemon" => listed(
                &theirs.virtio_fs_daemon,
                &ours.valid_virtio_fs_daemon_paths,
                "valid_virtio_fs_daemon_paths",
            ),
            "default_maxvcpus" if theirs.default_maxvcpus > ours.default_maxvcpus => Err(format!(
                "is {}: the administrator allows at most {}",
                theirs.default_maxvcpus, ours.default_maxvcpus
            )),
            _ => Ok(()),
        }
    }
}

/// Sets what `setting` is about, and says in which table that is.
fn apply(config: &mut Config, setting: &Setting, text: &str) -> Result<&'static str, String> {
    let value = setting.shape.of_text(text);
    if setting.annotation == Some("hypervisor.kernel_params") {
        let more = KernelParams::read(&value)?;
        kinds::append_kernel_params(&mut config.hypervisor.kernel_params, more)?;
        return Ok(config.hypervisor.kind.table());
    }
    let is = |settings: &'static [Setting]| {
        settings
            .iter()
            .any(|other| other.annotation.is_some() && other.annotation == setting.annotation)
    };
    let (table, result) = if is(HypervisorConfig::SETTINGS) {
        (
            config.hypervisor.kind.table(),
            config.hypervisor.set(setting.key, &value),
        )
    } else if is(AgentConfig::SETTINGS) {
        (agent::TABLE, config.agent.set(setting.key, &value))
    } else if is(RuntimeConfig::SETTINGS) {
        (runtime::TABLE, config.runtime.set(setting.key, &value))
    } else {
        (runtime::TABLE, None)
    };
    match result {
        Some(Ok(())) => Ok(table),
        Some(Err(problem)) => Err(problem),
        None => Err("is unknown: remove it".to_owned()),
    }
}

/// A name of any length, as a message shows it.
fn shown_name(name: &str) -> String {
    match name.strip_prefix(PREFIX) {
        Some(rest) => format!("{PREFIX}{}", shown(rest)),
        None => shown(name),
    }
}

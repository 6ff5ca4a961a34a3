//! From merged TOML to [`Config`]: unknown keys, each value, then what does not fit together. Pure.

use std::path::PathBuf;

use crate::error::{Error, ErrorKind, Problems, shown};
use crate::host::Host;
use crate::hypervisor::HypervisorKind;
use crate::keys::{self, closest};
use crate::kinds::Word;
use crate::runtime::Selection;
use crate::settings::{Section, Setting};
use crate::tree::{self, Item, Place, Table, Value};
use crate::{
    Accelerator, AgentChannel, AgentConfig, Config, FactoryConfig, HypervisorConfig, MachineType,
    NetworkModel, RuntimeConfig, SharedFs, agent, factory, kata, runtime,
};

/// Validates what the files say, `given`. Answers also with the tree that it came from, defaults included.
pub(crate) fn config(given: Table, sources: Vec<PathBuf>, host: Host) -> Result<(Config, Table), Error> {
    let mut problems = Problems::default();
    top(&given, &mut problems);
    let mut whole = tables([
        (agent::TABLE, AgentConfig::SETTINGS),
        (runtime::TABLE, Selection::SETTINGS),
        (runtime::TABLE, RuntimeConfig::SETTINGS),
        (factory::TABLE, FactoryConfig::SETTINGS),
    ])?;
    tree::merge(&mut whole, given);

    let agent =
        section(&whole, agent::TABLE, &mut problems).and_then(|mut section| AgentConfig::read(&mut section));
    let (selection, runtime) = match section(&whole, runtime::TABLE, &mut problems) {
        Some(mut section) => (Selection::read(&mut section), RuntimeConfig::read(&mut section)),
        None => (None, None),
    };
    let factory = section(&whole, factory::TABLE, &mut problems)
        .and_then(|mut section| FactoryConfig::read(&mut section));
    let hypervisor = hypervisor(&mut whole, selection.as_ref(), &mut problems)?;
    problems.end(ErrorKind::Invalid)?;
    let (Some(hypervisor), Some(agent), Some(runtime), Some(factory)) = (hypervisor, agent, runtime, factory)
    else {
        return Err(Error::new(
            ErrorKind::Invalid,
            "the built-in defaults are not valid",
        ));
    };

    let mut config = Config {
        sources,
        hypervisor,
        agent,
        runtime,
        factory,
    };
    let mut problems = Problems::default();
    for conflict in conflicts(&config) {
        let items = conflict
            .keys
            .each_ref()
            .map(|key| tree::at(&whole, key).map(|item| &item.place));
        // What was written last, where the other value may well be right.
        let later = items[1].map(Place::rank) > items[0].map(Place::rank);
        let place = items[usize::from(later)].unwrap_or(&Place::BuiltIn);
        problems.add(place.rank(), || format!("{place}: {}", conflict.text(later)));
    }
    problems.end(ErrorKind::Invalid)?;
    resolve(&mut config, host);
    Ok((config, whole))
}

/// Tables with default values.
fn tables<const N: usize>(all: [(&str, &[Setting]); N]) -> Result<Table, Error> {
    let mut whole = Table::new();
    for (name, settings) in all {
        tree::merge(&mut whole, defaults(name, settings, &[])?);
    }
    Ok(whole)
}

/// A table with its default values: those of `own`, which may be none, before those of all tables of its kind.
fn defaults(table: &str, settings: &[Setting], own: &[(&str, Option<&str>)]) -> Result<Table, Error> {
    let mut text = format!("[{table}]\n");
    for setting in settings {
        let own = own.iter().find(|(key, _)| *key == setting.key);
        if let Some(default) = own.map_or(Some(setting.default), |(_, default)| *default) {
            text += &format!("{} = {default}\n", setting.key);
        }
    }
    tree::parse(&text, &|_| Place::BuiltIn).map_err(|error| {
        let line = text.lines().nth(error.line.saturating_sub(1)).unwrap_or_default();
        Error::new(
            ErrorKind::Invalid,
            format!("the built-in default {line:?} is not TOML: {}", error.message),
        )
    })
}

/// Checks the names of the tables.
fn top(given: &Table, problems: &mut Problems) {
    let names = ["hypervisor", "agent", runtime::TABLE, factory::TABLE];
    for (name, item) in given.iter().filter(|(name, _)| !names.contains(&name.as_str())) {
        problems.add(item.place.rank(), || {
            format!("{}: {} {}", item.place, shown(name), no_table(name, &names))
        });
    }
    if let Some(item) = given.get("agent")
        && let Value::Table(agents) = &item.value
    {
        for (name, item) in agents.iter().filter(|(name, _)| *name != "kata") {
            problems.add(item.place.rank(), || {
                let name = shown(name);
                format!(
                    "{}: agent.{name} is not an agent: the only table is [agent.kata]",
                    item.place
                )
            });
        }
    }
}

/// What to say of a `name` that is none of the tables `names`.
fn no_table(name: &str, names: &[&str]) -> String {
    if let Some(reason) = kata::table(name) {
        format!("is known to Kata but not supported here: {reason}")
    } else if let Some((table, _)) = keys::settings().find(|(_, setting)| setting.key == name) {
        format!("is in no table: move it below [{table}]")
    } else if let Some(close) = closest(name, names.iter().copied()) {
        format!("is not a table of the configuration: did you mean {close}?")
    } else {
        "is not a table of the configuration: remove it".to_owned()
    }
}

/// The table `name`, with its unknown keys told.
fn section<'a>(whole: &'a Table, name: &'a str, problems: &'a mut Problems) -> Option<Section<'a>> {
    let mut path = name;
    let item = loop {
        match tree::at(whole, path) {
            Some(item) => break item,
            // Something on the way is no table, and hides what should be below.
            None => path = path.rsplit_once('.')?.0,
        }
    };
    let Value::Table(table) = &item.value else {
        problems.add(item.place.rank(), || {
            format!(
                "{}: {path} is {}, not a table: write [{name}]",
                item.place, item.value
            )
        });
        return None;
    };
    for (key, item) in table.iter().filter(|(key, _)| !keys::is_key(name, key)) {
        problems.add(item.place.rank(), || {
            format!(
                "{}: {name}.{} {}",
                item.place,
                shown(key),
                keys::unknown(name, key)
            )
        });
    }
    Some(Section {
        name,
        place: &item.place,
        table,
        problems,
    })
}

/// The hypervisor that is selected, or of which alone there is a table. Every table is checked.
fn hypervisor(
    whole: &mut Table,
    selection: Option<&Selection>,
    problems: &mut Problems,
) -> Result<Option<HypervisorConfig>, Error> {
    let mut given = Vec::new();
    // What is no table is told when the selected one is read.
    if let Some(Value::Table(table)) = whole.get("hypervisor").map(|item| &item.value) {
        for (name, item) in table {
            match HypervisorKind::WORDS.iter().find(|(word, _)| word == name) {
                Some((_, kind)) => given.push((item.place.clone(), *kind)),
                None => problems.add(item.place.rank(), || no_hypervisor(name, item)),
            }
        }
    }
    given.sort_by_key(|(place, _)| place.rank());
    let selected = match (
        selection.and_then(|selection| selection.hypervisor),
        given.as_slice(),
    ) {
        (Some(kind), _) => kind,
        (None, []) => HypervisorKind::Qemu,
        (None, [(_, kind)]) => *kind,
        (None, [(_, first), .., (place, last)]) => {
            problems.add(place.rank(), || {
                format!(
                    "{place}: [{}] is there besides [{}]: remove one, or select with runtime.hypervisor_name",
                    last.table(),
                    first.table()
                )
            });
            *last
        }
    };
    let mut config = None;
    for (_, kind) in HypervisorKind::WORDS {
        if *kind == selected || given.iter().any(|(_, other)| other == kind) {
            let mut with_defaults = defaults(kind.table(), HypervisorConfig::SETTINGS, kind.own_defaults())?;
            tree::merge(&mut with_defaults, std::mem::take(whole));
            *whole = with_defaults;
            let read = section(whole, kind.table(), problems).and_then(|mut section| {
                // Without a table of its own it is there because it is named.
                if *section.place == Place::BuiltIn
                    && let Some(name) = tree::at(whole, "runtime.hypervisor_name")
                {
                    section.place = &name.place;
                }
                HypervisorConfig::read(&mut section, *kind)
            });
            if *kind == selected {
                config = read;
            }
        }
    }
    Ok(config)
}

/// Names that hypervisors have elsewhere.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("cloud-hypervisor", "clh"),
    ("cloud_hypervisor", "clh"),
    ("fc", "firecracker"),
];

fn no_hypervisor(name: &str, item: &Item) -> String {
    let names = || HypervisorKind::WORDS.iter().map(|(word, _)| *word);
    let problem = if let Some((_, here)) = OTHER_NAMES.iter().find(|(other, _)| *other == name) {
        format!("has another name here: write [hypervisor.{here}]")
    } else if kata::has_hypervisor(name) {
        "is known to Kata but not supported here: use [hypervisor.qemu]".to_owned()
    } else if !matches!(item.value, Value::Table(_)) && keys::is_key(HypervisorKind::Qemu.table(), name) {
        "is in the wrong table: move it below [hypervisor.qemu]".to_owned()
    } else {
        match closest(name, names()) {
            Some(close) => format!("is not a hypervisor: did you mean {close}?"),
            None => "is not a hypervisor: use [hypervisor.qemu]".to_owned(),
        }
    };
    format!("{}: hypervisor.{} {problem}", item.place, shown(name))
}

/// Two keys whose values cannot both be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// Their dotted names.
    pub(crate) keys: [String; 2],
    /// Why, and what to do.
    reason: String,
}

impl Conflict {
    /// As a message says it, of the second key if `later`.
    pub(crate) fn text(&self, later: bool) -> String {
        let [mut this, mut other] = self.keys.each_ref();
        if later {
            std::mem::swap(&mut this, &mut other);
        }
        format!("{this} does not fit with {other}: {}", self.reason)
    }
}

/// Everything that does not fit together. 0 stands for no bound.
pub(crate) fn conflicts(config: &Config) -> Vec<Conflict> {
    let (hypervisor, agent, runtime) = (&config.hypervisor, &config.agent, &config.runtime);
    let vmm = |key: &str| format!("{}.{key}", hypervisor.kind.table());
    let is_vm = hypervisor.kind != HypervisorKind::Fake;
    let mut found = of_kind(hypervisor, runtime);
    found.extend(of_namespaces(config));
    let mut add = |keys, reason: String| found.push(Conflict { keys, reason });

    let (vcpus, most) = (hypervisor.default_vcpus, hypervisor.default_maxvcpus);
    if vcpus != u32::MAX && most != 0 && vcpus > most {
        add(
            [vmm("default_vcpus"), vmm("default_maxvcpus")],
            format!(
                "{vcpus} vCPUs are more than the {most} that there may be; lower the one or raise the other"
            ),
        );
    }
    let (memory, most) = (hypervisor.default_memory_mib, hypervisor.default_maxmemory_mib);
    if most != 0 && memory > most {
        add(
            [vmm("default_memory"), vmm("default_maxmemory")],
            format!(
                "{memory} MiB are more than the {most} that there may be; lower the one or raise the other"
            ),
        );
    }
    if is_vm
        && hypervisor.kind != HypervisorKind::Firecracker
        && hypervisor.shared_fs == SharedFs::VirtioFs
        && hypervisor.virtio_fs_daemon.as_os_str().is_empty()
    {
        add(
            [vmm("shared_fs"), vmm("virtio_fs_daemon")],
            "virtio-fs needs its daemon; set the daemon's path, or shared_fs = \"none\"".to_owned(),
        );
    }
    if agent.channel == AgentChannel::VhostUserVsock
        && hypervisor.vhost_user_vsock_daemon.as_os_str().is_empty()
    {
        add(
            ["agent.kata.channel".to_owned(), vmm("vhost_user_vsock_daemon")],
            "vhost-user-vsock needs its daemon; set the daemon's path, or channel = \"auto\"".to_owned(),
        );
    }
    if config.factory.vm_cache_number > 0 {
        let wanted = || "factory.vm_cache_number".to_owned();
        if hypervisor.kind != HypervisorKind::Qemu {
            add(
                ["runtime.hypervisor_name".to_owned(), wanted()],
                "only virtual machines of QEMU can be kept for others; set vm_cache_number = 0, or use hypervisor_name = \
                 \"qemu\""
                    .to_owned(),
            );
        } else if hypervisor.machine_type == MachineType::Microvm {
            add(
                [vmm("machine_type"), wanted()],
                "a microvm that is kept ready could be given no devices; set machine_type = \"q35\", or vm_cache_number = 0"
                    .to_owned(),
            );
        }
        if !matches!(agent.channel, AgentChannel::Auto | AgentChannel::VirtioSerial) {
            add(
                ["agent.kata.channel".to_owned(), wanted()],
                "of all channels only a serial port can be handed over; set channel = \"auto\" or \"virtio-serial\", or \
                 vm_cache_number = 0"
                    .to_owned(),
            );
        }
    }
    if config.factory.enable_template {
        let enabled = || "factory.enable_template".to_owned();
        if !is_vm {
            add(
                ["runtime.hypervisor_name".to_owned(), enabled()],
                "there is no virtual machine to be copied; set enable_template = false".to_owned(),
            );
        } else if hypervisor.kind == HypervisorKind::Firecracker {
            add(
                ["runtime.hypervisor_name".to_owned(), enabled()],
                "copies of a Firecracker could be given no network; set enable_template = false, or use \
                 hypervisor_name = \"qemu\" or \"clh\""
                    .to_owned(),
            );
        } else if hypervisor.machine_type == MachineType::Microvm {
            add(
                [vmm("machine_type"), enabled()],
                "copies of a microvm could be given no devices; set machine_type = \"q35\", or enable_template = false"
                    .to_owned(),
            );
        }
        if let AgentChannel::Vsock | AgentChannel::VhostUserVsock = agent.channel {
            add(
                ["agent.kata.channel".to_owned(), enabled()],
                "a vsock device cannot be saved; set channel = \"auto\" or \"virtio-serial\", or enable_template = false"
                    .to_owned(),
            );
        }
    }
    found
}

/// Namespaces that cannot be shared.
fn of_namespaces(config: &Config) -> Vec<Conflict> {
    let runtime = &config.runtime;
    let found = [
        (
            runtime.disable_new_netns && runtime.internetworking_model != NetworkModel::None,
            ["runtime.internetworking_model", "runtime.disable_new_netns"],
            "interfaces of the host itself would be the guest's; set internetworking_model = \"none\", or \
             disable_new_netns = false",
        ),
        (
            runtime.disable_new_netns && config.factory.vm_cache_number > 0,
            ["factory.vm_cache_number", "runtime.disable_new_netns"],
            "virtual machines that are kept ready have network namespaces; set vm_cache_number = 0, or \
             disable_new_netns = false",
        ),
        (
            runtime.enable_agent_pidns && config.hypervisor.kind == HypervisorKind::Fake,
            ["runtime.hypervisor_name", "runtime.enable_agent_pidns"],
            "there the agent's processes are the host's; set enable_agent_pidns = false",
        ),
    ];
    let found = found.into_iter().filter(|(is_there, ..)| *is_there);
    found
        .map(|(_, keys, reason)| Conflict {
            keys: keys.map(str::to_owned),
            reason: reason.to_owned(),
        })
        .collect()
}

/// What one kind of hypervisor has, and another has not.
fn of_kind(hypervisor: &HypervisorConfig, runtime: &RuntimeConfig) -> Vec<Conflict> {
    use HypervisorKind::{CloudHypervisor, Fake, Firecracker, Qemu};

    let kind = hypervisor.kind;
    let vmm = |key: &str| format!("{}.{key}", kind.table());
    let selected = || "runtime.hypervisor_name".to_owned();
    let mut found = Vec::new();
    let mut add = |keys, reason: &str| {
        let reason = reason.to_owned();
        found.push(Conflict { keys, reason });
    };

    let is_microvm = hypervisor.machine_type == MachineType::Microvm;
    if is_microvm && !matches!(kind, Qemu | Fake) {
        add(
            [vmm("machine_type"), selected()],
            "machines of this kind are QEMU's; remove machine_type, or set hypervisor_name = \"qemu\"",
        );
    }
    if !runtime.static_sandbox_resource_mgmt {
        let static_size = || "runtime.static_sandbox_resource_mgmt".to_owned();
        if kind == Firecracker {
            add(
                [selected(), static_size()],
                "a Firecracker cannot grow; set static_sandbox_resource_mgmt = true, or hypervisor_name = \"qemu\" or \"clh\"",
            );
        } else if is_microvm {
            add(
                [vmm("machine_type"), static_size()],
                "a microvm cannot grow; set machine_type = \"q35\", or static_sandbox_resource_mgmt = true",
            );
        }
    }
    if hypervisor.accelerator == Accelerator::Tcg && matches!(kind, CloudHypervisor | Firecracker) {
        add(
            [vmm("accelerator"), selected()],
            "it has no translator; set accelerator = \"auto\", or hypervisor_name = \"qemu\"",
        );
    }
    if kind == Firecracker && hypervisor.shared_fs == SharedFs::VirtioFs {
        add(
            [vmm("shared_fs"), selected()],
            "Firecracker has no shared file systems; set shared_fs = \"none\" and use a snapshotter that gives block devices \
             (devmapper, blockfile), or set hypervisor_name = \"qemu\" or \"clh\"",
        );
    }
    if kind == Firecracker && runtime.internetworking_model == NetworkModel::Macvtap {
        add(
            ["runtime.internetworking_model".to_owned(), selected()],
            "Firecracker opens taps only, and a macvtap is none; set internetworking_model = \"tcfilter\", or \
             hypervisor_name = \"qemu\" or \"clh\"",
        );
    }
    if kind != Firecracker && !hypervisor.jailer_path.as_os_str().is_empty() {
        add(
            [vmm("jailer_path"), selected()],
            "only Firecracker has a jailer; remove jailer_path, or set hypervisor_name = \"firecracker\"",
        );
    }
    let limits = [
        (
            "disk_rate_limiter_bw_max_rate",
            hypervisor.disk_rate_limiter_bw_max_rate,
        ),
        (
            "disk_rate_limiter_ops_max_rate",
            hypervisor.disk_rate_limiter_ops_max_rate,
        ),
        (
            "net_rate_limiter_bw_max_rate",
            hypervisor.net_rate_limiter_bw_max_rate,
        ),
        (
            "net_rate_limiter_ops_max_rate",
            hypervisor.net_rate_limiter_ops_max_rate,
        ),
    ];
    for (key, _) in limits
        .iter()
        .filter(|(_, rate)| *rate > 0 && matches!(kind, Qemu | Fake))
    {
        add(
            [vmm(key), selected()],
            "this hypervisor limits no devices; set it to 0, or hypervisor_name = \"clh\" or \"firecracker\"",
        );
    }
    found
}

/// Puts the host's numbers where none, or more than the host has, were given.
pub(crate) fn resolve(config: &mut Config, host: Host) {
    let hypervisor = &mut config.hypervisor;
    let cpus = host.cpus.min(hypervisor.kind.most_vcpus());
    hypervisor.default_maxvcpus = match hypervisor.default_maxvcpus {
        0 => cpus,
        most => most.min(cpus),
    };
    hypervisor.default_vcpus = hypervisor.default_vcpus.min(hypervisor.default_maxvcpus);
    hypervisor.default_maxmemory_mib = match hypervisor.default_maxmemory_mib {
        0 => host.memory_mib,
        most => most.min(host.memory_mib),
    }
    // A host that is smaller than a sandbox's memory can still run it: guests seldom use it all.
    .max(hypervisor.default_memory_mib);
}

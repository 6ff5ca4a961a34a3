//! Whatever the text: no panic, an error of one bounded line, an answer in time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::load;
use crate::{Config, Error};

/// Far more than even an unoptimized build needs on a busy machine.
const SOON: Duration = Duration::from_secs(3);

/// An error can be logged and shown.
pub(super) fn is_fit(error: &Error) {
    for problem in error.problems() {
        assert!(
            !problem.is_empty() && !problem.contains(char::is_control),
            "{problem:?}"
        );
        assert!(problem.len() < 2000, "{} bytes", problem.len());
    }
    assert!(error.problems().count() <= 100);
}

/// A key as somebody may write it.
fn key() -> impl Strategy<Value = String> {
    let known: Vec<String> = Config::explain().map(|key| key.name.to_owned()).collect();
    prop_oneof![4 => proptest::sample::select(known), 1 => "[a-z_]{1,12}"]
}

/// A value as somebody may write it.
fn value() -> impl Strategy<Value = String> {
    let word = proptest::sample::select(vec![
        "true",
        "false",
        "0",
        "1",
        "-1",
        "240",
        "1024",
        "1e3",
        "nan",
        "1979-05-27",
        "[]",
        "{}",
        "[[1], 'x']",
        "\"\"",
        "\"auto\"",
        "\"q35\"",
        "\"microvm\"",
        "\"fake\"",
        "\"none\"",
        "\"/\"",
        "[\"path\"]",
        "{a.b = 1}",
    ]);
    prop_oneof![
        2 => word.prop_map(str::to_owned),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => "\\PC{0,20}".prop_map(|text| toml::Value::from(text).to_string()),
    ]
}

fn document() -> impl Strategy<Value = String> {
    let table = proptest::sample::select(vec![
        "hypervisor.qemu",
        "hypervisor.fake",
        "hypervisor",
        "agent.kata",
        "agent",
        "runtime",
        "factory",
        "x",
    ]);
    let lines = vec((key(), value()), 0..6);
    vec((table, lines), 0..4).prop_map(|tables| {
        let mut text = String::new();
        for (table, lines) in tables {
            text += &format!("[{table}]\n");
            for (key, value) in lines {
                text += &format!("{key} = {value}\n");
            }
        }
        text
    })
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_an_error(text in "\\PC{0,200}|[\\[\\]a-c.=\"'\n{}, 0-9#]{0,200}") {
        if let Err(error) = load(&[&text]) {
            is_fit(&error);
        }
    }

    #[test]
    fn any_document_is_a_configuration_or_an_error(main in document(), drop_in in document()) {
        match load(&[&main, &drop_in]) {
            Err(error) => is_fit(&error),
            Ok(config) => {
                let hypervisor = &config.hypervisor;
                prop_assert!((1..=hypervisor.default_maxvcpus).contains(&hypervisor.default_vcpus));
                prop_assert!((1..=4).contains(&hypervisor.default_maxvcpus));
                prop_assert!(hypervisor.default_memory_mib <= hypervisor.default_maxmemory_mib);
                prop_assert!(hypervisor.path.is_absolute() && config.runtime.run_dir.is_absolute());
            }
        }
    }

    #[test]
    fn no_annotations_get_beyond_the_bounds(
        annotations in btree_map(
            prop_oneof![
                key().prop_map(|key| format!("io.katacontainers.config.hypervisor.{key}")),
                key().prop_map(|key| format!("io.katacontainers.config.runtime.{key}")),
                "\\PC{0,20}".prop_map(|key| format!("io.katacontainers.config.{key}")),
            ],
            prop_oneof![value().prop_map(|value| value.trim_matches('"').to_owned()), "\\PC{0,20}"],
            0..4,
        ),
    ) {
        let annotations: BTreeMap<String, String> = annotations;
        let allowed = "[hypervisor.qemu]\ndefault_maxvcpus = 2\nenable_annotations = ['path', 'kernel_params', \
            'default_vcpus', 'default_max_vcpus', 'default_memory', 'virtio_fs_daemon', 'machine_type']\n";
        let config = load(&[allowed]).unwrap();
        match config.with_annotations(&annotations) {
            Err(error) => is_fit(&error),
            Ok(changed) => {
                prop_assert!((1..=2).contains(&changed.hypervisor.default_vcpus));
                prop_assert!(changed.hypervisor.default_maxvcpus <= 2);
                prop_assert!(changed.hypervisor.default_memory_mib <= config.hypervisor.default_maxmemory_mib);
                prop_assert_eq!(changed.hypervisor.path, config.hypervisor.path);
                prop_assert_eq!(changed.hypervisor.virtio_fs_daemon, config.hypervisor.virtio_fs_daemon);
                prop_assert_eq!(changed.runtime, config.runtime);
            }
        }
    }
}

#[test]
fn nonsense_of_the_largest_size_is_answered_in_time() {
    let size = 256 << 10;
    let long = "x".repeat(size);
    let deep = |open: &str| open.repeat(size / open.len());
    let unknown: String = (0..)
        .map(|n| format!("default_vcpuz{n} = 1\n"))
        .take(size / 24)
        .collect();
    let headers: String = (0..).map(|n| format!("[a{n}.b]\n")).take(size / 12).collect();
    for (what, text) in [
        ("a long key", format!("{long} = 1")),
        ("a long value", format!("[hypervisor.qemu]\npath = \"{long}\"")),
        ("a long table", format!("[{long}]")),
        ("brackets", format!("a = {}", deep("["))),
        ("braces", format!("a = {}", deep("{a="))),
        ("dots", format!("{}a = 1", deep("a."))),
        ("header dots", format!("[{}a]", deep("a."))),
        ("arrays of tables", deep("[[a]]\n")),
        ("unknown keys", format!("[hypervisor.qemu]\n{unknown}")),
        ("tables", headers),
        (
            "annotations",
            format!("[hypervisor.qemu]\nenable_annotations = [{}]", deep("\"path\",")),
        ),
        ("zeros", "\0".repeat(size)),
        ("quotes", deep("\"")),
        ("newlines", deep("\n")),
        ("comments", deep("#")),
    ] {
        let start = Instant::now();
        if let Err(error) = load(&[&text]) {
            is_fit(&error);
        }
        let took = start.elapsed();
        assert!(took < SOON, "{what}: {took:?}");
    }
}

#[test]
fn a_flood_of_annotations_is_answered_in_time() {
    let config = load(&[]).unwrap();
    let annotations = (0..100_000)
        .map(|n| {
            (
                format!("io.katacontainers.config.hypervisor.default_vcpuz{n}"),
                "1".to_owned(),
            )
        })
        .collect();
    let start = Instant::now();
    is_fit(&config.with_annotations(&annotations).unwrap_err());
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
}

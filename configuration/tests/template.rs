//! The documented configuration.toml in this directory is what the settings say, and says what is built in.

use std::path::{Path, PathBuf};
use std::{env, fs};

use configuration::{Config, Status};

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configuration.toml")
}

#[test]
fn the_template_is_up_to_date() {
    let generated = Config::template();
    if env::var_os("KATA_UPDATE_TEMPLATE").is_some() {
        fs::write(path(), &generated).unwrap();
    }
    let committed = fs::read_to_string(path()).unwrap_or_default();
    let differs = generated
        .lines()
        .zip(committed.lines().chain(std::iter::repeat("")))
        .position(|(new, old)| new != old);
    assert!(
        committed == generated,
        "configuration/configuration.toml is not what the settings say, from line {}: write it anew with \
         KATA_UPDATE_TEMPLATE=1 cargo test -p configuration --test template",
        differs.map_or(generated.lines().count() + 1, |line| line + 1)
    );
}

#[test]
fn it_loads_unchanged_and_says_what_is_built_in() {
    let template = Config::load(Some(&path()), None).unwrap();
    assert_eq!(template.sources, [path()]);
    let built_in = Config::defaults().unwrap();
    assert_eq!(
        Config {
            sources: vec![],
            ..template
        },
        built_in
    );
}

#[test]
fn it_has_every_key_and_no_key_is_undocumented() {
    let template = Config::template();
    for key in Config::explain().filter(|key| key.status == Status::Supported) {
        let line = format!("{} = {}", key.name, key.default);
        assert!(template.lines().any(|other| other == line), "{line}");
        assert!(key.doc.len() > 10 && key.doc.ends_with('.'), "{key:?}");
    }
}

/// `cargo xtask install` rewrites them for its prefix.
#[test]
fn its_paths_are_those_of_a_distribution() {
    let paths: Vec<String> = Config::template()
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = \"/").map(|(_, path)| format!("\"/{path}")))
        .collect();
    assert_eq!(
        paths,
        [
            "\"/usr/bin/qemu-system-x86_64\"",
            "\"/usr/share/kata/vmlinux\"",
            "\"/usr/share/kata/initrd.img\"",
            "\"/usr/libexec/kata/virtiofsd\"",
            "\"/usr/libexec/kata/vhost-device-vsock\"",
            "\"/bin/busybox\"",
            "\"/var/log/kata/traces\"",
            "\"/run/kata\"",
            "\"/var/cache/kata/template\"",
            "\"/run/kata-cache/cache.sock\"",
        ]
    );
}

//! Texts beside a specification that others have written.

use std::path::{Component, Path};

use super::{add_kernel_param, cgroup, container_type, dns, sandbox_config_path, sandbox_id};
use crate::model::HostCgroup;

#[test]
fn resolver_files() {
    let seeds = [
        "nameserver 10.0.0.1\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:5 edns0\n",
        "; a comment\n# another\ndomain only.example\nsearch\noptions\tuse-vc\r\nnameserver\n",
    ];
    fuzz::target("resolver-files", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let dns = dns::parse(text);
        for word in dns.servers.iter().chain(&dns.searches).chain(&dns.options) {
            assert!(
                !word.is_empty() && !word.contains(|c: char| c.is_control() || c.is_ascii_whitespace()),
                "{word:?}"
            );
        }
        // Whoever reads what the guest is told reads the same.
        let lines = |keyword: &str, words: &[String]| match words {
            [] => String::new(),
            words => format!("{keyword} {}\n", words.join(" ")),
        };
        let servers: String = dns
            .servers
            .iter()
            .map(|server| format!("nameserver {server}\n"))
            .collect();
        let again = servers + &lines("search", &dns.searches) + &lines("options", &dns.options);
        assert_eq!(dns::parse(&again), dns);
    });
}

#[test]
fn cgroup_paths() {
    let seeds = [
        "/kubepods/burstable/pod0/c1",
        "kubepods-burstable-pod0.slice:cri-containerd:c1",
        "system.slice:docker:c1",
        ":a:b",
        "machine.slice/libpod-c1.scope",
    ];
    fuzz::target("cgroup-paths", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let Ok(Some(found)) = cgroup::parse(Path::new(text)) else {
            return;
        };
        let path = match found {
            HostCgroup::Path(path) => path,
            HostCgroup::Systemd { slice, unit } => {
                assert!(!unit.contains('/') && !unit.is_empty(), "{unit:?}");
                slice.join(unit)
            }
        };
        let outside = |part: Component<'_>| part == Component::ParentDir;
        assert!(!path.components().any(outside), "{}", path.display());
    });
}

#[test]
fn annotations() {
    let seeds = [
        "io.kubernetes.cri.container-type=container\nio.kubernetes.cri.sandbox-id=abc\n",
        "io.kubernetes.cri-o.ContainerType=sandbox\nio.kubernetes.cri-o.SandboxID=abc\n",
        "io.kubernetes.docker.type=podsandbox\nio.kubernetes.sandbox.id=abc\n",
        "io.katacontainers.config_path=/etc/kata.toml\nquiet=1\nroot=\"x y\"\n",
    ];
    fuzz::target("annotations-of-pods", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let annotations = pairs
            .clone()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let _ = container_type(&annotations);
        if let Ok(Some(id)) = sandbox_id(&annotations) {
            let name = id.to_string();
            assert!(!name.contains('/') && !name.starts_with('.'), "{name:?}");
        }
        if let Ok(Some(path)) = sandbox_config_path(&annotations) {
            assert!(path.is_absolute(), "{}", path.display());
        }
        let mut parameters = Vec::new();
        for (name, value) in pairs {
            let before = parameters.len();
            let added = add_kernel_param(&mut parameters, name, value).is_ok();
            assert_eq!(parameters.len(), before + usize::from(added));
        }
        let whole = parameters.join(" ");
        let words = whole.split_ascii_whitespace().count();
        assert_eq!(words, parameters.len(), "each is one word: {whole:?}");
    });
}

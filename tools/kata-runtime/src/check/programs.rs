//! Lines about what is installed: monitors, daemons, guest kernel and image, the ways to the agent.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use configuration::{AgentChannel, Config, HypervisorKind, SharedFs};

use super::line::{Line, Verdict};
use crate::host;

/// The oldest virtiofsd that has what it is asked for: major and minor number.
const OLDEST_VIRTIOFSD: (u32, u32) = (1, 10);

/// Monitors that there may be besides, and where they are installed.
const OTHERS: [(&str, &str); 2] = [
    ("cloud hypervisor", "cloud-hypervisor"),
    ("firecracker", "firecracker"),
];
const PLACES: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/opt/kata/bin", "/usr/libexec/kata"];

/// The monitor, and what it boots.
pub fn machine(config: &Config) -> Vec<Line> {
    let hypervisor = &config.hypervisor;
    if hypervisor.kind == HypervisorKind::Fake {
        let found = "the hypervisor is `fake`, which isolates nothing";
        return vec![Line::warn(
            "hypervisor",
            found,
            "for tests only: use [hypervisor.qemu]",
        )];
    }
    let monitor = match host::version(&hypervisor.path) {
        Ok(version) => Line::pass("hypervisor", format!("{} ({version})", hypervisor.path.display())),
        Err(problem) => Line::fail(
            "hypervisor",
            format!("{}: {problem}", hypervisor.path.display()),
            match hypervisor.kind {
                HypervisorKind::CloudHypervisor => "install cloud-hypervisor, or set `path`",
                HypervisorKind::Firecracker => "install firecracker, or set `path`",
                HypervisorKind::Qemu | HypervisorKind::Fake => "install qemu-system-x86, or set `path`",
            },
        ),
    };
    vec![
        monitor,
        image("guest kernel", &hypervisor.kernel, kernel_form, "kernel"),
        image("guest image", &hypervisor.initrd, image_form, "initrd"),
    ]
}

/// Monitors that are there, which is no promise that the configuration has one of them.
pub fn others() -> Vec<Line> {
    OTHERS
        .iter()
        .map(|(part, program)| {
            let found = PLACES
                .iter()
                .map(|place| Path::new(place).join(program))
                .find(|path| path.exists());
            let found = found.map(|path| match host::version(&path) {
                Ok(version) => format!("{} ({version})", path.display()),
                Err(problem) => format!("{}: {problem}", path.display()),
            });
            Line::pass(
                part,
                found.unwrap_or_else(|| "not installed, not needed".to_owned()),
            )
        })
        .collect()
}

/// A file that the guest is booted from, told by its first bytes.
fn image(part: &'static str, path: &Path, form: fn(&[u8], &[u8]) -> Option<&'static str>, key: &str) -> Line {
    let remedy = format!("build it with `make guest`, or set `{key}`");
    let read = || -> std::io::Result<([u8; 8], [u8; 4])> {
        let mut file = File::open(path)?;
        let (mut first, mut boot) = ([0; 8], [0; 4]);
        file.read_exact(&mut first)?;
        // Of a bzImage, the signature of its setup header. A shorter file is none.
        let _ = file.read_at(&mut boot, 0x202);
        Ok((first, boot))
    };
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => {
            return Line::fail(part, format!("{}: not a regular file", path.display()), &remedy);
        }
        _ => {}
    }
    match read() {
        Ok((first, boot)) => match form(&first, &boot) {
            Some(form) => Line::pass(part, format!("{} ({form}{})", path.display(), release(path))),
            None => Line::fail(part, format!("{}: of no known form", path.display()), &remedy),
        },
        Err(error) => Line::fail(part, format!("{}: {error}", path.display()), &remedy),
    }
}

/// What the list of its parts beside the image says of it, if there is one.
fn release(path: &Path) -> String {
    let manifest = path.with_file_name("manifest.json");
    let Some(manifest) = std::fs::read(manifest)
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
    else {
        return String::new();
    };
    let of = |key: &str| {
        manifest
            .get(key)
            .and_then(serde_json::Value::as_str)
            .unwrap_or("?")
    };
    format!(", Linux {}, agent {}", of("kernel_release"), of("agent_version"))
}

fn kernel_form(first: &[u8], boot: &[u8]) -> Option<&'static str> {
    if first.starts_with(b"\x7fELF") {
        Some("vmlinux")
    } else if boot == b"HdrS" {
        Some("bzImage")
    } else {
        None
    }
}

fn image_form(first: &[u8], _: &[u8]) -> Option<&'static str> {
    let forms: [(&[u8], &str); 6] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\xfd7zXZ", "xz"),
        (b"070701", "cpio"),
        (b"BZh", "bzip2"),
    ];
    let known = forms.iter().find(|(magic, _)| first.starts_with(magic));
    known.map(|(_, form)| *form)
}

/// How files get into the guest.
pub fn share(config: &Config) -> Line {
    const PART: &str = "file sharing";
    if config.hypervisor.kind == HypervisorKind::Fake {
        return Line::pass(PART, "the guest is a process");
    }
    if config.hypervisor.shared_fs == SharedFs::None {
        let remedy =
            "set `shared_fs` to \"virtio-fs\": a container's root file system is shared with its guest";
        return Line::fail(PART, "shared_fs is \"none\"", remedy);
    }
    let daemon = &config.hypervisor.virtio_fs_daemon;
    const REMEDY: &str = "install virtiofsd 1.10 or later, or set `virtio_fs_daemon`";
    match host::version(daemon) {
        Ok(version) => {
            let found = format!("{} ({version})", daemon.display());
            match numbers(&version) {
                Some(numbers) if numbers < OLDEST_VIRTIOFSD => Line::fail(PART, found, REMEDY),
                _ => Line::pass(PART, found),
            }
        }
        Err(problem) => Line::fail(PART, format!("{}: {problem}", daemon.display()), REMEDY),
    }
}

/// Major and minor number in what a program says of its version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    version.split(' ').find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    })
}

/// Every way to the agent, and the one that is taken.
pub fn channels(config: &Config) -> Vec<Line> {
    let kernel = host::device("/dev/vhost-vsock");
    let daemon = &config.hypervisor.vhost_user_vsock_daemon;
    let of_daemon = match daemon.as_os_str().is_empty() {
        true => Err("none is configured".to_owned()),
        false => host::version(daemon),
    };
    let wanted = config.agent.channel;
    let is = |channel| wanted == channel;
    let worse = |asked: bool| if asked { Verdict::Fail } else { Verdict::Warn };
    let auto = "or set `channel` to \"auto\"";
    let mut lines = vec![
        match &kernel {
            Ok(()) => Line::pass("vsock, kernel", "/dev/vhost-vsock"),
            Err(problem) => Line::new(
                "vsock, kernel",
                worse(is(AgentChannel::Vsock)),
                format!("/dev/vhost-vsock: {problem}"),
                &format!("modprobe vhost_vsock, {auto}"),
            ),
        },
        match &of_daemon {
            Ok(version) => Line::pass("vsock, daemon", format!("{} ({version})", daemon.display())),
            Err(problem) => Line::new(
                "vsock, daemon",
                worse(is(AgentChannel::VhostUserVsock)),
                format!("{}: {problem}", daemon.display()),
                &format!("install vhost-device-vsock, {auto}"),
            ),
        },
        Line::pass("virtio-serial", "needs nothing of the host"),
    ];
    let has_own = matches!(
        config.hypervisor.kind,
        HypervisorKind::CloudHypervisor | HypervisorKind::Firecracker
    );
    let taken = match wanted {
        AgentChannel::Auto | AgentChannel::HybridVsock if has_own => "the monitor's own vsock",
        AgentChannel::HybridVsock => {
            lines.push(Line::fail(
                "agent channel",
                "channel is \"hybrid-vsock\", which this monitor has not",
                "set `channel` to \"auto\"",
            ));
            return lines;
        }
        AgentChannel::Vsock => "the kernel's vsock",
        AgentChannel::VhostUserVsock => "vsock by a daemon",
        AgentChannel::VirtioSerial => "virtio-serial",
        AgentChannel::Auto if kernel.is_ok() => "the kernel's vsock",
        AgentChannel::Auto if of_daemon.is_ok() => "vsock by a daemon",
        AgentChannel::Auto => "virtio-serial",
    };
    let why = match wanted {
        AgentChannel::Auto => "the best there is",
        _ => "as configured",
    };
    lines.push(Line::pass("agent channel", format!("{taken}, {why}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_told_by_their_first_bytes() {
        assert_eq!(
            kernel_form(b"\x7fELF\x02\x01\x01\0", b"\0\0\0\0"),
            Some("vmlinux")
        );
        assert_eq!(kernel_form(b"MZ\0\0\0\0\0\0", b"HdrS"), Some("bzImage"));
        assert_eq!(kernel_form(b"#!/bin/s", b"\0\0\0\0"), None);
        assert_eq!(image_form(b"\x02\x21\x4c\x18....", b""), Some("lz4"));
        assert_eq!(image_form(b"07070100", b""), Some("cpio"));
        assert_eq!(image_form(b"\x7fELF....", b""), None);
    }

    #[test]
    fn a_file_that_cannot_boot_fails_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        let line = || image("guest kernel", &path, kernel_form, "kernel");
        assert_eq!(line().verdict, Verdict::Fail);
        std::fs::write(&path, "no kernel at all").unwrap();
        assert!(line().found.contains("no known form"), "{:?}", line());
        std::fs::write(&path, "\x7fELF and more").unwrap();
        assert_eq!(line().verdict, Verdict::Pass);
        std::fs::write(
            dir.path().join("manifest.json"),
            r#"{"kernel_release": "6.1", "agent_version": "0.2"}"#,
        )
        .unwrap();
        assert!(
            line().found.ends_with("(vmlinux, Linux 6.1, agent 0.2)"),
            "{:?}",
            line()
        );
    }

    #[test]
    fn versions_are_compared_by_number() {
        for (text, expected) in [
            ("virtiofsd 1.9.0", Some((1, 9))),
            ("virtiofsd 1.14.0", Some((1, 14))),
            ("Firecracker v1.7.0", Some((1, 7))),
            ("virtiofsd", None),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
        assert!(numbers("virtiofsd 1.9.0").unwrap() < OLDEST_VIRTIOFSD);
    }
}

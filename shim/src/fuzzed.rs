//! What callers give to a shim.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use protobuf::Message as _;
use protobuf::well_known_types::any::Any;

use crate::stdio::uri::{Outputs, Streams};
use crate::{arguments, bootstrap, options, podconfig};

#[test]
fn command_lines() {
    let seeds = [
        "-namespace\nns\n-id\nc1\n-address\n/run/containerd.sock\n-publish-binary\n/bin/containerd\nstart",
        "--id=c1\n-debug\n-bundle\n/b\ndelete",
        "-v\n-info\n-h",
    ];
    fuzz::target("command-lines-of-a-shim", seeds, |input| {
        let words = input
            .split(|byte| *byte == b'\n')
            .map(|word| OsString::from_vec(word.to_owned()));
        if let Err(error) = arguments::parse(words) {
            assert!(!error.is_empty());
        }
    });
}

#[test]
fn options_and_parameters() {
    let any = |url: &str, value: &[u8]| Any {
        type_url: url.to_owned(),
        value: value.to_owned(),
        ..Any::default()
    };
    let seeds = [
        any(
            "types.containerd.io/runtimeoptions.v1.Options",
            b"\x0a\x03abc\x12\x07/etc/kt",
        ),
        any("runtimeoptions.v1.Options", b"ConfigPath = \"/etc/kata.toml\"\n"),
        any(
            "runtime.v1.PodSandboxConfig",
            b"\x12\x04host\x22\x06\x0a\x04\x31.1.1\x3a\x06\x0a\x01a\x12\x01b\x42\x04\x0a\x02/c",
        ),
    ];
    let seeds = seeds.map(|any| any.write_to_bytes().unwrap());
    fuzz::target("options-of-a-shim", seeds, |input| {
        let said = bootstrap::understand(input, "id", "namespace");
        for options in [Any::parse_from_bytes(input).ok(), said.options].iter().flatten() {
            let _ = podconfig::read(Some(options));
            if let Ok(Some(path)) = options::config_path(Some(options)) {
                assert!(!path.as_os_str().is_empty());
            }
        }
    });
}

#[test]
fn addresses_of_streams() {
    let seeds = [
        "/run/in\n/run/out\n/run/err",
        "\nfile:///var/log/x%20y\n",
        "\nbinary:///usr/bin/logger?id=a&b=c%26d\n",
        "fifo:///run/in\nunix:///x\n//",
    ];
    fuzz::target("addresses-of-streams", seeds, |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let mut words = text.lines().map(str::to_owned);
        let mut word = || words.next().unwrap_or_default();
        let streams = Streams {
            terminal: text.len() % 2 == 0,
            stdin: word(),
            stdout: word(),
            stderr: word(),
        };
        let Ok(wanted) = streams.parse() else {
            return;
        };
        assert!(wanted.stdin.is_none_or(|path| path.is_absolute()));
        match wanted.outputs {
            Outputs::File(path) => assert!(path.is_absolute()),
            Outputs::Logger(program) => assert!(program.path.is_absolute()),
            Outputs::Fifos { stdout, stderr } => {
                assert!(stdout.iter().chain(&stderr).all(|path| path.is_absolute()));
            }
        }
    });
}

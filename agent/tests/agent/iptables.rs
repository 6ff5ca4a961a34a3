//! The packet filter of the guest: rules are set and printed by programs that the host sends.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;

use crate::network::Cables;
use crate::support::{SOON, Sandbox};

/// A kit of this host's own iptables, as the guest's image has one beside it.
fn kit() -> Vec<u8> {
    const PROGRAM: &str = "/usr/sbin/xtables-nft-multi";
    const EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";
    let needed = Command::new("ldd").arg(PROGRAM).output().unwrap().stdout;
    let needed = String::from_utf8(needed).unwrap();
    assert!(
        needed.contains("libxtables"),
        "this test needs iptables: {needed}"
    );
    let mut files = vec![("xtables".to_owned(), PROGRAM.to_owned())];
    for path in needed.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        let name = if name.starts_with("ld-linux") {
            "ld.so"
        } else {
            name
        };
        files.push((name.to_owned(), path.to_owned()));
    }
    for name in ["libxt_comment.so", "libxt_tcp.so", "libxt_standard.so"] {
        files.push((name.to_owned(), format!("{EXTENSIONS}/{name}")));
    }
    let files: Vec<_> = files
        .iter()
        .map(|(name, path)| (name.as_str(), std::fs::read(path).unwrap()))
        .collect();
    packed(&files)
}

fn packed(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files.iter().chain([&("TRAILER!!!", Vec::new())]) {
        let (size, length) = (content.len(), name.len() + 1);
        let fields = [1, 0o100_755, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0];
        archive.extend_from_slice(b"070701");
        for field in fields {
            write!(archive, "{field:08x}").unwrap();
        }
        write!(archive, "{name}\0").unwrap();
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&archive).unwrap();
    packed.finish().unwrap()
}

const RULES: &[u8] = b"*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -p tcp -m tcp --dport 80 -m comment --comment hello -j DROP\nCOMMIT\n";

#[tokio::test]
async fn rules_are_set_and_printed_in_the_guests_network_and_nowhere_else() {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let agent = &sandbox.agent;
    let get = |v6, kit| {
        agent.get_iptables(
            p::GetIptablesRequest {
                v6,
                kit,
                ..Default::default()
            },
            SOON,
        )
    };
    let set = |rules: &[u8], kit| {
        agent.set_iptables(
            p::SetIptablesRequest {
                rules: rules.to_vec(),
                kit,
                ..Default::default()
            },
            SOON,
        )
    };
    let early = get(false, Vec::new()).await.unwrap_err();
    assert_eq!(early.kind, ErrorKind::FailedPrecondition, "{early}");
    let request = p::CreateSandboxRequest {
        sandbox_id: "s".into(),
        ..Default::default()
    };
    agent.create_sandbox(request, SOON).await.unwrap();
    assert!(set(RULES, Vec::new()).await.unwrap().wants_kit);
    assert!(get(false, Vec::new()).await.unwrap().wants_kit);
    for (kit, said) in [
        (b"no kit".to_vec(), "cannot be unpacked"),
        (packed(&[("../escape", b"x".to_vec())]), "no plain name"),
        (vec![0; p::MAX_KIT + 1], "at most"),
    ] {
        let error = set(RULES, kit).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(said), "{error}");
    }
    assert!(get(false, Vec::new()).await.unwrap().wants_kit, "it has none yet");
    let done = set(RULES, kit()).await.unwrap();
    assert!(!done.wants_kit && done.rules.is_empty(), "{done:?}");

    // It is sent once.
    let rules = String::from_utf8(get(false, Vec::new()).await.unwrap().rules).unwrap();
    assert!(
        rules.contains("--dport 80 -m comment --comment hello -j DROP"),
        "{rules}"
    );
    let other = String::from_utf8(get(true, Vec::new()).await.unwrap().rules).unwrap();
    assert!(!other.contains("hello"), "{other}");
    let error = set(b"*filter\n-A NOWHERE -j DROP\nCOMMIT\n", Vec::new())
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("iptables-restore refuses"), "{error}");
    let again = String::from_utf8(get(false, Vec::new()).await.unwrap().rules).unwrap();
    assert!(again.contains("hello"), "a refusal changes nothing: {again}");

    let of_host = Command::new("iptables-save").output().unwrap().stdout;
    assert!(!String::from_utf8_lossy(&of_host).contains("hello"));
    sandbox.destroy().await;
}

#[tokio::test]
async fn the_network_of_somebody_else_is_left_alone() {
    let sandbox = Sandbox::ready().await;
    let request = p::GetIptablesRequest::default();
    let error = sandbox.agent.get_iptables(request, SOON).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported, "{error}");
    sandbox.destroy().await;
}

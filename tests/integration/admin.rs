//! What an administrator asks of a sandbox, through the crate's own client: whichever program runs it.

use runtime::admin::client::Client;
use runtime::admin::{ConsoleOrder, Found, Frame, Survey};
use runtime::{ErrorKind, Sandbox};

use crate::stand::{Guest, Stand};

fn found(stand: &Stand) -> Found {
    let survey = Survey::take(&stand.path("run")).unwrap();
    assert_eq!(survey.sandboxes.len(), 1, "{survey:?}");
    survey.sandboxes[0].clone()
}

async fn start(stand: &Stand, console: bool) -> Sandbox {
    let bundle = stand.bundle("s", "sleep 1000", |_| {});
    let mut config = stand.config();
    config.agent.debug_console_enabled = console;
    let (request, _events) = stand.request(config, &bundle);
    Sandbox::create(request).await.unwrap()
}

#[tokio::test]
async fn a_sandbox_tells_of_itself_as_long_as_it_is_there() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let sandbox = start(&stand, false).await;
    let found = found(&stand);
    assert!(found.alive);
    assert_eq!(found.full_name(), "test/s");
    assert_eq!(found.owner, std::process::id());
    let client = Client::new(&found).unwrap();
    let inspected = client.inspect().await.unwrap();
    assert_eq!(inspected["id"], "s");
    assert_eq!(inspected["containers"].as_array().unwrap().len(), 0);
    let figures = client.figures().await.unwrap();
    assert!(
        figures.processes.iter().any(|process| process.name == "vmm"),
        "{figures:?}"
    );
    assert!(client.processes().await.unwrap().is_empty());
    let metrics = client.metrics().await.unwrap();
    assert!(
        metrics.contains("kata_guest_meminfo{item=\"memtotal\"}"),
        "{metrics}"
    );
    assert!(
        metrics.contains(
            "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"create_sandbox\"} 1"
        ),
        "{metrics}"
    );
    // A guest that is a process has no image, and nothing beside it.
    for (method, path, kind) in [
        ("GET", "/iptables", ErrorKind::FailedPrecondition),
        // What it is given is no policy, says the agent.
        ("PUT", "/policy", ErrorKind::InvalidArgument),
        ("PUT", "/ip6tables", ErrorKind::FailedPrecondition),
        ("GET", "/direct-volume/stats", ErrorKind::InvalidArgument),
        ("GET", "/direct-volume/stats?path=/v", ErrorKind::NotFound),
        ("POST", "/direct-volume/resize", ErrorKind::InvalidArgument),
        ("GET", "/nothing", ErrorKind::NotFound),
        ("DELETE", "/inspect", ErrorKind::NotFound),
        ("G\u{0}T", "/inspect", ErrorKind::InvalidArgument),
    ] {
        let error = client.request(method, path, None, b"body").await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
    }
    sandbox.stop().await.unwrap();
    let error = client.inspect().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(Survey::take(&stand.path("run")).unwrap().sandboxes.is_empty());
    stand.assert_clean();
}

#[tokio::test]
async fn a_console_is_refused_unless_it_was_allowed() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let sandbox = start(&stand, false).await;
    let client = Client::new(&found(&stand)).unwrap();
    let error = client.console(&ConsoleOrder::default()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.chain().contains("debug_console_enabled"), "{error}");
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn a_console_carries_streams_and_the_exit_status_and_ends_when_it_is_left() {
    let Some(stand) = Stand::new(Guest::Process) else {
        return;
    };
    let sandbox = start(&stand, true).await;
    let client = Client::new(&found(&stand)).unwrap();
    let order = |script: &str| ConsoleOrder {
        args: ["sh", "-c", script].map(str::to_owned).to_vec(),
        ..Default::default()
    };
    let (mut input, mut output) = client.console(&order("cat; echo no >&2; exit 9")).await.unwrap();
    input.send(&Frame::Data(b"typed".to_vec())).await.unwrap();
    input.send(&Frame::End).await.unwrap();
    let (mut said, mut errors) = (Vec::new(), Vec::new());
    let code = loop {
        match output.receive().await.unwrap().unwrap() {
            Frame::Data(data) => said.extend(data),
            Frame::Errors(data) => errors.extend(data),
            Frame::Exit(code) => break code,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(
        (said.as_slice(), errors.as_slice(), code),
        (&b"typed"[..], &b"no\n"[..], 9)
    );

    // Whoever leaves takes it along, read or not what was typed.
    for typed in [0, 512 * 1024] {
        let (mut input, mut output) = client.console(&order("echo $$; exec sleep 1000")).await.unwrap();
        let Some(Frame::Data(pid)) = output.receive().await.unwrap() else {
            panic!("it says its pid")
        };
        let pid = String::from_utf8(pid).unwrap();
        let process = std::path::Path::new("/proc").join(pid.trim());
        assert!(process.exists());
        // More than pipes and sockets hold: it is still being sent when it is given up.
        let typing = async {
            for _ in 0..typed / (32 * 1024) {
                input.send(&Frame::Data(vec![b'x'; 32 * 1024])).await.unwrap();
            }
        };
        let all_sent = tokio::time::timeout(std::time::Duration::from_millis(500), typing).await;
        assert_eq!(all_sent.is_ok(), typed == 0, "nobody reads it");
        drop((input, output));
        let gone = async {
            while process.exists() {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(crate::stand::SOON, gone).await.unwrap();
    }
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

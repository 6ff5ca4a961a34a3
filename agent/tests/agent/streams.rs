//! Standard streams of processes in containers of a real agent: pipes, terminals, much data, slow and absent readers.

use std::time::Duration;

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;
use sha2::{Digest as _, Sha256};

use crate::support::{SOON, Sandbox, end_of_input, named};

#[tokio::test]
async fn sixty_four_mebibytes_go_through_unchanged_and_the_agent_does_not_grow() {
    const CHUNKS: usize = 256;
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "cat", "io").await;
    // Not compressible, not repeating at any chunk's length.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut chunk = vec![0_u8; p::MAX_CHUNK];
    let mut sent = Sha256::new();
    let mut received = Sha256::new();
    let mut length = 0;
    let write = async {
        for _ in 0..CHUNKS {
            for word in chunk.chunks_exact_mut(8) {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                word.copy_from_slice(&state.to_le_bytes());
            }
            sent.update(&chunk);
            assert!(sandbox.write("c", "", &chunk).await.unwrap());
        }
        sandbox
            .agent
            .close_stdin(end_of_input("c", ""), SOON)
            .await
            .unwrap();
    };
    let before = sandbox.resident();
    let mut largest = 0;
    let read = async {
        while let Some(data) = sandbox.read("c", "", p::Stream::STDOUT, u32::MAX).await.unwrap() {
            assert!(data.len() <= p::MAX_CHUNK);
            length += data.len();
            received.update(&data);
            largest = largest.max(sandbox.resident());
        }
    };
    tokio::join!(write, read);
    assert_eq!(length, CHUNKS * p::MAX_CHUNK);
    assert_eq!(sent.finalize(), received.finalize());
    assert!(
        largest < before + (8 << 20),
        "grew from {before} to {largest} bytes"
    );
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
    sandbox.delete("c", false).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_writer_without_reader_waits_and_costs_nothing() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    let before = sandbox.resident();
    for n in 0..8 {
        sandbox.exec("c", &format!("yes{n}"), "yes", "o").await.unwrap();
    }
    // One that is read shows that time passes and that nobody is held up.
    for _ in 0..64 {
        let data = sandbox
            .read("c", "yes0", p::Stream::STDOUT, 65_536)
            .await
            .unwrap()
            .unwrap();
        assert!(data.starts_with(b"y\n") || data.starts_with(b"\n"));
    }
    let after = sandbox.resident();
    assert!(after < before + (4 << 20), "grew from {before} to {after} bytes");
    sandbox.signal("c", "yes1", 9).await.unwrap();
    assert_eq!(sandbox.wait("c", "yes1").await.unwrap(), 137);
    assert!(
        sandbox
            .read("c", "yes1", p::Stream::STDOUT, 4)
            .await
            .unwrap()
            .is_some(),
        "readable after its end"
    );
    sandbox.destroy().await;
}

#[tokio::test]
async fn streams_are_apart_and_small_reads_lose_nothing() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "echo out; echo err >&2", "oe").await;
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
    let mut out = Vec::new();
    while let Some(data) = sandbox.read("c", "", p::Stream::STDOUT, 1).await.unwrap() {
        assert_eq!(data.len(), 1);
        out.extend(data);
    }
    assert_eq!(out, b"out\n");
    let err = sandbox.read("c", "", p::Stream::STDERR, 100).await.unwrap();
    assert_eq!(err.as_deref(), Some(&b"err\n"[..]));
    assert_eq!(sandbox.read("c", "", p::Stream::STDERR, 100).await.unwrap(), None);
    assert_eq!(
        sandbox.read("c", "", p::Stream::STDERR, 100).await.unwrap(),
        None,
        "the end stays the end"
    );
    let none = sandbox.read("c", "", p::Stream::STDOUT, 0).await.unwrap_err();
    assert_eq!(none.kind, ErrorKind::InvalidArgument);
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_read_on_a_lost_connection_takes_nothing_with_it() {
    let mut sandbox = Sandbox::ready().await;
    sandbox.run("c", "cat", "io").await;
    let request = p::ReadOutputRequest {
        container_id: "c".into(),
        max: 10,
        ..Default::default()
    };
    let late = sandbox
        .agent
        .read_output(request.clone(), Some(Duration::from_millis(10)))
        .await
        .unwrap_err();
    assert_eq!(late.kind, ErrorKind::DeadlineExceeded, "{late}");
    let read = sandbox.agent.read_output(request, None);
    tokio::time::timeout(Duration::from_millis(50), read)
        .await
        .expect_err("there is nothing to read yet");
    sandbox.reconnect_after_hang_up().await;
    sandbox.write("c", "", b"all of it").await.unwrap();
    sandbox
        .agent
        .close_stdin(end_of_input("c", ""), SOON)
        .await
        .unwrap();
    assert_eq!(sandbox.output("c", "").await, "all of it");
    sandbox.destroy().await;
}

#[tokio::test]
async fn who_holds_the_output_open_delays_its_end_but_not_the_process_s() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    sandbox
        .exec("c", "e", "(echo late; sleep 1000) & exit 4", "o")
        .await
        .unwrap();
    assert_eq!(sandbox.wait("c", "e").await.unwrap(), 4);
    sandbox.expect("c", "e", "late").await;
    let read = sandbox.read("c", "e", p::Stream::STDOUT, 10);
    let forget = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sandbox.agent.delete_process(named("c", "e"), SOON).await.unwrap();
    };
    let (end, ()) = tokio::join!(read, forget);
    assert_eq!(
        end.unwrap(),
        None,
        "a read under way ends when the process is forgotten"
    );
    sandbox.destroy().await;
}

#[tokio::test]
async fn input_that_nobody_reads_is_said_to_be_closed() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    let none = sandbox.write("c", "", b"x").await.unwrap_err();
    assert_eq!(
        none.kind,
        ErrorKind::FailedPrecondition,
        "stdin was not asked for: {none}"
    );
    sandbox
        .exec("c", "e", "exec 0<&-; echo closed; sleep 1000", "io")
        .await
        .unwrap();
    sandbox.expect("c", "e", "closed").await;
    assert!(!sandbox.write("c", "e", b"x").await.unwrap());

    // Much more than a pipe holds, to one who never reads: the write ends with the process.
    sandbox.exec("c", "f", "echo up; sleep 1000", "io").await.unwrap();
    sandbox.expect("c", "f", "up").await;
    let chunk = vec![0; p::MAX_CHUNK];
    let (open, killed) = tokio::join!(
        async {
            while sandbox.write("c", "f", &chunk).await.unwrap() {}
            false
        },
        async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            sandbox.signal("c", "f", 9).await
        }
    );
    killed.unwrap();
    assert!(!open);
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_terminal_echoes_has_a_size_and_ends_with_its_process() {
    let sandbox = Sandbox::ready().await;
    sandbox
        .run("c", "tty; stty size; read line; stty size; echo got $line", "iot")
        .await;
    sandbox.expect("c", "", "24 80").await;
    let request = p::ResizeTerminalRequest {
        container_id: "c".into(),
        size: Some(p::TerminalSize {
            rows: 50,
            columns: 132,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    sandbox.agent.resize_terminal(request, SOON).await.unwrap();
    sandbox.write("c", "", b"hello\n").await.unwrap();
    let rest = sandbox.output("c", "").await;
    assert!(
        rest.contains("hello\r\n") && rest.contains("50 132") && rest.contains("got hello"),
        "{rest:?}"
    );
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
    sandbox.delete("c", false).await.unwrap();

    sandbox.run("c", "sleep 1000", "").await;
    sandbox.exec("c", "e", "tty && cat", "iot").await.unwrap();
    sandbox.expect("c", "e", "/dev/").await;
    sandbox.write("c", "e", b"\x03").await.unwrap();
    assert_eq!(
        sandbox.wait("c", "e").await.unwrap(),
        130,
        "Ctrl-C is a signal on a terminal"
    );
    let not_one = p::ResizeTerminalRequest {
        container_id: "c".into(),
        size: Some(p::TerminalSize::default()).into(),
        ..Default::default()
    };
    let refused = sandbox.agent.resize_terminal(not_one, SOON).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition, "{refused}");
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_broken_pipe_ends_the_writer_as_it_should() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "yes | head -n 1", "o").await;
    assert_eq!(sandbox.output("c", "").await, "y\n");
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
    sandbox.exec("c", "e", "true", "").await.unwrap_err();
    sandbox.destroy().await;
}

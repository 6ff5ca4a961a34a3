//! What is written into a container's pipes arrives where it should, whoever reads and whoever does not.

use std::fs;
use std::io::{Read, Write};

use slog::{Discard, o};

use super::*;

const LIMIT: Duration = Duration::from_secs(20);

fn wish(log_path: Option<PathBuf>) -> Wish {
    Wish {
        container: "c".into(),
        terminal: false,
        stdin: true,
        stdin_once: true,
        log_path,
        limit: LIMIT,
        log: Logger::root(Discard, o!()),
    }
}

fn file(output: Output) -> fs::File {
    let Output::Descriptor(fd) = output else {
        panic!("a descriptor")
    };
    fd.into()
}

/// Somebody's end of an output, and his streams.
fn viewer() -> (fs::File, Stdio) {
    let (read, write) = pipe().unwrap();
    let stdio = Stdio {
        stdout: Output::Descriptor(write),
        ..Stdio::default()
    };
    (read.into(), stdio)
}

#[tokio::test]
async fn output_is_logged_and_shown_to_all_and_ends_when_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/log");
    let (streams, stdio) = Streams::open(wish(Some(path.clone()))).await.unwrap();
    let (mut first, seen) = viewer();
    let first_attached = streams.attach(seen).await.unwrap();
    let mut out = file(stdio.stdout);
    out.write_all(b"one\n").unwrap();
    let (mut second, seen) = viewer();
    let second_attached = loop {
        // As soon as the first output is through.
        if fs::read_to_string(&path).unwrap().ends_with("stdout F one\n") {
            break streams.attach(seen).await.unwrap();
        }
        tokio::task::yield_now().await;
    };
    fs::rename(&path, dir.path().join("moved")).unwrap();
    streams.reopen().await.unwrap();
    file(stdio.stderr).write_all(b"no\n").unwrap();
    out.write_all(b"two").unwrap();
    drop(out);
    streams.finish().await;
    timeout(LIMIT, first_attached.ended()).await.unwrap().unwrap();
    timeout(LIMIT, second_attached.ended()).await.unwrap().unwrap();
    let mut said = [String::new(), String::new()];
    first.read_to_string(&mut said[0]).unwrap();
    second.read_to_string(&mut said[1]).unwrap();
    assert_eq!(said, ["one\ntwo", "two"]);
    let log = || fs::read_to_string(&path).unwrap();
    while log().lines().count() < 2 {
        tokio::task::yield_now().await;
    }
    let log = log();
    assert!(
        log.contains("stderr F no\n") && log.contains("stdout P two\n"),
        "{log}"
    );
    let error = streams.reopen().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_nobody_waits_for_him() {
    let (streams, stdio) = Streams::open(wish(None)).await.unwrap();
    let (_unread, seen) = viewer();
    let attached = streams.attach(seen).await.unwrap();
    let mut out = file(stdio.stdout);
    let chunk = vec![b'x'; CHUNK];
    let writing = tokio::task::spawn_blocking(move || {
        for _ in 0..2 * BEHIND {
            out.write_all(&chunk).unwrap();
        }
    });
    timeout(LIMIT, writing).await.unwrap().unwrap();
    let error = timeout(LIMIT, attached.ended()).await.unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn input_that_is_for_one_ends_with_his() {
    let (streams, stdio) = Streams::open(wish(None)).await.unwrap();
    let Input::Descriptor(input) = stdio.stdin else {
        panic!("a descriptor")
    };
    let (read, write) = pipe().unwrap();
    let (stays, _silent) = pipe().unwrap();
    let typist = |read| Stdio {
        stdin: Input::Descriptor(read),
        ..Stdio::default()
    };
    let _first = streams.attach(typist(read)).await.unwrap();
    let _second = streams.attach(typist(stays)).await.unwrap();
    fs::File::from(write).write_all(b"typed").unwrap();
    let reading = tokio::task::spawn_blocking(move || {
        let mut said = String::new();
        fs::File::from(input).read_to_string(&mut said).map(|_| said)
    });
    assert_eq!(timeout(LIMIT, reading).await.unwrap().unwrap().unwrap(), "typed");
}

//! Streams between a fake guest and real named pipes: what a client may do to its ends, and what that must not do to us.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_client::{Agent, FakeAgent};
use agent_protocol as p;
use rustix::fs::OFlags;
use slog::{Discard, Logger, o};
use tokio::time::timeout;

use crate::error::ErrorKind;

use super::descriptor::{Way, check};
use super::pump::CHUNK;
use super::{Input, InputPump, Name, Opened, Output, OutputPump, Stdio, Target};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

struct Guest {
    agent: Arc<FakeAgent>,
    target: Target,
    dir: tempfile::TempDir,
}

impl Guest {
    async fn new() -> Self {
        let agent = Arc::new(FakeAgent::new());
        let request = p::CreateContainerRequest {
            container_id: "c".into(),
            ..Default::default()
        };
        agent.create_container(request, None).await.unwrap();
        let target = Target {
            agent: agent.clone(),
            container: "c".into(),
            exec: String::new(),
            deadline: SOON,
            log: Logger::root(Discard, o!()),
        };
        Self {
            agent,
            target,
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        path
    }

    async fn output(&self, output: Output) -> OutputPump {
        let stdio = Stdio {
            stdout: output,
            ..Stdio::default()
        };
        let sink = Opened::open(stdio, SOON).await.unwrap().stdout.unwrap();
        OutputPump::start(
            self.target.clone(),
            Name::Standard(p::Stream::STDOUT),
            sink,
            || {},
        )
    }

    async fn input(&self, input: Input) -> InputPump {
        let stdio = Stdio {
            stdin: input,
            ..Stdio::default()
        };
        let opened = Opened::open(stdio, SOON).await.unwrap();
        InputPump::start(self.target.clone(), 0, opened.stdin.unwrap())
    }

    fn print(&self, data: &[u8]) {
        self.agent.print("c", "", p::Stream::STDOUT, data);
    }

    async fn until(&self, condition: impl Fn(&FakeAgent) -> bool) {
        timeout(SOON, self.agent.until(condition)).await.unwrap();
    }
}

/// A client's end, opened as containerd's clients do: without waiting.
fn reader(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .unwrap()
}

/// Reads on another thread until the end of the pipe.
fn read_to_end(file: File) -> tokio::task::JoinHandle<Vec<u8>> {
    tokio::task::spawn_blocking(move || {
        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::empty()).unwrap();
        let (mut file, mut all) = (file, Vec::new());
        file.read_to_end(&mut all).unwrap();
        all
    })
}

/// Bytes that tell where they belong.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .take(len)
        .collect()
}

async fn drained(mut pump: OutputPump) {
    timeout(SOON, pump.drained()).await.unwrap();
}

#[tokio::test]
async fn much_output_arrives_unchanged_with_one_chunk_at_a_time() {
    const TOTAL: usize = 64 << 20;
    const PIECE: usize = 1 << 20;
    let guest = Guest::new().await;
    let path = guest.fifo("out");
    let pump = guest.output(Output::Fifo(path.clone())).await;
    let received = read_to_end(reader(&path));
    let piece = pattern(PIECE);
    for _ in 0..TOTAL / PIECE {
        guest.print(&piece);
        guest.until(|agent| agent.unread("c", "") < PIECE).await;
    }
    guest.agent.end_output("c", "");
    drained(pump).await;
    let received = received.await.unwrap();
    assert_eq!(received.len(), TOTAL);
    assert!(received.chunks(PIECE).all(|chunk| chunk == piece));
    assert!(guest.agent.largest_read() <= CHUNK);
}

#[tokio::test]
async fn output_that_nobody_reads_stays_in_the_guest() {
    let guest = Guest::new().await;
    let path = guest.fifo("out");
    let _pump = guest.output(Output::Fifo(path)).await;
    let all = pattern(1 << 20);
    guest.print(&all);
    // One chunk on its way into the pipe, which holds half of it, and the next.
    let taken = 2 * CHUNK;
    guest
        .until(|agent| agent.unread("c", "") == all.len() - taken)
        .await;
    let calls = guest.agent.calls().len();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(guest.agent.calls().len(), calls, "nothing more is asked for");
}

#[tokio::test]
async fn readers_come_and_go_and_nothing_is_lost() {
    let guest = Guest::new().await;
    let path = guest.fifo("out");
    let pump = guest.output(Output::Fifo(path.clone())).await;
    guest.print(b"before; ");
    guest.until(|agent| agent.unread("c", "") == 0).await;
    let mut first = reader(&path);
    let mut buffer = [0; 8];
    timeout(SOON, async {
        while first.read_exact(&mut buffer).is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(&buffer, b"before; ");
    drop(first);
    guest.print(b"between; ");
    guest.until(|agent| agent.unread("c", "") == 0).await;
    let second = read_to_end(reader(&path));
    guest.print(b"after");
    guest.agent.end_output("c", "");
    drained(pump).await;
    assert_eq!(
        second.await.unwrap(),
        b"between; after",
        "and the reader gets the end"
    );
}

#[tokio::test]
async fn a_reader_that_comes_after_the_end_gets_all_of_it_and_the_end() {
    let guest = Guest::new().await;
    let path = guest.fifo("out");
    let mut pump = guest.output(Output::Fifo(path.clone())).await;
    guest.print(b"last words");
    guest.agent.end_output("c", "");
    guest
        .until(|agent| {
            agent
                .calls()
                .iter()
                .filter(|call| **call == "read_output")
                .count()
                == 2
        })
        .await;
    assert!(
        timeout(Duration::from_millis(50), pump.drained()).await.is_err(),
        "it waits for a reader"
    );
    let late = read_to_end(reader(&path));
    drained(pump).await;
    assert_eq!(late.await.unwrap(), b"last words");
}

#[tokio::test]
async fn a_file_is_appended_to_and_its_directories_are_made() {
    let guest = Guest::new().await;
    let path = guest.dir.path().join("a/b/log");
    for text in ["one\n", "two\n"] {
        let pump = guest.output(Output::File(path.clone())).await;
        guest.print(text.as_bytes());
        guest.agent.end_output("c", "");
        drained(pump).await;
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "one\ntwo\n");
}

#[tokio::test]
async fn a_logger_that_dies_does_not_stop_the_process() {
    let guest = Guest::new().await;
    let (read, write) = rustix::pipe::pipe().unwrap();
    drop(read);
    let pump = guest.output(Output::Descriptor(write)).await;
    guest.print(&pattern(1 << 20));
    guest.agent.end_output("c", "");
    drained(pump).await;
    assert_eq!(guest.agent.unread("c", ""), 0);
}

#[tokio::test]
async fn dropping_a_pump_that_waits_for_its_reader_closes_the_pipe() {
    let guest = Guest::new().await;
    let path = guest.fifo("out");
    let pump = guest.output(Output::Fifo(path.clone())).await;
    guest.print(&pattern(1 << 20));
    guest.until(|agent| agent.unread("c", "") < 1 << 20).await;
    let late = reader(&path);
    drop(pump);
    let received = timeout(SOON, read_to_end(late)).await.unwrap().unwrap();
    assert_eq!(received, pattern(1 << 20)[..received.len()]);
}

#[tokio::test]
async fn input_outlives_its_writers_until_it_is_closed() {
    let guest = Guest::new().await;
    let path = guest.fifo("in");
    let mut pump = guest.input(Input::Fifo(path.clone())).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(
        guest.agent.stdin("c", ""),
        (vec![], false),
        "no writer yet is not the end"
    );
    let data = pattern(300 * 1024);
    for times in 1..3 {
        let (path, written) = (path.clone(), data.clone());
        tokio::task::spawn_blocking(move || {
            let mut writer = OpenOptions::new().write(true).open(path).unwrap();
            writer.write_all(&written).unwrap();
        })
        .await
        .unwrap();
        guest
            .until(|agent| agent.stdin("c", "").0.len() == times * data.len())
            .await;
        assert!(
            !guest.agent.stdin("c", "").1,
            "a client that leaves is not the end"
        );
    }
    pump.close();
    guest.until(|agent| agent.stdin("c", "").1).await;
    assert!(guest.agent.stdin("c", "").0 == [&data[..], &data[..]].concat());
}

#[tokio::test]
async fn closing_input_delivers_first_what_was_written() {
    let guest = Guest::new().await;
    let path = guest.fifo("in");
    let mut pump = guest.input(Input::Fifo(path.clone())).await;
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    writer.write_all(b"last words").unwrap();
    pump.close();
    guest.until(|agent| agent.stdin("c", "").1).await;
    assert_eq!(guest.agent.stdin("c", "").0, b"last words");
    // A second request is not an error.
    pump.close();
}

#[tokio::test]
async fn a_file_can_be_input() {
    let guest = Guest::new().await;
    let path = guest.dir.path().join("file");
    fs::write(&path, b"content").unwrap();
    let _pump = guest
        .input(Input::Descriptor(File::open(&path).unwrap().into()))
        .await;
    guest.until(|agent| agent.stdin("c", "").1).await;
    assert_eq!(guest.agent.stdin("c", "").0, b"content");
}

#[tokio::test]
async fn a_client_is_told_when_nobody_reads_its_input() {
    let guest = Guest::new().await;
    let path = guest.fifo("in");
    let _pump = guest.input(Input::Fifo(path.clone())).await;
    let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
    guest.agent.exit("c", "", 0, 0);
    timeout(SOON, async {
        // EPIPE, once the pump has learnt that the process does not read.
        while writer.write_all(b"x").is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let missing = dir.path().join("missing");
    for stdio in [
        Stdio {
            stdin: Input::Fifo(missing.clone()),
            ..Stdio::default()
        },
        Stdio {
            stdout: Output::Fifo(file.clone()),
            ..Stdio::default()
        },
        Stdio {
            stderr: Output::File(file.join("below")),
            ..Stdio::default()
        },
    ] {
        let error = Opened::open(stdio, SOON).await.unwrap_err();
        assert!(error.context.contains(dir.path().to_str().unwrap()), "{error}");
    }
}

/// Nobody reads this pipe, and a write to it waits: as to a file whose file system hangs.
#[tokio::test]
async fn a_file_that_does_not_take_output_holds_up_nobody_else() {
    let (reader, writer) = std::io::pipe().unwrap();
    let sink = crate::io::Sink::plain(writer.into());
    let writing = sink.write_all(vec![0; 1 << 20]);
    assert!(
        timeout(Duration::from_millis(50), writing).await.is_err(),
        "it waits"
    );
    drop(reader);
}

/// A process with these descriptors, its pumps running.
async fn carried(guest: &Guest, exec: &str, descriptors: Vec<OwnedFd>) -> (Vec<OutputPump>, Vec<InputPump>) {
    let stdio = Stdio {
        descriptors,
        ..Stdio::default()
    };
    let opened = Opened::open(stdio, SOON).await.unwrap();
    let request = p::ExecProcessRequest {
        container_id: "c".into(),
        exec_id: exec.into(),
        stdio: Some(opened.wanted(None)).into(),
        ..Default::default()
    };
    guest.agent.exec_process(request, None).await.unwrap();
    let target = Target {
        exec: exec.into(),
        ..guest.target.clone()
    };
    let (mut outputs, mut inputs) = (Vec::new(), Vec::new());
    for (number, more) in (3..).zip(opened.more) {
        if let Some(sink) = more.sink {
            outputs.push(OutputPump::start(
                target.clone(),
                Name::Descriptor(number),
                sink,
                || {},
            ));
        }
        if let Some(source) = more.source {
            inputs.push(InputPump::start(target.clone(), number, source));
        }
    }
    (outputs, inputs)
}

#[tokio::test]
async fn the_directions_of_a_connection_end_one_by_one() {
    let guest = Guest::new().await;
    let (mut ours, its) = StdUnixStream::pair().unwrap();
    let other = its.try_clone().unwrap();
    let _pumps = carried(&guest, "e", vec![its.into()]).await;
    ours.write_all(b"question").unwrap();
    ours.shutdown(Shutdown::Write).unwrap();
    guest
        .until(|agent| agent.descriptor("c", "e", 3) == (b"question".to_vec(), true, false))
        .await;
    guest.agent.print_to("c", "e", 3, b"answer", true);
    // Whoever else has that end: it is the process that has ended it.
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        ours.read_to_string(&mut answer).map(|_| answer)
    });
    assert_eq!(timeout(SOON, answer).await.unwrap().unwrap().unwrap(), "answer");
    let flags = rustix::fs::fcntl_getfl(&other).unwrap();
    assert!(
        !flags.contains(OFlags::NONBLOCK),
        "others have it, too: {flags:?}"
    );
}

#[tokio::test]
async fn each_side_learns_that_the_other_reads_no_more() {
    let guest = Guest::new().await;
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut ours, its) = StdUnixStream::pair().unwrap();
    let _pumps = carried(&guest, "e", vec![writer.into(), its.into()]).await;
    drop(reader);
    guest.agent.print_to("c", "e", 3, b"unheard", false);
    guest.until(|agent| agent.descriptor("c", "e", 3).2).await;
    guest.agent.stop_reading("c", "e", 4);
    let writing = tokio::task::spawn_blocking(move || {
        while ours.write_all(b"x").is_ok() {
            std::thread::yield_now();
        }
    });
    timeout(SOON, writing).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_is_no_stream_is_refused_by_its_number_and_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    fs::write(&path, "content").unwrap();
    let (read, write) = std::io::pipe().unwrap();
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let null = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")
        .unwrap();
    let memory = rustix::fs::memfd_create("m", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let unconnected = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    );
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let table: [(OwnedFd, Result<Way, &str>); 13] = [
        (read.into(), Ok(Way::Read)),
        (write.into(), Ok(Way::Write)),
        (StdUnixStream::pair().unwrap().0.into(), Ok(Way::Both)),
        (File::open(&path).unwrap().into(), Ok(Way::Read)),
        (
            OpenOptions::new().append(true).open(&path).unwrap().into(),
            Ok(Way::Write),
        ),
        (null.into(), Ok(Way::Both)),
        (both.into(), Err("a file that is opened for reading and writing")),
        (memory, Err("a file in memory (memfd)")),
        (File::open(dir.path()).unwrap().into(), Err("a directory")),
        (
            std::os::unix::net::UnixListener::bind(dir.path().join("socket"))
                .unwrap()
                .into(),
            Err("a listening socket"),
        ),
        (
            std::os::unix::net::UnixDatagram::unbound().unwrap().into(),
            Err("a socket for datagrams"),
        ),
        (unconnected.unwrap(), Err("a socket that is not connected")),
        (event, Err("an object of the host's kernel")),
    ];
    for (number, (fd, expected)) in (3..).zip(table) {
        match (check(number, &fd), expected) {
            (Ok(way), Ok(wanted)) => assert_eq!(way, wanted, "{number}"),
            (Err(error), Err(kind)) => {
                assert_eq!(error.kind, ErrorKind::Unsupported);
                let said = format!("descriptor {number} is {kind}");
                assert!(error.chain().starts_with(&said), "{}", error.chain());
            }
            (checked, wanted) => panic!("{number}: {checked:?} instead of {wanted:?}"),
        }
    }
    let zero = File::open("/dev/zero").unwrap();
    let error = check(9, &zero).unwrap_err();
    assert!(error.chain().contains("a device"), "{}", error.chain());
}

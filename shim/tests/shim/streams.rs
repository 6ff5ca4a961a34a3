//! Standard streams by every kind of address.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;

use containerd_shim_protos::api::{CloseIORequest, ExecProcessRequest, Status};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use ttrpc::Code;

use crate::stand::{Machine, context, eventually, status};

#[tokio::test]
async fn output_goes_to_a_file() {
    let machine = Machine::new();
    machine.configure(None);
    let bundle = machine.bundle("c1", "echo out; echo err >&2", &[]);
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    let file = machine.path("logs/c1.log");
    let address = format!("file://{}", file.display());
    task.create_with(&machine, &bundle, |request| request.stdout = address.clone())
        .await
        .unwrap();
    let state = task.state("").await.unwrap();
    assert_eq!(state.stdout, address, "State says what Create was told");
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    task.delete("").await.unwrap();
    let written = fs::read_to_string(&file).unwrap();
    assert!(written == "out\nerr\n" || written == "err\nout\n", "{written}");
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

/// Callers ask for the state of what is not there, again and again; and output on both streams begins once.
#[tokio::test]
async fn the_log_tells_what_is_news() {
    let machine = Machine::new();
    machine.configure(None);
    let bundle = machine.bundle("c1", "echo out; echo err >&2; sleep 1000", &[]);
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    assert_eq!(status(task.state("").await).0, Code::NOT_FOUND);
    let outputs = [machine.path("out"), machine.path("err")];
    let pipes = outputs.clone().map(|path| {
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let opened = fs::File::options().read(true).write(true).open(&path);
        opened.unwrap()
    });
    let created = task.create_with(&machine, &bundle, |request| {
        request.stdout = outputs[0].to_str().unwrap().into();
        request.stderr = outputs[1].to_str().unwrap().into();
    });
    created.await.unwrap();
    task.start("").await.unwrap();
    for mut pipe in pipes {
        pipe.read_exact(&mut [0; 4]).unwrap();
    }
    assert_eq!(status(task.state("no-exec").await).0, Code::NOT_FOUND);
    let log = server.log();
    assert_eq!(log.matches("\"first output\"").count(), 1, "{log}");
    assert!(!log.contains("a call fails"), "{log}");
    task.end(&server).await;
    machine.assert_clean();
}

#[tokio::test]
async fn output_goes_to_a_program_that_outlives_the_process_to_write_it_down() {
    let machine = Machine::new();
    machine.configure(None);
    let logger = machine.path("logger");
    let log = machine.path("log");
    let script = format!(
        "#!/bin/sh\nexec 5>&-\n(cat <&3; cat <&4; echo $CONTAINER_NAMESPACE $CONTAINER_ID $*) >{}\n",
        log.display()
    );
    fs::write(&logger, script).unwrap();
    fs::set_permissions(&logger, PermissionsExt::from_mode(0o755)).unwrap();
    let bundle = machine.bundle("c1", "echo out; echo err >&2", &[]);
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    let address = format!("binary://{}?key=value", logger.display());
    task.create_with(&machine, &bundle, |request| request.stdout = address)
        .await
        .unwrap();
    task.start("").await.unwrap();
    task.wait("").await.unwrap();
    task.delete("").await.unwrap();
    let expected = format!("out\nerr\nns {} key value\n", machine.id("c1"));
    eventually("the logger is done", || {
        fs::read_to_string(&log).is_ok_and(|log| log == expected)
    });
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

#[tokio::test]
async fn a_logger_that_cannot_be_started_leaves_nothing() {
    let machine = Machine::new();
    machine.configure(None);
    let bundle = machine.bundle("c1", "true", &[]);
    let server = machine.start("c1", &bundle);
    let task = server.task("c1").await;
    let created = task
        .create_with(&machine, &bundle, |request| {
            request.stdout = "binary:///no/such/logger".into();
        })
        .await;
    let (_, message) = status(created);
    assert!(message.contains("/no/such/logger"), "{message}");
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

/// A named pipe, and the reading end that a client of containerd has.
fn fifo(machine: &Machine, name: &str) -> (String, std::fs::File) {
    let path = machine.path(name);
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &path, FileType::Fifo, mode, 0).unwrap();
    let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
    rustix::fs::fcntl_setfl(&reader, OFlags::empty()).unwrap();
    (path.to_str().unwrap().into(), reader.into())
}

#[tokio::test]
async fn clients_of_a_process_that_could_not_be_started_get_the_end_of_its_output() {
    let machine = Machine::new();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    task.start("").await.unwrap();
    let (stdout, mut out) = fifo(&machine, "out");
    let (stderr, mut err) = fifo(&machine, "err");
    let spec = |request: &mut ExecProcessRequest| {
        let spec = request.spec.as_mut().unwrap();
        let json = String::from_utf8(spec.value.clone()).unwrap();
        spec.value = json.replace("/bin/sh", "no-such-program").into_bytes();
        (request.stdout, request.stderr) = (stdout.clone(), stderr.clone());
    };
    task.exec_with("e1", "true", spec).await.unwrap();
    let (code, message) = status(task.start("e1").await);
    assert_eq!(code, Code::INVALID_ARGUMENT);
    assert!(message.contains("no-such-program"), "{message}");
    assert_eq!(task.state("e1").await.unwrap().status.unwrap(), Status::CREATED);
    // containerd's client waits for this before it deletes the process.
    let mut got = String::new();
    out.read_to_string(&mut got).unwrap();
    err.read_to_string(&mut got).unwrap();
    assert_eq!(got, "");
    let (code, message) = status(task.start("e1").await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{message}");
    assert_eq!(task.delete("e1").await.unwrap().exit_status, 255);
    task.end(&server).await;
    machine.assert_clean();
}

#[tokio::test]
async fn all_input_arrives_before_its_end_and_all_output_after_it() {
    let machine = Machine::new();
    let (server, task) = machine.created("c1", "sleep 1000").await;
    task.start("").await.unwrap();
    let input: Vec<u8> = (0..200_000_u32)
        .flat_map(|n| (n.wrapping_mul(2_654_435_761) >> 24).to_le_bytes())
        .step_by(4)
        .collect();
    for round in 0..20 {
        let exec = format!("e{round}");
        let (stdin, unused) = fifo(&machine, &format!("in{round}"));
        let (stdout, mut out) = fifo(&machine, &format!("out{round}"));
        task.exec_with(&exec, "exec cat", |request| {
            (request.stdin, request.stdout) = (stdin.clone(), stdout.clone());
        })
        .await
        .unwrap();
        let writer = std::fs::File::options().write(true).open(&stdin).unwrap();
        drop(unused);
        let reading = std::thread::spawn(move || {
            let mut got = Vec::new();
            out.read_to_end(&mut got).unwrap();
            got
        });
        task.start(&exec).await.unwrap();
        // As `ctr` does it: first it says that there is no more, then it closes the pipe.
        let written = input.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let mut writer = writer;
            std::io::Write::write_all(&mut writer, &written).unwrap();
            writer
        })
        .await
        .unwrap();
        let close = CloseIORequest {
            id: machine.id("c1"),
            exec_id: exec.clone(),
            stdin: true,
            ..Default::default()
        };
        task.client.close_io(context(), &close).await.unwrap();
        drop(writer);
        assert_eq!(task.wait(&exec).await.unwrap().exit_status, 0);
        let got = tokio::task::spawn_blocking(|| reading.join().unwrap())
            .await
            .unwrap();
        assert!(
            got == input,
            "round {round}: {} bytes of {} came back",
            got.len(),
            input.len()
        );
        task.delete(&exec).await.unwrap();
    }
    task.end(&server).await;
    machine.assert_clean();
}

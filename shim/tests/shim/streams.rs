//! Standard streams by every kind of address.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::stand::{Machine, eventually};

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
    let (_, message) = crate::stand::status(created);
    assert!(message.contains("/no/such/logger"), "{message}");
    task.shutdown().await.unwrap();
    server.ended();
    machine.assert_clean();
}

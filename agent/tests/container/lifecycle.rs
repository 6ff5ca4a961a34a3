//! States and endings: what is refused when, and that nothing is left.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use agent::container::{Error, ProcessStdio, apart_with};
use nix::sys::signal::Signal;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{read, write};
use rustix::pipe::pipe;
use serde_json::json;

use crate::fixture::{Fixture, exit_code};

pub async fn a_paused_container_refuses_exec() {
    let fixture = Fixture::script("sleep 1000");
    let (container, started) = fixture.start().await;
    container.pause().await.unwrap();
    let error = container
        .exec(&fixture.exec_process("true"), ProcessStdio::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::State("the container is paused")),
        "{error}"
    );
    container.resume().await.unwrap();
    assert_eq!(fixture.exec(&container, "true").await.code, 0);
    // A paused one can be deleted.
    container.pause().await.unwrap();
    container.delete().await.unwrap();
    assert_eq!(exit_code(started.pid).await, 137);
}

pub async fn a_stopped_container_refuses_exec() {
    let fixture = Fixture::script("true");
    let (mut container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(exit_code(started.pid).await, 0);
    let error = container
        .exec(&fixture.exec_process("true"), ProcessStdio::default())
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::State("the container is stopped")),
        "{error}"
    );
    let error = container.start().await.unwrap_err();
    assert!(matches!(error, Error::State(_)), "{error}");
    container.delete().await.unwrap();
}

pub async fn its_mounts_live_until_it_is_deleted() {
    let kept = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        links
            .filter_map(|entry| std::fs::read_link(entry.path()).ok())
            .filter(|link| link.to_string_lossy().starts_with("mnt:["))
            .count()
    };
    let before = kept();
    let fixture = Fixture::script("true");
    let (mut container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
    container.start().await.unwrap();
    assert_eq!(exit_code(started.pid).await, 0);
    assert_eq!(kept(), before + 1, "they have ended with the process");
    container.delete().await.unwrap();
    assert_eq!(kept(), before);
}

pub async fn a_failed_creation_leaves_nothing() {
    // At three depths: before anything is made, in the child before its root, and at its very end. That nothing is left
    // is asserted after each case.
    let mut fixture = Fixture::new();
    fixture.spec["root"]["path"] = json!("/nonexistent/root");
    let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/root"), "{error}");

    let mut fixture = Fixture::new();
    fixture.add_mount(
        json!({"destination": "/x", "type": "bind", "source": "/nonexistent/source", "options": ["rbind"]}),
    );
    let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
    assert!(error.to_string().contains("/nonexistent/source"), "{error}");

    let mut fixture = Fixture::new();
    fixture.spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "time"}));
    let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }), "{error}");

    let mut fixture = Fixture::new();
    fixture.spec["process"]["args"] = json!(["/nonexistent/program"]);
    fixture.create(ProcessStdio::default()).await.unwrap_err();
}

pub async fn deletion_kills_what_is_left() {
    let fixture = Fixture::script("sleep 1000 & setsid sleep 1001 & sleep 1002");
    let (container, started) = fixture.start().await;
    // The shell has started them all once an exec sees them.
    let output = fixture
        .exec(
            &container,
            "until [ $(ps | grep -c 'sleep 100[012]$') = 3 ]; do :; done; echo all",
        )
        .await;
    assert_eq!(output.stdout, "all\n");
    assert_eq!(container.pids().len(), 3);
    container.signal_all(Signal::SIGTERM).unwrap();
    container.delete().await.unwrap();
    assert_eq!(exit_code(started.pid).await, 137);

    // One that never started is deleted as well.
    let (container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
    container.delete().await.unwrap();
    exit_code(started.pid).await;
}

pub async fn nested_cgroups_are_removed() {
    let mut fixture = Fixture::script(
        "mkdir -p /sys/fs/cgroup/a/b && echo $$ > /sys/fs/cgroup/a/b/cgroup.procs; sleep 1000",
    );
    fixture.spec["mounts"][6]["options"] = json!(["rw"]);
    let (container, started) = fixture.start().await;
    let nested = container.cgroup().join("a/b/cgroup.procs");
    fixture
        .exec(
            &container,
            "until grep -q 1 /sys/fs/cgroup/a/b/cgroup.procs; do :; done",
        )
        .await;
    assert!(!std::fs::read_to_string(nested).unwrap().is_empty());
    assert_eq!(container.pids().len(), 1, "found in the nested cgroup");
    // With a controller given to the nested cgroups, the container's own can't have processes any more.
    let own = container.cgroup().to_owned();
    if !container.is_unlimited() {
        std::fs::write(own.join("cgroup.subtree_control"), "+pids").unwrap();
    }
    assert_eq!(fixture.exec(&container, "true").await.code, 0);
    container.delete().await.unwrap();
    exit_code(started.pid).await;
}

pub async fn limits_are_in_force_or_said_not_to_be() {
    let mut fixture = Fixture::script("sleep 1000");
    fixture.spec["linux"]["resources"] = json!({
        "memory": {"limit": 67_108_864, "reservation": 33_554_432, "swap": 67_108_864},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0"},
        "pids": {"limit": 17},
    });
    let (container, started) = fixture.start().await;
    let read = |file: &str| std::fs::read_to_string(container.cgroup().join(file)).ok();
    let of = |when: &str, expected: [(&str, &str); 6]| {
        for (file, content) in expected {
            // A tree without controllers has none of the files.
            let wanted = (!container.is_unlimited()).then(|| format!("{content}\n"));
            assert_eq!(read(file), wanted, "{when}: {file}");
        }
    };
    let created = [
        ("memory.max", "67108864"),
        ("memory.low", "33554432"),
        ("cpu.weight", "59"),
        ("cpu.max", "50000 100000"),
        ("cpuset.cpus", "0"),
        ("pids.max", "17"),
    ];
    of("created", created);
    let update = json!({"memory": {"limit": 134_217_728}, "cpu": {"quota": -1, "shares": 1024}, "pids": {"limit": -1}});
    container
        .update(&serde_json::from_value(update).unwrap())
        .unwrap();
    of(
        "updated",
        [
            ("memory.max", "134217728"),
            ("memory.low", "33554432"),
            ("cpu.weight", "100"),
            ("cpu.max", "max 100000"),
            ("cpuset.cpus", "0"),
            ("pids.max", "max"),
        ],
    );
    container.delete().await.unwrap();
    exit_code(started.pid).await;
}

pub async fn what_hangs_is_waited_for_so_long_and_undone_when_nobody_waits() {
    const WHAT: &str = "a test";
    const LONG: Duration = Duration::from_secs(60);
    let limit = Timespec {
        tv_sec: 60,
        tv_nsec: 0,
    };
    let (from, to) = pipe().unwrap();
    let after = |was_told| {
        let _ = write(&to, &[u8::from(was_told)]);
    };
    let told = apart_with(to.as_fd(), || Ok(()), after).unwrap();
    told.result_within(WHAT, LONG).await.unwrap().unwrap();
    // What follows is nobody's to wait for.
    let mut followed = [PollFd::new(&from, PollFlags::IN)];
    assert_eq!(poll(&mut followed, Some(&limit)).unwrap(), 1);
    let mut was_told = [0; 1];
    read(&from, &mut was_told).unwrap();
    assert_eq!(was_told, [1]);
    let told = apart_with(to.as_fd(), || Err(io::Error::from_raw_os_error(117)), |_| ()).unwrap();
    let error = told.result_within(WHAT, LONG).await.unwrap().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(117));
    let killed = || Ok(nix::sys::signal::raise(Signal::SIGKILL)?);
    let told = apart_with(to.as_fd(), killed, |_| ()).unwrap();
    let error = told.result_within(WHAT, LONG).await.unwrap_err();
    assert!(matches!(error, Error::Vanished), "{error}");

    // It hangs until somebody writes to the one descriptor that it keeps.
    let (until, go) = pipe().unwrap();
    let (undone, tell) = pipe().unwrap();
    drop((from, to));
    let work = || {
        read(&until, &mut [0; 1])?;
        Ok(())
    };
    // The other descriptor is closed in it, and what is undone shows in a file.
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("undone");
    let undo = |was_told: bool| {
        let others = write(&tell, b"x").is_ok();
        std::fs::write(&mark, format!("{was_told} {others}")).unwrap();
    };
    let told = apart_with(until.as_fd(), work, undo).unwrap();
    let error = told
        .result_within(WHAT, Duration::from_millis(50))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Late { what: WHAT, .. }), "{error}");
    assert!(!mark.exists(), "it is not done yet");
    drop(tell);
    write(&go, b"x").unwrap();
    // Its end closes the last reader of this pipe.
    drop((until, undone));
    let mut closed = [PollFd::new(&go, PollFlags::empty())];
    assert_eq!(poll(&mut closed, Some(&limit)).unwrap(), 1);
    assert_eq!(std::fs::read_to_string(&mark).unwrap(), "false false");
}

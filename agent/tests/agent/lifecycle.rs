//! The life of sandboxes, containers and processes, asked of a real agent over a real connection.

use std::time::Duration;

use agent_client::{Agent as _, ErrorKind};
use agent_protocol as p;

use crate::support::{SOON, Sandbox, alive, container, end_of_input, named};

const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;

#[tokio::test]
async fn an_agent_says_who_it_is_and_serves_from_one_thread() {
    let sandbox = Sandbox::blank().await;
    let hello = sandbox
        .agent
        .hello(p::HelloRequest::default(), SOON)
        .await
        .unwrap();
    assert_eq!(hello.protocol_version, p::VERSION);
    assert_eq!(
        hello.kernel_release,
        std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap()
            .trim()
    );
    let entropy = |bytes| p::HelloRequest {
        entropy: vec![7; bytes],
        ..Default::default()
    };
    sandbox.agent.hello(entropy(64), SOON).await.unwrap();
    let error = sandbox.agent.hello(entropy(513), SOON).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    sandbox.destroy().await;
}

#[tokio::test]
async fn the_order_of_calls_is_kept() {
    let sandbox = Sandbox::blank().await;
    let early = sandbox.create("c", "true", "").await.unwrap_err();
    assert_eq!(early.kind, ErrorKind::FailedPrecondition, "{early}");
    let request = p::CreateSandboxRequest {
        sandbox_id: "s".into(),
        ..Default::default()
    };
    sandbox.agent.create_sandbox(request.clone(), SOON).await.unwrap();
    let twice = sandbox.agent.create_sandbox(request, SOON).await.unwrap_err();
    assert_eq!(twice.kind, ErrorKind::AlreadyExists, "{twice}");
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_sandbox_has_shm_and_files_for_its_containers() {
    let sandbox = Sandbox::blank().await;
    let dns = p::Dns {
        servers: vec!["10.0.0.1".into()],
        ..Default::default()
    };
    let request = p::CreateSandboxRequest {
        sandbox_id: "s".into(),
        dns: Some(dns).into(),
        hostname: "web".into(),
        shm_size: 8 << 20,
        ..Default::default()
    };
    sandbox.agent.create_sandbox(request, SOON).await.unwrap();
    let hostname = sandbox.root().join("hostname");
    assert_eq!(std::fs::read_to_string(&hostname).unwrap(), "web\n");
    assert_eq!(
        std::fs::read_to_string(sandbox.root().join("resolv.conf")).unwrap(),
        "nameserver 10.0.0.1\n"
    );
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", sandbox.pid())).unwrap();
    let shm = mounts
        .lines()
        .find(|line| line.contains(&format!("{}/shm ", sandbox.root().display())))
        .unwrap();
    assert!(
        shm.contains("size=8192k") && shm.contains("nosuid,nodev,noexec"),
        "{shm}"
    );
    sandbox.destroy().await;
}

#[tokio::test]
async fn an_agent_that_is_a_process_leaves_the_hosts_processors_and_memory_alone() {
    let sandbox = Sandbox::blank().await;
    let request = p::GrowthRequest {
        vcpus: 4000,
        added_mib: 1 << 30,
        ..Default::default()
    };
    let early = sandbox
        .agent
        .take_growth(request.clone(), SOON)
        .await
        .unwrap_err();
    assert_eq!(early.kind, ErrorKind::FailedPrecondition, "{early}");
    let create = p::CreateSandboxRequest {
        sandbox_id: "s".into(),
        grows: true,
        ..Default::default()
    };
    sandbox.agent.create_sandbox(create, SOON).await.unwrap();
    let taken = sandbox.agent.take_growth(request, SOON).await.unwrap();
    assert_eq!((taken.vcpus, taken.added_mib), (4000, 1 << 30));
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_container_lives_from_create_to_delete_and_its_id_is_free_again() {
    let sandbox = Sandbox::ready().await;
    for round in 0..3_u32 {
        let pid = sandbox
            .create("c", &format!("echo round; exit {}", round + 3), "o")
            .await
            .unwrap();
        assert!(alive(pid), "created, but not yet executed");
        let twice = sandbox.create("c", "true", "").await.unwrap_err();
        assert_eq!(twice.kind, ErrorKind::AlreadyExists, "{twice}");
        let runs = sandbox.delete("c", false).await.unwrap_err();
        assert_eq!(runs.kind, ErrorKind::FailedPrecondition, "{runs}");
        sandbox.start("c").await.unwrap();
        assert_eq!(sandbox.wait("c", "").await.unwrap(), round + 3);
        assert_eq!(
            sandbox.wait("c", "").await.unwrap(),
            round + 3,
            "asked again after the end"
        );
        assert_eq!(
            sandbox.output("c", "").await,
            "round\n",
            "written before the end, read after it"
        );
        for again in [sandbox.start("c").await, sandbox.signal("c", "", SIGTERM).await] {
            assert_eq!(again.unwrap_err().kind, ErrorKind::FailedPrecondition);
        }
        sandbox.delete("c", false).await.unwrap();
        assert_eq!(sandbox.wait("c", "").await.unwrap_err().kind, ErrorKind::NotFound);
    }
    let tasks = std::fs::read_dir(format!("/proc/{}/task", sandbox.pid()))
        .unwrap()
        .count();
    assert_eq!(tasks, 1, "a second thread would make fork unsafe");
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_wait_from_before_the_end_is_answered_at_the_end() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "cat; exit 5", "io").await;
    let (first, second, ended) = tokio::join!(sandbox.wait("c", ""), sandbox.wait("c", ""), async {
        sandbox.agent.close_stdin(end_of_input("c", ""), SOON).await
    });
    ended.unwrap();
    assert_eq!((first.unwrap(), second.unwrap()), (5, 5));
    sandbox.delete("c", false).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn processes_are_added_signalled_and_forgotten() {
    let sandbox = Sandbox::ready().await;
    let early = sandbox.create("c", "sleep 1000", "").await;
    early.unwrap();
    let refused = sandbox.exec("c", "e", "true", "").await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::FailedPrecondition, "{refused}");
    sandbox.start("c").await.unwrap();

    let pid = sandbox.exec("c", "e", "sleep 1000", "").await.unwrap();
    let twice = sandbox.exec("c", "e", "true", "").await.unwrap_err();
    assert_eq!(twice.kind, ErrorKind::AlreadyExists, "{twice}");
    let pids = sandbox
        .agent
        .list_processes(container("c"), SOON)
        .await
        .unwrap()
        .pids;
    assert!(pids.contains(&pid) && pids.len() >= 2, "{pid} in {pids:?}");
    let runs = sandbox
        .agent
        .delete_process(named("c", "e"), SOON)
        .await
        .unwrap_err();
    assert_eq!(runs.kind, ErrorKind::FailedPrecondition, "{runs}");
    sandbox.signal("c", "e", SIGTERM).await.unwrap();
    assert_eq!(sandbox.wait("c", "e").await.unwrap(), 128 + SIGTERM);
    let ended = sandbox.signal("c", "e", SIGTERM).await.unwrap_err();
    assert_eq!(
        (ended.kind, ended.message.as_str()),
        (ErrorKind::FailedPrecondition, "process already ended")
    );
    sandbox.agent.delete_process(named("c", "e"), SOON).await.unwrap();
    assert_eq!(
        sandbox.wait("c", "e").await.unwrap_err().kind,
        ErrorKind::NotFound
    );

    sandbox.exec("c", "e", "exit 9", "").await.unwrap();
    assert_eq!(sandbox.wait("c", "e").await.unwrap(), 9, "the id is free again");
    sandbox.signal("c", "", SIGKILL).await.unwrap();
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 128 + SIGKILL);
    sandbox.delete("c", false).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_creation_that_waits_for_its_disk_holds_up_nobody_else() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    let create = p::CreateContainerRequest {
        container_id: "slow".into(),
        spec: crate::support::spec("true", false).to_string().into_bytes(),
        storages: vec![p::Storage {
            driver: "block".into(),
            source: "serial:no-such-disk".into(),
            fstype: "ext4".into(),
            mount_point: "/run/kata/disk".into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let others = async {
        sandbox.signal("c", "", SIGKILL).await.unwrap();
        assert_eq!(sandbox.wait("c", "").await.unwrap(), 128 + SIGKILL);
        sandbox.delete("c", false).await.unwrap();
        let taken = sandbox.create("slow", "true", "").await.unwrap_err();
        assert_eq!(taken.kind, ErrorKind::AlreadyExists, "{taken}");
    };
    tokio::select! {
        biased;
        created = sandbox.agent.create_container(create, SOON) => panic!("before the others: {created:?}"),
        () = others => {}
    }
    // The caller has given up by now. Destruction waits for the end of the creation, and finds nothing left of it.
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_signal_reaches_one_or_all_and_may_be_a_real_time_one() {
    let sandbox = Sandbox::ready().await;
    sandbox
        .run(
            "c",
            "trap 'exit 3' 37; echo ready; while :; do sleep 0.05; done",
            "o",
        )
        .await;
    sandbox.expect("c", "", "ready").await;
    for exec in ["a", "b"] {
        sandbox.exec("c", exec, "exec sleep 1000", "").await.unwrap();
    }
    let all = p::SignalProcessRequest {
        container_id: "c".into(),
        signal: SIGTERM,
        all: true,
        ..Default::default()
    };
    sandbox.agent.signal_process(all, SOON).await.unwrap();
    for exec in ["a", "b"] {
        assert_eq!(sandbox.wait("c", exec).await.unwrap(), 128 + SIGTERM);
    }
    // The first process of a pid namespace does not even notice a signal that it does not handle.
    sandbox.signal("c", "", 37).await.unwrap();
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 3);
    sandbox.delete("c", false).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn the_end_of_init_ends_every_process_of_its_container() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    let pid = sandbox.exec("c", "e", "sleep 1000", "").await.unwrap();
    sandbox.signal("c", "", SIGKILL).await.unwrap();
    assert_eq!(sandbox.wait("c", "e").await.unwrap(), 128 + SIGKILL);
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 128 + SIGKILL);
    assert!(!alive(pid));
    sandbox.delete("c", false).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn what_can_not_execute_says_so_and_can_be_deleted() {
    let sandbox = Sandbox::ready().await;
    let mut spec = crate::support::spec("", false);
    spec["process"]["args"] = serde_json::json!(["/bin/nonsense"]);
    let request = p::CreateContainerRequest {
        container_id: "c".into(),
        spec: spec.to_string().into_bytes(),
        ..Default::default()
    };
    // A program that is not there may be noticed by either of the two calls.
    let error = match sandbox.agent.create_container(request, SOON).await {
        Ok(_) => sandbox.start("c").await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.message.contains("/bin/nonsense"), "{error}");
    match sandbox.delete("c", true).await {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind, ErrorKind::NotFound, "{error}"),
    }
    sandbox.run("c", "true", "").await;
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
    sandbox.delete("c", true).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_paused_container_stands_still_and_can_be_killed() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "cat", "io").await;
    sandbox.agent.pause_container(container("c"), SOON).await.unwrap();
    let twice = sandbox
        .agent
        .pause_container(container("c"), SOON)
        .await
        .unwrap_err();
    assert_eq!(twice.kind, ErrorKind::FailedPrecondition, "{twice}");
    sandbox.write("c", "", b"hello").await.unwrap();
    let mut read = Box::pin(sandbox.read("c", "", p::Stream::STDOUT, 16));
    let frozen = tokio::time::timeout(Duration::from_millis(200), &mut read).await;
    frozen.expect_err("a frozen process answers nothing");
    sandbox
        .agent
        .resume_container(container("c"), SOON)
        .await
        .unwrap();
    assert_eq!(read.as_mut().await.unwrap().as_deref(), Some(&b"hello"[..]));
    drop(read);
    sandbox.agent.pause_container(container("c"), SOON).await.unwrap();
    sandbox.delete("c", true).await.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn what_nobody_knows_is_not_found() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    for (id, exec) in [("nobody", ""), ("c", "nobody")] {
        for answer in [
            sandbox.wait(id, exec).await.map(drop),
            sandbox.signal(id, exec, SIGKILL).await,
            sandbox.read(id, exec, p::Stream::STDOUT, 1).await.map(drop),
            sandbox.write(id, exec, b"x").await.map(drop),
            sandbox
                .agent
                .close_stdin(end_of_input(id, exec), SOON)
                .await
                .map(drop),
        ] {
            assert_eq!(answer.unwrap_err().kind, ErrorKind::NotFound, "{id:?} {exec:?}");
        }
    }
    for answer in [
        sandbox.start("nobody").await,
        sandbox.delete("nobody", true).await,
        sandbox.exec("nobody", "e", "true", "").await.map(drop),
        sandbox
            .agent
            .stats_container(container("nobody"), SOON)
            .await
            .map(drop),
        sandbox
            .agent
            .pause_container(container("nobody"), SOON)
            .await
            .map(drop),
    ] {
        assert_eq!(answer.unwrap_err().kind, ErrorKind::NotFound);
    }
    sandbox.destroy().await;
}

#[tokio::test]
async fn wrong_requests_are_refused_and_leave_nothing() {
    let sandbox = Sandbox::ready().await;
    for id in ["", "..", "a/b", "-x", &"x".repeat(129)] {
        assert_eq!(
            sandbox.create(id, "true", "").await.unwrap_err().kind,
            ErrorKind::InvalidArgument,
            "{id:?}"
        );
    }
    let create = |spec: Vec<u8>, mount_point: &str| p::CreateContainerRequest {
        container_id: "c".into(),
        spec,
        storages: vec![p::Storage {
            driver: "tmpfs".into(),
            mount_point: mount_point.into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let good = crate::support::spec("true", false).to_string().into_bytes();
    let mut outside = crate::support::spec("true", false);
    outside["root"]["path"] = "/etc".into();
    for (what, request) in [
        ("no JSON", create(b"{".to_vec(), "/run/kata/t")),
        ("no specification", create(b"{}".to_vec(), "/run/kata/t")),
        ("too large", create(vec![b' '; p::MAX_SPEC + 1], "/run/kata/t")),
        (
            "a root outside",
            create(outside.to_string().into_bytes(), "/run/kata/t"),
        ),
        ("a mount point outside", create(good.clone(), "/etc")),
        ("a mount point above", create(good, "/run/kata/../x")),
    ] {
        let error = sandbox.agent.create_container(request, SOON).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{what}: {error}");
        assert!(
            !sandbox.root().join("t").exists(),
            "{what}: a mount point is left"
        );
    }
    sandbox.run("c", "sleep 1000", "i").await;
    for signal in [65, u32::MAX] {
        assert_eq!(
            sandbox.signal("c", "", signal).await.unwrap_err().kind,
            ErrorKind::InvalidArgument
        );
    }
    let large = vec![0; p::MAX_CHUNK + 1];
    assert_eq!(
        sandbox.write("c", "", &large).await.unwrap_err().kind,
        ErrorKind::InvalidArgument
    );
    // More than a message of ttrpc may carry: refused by either end, and the connection lives on.
    let huge = create(vec![b' '; 5 << 20], "/run/kata/t");
    sandbox.agent.create_container(huge, SOON).await.unwrap_err();
    sandbox
        .agent
        .hello(p::HelloRequest::default(), SOON)
        .await
        .unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn containers_outlive_the_connection_that_made_them() {
    let mut sandbox = Sandbox::ready().await;
    sandbox.run("c", "echo before; cat", "io").await;
    sandbox.reconnect_after_hang_up().await;
    sandbox.expect("c", "", "before").await;
    sandbox.write("c", "", b"after").await.unwrap();
    sandbox.expect("c", "", "after").await;
    sandbox.destroy().await;
}

#[tokio::test]
async fn containers_end_with_an_agent_that_is_killed_as_they_do_with_a_guest() {
    let mut sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    let pids = [
        sandbox.exec("c", "e", "sleep 1000", "").await.unwrap(),
        sandbox
            .agent
            .list_processes(container("c"), SOON)
            .await
            .unwrap()
            .pids[0],
    ];
    sandbox.kill();
    let lost = sandbox.wait("c", "").await.unwrap_err();
    assert_eq!(lost.kind, ErrorKind::Unavailable, "{lost}");
    let until = tokio::time::Instant::now() + Duration::from_secs(10);
    while pids.into_iter().any(alive) {
        assert!(
            tokio::time::Instant::now() < until,
            "processes of a dead agent live on"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn destruction_gives_time_to_those_who_comply_and_ends_the_others() {
    let sandbox = Sandbox::ready().await;
    sandbox
        .run(
            "good",
            "trap 'exit 0' TERM; echo ready; while :; do sleep 0.1; done",
            "o",
        )
        .await;
    sandbox
        .run(
            "bad",
            "trap '' TERM; echo ready; while :; do sleep 0.1; done",
            "o",
        )
        .await;
    sandbox.expect("good", "", "ready").await;
    sandbox.expect("bad", "", "ready").await;
    let request = p::DestroySandboxRequest {
        grace_ns: 300_000_000,
        ..Default::default()
    };
    let (good, bad, destroyed) = tokio::join!(
        sandbox.wait("good", ""),
        sandbox.wait("bad", ""),
        sandbox.agent.destroy_sandbox(request, SOON)
    );
    assert_eq!((good.unwrap(), bad.unwrap()), (0, 128 + SIGKILL));
    destroyed.unwrap();
    sandbox.destroy().await;
}

#[tokio::test]
async fn limits_are_read_changed_and_counted() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    // This host may have no controller in its hierarchy of version 2; cpu.stat is always there.
    let stats = sandbox.agent.stats_container(container("c"), SOON).await.unwrap();
    assert!(stats.cpu.usage_usec > 0, "{stats:?}");
    let nonsense = p::UpdateContainerRequest {
        container_id: "c".into(),
        resources: b"[".to_vec(),
        ..Default::default()
    };
    let refused = sandbox.agent.update_container(nonsense, SOON).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
    let nothing = p::UpdateContainerRequest {
        container_id: "c".into(),
        resources: b"{}".to_vec(),
        ..Default::default()
    };
    sandbox.agent.update_container(nothing, SOON).await.unwrap();
    sandbox.destroy().await;
}

/// Where nothing of the host is shared: a secret as the kubelet lays it out, and a file that the container may change for itself.
#[tokio::test]
async fn a_container_has_copies_that_go_with_it() {
    let sandbox = Sandbox::ready().await;
    let mut spec = crate::support::spec(
        "cat /secret/token /etc/greeting; echo more >> /etc/greeting && cat /etc/greeting",
        false,
    );
    let mounts =
        [("/secret", "c0m0", "ro"), ("/etc/greeting", "c0m1", "rw")].map(|(destination, name, option)| {
            serde_json::json!({"destination": destination, "type": "bind", "options": ["rbind", option],
            "source": format!("/run/kata/copies/{name}/data")})
        });
    spec["mounts"].as_array_mut().unwrap().extend(mounts);
    let file = |path: &str, mode, data: &str| p::CopiedFile {
        path: path.into(),
        mode,
        data: data.into(),
        ..Default::default()
    };
    let copy = |name: &str, files| p::Storage {
        driver: "copy".into(),
        mount_point: format!("/run/kata/copies/{name}"),
        files,
        ..Default::default()
    };
    let secret = vec![
        file("data", 0o040_755, ""),
        file("data/..1", 0o040_755, ""),
        file("data/..1/token", 0o100_644, "secret\n"),
        file("data/..data", 0o120_777, "..1"),
        file("data/token", 0o120_777, "..data/token"),
    ];
    let request = |storages| p::CreateContainerRequest {
        container_id: "c".into(),
        spec: spec.to_string().into_bytes(),
        storages,
        stdio: Some(p::Stdio {
            stdout: true,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let twice = vec![file("data", 0o100_644, "a"), file("data", 0o100_644, "b")];
    let error = sandbox
        .agent
        .create_container(request(vec![copy("c0m0", twice)]), SOON)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("copies/c0m0/data"), "{error}");
    let greeting = vec![file("data", 0o100_644, "hello\n")];
    let storages = vec![copy("c0m0", secret), copy("c0m1", greeting)];
    sandbox
        .agent
        .create_container(request(storages), SOON)
        .await
        .unwrap();
    sandbox.start("c").await.unwrap();
    sandbox.expect("c", "", "secret\nhello\nhello\nmore\n").await;
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);
    sandbox.delete("c", false).await.unwrap();
    sandbox.destroy().await;
}

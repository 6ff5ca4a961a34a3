//! The process itself: who and where it is, its limits and terminal, and what happens when it can't be executed.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;

use agent::container::{Error, ProcessStdio};
use serde_json::json;
use tokio::io::unix::AsyncFd;

use crate::fixture::{Fixture, PATIENCE, Streams, exit_code};

pub async fn limits_user_groups_and_directory() {
    let script =
        "grep 'open files' /proc/self/limits; id -u; id -g; grep Groups: /proc/self/status; pwd; umask;
        cat /proc/self/oom_score_adj; echo x > /dev/stdout";
    let mut fixture = Fixture::script(script);
    fixture.spec["process"]["user"] =
        json!({"uid": 1000, "gid": 1001, "additionalGids": [5, 1002], "umask": 0o027});
    fixture.spec["process"]["cwd"] = json!("/work/here");
    fixture.spec["process"]["oomScoreAdj"] = json!(123);
    let output = fixture.run().await;
    let lines: Vec<String> = output
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        lines,
        [
            "Max open files 512 1024 files",
            "1000",
            "1001",
            "Groups: 5 1002",
            "/work/here",
            "0027",
            "123",
            "x"
        ],
        "{output:?}"
    );
}

pub async fn home_comes_from_passwd() {
    for (uid, home) in [(0, "/root"), (33, "/srv"), (77, "/")] {
        let mut fixture = Fixture::script("echo $HOME");
        fixture.spec["process"]["env"] = json!(["PATH=/bin"]);
        fixture.spec["process"]["user"]["uid"] = json!(uid);
        assert_eq!(fixture.run().await.stdout.trim(), home);
    }
    let mut fixture = Fixture::script("echo $HOME");
    fixture.spec["process"]["env"] = json!(["PATH=/bin"]);
    let passwd = fixture.root().join("etc/passwd");
    fs::remove_file(&passwd).unwrap();
    nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(
        fixture.run().await.stdout.trim(),
        "/",
        "a FIFO does not hang the agent"
    );
}

pub async fn host_and_domain_name_and_sysctl() {
    let script =
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni";
    let mut fixture = Fixture::script(script);
    fixture.spec["domainname"] = json!("example.org");
    fixture.spec["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "777"});
    let output = fixture.run().await;
    assert_eq!(output.stdout, "box\nexample.org\n1\n777\n", "{output:?}");

    for (key, value, remedy) in [
        ("net.ipv4.no_such", "1", "leave it out"),
        ("kernel.shmmni", "many", "correct it"),
    ] {
        fixture.spec["linux"]["sysctl"] = json!({key: value});
        let refused = fixture.create(ProcessStdio::default()).await.unwrap_err();
        assert_eq!(refused.kind(), agent::error::Kind::InvalidArgument, "{refused}");
        let said = refused.to_string();
        assert!(
            [key, value, remedy].iter().all(|word| said.contains(word)),
            "{said}"
        );
    }
}

async fn read_all(console: OwnedFd) -> String {
    rustix::io::ioctl_fionbio(&console, true).unwrap();
    #[allow(deprecated)]
    let console = AsyncFd::new(console).unwrap();
    let mut text = Vec::new();
    let read = async {
        loop {
            let mut bytes = [0; 512];
            let result = console
                .async_io(tokio::io::Interest::READABLE, |fd| {
                    rustix::io::read(fd, &mut bytes).map_err(std::io::Error::from)
                })
                .await;
            match result {
                Ok(0) | Err(_) => return,
                Ok(length) => text.extend(&bytes[..length]),
            }
        }
    };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("the terminal is not closed");
    String::from_utf8(text).unwrap().replace('\r', "")
}

fn terminal() -> ProcessStdio {
    ProcessStdio {
        terminal: true,
        size: Some((132, 43)),
        ..ProcessStdio::default()
    }
}

pub async fn a_terminal_works() {
    let script = "tty; stty size; stat -c '%u' $(tty); stat -L -c '%t:%T' /dev/console; echo hi > /dev/tty";
    let mut fixture = Fixture::script(script);
    fixture.spec["process"]["user"]["uid"] = json!(33);
    let (mut container, started) = fixture.create(terminal()).await.unwrap();
    container.start().await.unwrap();
    let text = read_all(started.console.unwrap()).await;
    exit_code(started.pid).await;
    container.delete().await.unwrap();
    assert_eq!(text, "/dev/pts/0\n43 132\n33\n88:0\nhi\n");

    let mut fixture = Fixture::script("sleep 1000");
    fixture.spec["process"]["user"]["uid"] = json!(33);
    let (container, init) = fixture.start().await;
    let process = fixture.exec_process("tty; stty size; echo hi > /dev/tty");
    let started = container.exec(&process, terminal()).await.unwrap();
    assert_eq!(
        read_all(started.console.unwrap()).await,
        "/dev/pts/0\n43 132\nhi\n"
    );
    exit_code(started.pid).await;
    container.delete().await.unwrap();
    exit_code(init.pid).await;
}

pub async fn missing_programs_are_named() {
    let table = [
        ("foo", "exec: \"foo\": executable file not found in $PATH"),
        ("/nope", "exec: \"/nope\": stat /nope: no such file or directory"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
        ("/etc", "exec: \"/etc\": is a directory"),
    ];
    for (program, text) in table {
        let mut fixture = Fixture::new();
        fixture.spec["process"]["args"] = json!([program]);
        let error = fixture.create(ProcessStdio::default()).await.unwrap_err();
        assert!(matches!(error, Error::Program(_)));
        assert_eq!(error.to_string(), text);
    }
    let fixture = Fixture::script("sleep 1000");
    let (container, started) = fixture.start().await;
    for (program, text) in table {
        let mut process = fixture.exec_process("");
        process.set_args(Some(vec![program.to_owned()]));
        let error = container
            .exec(&process, ProcessStdio::default())
            .await
            .unwrap_err();
        assert_eq!(error.to_string(), text);
    }
    container.delete().await.unwrap();
    exit_code(started.pid).await;
}

pub async fn a_program_the_kernel_refuses() {
    let mut fixture = Fixture::new();
    fixture.spec["process"]["args"] = json!(["/bin/garbage"]);
    let path = fixture.root().join("bin/garbage");
    fs::write(&path, "garbage").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let (mut container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
    let error = container.start().await.unwrap_err();
    assert_eq!(error.to_string(), "exec /bin/garbage: exec format error");
    exit_code(started.pid).await;
    container.delete().await.unwrap();
}

pub async fn hooks_run_before_the_program() {
    let mut fixture = Fixture::script("cat /tmp/state");
    fixture.spec["hooks"] = json!({"startContainer": [
        {"path": "/bin/sh", "args": ["sh", "-c", "cat > /tmp/state; echo \" $A\" >> /tmp/state"], "env": ["A=b", "PATH=/bin"]}
    ]});
    let output = fixture.run().await.stdout;
    assert!(
        output.contains("\"status\":\"created\"") && output.trim_end().ends_with(" b"),
        "{output}"
    );

    fixture.spec["hooks"]["startContainer"][0]["args"] = json!(["sh", "-c", "exit 3"]);
    let (mut container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
    let error = container.start().await.unwrap_err();
    assert!(
        error.to_string().contains("startContainer hook /bin/sh"),
        "{error}"
    );
    exit_code(started.pid).await;
    container.delete().await.unwrap();
}

pub async fn exec_is_like_init() {
    let script = "for n in pid mnt ipc uts net cgroup; do readlink /proc/self/ns/$n; done; grep -e Cap -e NoNew /proc/self/status;
        grep 0:: /proc/self/cgroup; id; pwd; grep 'open files' /proc/self/limits; env | grep -v SHLVL; umask; readlink /proc/1/root";
    let mut fixture = Fixture::script(script);
    fixture.spec["process"]["user"] = json!({"uid": 33, "gid": 33, "additionalGids": [7]});
    fixture.spec["process"]["cwd"] = json!("/tmp");
    fixture.spec["process"]["env"] = json!(["PATH=/bin"]);
    fixture.spec["process"]["args"] =
        json!(["sh", "-c", format!("({script}) > /dev/shm/init 2>&1; sleep 1000")]);
    fixture.spec["mounts"][3]["options"] = json!(["mode=1777"]);
    let (container, started) = fixture.start().await;
    let exec = fixture.exec(&container, script).await;
    // Init writes its own on its own time.
    let init = fixture
        .exec(
            &container,
            "until grep -q '^0022' /dev/shm/init; do :; done; cat /dev/shm/init",
        )
        .await;
    let lines = |text: &str| -> Vec<String> {
        text.lines()
            .filter(|line| !line.starts_with("readlink"))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(lines(&exec.stdout), lines(&init.stdout));
    let (stdio, streams) = Streams::new();
    let killed = container
        .exec(&fixture.exec_process("kill -9 $$"), stdio)
        .await
        .unwrap();
    assert_eq!(streams.output(killed.pid).await.code, 137);
    container.delete().await.unwrap();
    exit_code(started.pid).await;
}

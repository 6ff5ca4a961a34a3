//! How long creation and start take here. A figure for people, with a bound that only a blunder would break.

use std::time::{Duration, Instant};

use agent::container::ProcessStdio;
use libseccomp::ScmpSyscall;
use serde_json::json;

use crate::fixture::{Fixture, exit_code};

const ROUNDS: usize = 20;

pub async fn create_and_start() {
    measure("create and start", |_| {}).await;
}

/// In a guest the network namespace is the pod's, that is the agent's own.
pub async fn create_and_start_with_the_pods_network() {
    measure("the same with the pod's network", |fixture| {
        let namespaces = fixture.spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
    })
    .await;
}

/// The size of the profile that container engines use by default: some 350 calls allowed, for three architectures.
pub async fn create_and_start_with_a_large_profile() {
    let refused = ["mount", "ptrace", "bpf", "reboot", "kexec_load", "init_module"];
    let names: Vec<String> = (0..460)
        .filter_map(|number| ScmpSyscall::from_raw_syscall(number).get_name().ok())
        // Of 32-bit x86; every engine's profile has them.
        .chain(["socketcall".to_owned(), "ipc".to_owned()])
        .filter(|name| !refused.contains(&name.as_str()))
        .collect();
    assert!(names.len() > 300);
    let profile = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
    });
    measure("the same with a large seccomp profile", |fixture| {
        fixture.spec["linux"]["seccomp"] = profile.clone();
    })
    .await;
}

async fn measure(what: &str, change: impl Fn(&mut Fixture)) {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let mut fixture = Fixture::script("true");
        change(&mut fixture);
        let begin = Instant::now();
        let (mut container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
        let created = begin.elapsed();
        container.start().await.unwrap();
        times.push((begin.elapsed(), created));
        exit_code(started.pid).await;
        container.delete().await.unwrap();
    }
    times.sort_unstable();
    let (median, created) = times[ROUNDS / 2];
    println!(
        "{what}: median {median:?} (create {created:?}), worst {:?}",
        times[ROUNDS - 1].0
    );
    assert!(median < Duration::from_millis(250), "{median:?}");
}

pub async fn exec() {
    let fixture = Fixture::script("sleep 1000");
    let (container, init) = fixture.start().await;
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        let started = container
            .exec(&fixture.exec_process("true"), ProcessStdio::default())
            .await
            .unwrap();
        times.push(begin.elapsed());
        exit_code(started.pid).await;
    }
    times.sort_unstable();
    println!(
        "exec: median {:?}, worst {:?}",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
    assert!(times[ROUNDS / 2] < Duration::from_millis(250));
    container.delete().await.unwrap();
    exit_code(init.pid).await;
}

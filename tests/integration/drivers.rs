//! Real monitors that are mostly not there, once the whole way: a container, a second process in it, a clean end. Ignored unless they
//! are asked for, with `make test-driver`, which says where the programs are: `$KATA_TEST_CLH`, `$KATA_TEST_FIRECRACKER`,
//! `$KATA_TEST_JAILER`; `$KATA_TEST_KERNEL_PARAMS` is added to the kernel's command line, `$KATA_TEST_PATIENCE` multiplies every
//! deadline.
//!
//! Their guests may be emulated by KVM itself, so that a boot takes half a minute and a turn of a shell's loop some seconds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fs};

use configuration::{AgentChannel, Config, HypervisorKind, SharedFs};
use runtime::{ErrorKind, ExecId, ExecRequest, Output, RootfsMount, Sandbox, Stdio};
use serde_json::json;
use tokio::time::timeout;

use crate::alone;
use crate::stand::{Guest, Stand};

#[tokio::test]
#[ignore = "needs a real Cloud Hypervisor: make test-driver DRIVER=clh BIN=<path>"]
async fn clh_runs_a_container_whose_root_is_shared() {
    let stand = Stand::new(Guest::Vm(AgentChannel::Auto)).unwrap();
    let config = config(&stand, HypervisorKind::CloudHypervisor, "KATA_TEST_CLH");
    let rootfs = stand.snapshot("c");
    a_container_and_a_second_process(&stand, config, rootfs).await;
}

#[tokio::test]
#[ignore = "needs a real Cloud Hypervisor: make test-driver DRIVER=clh BIN=<path>"]
async fn clh_runs_a_container_whose_root_is_a_block_device() {
    let stand = Stand::new(Guest::Vm(AgentChannel::Auto)).unwrap();
    let config = config(&stand, HypervisorKind::CloudHypervisor, "KATA_TEST_CLH");
    let rootfs = alone::rootfs(&stand, "c");
    a_container_and_a_second_process(&stand, config, rootfs).await;
}

#[tokio::test]
#[ignore = "needs a real Firecracker: make test-driver DRIVER=firecracker BIN=<path>"]
async fn firecracker_runs_a_container_whose_root_is_a_block_device() {
    let stand = Stand::new(Guest::Vm(AgentChannel::Auto)).unwrap();
    let config = config(&stand, HypervisorKind::Firecracker, "KATA_TEST_FIRECRACKER");
    let device = Loop::new(&stand.disk("c"));
    let rootfs = vec![RootfsMount {
        fs_type: "ext4".into(),
        source: device.0.clone(),
        options: Vec::new(),
    }];
    a_container_and_a_second_process(&stand, config, rootfs).await;
}

#[tokio::test]
#[ignore = "needs a real Firecracker and its jailer: make test-driver DRIVER=firecracker BIN=<path> JAILER=<path>"]
async fn jailed_firecracker_runs_a_container_whose_root_is_a_file() {
    let stand = Stand::new(Guest::Vm(AgentChannel::Auto)).unwrap();
    let mut config = config(&stand, HypervisorKind::Firecracker, "KATA_TEST_FIRECRACKER");
    config.hypervisor.jailer_path = named("KATA_TEST_JAILER");
    let rootfs = alone::rootfs(&stand, "c");
    a_container_and_a_second_process(&stand, config, rootfs).await;
}

fn named(variable: &str) -> PathBuf {
    let program = env::var_os(variable);
    program
        .unwrap_or_else(|| panic!("{variable} has to be the path of the real program"))
        .into()
}

/// For anything that a guest does. `KATA_TEST_PATIENCE` multiplies it.
fn patience() -> Duration {
    let factor = env::var("KATA_TEST_PATIENCE").map_or(1, |factor| factor.parse().unwrap());
    Duration::from_secs(400) * factor
}

fn config(stand: &Stand, kind: HypervisorKind, variable: &str) -> Config {
    let mut config = stand.config();
    config.hypervisor.kind = kind;
    config.hypervisor.path = named(variable);
    if kind == HypervisorKind::Firecracker {
        config.hypervisor.shared_fs = SharedFs::None;
        // It has to be passed on, and not to be in the way.
        config.hypervisor.disk_rate_limiter_bw_max_rate = 8 << 30;
        config.hypervisor.disk_rate_limiter_ops_max_rate = 1_000_000;
    }
    let params = env::var("KATA_TEST_KERNEL_PARAMS").unwrap_or_default();
    config.hypervisor.kernel_params = params.split_whitespace().map(String::from).collect();
    config.agent.dial_timeout = Some(patience());
    config.agent.request_timeout = patience();
    config.agent.create_container_timeout = patience();
    config.runtime.static_sandbox_resource_mgmt = true;
    config
}

/// Says how long each step took, for people.
struct Clock(Instant);

impl Clock {
    fn lap(&mut self, what: &str) {
        let took = self.0.elapsed();
        self.0 = Instant::now();
        println!("{what}: {:.1} s", took.as_secs_f64());
    }
}

async fn a_container_and_a_second_process(stand: &Stand, config: Config, rootfs: Vec<RootfsMount>) {
    let mut clock = Clock(Instant::now());
    // Without a loop, of which each turn may take seconds.
    let script = "echo first; cat /mnt/secret/token /etc/hosts; read line < /fifo; echo $line; exit 7";
    let bundle = stand.bundle("c", script, |spec| alone::mount_copies(stand, spec));
    let (mut request, _events) = stand.request(config, &bundle);
    request.rootfs.clone_from(&rootfs);
    let sandbox = timeout(patience(), Sandbox::create(request))
        .await
        .unwrap()
        .unwrap();
    clock.lap("from nothing to an agent that answers");
    let request = stand.container("c", &bundle, rootfs);
    let container = sandbox.create_container(request).await.unwrap();
    clock.lap("a container created");
    container.start().await.unwrap();
    clock.lap("started");

    let second = ExecId::new("second").unwrap();
    let out: PathBuf = stand.path("second.out");
    let process = json!({
        "args": ["/bin/sh", "-c", "cat /proc/1/comm; echo from the second > /fifo"],
        "cwd": "/",
        "user": {"uid": 0, "gid": 0},
        "env": ["PATH=/bin"],
    });
    let request = ExecRequest {
        id: second.clone(),
        process: serde_json::from_value(process).unwrap(),
        stdio: Stdio {
            stdout: Output::File(out.clone()),
            stderr: Output::File(out.clone()),
            ..Stdio::default()
        },
    };
    container.exec(request).await.unwrap();
    container.start_exec(&second).await.unwrap();
    clock.lap("a second process started");
    let ended = timeout(patience(), container.wait(Some(&second)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (ended.code, fs::read_to_string(&out).unwrap().as_str()),
        (0, "sh\n")
    );
    let ended = timeout(patience(), container.wait(None)).await.unwrap().unwrap();
    clock.lap("both ended");
    assert_eq!(ended.code, 7);
    // A guest that is slow to let go of a disk is asked once more, as callers do.
    let deleting = async {
        loop {
            match container.delete().await {
                Err(error) if error.kind == ErrorKind::DeadlineExceeded => clock.lap("not let go of yet"),
                deleted => return deleted,
            }
        }
    };
    timeout(patience(), deleting).await.unwrap().unwrap();
    clock.lap("deleted");
    assert_eq!(
        fs::read_to_string(stand.path("c.out")).unwrap(),
        "first\nsecret\n10.1.2.3 pod\nfrom the second\n"
    );
    sandbox.stop().await.unwrap();
    clock.lap("stopped");
    stand.assert_clean();
}

/// A block device whose content is a directory's, until this is dropped.
struct Loop(String);

impl Loop {
    fn new(image: &Path) -> Self {
        let device = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(image)
            .output()
            .unwrap();
        assert!(device.status.success(), "a loop device (is this root?)");
        Self(String::from_utf8(device.stdout).unwrap().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

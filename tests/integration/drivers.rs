//! Real monitors that are mostly not there, once the whole way: a container, a second process in it, a clean end. Ignored unless they
//! are asked for, with `make test-driver`, which says where the programs are: `$KATA_TEST_CLH`, `$KATA_TEST_FIRECRACKER`,
//! `$KATA_TEST_JAILER`; `$KATA_TEST_KERNEL_PARAMS` is added to the kernel's command line.
//!
//! Their guests may be emulated by KVM itself, so that a boot takes half a minute and a turn of a shell's loop some seconds.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs};

use configuration::{AgentChannel, Config, HypervisorKind, SharedFs};
use runtime::{ExecId, ExecRequest, Output, RootfsMount, Sandbox, Stdio};
use serde_json::json;
use tokio::time::timeout;

use crate::stand::{Guest, Stand};

/// For anything that a guest does.
const PATIENCE: Duration = Duration::from_secs(400);

#[tokio::test]
#[ignore = "needs a real Cloud Hypervisor: make test-driver DRIVER=clh BIN=<path>"]
async fn clh_runs_a_container_whose_root_is_shared() {
    let stand = Stand::new(Guest::Vm(AgentChannel::Auto)).unwrap();
    let config = config(&stand, HypervisorKind::CloudHypervisor, "KATA_TEST_CLH");
    let rootfs = stand.snapshot("c");
    a_container_and_a_second_process(&stand, config, rootfs).await;
}

#[tokio::test]
#[ignore = "needs a real Firecracker: make test-driver DRIVER=firecracker BIN=<path>"]
async fn firecracker_runs_a_container_whose_root_is_a_block_device() {
    let stand = Stand::new(Guest::Vm(AgentChannel::Auto)).unwrap();
    let mut config = config(&stand, HypervisorKind::Firecracker, "KATA_TEST_FIRECRACKER");
    config.hypervisor.shared_fs = SharedFs::None;
    config.hypervisor.jailer_path = env::var_os("KATA_TEST_JAILER").unwrap_or_default().into();
    let device = Loop::new(&stand.path("disk"), &stand.layer());
    let rootfs = vec![RootfsMount {
        fs_type: "ext4".into(),
        source: device.0.clone(),
        options: Vec::new(),
    }];
    a_container_and_a_second_process(&stand, config, rootfs).await;
}

fn config(stand: &Stand, kind: HypervisorKind, variable: &str) -> Config {
    let mut config = stand.config();
    let program =
        env::var_os(variable).unwrap_or_else(|| panic!("{variable} has to be the path of the real program"));
    config.hypervisor.kind = kind;
    config.hypervisor.path = program.into();
    let params = env::var("KATA_TEST_KERNEL_PARAMS").unwrap_or_default();
    config.hypervisor.kernel_params = params.split_whitespace().map(String::from).collect();
    config.agent.dial_timeout = Some(PATIENCE);
    config.agent.request_timeout = PATIENCE;
    config.agent.create_container_timeout = PATIENCE;
    config.runtime.static_sandbox_resource_mgmt = true;
    config
}

async fn a_container_and_a_second_process(stand: &Stand, config: Config, rootfs: Vec<RootfsMount>) {
    let bundle = stand.bundle(
        "c",
        "echo first; until test -e /end; do sleep 1; done; exit 7",
        |_| {},
    );
    let (request, _events) = stand.request(config, &bundle);
    let sandbox = timeout(PATIENCE, Sandbox::create(request))
        .await
        .unwrap()
        .unwrap();
    let request = stand.container("c", &bundle, rootfs);
    let container = sandbox.create_container(request).await.unwrap();
    container.start().await.unwrap();

    let second = ExecId::new("second").unwrap();
    let out: PathBuf = stand.path("second.out");
    let process = json!({
        "args": ["/bin/sh", "-c", "cat /proc/1/comm; echo second > /end"],
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
    let ended = timeout(PATIENCE, container.wait(Some(&second)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (ended.code, fs::read_to_string(&out).unwrap().as_str()),
        (0, "sh\n")
    );
    let ended = timeout(PATIENCE, container.wait(None)).await.unwrap().unwrap();
    assert_eq!(ended.code, 7);
    container.delete().await.unwrap();
    assert_eq!(fs::read_to_string(stand.path("c.out")).unwrap(), "first\n");
    sandbox.stop().await.unwrap();
    stand.assert_clean();
}

/// A block device whose content is a directory's, until this is dropped.
struct Loop(String);

impl Loop {
    fn new(image: &Path, directory: &Path) -> Self {
        let file = fs::File::create(image).unwrap();
        file.set_len(64 << 20).unwrap();
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-d"])
            .args([directory, image])
            .status();
        assert!(made.unwrap().success(), "this test needs mkfs.ext4 (e2fsprogs)");
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

//! A file system whose server does not answer, and what it must not hold up.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use tokio::time::timeout;

use super::super::clean_up_dead;
use super::files::ready;
use super::stand::{Stand, busybox};
use crate::ContainerId;
use crate::error::ErrorKind;
use crate::sandbox::{Ground, ToAdd};
use crate::store::{DaemonRecord, Record};

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(20);

/// See the module's documentation. Its server goes when it is dropped, and everybody who waits for it goes on.
struct Dead {
    server: File,
    dir: PathBuf,
}

impl Dead {
    fn mount(dir: PathBuf) -> Self {
        fs::create_dir(&dir).unwrap();
        let server = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .expect("this test needs /dev/fuse");
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("dead"), &dir, Some("fuse"), flags, Some(options.as_str())).unwrap();
        Self { server, dir }
    }

    /// The next request's number, as 8 bytes.
    fn request(&mut self) -> [u8; 8] {
        let mut request = [0; 16 * 1024];
        let read = self.server.read(&mut request).unwrap();
        assert!(read >= 16);
        request[8..16].try_into().unwrap()
    }

    /// A process that even SIGKILL does not end: the server has taken its request, and owes it an answer.
    fn keep_a_process(&mut self) -> Child {
        // The first request is the protocol's; the answer gives version 7.31, and nothing else.
        let number = self.request();
        let mut answer = Vec::new();
        answer.extend_from_slice(&80_u32.to_ne_bytes());
        answer.extend_from_slice(&0_u32.to_ne_bytes());
        answer.extend_from_slice(&number);
        answer.extend_from_slice(&7_u32.to_ne_bytes());
        answer.extend_from_slice(&31_u32.to_ne_bytes());
        answer.resize(80, 0);
        self.server.write_all(&answer).unwrap();
        let child = Command::new("stat")
            .arg(self.dir.join("x"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.request();
        child
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        unmount(&self.dir, UnmountFlags::DETACH).unwrap();
    }
}

/// Field 22 of a process's line.
fn start_time(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.split_whitespace().nth(21).unwrap().parse().unwrap()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    timeout(SOON, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn a_source_that_does_not_answer_is_named_and_holds_up_nobody_else() {
    let stand = Stand::new();
    let (mut host, shared) = ready(&stand).await;
    let dead = Dead::mount(stand.path("dead"));
    let bundle = stand.path("bundle");
    busybox(&bundle.join("rootfs"));
    let volume = dead.dir.join("volume");
    let spec = serde_json::json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"cwd": "/", "args": ["sh"]},
        "linux": {},
        "mounts": [{"destination": "/v", "type": "bind", "source": volume, "options": ["bind"]}],
    });
    fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
    let wanted = |id: &str| ToAdd {
        id: ContainerId::new(id).unwrap(),
        bundle: bundle.clone(),
        rootfs: Vec::new(),
    };
    let (first, mut others) = (host.add(wanted("first")), host.add(wanted("others")));
    // This thread goes on meanwhile, and whoever gives up leaves nothing.
    assert!(timeout(Duration::from_millis(50), &mut others).await.is_err());
    drop(others);
    let error = first.await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::DeadlineExceeded);
    assert!(error.chain().contains("container first"), "{}", error.chain());
    assert!(
        error.chain().contains(volume.to_str().unwrap()),
        "{}",
        error.chain()
    );
    host.remove(&ContainerId::new("first").unwrap()).await.unwrap();
    // Its server is gone for good: what hung goes on, and takes back what it had begun.
    drop(dead);
    let empty = || fs::read_dir(&shared).unwrap().count() == 0;
    eventually("nothing is left", empty).await;
    host.release().await.unwrap();
    stand.assert_clean();
}

#[tokio::test]
async fn the_mounts_of_a_dead_owner_do_not_wait_for_its_processes() {
    let stand = Stand::new();
    let (request, _events) = stand.request("s");
    let (host, _) = ready(&stand).await;
    let dir = host.held.as_ref().unwrap().home.dir().to_owned();
    let mut dead = Dead::mount(stand.path("dead"));
    let mut process = dead.keep_a_process();
    let mut record = Record::read(&dir).unwrap().unwrap();
    record.daemons.push(DaemonRecord {
        name: "test".into(),
        pid: process.id(),
        start_time: start_time(process.id()),
    });
    host.die().await;
    record.write(&dir).unwrap();

    let mounted = |dir: &Path| stand.mounts().iter().any(|mount| mount.starts_with(dir));
    assert!(mounted(&dir));
    let cleaning = clean_up_dead(&request.config, &*request.hypervisor, &request.scope, &request.id);
    let begun = std::time::Instant::now();
    let gone = async {
        eventually("the mounts go", || !mounted(&dir)).await;
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "the process was waited for"
        );
        assert!(
            process.try_wait().unwrap().is_none(),
            "the process is still there"
        );
        drop(dead);
    };
    let (cleaned, ()) = tokio::join!(cleaning, gone);
    cleaned.unwrap();
    assert!(process.wait().unwrap().code().is_none(), "it was killed");
    stand.assert_clean();
}

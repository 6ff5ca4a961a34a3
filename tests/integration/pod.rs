//! A pod's network namespace as a CNI plugin leaves it, with the outside at the other end of its cable.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use crate::stand::SOON;

/// The pod.
pub const POD: &str = "10.79.0.2";
pub const POD6: &str = "fd00:79::2";
/// The other end.
pub const OUTSIDE: &str = "10.79.0.1";
pub const OUTSIDE6: &str = "fd00:79::1";

/// How much has gone one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub frames: u64,
}

impl Traffic {
    /// Bytes of a frame, on average, since there was only that.
    pub fn mean_since(self, before: Self) -> u64 {
        (self.bytes - before.bytes) / (self.frames - before.frames).max(1)
    }
}

pub struct Pod {
    inside: String,
    outside: String,
}

impl Pod {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "kata-pod-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let pod = Self {
            inside: format!("{name}-in"),
            outside: format!("{name}-out"),
        };
        let (inside, outside) = (&pod.inside, &pod.outside);
        for command in [
            format!("netns add {inside}"),
            format!("netns add {outside}"),
            format!("-n {outside} link set lo up"),
            format!("-n {inside} link set lo up"),
        ] {
            ip(&command);
        }
        pod.cable("eth0", "there", [POD, POD6], [OUTSIDE, OUTSIDE6]);
        for command in [
            format!("-n {inside} route add default via {OUTSIDE}"),
            format!("-n {inside} -6 route add default via {OUTSIDE6}"),
            // Beyond the cable's other end.
            format!("-n {outside} addr add 198.51.100.7/32 dev lo"),
        ] {
            ip(&command);
        }
        pod
    }

    /// An interface, and its other end, with an address of each family.
    pub fn cable(&self, name: &str, other: &str, ours: [&str; 2], theirs: [&str; 2]) {
        let (inside, outside) = (&self.inside, &self.outside);
        ip(&format!(
            "-n {outside} link add {other} type veth peer name {name} netns {inside}"
        ));
        for (namespace, device, [four, six]) in [(outside, other, theirs), (inside, name, ours)] {
            ip(&format!("-n {namespace} link set {device} up"));
            ip(&format!("-n {namespace} addr add {four}/24 dev {device}"));
            ip(&format!("-n {namespace} addr add {six}/64 dev {device} nodad"));
        }
    }

    /// What the pod sends from its addresses is routed by tables of their own, as plugins for several networks have it.
    pub fn routed_by_source(&self) {
        for (family, pod, outside) in [("-4", POD, OUTSIDE), ("-6", POD6, OUTSIDE6)] {
            let inside = format!("-n {} {family}", self.inside);
            ip(&format!(
                "{inside} route add default via {outside} dev eth0 table 100"
            ));
            ip(&format!("{inside} rule add from {pod} lookup 100 priority 1000"));
        }
    }

    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.inside)
    }

    /// Has a specification name it.
    pub fn name_in(&self, spec: &mut Value) {
        let namespaces = spec["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({"type": "network", "path": self.path()}));
    }

    /// Moves the interface to the network namespace of a process, and sets it up there.
    pub fn moves_to(&self, pid: u32) {
        ip(&format!("-n {} link set eth0 netns {pid}", self.inside));
        let there = |arguments: &str| {
            let status = Command::new("nsenter")
                .args([&format!("--net=/proc/{pid}/ns/net"), "ip"])
                .args(arguments.split(' '))
                .status();
            assert!(status.unwrap().success(), "{arguments}");
        };
        there("link set eth0 up");
        there(&format!("addr add {POD}/24 dev eth0"));
        there(&format!("addr add {POD6}/64 dev eth0 nodad"));
        there(&format!("route add default via {OUTSIDE}"));
    }

    /// Whether the outside's end of the cable exists: both ends go with the namespace of one.
    pub fn cable_is_there(&self) -> bool {
        let begun = Instant::now();
        // A namespace is taken apart some time after its last user has gone.
        while ip(&format!("-n {} link", self.outside)).contains("there@") {
            if begun.elapsed() > SOON {
                return true;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        false
    }

    /// A program of busybox's in the outside.
    pub fn outside(&self, words: &[&str]) -> Command {
        in_namespace(&self.outside, words)
    }

    /// A program of busybox's in the pod's own namespace on the host.
    pub fn inside(&self, words: &[&str]) -> Command {
        in_namespace(&self.inside, words)
    }

    /// What has gone through the tap or macvtap that the guest's card is: from the guest and to it.
    pub fn traffic(&self) -> [Traffic; 2] {
        let links = ip(&format!("-n {} -s -j link", self.inside));
        let links: Vec<Value> = serde_json::from_str(&links).unwrap();
        let ours = |link: &&Value| link["ifname"].as_str().unwrap().starts_with("kata");
        let ours = links.iter().find(ours).unwrap();
        ["rx", "tx"].map(|way| Traffic {
            bytes: ours["stats64"][way]["bytes"].as_u64().unwrap(),
            frames: ours["stats64"][way]["packets"].as_u64().unwrap(),
        })
    }

    /// Everything of the namespace that its owner would miss or wonder about.
    pub fn picture(&self) -> String {
        let mut picture = String::new();
        for part in ["-o link", "-o addr", "route", "-6 route"] {
            for line in ip(&format!("-n {} {part}", self.inside)).lines() {
                // That one ends by itself.
                picture.push_str(line.replace(" tentative", "").trim_end());
                picture.push('\n');
            }
        }
        picture.push_str(&tool("tc", &format!("-n {} qdisc show", self.inside)));
        picture
    }

    /// Removes the pod's namespace and cable, as its owner may at any time.
    pub fn remove_inside(&self) {
        ip(&format!("-n {} link del there", self.outside));
        ip(&format!("netns del {}", self.inside));
    }
}

/// Sends what is in `sent` to an echo at this address, and answers with what has come back. That may be nothing yet.
pub fn echoed(mut client: Command, sent: &Path) -> Vec<u8> {
    let begun = Instant::now();
    loop {
        let output = client.stdin(File::open(sent).unwrap()).output().unwrap();
        if output.status.success() && !output.stdout.is_empty() {
            return output.stdout;
        }
        assert!(begun.elapsed() < SOON, "{client:?}: {:?}", output.stderr);
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

/// A process that is killed with this.
pub struct Background(Child);

impl Background {
    pub fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn in_namespace(namespace: &str, words: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{namespace}"))
        .arg("busybox")
        .args(words);
    command
}

fn ip(arguments: &str) -> String {
    tool("ip", arguments)
}

fn tool(program: &str, arguments: &str) -> String {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .output()
        .unwrap_or_else(|e| panic!("this test needs iproute2: {program}: {e}"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

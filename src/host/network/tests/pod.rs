//! A pod's network namespace with an interface "eth0", whose other end is in a second one, the outside.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hypervisor::Device;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::{Attached, Model};
use crate::error::Result;

/// Longer than anything here takes on a busy machine.
pub(super) const SOON: Duration = Duration::from_secs(20);

pub(super) const MAC: &str = "02:00:00:00:78:02";
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
pub(super) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);

pub(in crate::host) struct Pod {
    pub(super) inside: String,
    outside: String,
}

impl Pod {
    /// Two namespaces without any interface.
    pub(super) fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "kata-net-{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let pod = Self {
            inside: format!("{name}-in"),
            outside: format!("{name}-out"),
        };
        ip(&format!("netns add {}", pod.inside));
        ip(&format!("netns add {}", pod.outside));
        pod
    }

    /// With a veth, as a CNI plugin leaves it.
    pub(in crate::host) fn new() -> Self {
        let pod = Self::empty();
        let (inside, mac) = (&pod.inside, MAC);
        pod.outside(&format!(
            "link add there type veth peer name eth0 address {mac} mtu 1400 netns {inside}"
        ));
        pod.outside("link set there mtu 1400 up");
        pod.outside(&format!("addr add {OUTSIDE}/24 dev there"));
        pod.outside("addr add fd00:78::1/64 dev there nodad");
        pod.inside("link set lo up");
        pod.inside("link set eth0 up");
        pod.inside(&format!("addr add {ADDRESS}/24 brd + dev eth0"));
        pod.inside("addr add fd00:78::2/64 dev eth0 nodad");
        pod.inside(&format!("route add default via {OUTSIDE}"));
        pod.inside("-6 route add default via fd00:78::1 metric 7");
        pod.inside("neigh add 10.78.0.9 lladdr 02:00:00:00:78:09 nud permanent dev eth0");
        pod
    }

    pub(in crate::host) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.inside)
    }

    pub(super) fn outside_name(&self) -> &str {
        &self.outside
    }

    pub(super) fn inside(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.inside))
    }

    pub(super) fn outside(&self, arguments: &str) -> String {
        ip(&format!("-n {} {arguments}", self.outside))
    }

    /// Does something inside, on a thread of its own.
    pub(super) async fn in_inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(self.inside.clone(), work).await
    }

    /// Does something outside.
    pub(super) async fn in_outside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        in_namespace(self.outside.clone(), work).await
    }

    /// Moves an interface of the outside to the inside.
    pub(super) fn take(&self, interface: &str) {
        self.outside(&format!("link set {interface} netns {}", self.inside));
    }

    /// What tc(8) says of an interface's filters.
    pub(super) fn filters(&self, interface: &str) -> String {
        tool(
            "tc",
            &format!("-n {} filter show dev {interface} ingress", self.inside),
        )
    }

    /// Everything of the namespace that an owner would miss or wonder about.
    pub(in crate::host) fn picture(&self) -> String {
        let mut picture = String::new();
        for part in [
            "-o link",
            "-o addr",
            "route",
            "-6 route",
            "neigh show nud permanent",
        ] {
            for line in self.inside(part).lines() {
                // Changes by itself.
                let tentative = line.contains("fe80:");
                if !tentative {
                    let settled = line.split_whitespace().filter(|word| !changes_by_itself(word));
                    picture.push_str(&settled.collect::<Vec<_>>().join(" "));
                    picture.push('\n');
                }
            }
        }
        picture.push_str(&tool("tc", &format!("-n {} qdisc show", self.inside)));
        picture
    }

    /// Removes the inside, as its owner may at any time.
    pub(super) fn remove_inside(&self) {
        ip(&format!("netns del {}", self.inside));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        for namespace in [&self.inside, &self.outside] {
            // One test has removed it already.
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

async fn in_namespace<T: Send + 'static>(name: String, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(Path::new("/run/netns").join(name)).unwrap();
    let body = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    // Of its own, because it does not come back to our namespace.
    let (answer, answered) = tokio::sync::oneshot::channel();
    thread::spawn(move || drop(answer.send(body())));
    answered.await.unwrap()
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

/// Connects everything of a namespace.
pub(super) async fn attach(path: &Path, model: Option<Model>, queues: u32) -> Result<Attached> {
    let mut attached = Attached::hold(Some(path), model, queues).await?;
    attached.connect().await?;
    Ok(attached)
}

impl Attached {
    /// The taps go, as with a process that is killed, and nothing else does.
    pub(in crate::host) fn die(mut self) {
        self.connections.clear();
    }
}

/// A network card, as the machine sees it.
pub(super) struct Card {
    taps: Vec<File>,
    mac: [u8; 6],
}

impl Card {
    pub(super) fn of(device: &Device) -> Self {
        let Device::Net { taps, mac, .. } = device else {
            panic!("{device:?} is no network card");
        };
        let taps = taps
            .iter()
            .map(|tap| File::from(OwnedFd::try_clone(tap).unwrap()));
        let mac: netlink::Mac = mac.parse().unwrap();
        Self {
            taps: taps.collect(),
            mac: mac.0,
        }
    }

    pub(super) fn queues(&self) -> usize {
        self.taps.len()
    }

    /// Asks who has an address, and waits for the answer: frames have gone both ways then.
    pub(super) fn asks_for(&self, own: Ipv4Addr, other: Ipv4Addr) -> [u8; 6] {
        let question = arp(1, self.mac, own, [0; 6], other, [0xff; 6]);
        self.send(&question);
        let answer = self.receive(|frame| {
            frame.get(12..14) == Some(&[8, 6])
                && frame.get(21) == Some(&2)
                && frame.get(28..32) == Some(&other.octets())
        });
        answer[22..28].try_into().unwrap()
    }

    fn send(&self, frame: &[u8]) {
        // The header of virtio-net (linux/virtio_net.h) asks for nothing.
        let bytes = [&[0; 10], frame].concat();
        assert_eq!((&self.taps[0]).write(&bytes).unwrap(), bytes.len());
    }

    /// The first frame that is wanted, from any queue.
    fn receive(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let end = Instant::now() + SOON;
        let mut buffer = [0; 2048];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no frame has come");
            let mut fds: Vec<_> = self
                .taps
                .iter()
                .map(|tap| PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN))
                .collect();
            let limit = Timespec {
                tv_sec: 1,
                tv_nsec: 0,
            };
            poll(&mut fds, Some(&limit)).unwrap();
            for mut tap in &self.taps {
                match poll_read(&mut tap, &mut buffer) {
                    Some(length) if wanted(&buffer[10..length]) => return buffer[10..length].to_vec(),
                    _ => {}
                }
            }
        }
    }
}

fn poll_read(tap: &mut &File, buffer: &mut [u8]) -> Option<usize> {
    let mut fds = [PollFd::from_borrowed_fd(tap.as_fd(), PollFlags::IN)];
    if poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )
    .unwrap()
        == 0
    {
        return None;
    }
    match tap.read(buffer) {
        Ok(length) => Some(length),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => panic!("{error}"),
    }
}

/// An ARP frame (RFC 826).
fn arp(
    operation: u8,
    mac: [u8; 6],
    ip: Ipv4Addr,
    to_mac: [u8; 6],
    to: Ipv4Addr,
    frame_to: [u8; 6],
) -> Vec<u8> {
    [
        &frame_to[..],
        &mac,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation],
        &mac,
        &ip.octets(),
        &to_mac,
        &to.octets(),
    ]
    .concat()
}

/// Waits for a condition that other threads bring about.
pub(super) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "{what}: not within {SOON:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Threads of ours that are in some network namespace, those of other tests included.
pub(super) fn threads_inside() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name == "network\n"))
        .count()
}

/// Words of `ip` that follow the carrier: the kernel notices it in its own time.
fn changes_by_itself(word: &str) -> bool {
    word.starts_with('<') || ["UP", "DOWN", "UNKNOWN", "LOWERLAYERDOWN"].contains(&word)
}

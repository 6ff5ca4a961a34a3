//! Names: of the pod, of hosts, and how they are looked up.

use std::fs;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::network::GATEWAY;
use crate::pod::Pod;

chapter!("names":
    the_pods_host_name,
    resolv_conf_of_the_pod,
    resolv_conf_of_the_host,
    a_name_is_looked_up_in_the_search_domains,
    hosts_of_the_pod,
    an_etc_hostname,
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("names", |spec| {
        spec.dns(
            &[GATEWAY, "10.88.255.254"],
            &["svc.e2e.test", "e2e.test"],
            &["ndots:3", "timeout:1", "edns0"],
        )
    })
}

fn the_pods_host_name(bed: &mut Bed) -> Result<()> {
    let script = "hostname; cat /proc/sys/kernel/hostname; uname -n; echo $HOSTNAME";
    same(
        &pod(bed)?.output(ContainerSpec::script(script))?,
        "names\nnames\nnames\nnames",
    )
}

fn resolv_conf_of_the_pod(bed: &mut Bed) -> Result<()> {
    let text = pod(bed)?.output(ContainerSpec::script("cat /etc/resolv.conf"))?;
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    ensure!(
        lines
            == [
                "nameserver 10.88.0.1",
                "nameserver 10.88.255.254",
                "options ndots:3 timeout:1 edns0",
                "search svc.e2e.test e2e.test",
            ],
        "{lines:?}"
    );
    Ok(())
}

fn resolv_conf_of_the_host(bed: &mut Bed) -> Result<()> {
    let pod = bed.shared("no-dns", |spec| spec)?;
    let hosts = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    same(
        &pod.output(ContainerSpec::script("cat /etc/resolv.conf"))?,
        hosts.trim_end(),
    )
}

/// A name server that knows one name.
struct NameServer {
    over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Vec<String>>>,
}

impl NameServer {
    const NAME: &'static str = "web.e2e.test";
    const ADDRESS: [u8; 4] = [10, 88, 7, 7];

    fn start() -> Result<Self> {
        let socket = UdpSocket::bind((GATEWAY, 53)).context("listen where pods ask for names")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&over);
        let thread = thread::spawn(move || {
            let mut asked = Vec::new();
            let mut query = [0; 512];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut query)
                    && let Some((name, answer)) = query.get(..length).and_then(Self::answer)
                {
                    asked.push(name);
                    // One that does not come is asked for again.
                    let _ = socket.send_to(&answer, from);
                }
            }
            asked
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }

    /// RFC 1035: the name of a query with one question, and the answer.
    fn answer(query: &[u8]) -> Option<(String, Vec<u8>)> {
        let question = query.get(12..)?;
        let mut labels = Vec::new();
        let mut at = 0;
        loop {
            let length = usize::from(*question.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            labels.push(String::from_utf8_lossy(question.get(at..at + length)?).to_lowercase());
            at += length;
        }
        let question = question.get(..at + 4)?;
        let kind = question.get(at + 1)?;
        let name = labels.join(".");
        let known = name == Self::NAME;
        let found = known && *kind == 1;
        let mut answer = query.get(..2)?.to_vec();
        // An authoritative response, and of a name that is not known the code 3.
        answer.extend([
            0x84,
            if known { 0 } else { 3 },
            0,
            1,
            0,
            u8::from(found),
            0,
            0,
            0,
            0,
        ]);
        answer.extend(question);
        if found {
            // The name of the question, an address of the Internet, valid for 60 s.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(Self::ADDRESS);
        }
        Some((name, answer))
    }

    fn stop(mut self) -> Vec<String> {
        self.over.store(true, Ordering::Relaxed);
        self.thread
            .take()
            .and_then(|thread| thread.join().ok())
            .unwrap_or_default()
    }
}

fn a_name_is_looked_up_in_the_search_domains(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let shell = pod.shell()?;
    let server = NameServer::start()?;
    let said = shell.exec(&["sh", "-c", "ping -c 1 -w 1 web | head -n 1"]);
    let asked = server.stop();
    let said = said?;
    ensure!(
        said.stdout.contains("10.88.7.7") && asked.contains(&"web.svc.e2e.test".into()),
        "{said:?}, asked {asked:?}"
    );
    Ok(())
}

fn hosts_of_the_pod(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let hosts = pod.empty_dir("etc-hosts")?.join("hosts");
    fs::write(&hosts, "127.0.0.1\tlocalhost\n10.88.9.9\talias.e2e.test alias\n")?;
    let one = ContainerSpec::script("ping -c 1 -w 1 alias | head -n 1; echo 10.88.9.8 added >>/etc/hosts");
    let said = pod.output(one.mount(&hosts, "/etc/hosts"))?;
    ensure!(said.contains("10.88.9.9"), "{said}");
    // The file is the pod's: what one container adds, the others have.
    let two = ContainerSpec::script("grep -c added /etc/hosts").mount(&hosts, "/etc/hosts");
    same(&pod.output(two)?, "1")
}

fn an_etc_hostname(bed: &mut Bed) -> Result<()> {
    same(
        &pod(bed)?.output(ContainerSpec::script("cat /etc/hostname"))?,
        "names",
    )
}

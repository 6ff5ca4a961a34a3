//! The pods' network: a bridge, with addresses of both families.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1::NamespaceMode;

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::{Container, ContainerSpec};
use crate::cri::refusal;
use crate::network::{GATEWAY, GATEWAY_V6, send};
use crate::pod::{Pod, PodSpec};
use crate::stream::Forward;

chapter!("network":
    addresses_and_routes,
    from_the_host,
    to_the_host,
    from_pod_to_pod,
    packets_from_pod_to_pod,
    a_port_of_the_host,
    the_networks_of_the_host(Runc: "a VM has no part in the host's network, and says so"),
    a_pod_in_the_hosts_network_is_refused(Kata: "a VM has no part in the host's network, and says so"),
    a_port_is_forwarded,
    a_port_of_localhost_alone,
    a_port_of_localhost_in_ipv6,
    four_forwards_at_once,
    a_port_that_nobody_listens_on,
);

/// What comes back is what was sent.
const ECHO: &str = "nc -ll -p 7000 -e cat";

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("network", |spec| spec)
}

/// A pod that echoes on port 7000.
fn echo(bed: &mut Bed) -> Result<(Arc<Pod>, Arc<Container>)> {
    let pod = pod(bed)?;
    let server = pod.kept("echo", || Ok(ContainerSpec::script(ECHO)))?;
    Ok((pod, server))
}

/// A mebibyte, of which no part is like another.
fn load() -> Vec<u8> {
    (0_u32..1 << 18).flat_map(u32::to_le_bytes).collect()
}

fn addresses_and_routes(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let (v4, v6) = (pod.address()?, pod.address_v6()?);
    ensure!(
        v4.starts_with("10.88.") && v6.starts_with("fd00:88::"),
        "{v4}, {v6}"
    );
    let shell = pod.shell()?;
    let shown = shell.sh(
        "ip -o addr show dev eth0; ip route; ip -6 route; cat /sys/class/net/eth0/mtu; ls /sys/class/net",
    )?;
    for wanted in [
        &format!("inet {v4}/16"),
        &format!("inet6 {v6}/64"),
        &format!("default via {GATEWAY} dev eth0"),
        &format!("default via {GATEWAY_V6} dev eth0"),
        "\n1500\neth0\nlo",
    ] {
        ensure!(shown.contains(wanted), "no {wanted:?} in {shown}");
    }
    same(&shell.sh("ip -o link show dev lo | grep -c ',UP'")?, "1")
}

fn from_the_host(bed: &mut Bed) -> Result<()> {
    let (pod, _) = echo(bed)?;
    for address in [pod.address()?, pod.address_v6()?] {
        send(&address, 7000, &load(), &load())?;
    }
    Ok(())
}

fn to_the_host(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let shell = pod.shell()?;
    for (address, shown) in [(GATEWAY, pod.address()?), (GATEWAY_V6, pod.address_v6()?)] {
        let listener = TcpListener::bind((address, 0))?;
        let port = listener.local_addr()?.port();
        let serving = thread::spawn(move || -> std::io::Result<String> {
            let (mut stream, from) = listener.accept()?;
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            let mut word = [0; 6];
            stream.read_exact(&mut word)?;
            stream.write_all(b"answer\n")?;
            Ok(format!("{} {}", from.ip(), String::from_utf8_lossy(&word)))
        });
        let said = shell.sh(&format!("(echo -n hello.; sleep 1) | nc -w 10 {address} {port}"))?;
        same(&said, "answer")?;
        let served = serving
            .join()
            .map_err(|_| anyhow::anyhow!("the server has panicked"))??;
        // Within the bridge nobody translates addresses.
        same(&served, &format!("{shown} hello."))?;
    }
    Ok(())
}

fn from_pod_to_pod(bed: &mut Bed) -> Result<()> {
    let (server, _) = echo(bed)?;
    let client = bed.fresh(PodSpec::new("client"))?;
    for address in [server.address()?, server.address_v6()?] {
        // Its sum is what tells; nc ends when the other side has closed, which is after it has sent all.
        let script = format!(
            "seq 1 30000 >/tmp/sent; for i in $(seq 50); do nc -w 5 {address} 7000 </tmp/sent >/tmp/got 2>/dev/null && break; sleep 0.1; done; \
             cmp /tmp/sent /tmp/got && wc -l </tmp/got"
        );
        same(&client.output(ContainerSpec::script(&script))?, "30000")?;
    }
    client.remove()
}

fn packets_from_pod_to_pod(bed: &mut Bed) -> Result<()> {
    let server = pod(bed)?;
    let client = bed.fresh(PodSpec::new("pinging"))?;
    for address in [server.address()?, server.address_v6()?] {
        let said = client.output(ContainerSpec::script(&format!(
            "ping -c 3 -i 0.2 -w 10 -s 1400 {address} | tail -n 2"
        )))?;
        ensure!(said.contains("3 packets received, 0% packet loss"), "{said}");
    }
    client.remove()?;
    // A datagram to the host, and its answer.
    let socket = UdpSocket::bind((GATEWAY, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let port = socket.local_addr()?.port();
    let answering = thread::spawn(move || -> std::io::Result<()> {
        let mut query = [0; 512];
        let (length, from) = socket.recv_from(&mut query)?;
        // A name server that knows nothing: the query as an answer, with the code 3.
        query[2] = 0x84;
        query[3] = 3;
        socket.send_to(&query[..length], from).map(drop)
    });
    let said = server.shell()?.exec(&[
        "nslookup",
        "-type=a",
        "nothing.e2e.test",
        &format!("{GATEWAY}:{port}"),
    ])?;
    answering
        .join()
        .map_err(|_| anyhow::anyhow!("the server has panicked"))??;
    ensure!(said.stdout.contains("NXDOMAIN"), "{said:?}");
    Ok(())
}

fn a_port_of_the_host(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("mapped").port(7000, 7070))?;
    pod.start(ContainerSpec::script(ECHO))?;
    send(GATEWAY, 7070, &load(), &load())?;
    // Of another pod, to the host's address.
    let script = format!("echo hello | nc -w 5 {GATEWAY} 7070");
    let client = crate::cases::network::pod(bed)?;
    same(&client.shell()?.sh(&script)?, "hello")?;
    pod.remove()
}

fn host_network() -> PodSpec {
    let spec = PodSpec::new("host-network").with(|config| config.hostname.clear());
    spec.linux(|linux| {
        let security = linux.security_context.get_or_insert_default();
        security.namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    })
}

fn the_networks_of_the_host(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(host_network())?;
    let said = pod.output(ContainerSpec::script("ls /sys/class/net"))?;
    ensure!(said.lines().any(|line| line == "pods0"), "{said}");
    pod.remove()
}

fn a_pod_in_the_hosts_network_is_refused(bed: &mut Bed) -> Result<()> {
    refusal(bed.fresh(host_network()))?.says("network")
}

/// Sends a mebibyte there and back over a port-forward.
fn forwarded(pod: &Pod, port: u16) -> Result<()> {
    // It may not listen yet, and a port-forward can't be asked to wait.
    e2e::wait::until("the port answers", e2e::deadlines::PROGRESS, || {
        let mut forward = Forward::connect(pod, port)?;
        forward.write(b"x")?;
        Ok(forward.read(1).ok().map(drop))
    })?;
    let load = load();
    let mut forward = Forward::connect(pod, port)?;
    thread::scope(|_| {
        let mut got = Vec::new();
        for part in load.chunks(32 << 10) {
            forward.write(part)?;
            got.extend(forward.read(part.len())?);
        }
        ensure!(got == load, "{} bytes came back, or other ones", got.len());
        Ok(())
    })
}

fn a_port_is_forwarded(bed: &mut Bed) -> Result<()> {
    let (pod, _) = echo(bed)?;
    forwarded(&pod, 7000)
}

fn a_port_of_localhost_alone(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let server = pod.start(ContainerSpec::script("nc -ll -p 7003 127.0.0.1 -e cat"))?;
    forwarded(&pod, 7003).with_context(|| format!("{:?}", server.log_lines()))?;
    let reached = std::net::TcpStream::connect((pod.address()?, 7003));
    ensure!(reached.is_err(), "it listens for everybody");
    server.stop(Duration::ZERO)?;
    server.remove()
}

fn a_port_of_localhost_in_ipv6(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let script = "mkdir /www; echo hello >/www/index.html; exec httpd -f -p '[::1]:7004' -h /www";
    let server = pod.start(ContainerSpec::script(script))?;
    let got = e2e::wait::until("the server answers", e2e::deadlines::PROGRESS, || {
        let mut forward = Forward::connect(&pod, 7004)?;
        forward.write(b"GET /index.html HTTP/1.0\r\n\r\n")?;
        Ok(forward.read(20).ok())
    })?;
    ensure!(got.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&got));
    server.stop(Duration::ZERO)?;
    server.remove()
}

fn four_forwards_at_once(bed: &mut Bed) -> Result<()> {
    let (pod, _) = echo(bed)?;
    thread::scope(|scope| {
        let runs: Vec<_> = (0..4).map(|_| scope.spawn(|| forwarded(&pod, 7000))).collect();
        for run in runs {
            run.join()
                .map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
        }
        Ok(())
    })
}

fn a_port_that_nobody_listens_on(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let mut forward = Forward::connect(&pod, 7999)?;
    forward.write(b"x")?;
    ensure!(
        forward.read(1).is_err(),
        "somebody listens on a port that nobody was told"
    );
    Ok(())
}

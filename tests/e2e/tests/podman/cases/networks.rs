//! Networks, as netavark makes them, and as the CNI plugins do: podman makes a namespace, and the virtual machine takes over its
//! interface.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::program::Program;
use e2e::{deadlines, wait};

use super::{cases, has, same};
use crate::bed::{Backend, Bed};
use crate::suite::Runtime;

cases! {
    a_published_port_reaches_a_server,
    a_port_is_published_by_the_cni_plugins_as_well,
    containers_of_a_network_find_each_other_by_name,
    a_container_has_two_networks,
    a_pod_publishes_a_port_of_a_member,
    who_joins_a_containers_network_is_in_its_machine,
    a_namespace_that_was_made_before_is_taken_over,
}

/// Serves its first argument.
pub const SERVER: &str =
    "mkdir -p /tmp/site; echo \"$0\" >/tmp/site/index.html; exec busybox httpd -f -p 80 -h /tmp/site";

/// Asks the server at an address for its page.
pub const CLIENT: &str = "until printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 $0 80 | grep . >/tmp/page; do sleep 0.2; done; \
                      tail -n 1 /tmp/page";

/// The address of a name, as the network's own server knows it.
const LOOK_UP: &str =
    "until nslookup $0 | tail -n +3 | sed -n 's/^Address.*: //p' | grep .; do sleep 0.2; done | head -n 1";

/// A port of the cell's that nobody else has: the cell's network is its own, and so are all its ports.
pub fn port(bed: &Bed) -> Result<u16> {
    Ok(20_000 + bed.name().trim_start_matches('c').parse::<u16>()?)
}

fn serve(bed: &Bed, options: &[&str], page: &str) -> Result<String> {
    bed.background(options, &["sh", "-c", SERVER, page])
}

/// The page that a server at a port of the cell's has.
pub fn page(port: u16) -> Result<String> {
    let mut answer = String::new();
    wait::until("a server answers", deadlines::RUN, || {
        // A port is published before anybody listens in the container.
        Ok(ask(port).ok().map(|said| answer = said))
    })?;
    let (_, page) = answer.split_once("\r\n\r\n").context("no page")?;
    Ok(page.to_owned())
}

fn ask(port: u16) -> Result<String> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let mut stream = TcpStream::connect_timeout(&address, deadlines::GONE)?;
    stream.set_read_timeout(Some(deadlines::GONE))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    ensure!(!said.is_empty(), "an empty answer");
    Ok(said)
}

fn published(bed: &Bed, network: &str) -> Result<()> {
    let port = port(bed)?;
    let publish = format!("--publish=127.0.0.1:{port}:80");
    let name = serve(bed, &[&format!("--network={network}"), &publish], "published")?;
    same(&page(port)?, "published\n")?;
    same(
        &bed.call(&["port", &name])?,
        &format!("80/tcp -> 127.0.0.1:{port}"),
    )?;
    same(&address_of(bed, &name, "eth0")?, &address(bed, &name, network)?)?;
    bed.remove(&name)
}

/// The address of a container in a network, as podman knows it.
fn address(bed: &Bed, name: &str, network: &str) -> Result<String> {
    bed.inspect(
        name,
        &format!("(index .NetworkSettings.Networks \"{network}\").IPAddress"),
    )
}

/// The address of a container's device, as the container itself sees it.
fn address_of(bed: &Bed, name: &str, device: &str) -> Result<String> {
    bed.sh(
        name,
        &format!("ip -4 address show dev {device} | sed -n 's/^ *inet \\([0-9.]*\\).*/\\1/p'"),
    )
}

fn a_published_port_reaches_a_server(bed: &Bed) -> Result<()> {
    published(bed, "podman")
}

fn a_port_is_published_by_the_cni_plugins_as_well(bed: &Bed) -> Result<()> {
    bed.with_backend(Backend::Cni, || {
        // Of its own: the usual one has the same addresses as netavark's.
        let network = bed.network()?;
        published(bed, &network)?;
        bed.call(&["network", "rm", &network]).map(drop)
    })
}

fn containers_of_a_network_find_each_other_by_name(bed: &Bed) -> Result<()> {
    let network = bed.network()?;
    let option = format!("--network={network}");
    let name = serve(bed, &[&option], "found")?;
    let other = bed.sleeper(&[&option])?;
    let address = bed.call(&["exec", &other, "sh", "-c", LOOK_UP, &name])?;
    same(
        &bed.call(&["exec", &other, "sh", "-c", CLIENT, &address])?,
        "found",
    )?;
    bed.remove(&other)?;
    bed.remove(&name)?;
    bed.call(&["network", "rm", &network]).map(drop)
}

fn a_container_has_two_networks(bed: &Bed) -> Result<()> {
    let (one, two) = (bed.network()?, bed.network()?);
    let name = bed.sleeper(&[&format!("--network={one}"), &format!("--network={two}")])?;
    // Which of them is eth0 is podman's choice, and not always that of its command line (its issue 12850).
    let mut known = [address(bed, &name, &one)?, address(bed, &name, &two)?];
    let mut seen = [address_of(bed, &name, "eth0")?, address_of(bed, &name, "eth1")?];
    known.sort();
    seen.sort();
    ensure!(
        known == seen,
        "podman knows {known:?}, the container sees {seen:?}"
    );
    ensure!(known[0] != known[1], "{} twice", known[0]);
    bed.remove(&name)?;
    bed.call(&["network", "rm", &one, &two]).map(drop)
}

fn a_pod_publishes_a_port_of_a_member(bed: &Bed) -> Result<()> {
    let (pod, server, client) = (bed.name(), bed.name(), bed.name());
    let port = port(bed)?;
    let publish = format!("--publish=127.0.0.1:{port}:80");
    bed.pod_with(&pod, &["--network=bridge", &publish])?;
    bed.in_pod(&pod, &server, &["sh", "-c", SERVER, "of a pod"])?;
    same(&page(port)?, "of a pod\n")?;
    bed.in_pod(&pod, &client, &["sh", "-c", CLIENT, "127.0.0.1"])?;
    same(&bed.call(&["wait", &client])?, "0")?;
    same(&bed.call(&["logs", &client])?, "of a pod")?;
    bed.call(&["pod", "rm", "--force", "--time=0", &pod]).map(drop)
}

fn who_joins_a_containers_network_is_in_its_machine(bed: &Bed) -> Result<()> {
    let server = serve(bed, &["--network=bridge", "--hostname=server"], "next door")?;
    let network = format!("--network=container:{server}");
    let said = bed
        .run(&["--rm", &network], &["sh", "-c", CLIENT, "127.0.0.1"])?
        .success()?;
    same(&said, "next door\n")?;
    let neighbour = bed.sleeper(&[&network])?;
    let boot = |name: &str| bed.sh(name, "cat /proc/sys/kernel/random/boot_id");
    same(&boot(&neighbour)?, &boot(&server)?)?;
    // Its files and its queues of messages are its own.
    bed.sh(&neighbour, "! test -e /tmp/site")?;
    if bed.runtime() == Runtime::Kata {
        ensure!(bed.machines()? == 1, "{} virtual machines", bed.machines()?);
        let ipc = |name: &str| bed.sh(name, "readlink /proc/self/ns/ipc");
        ensure!(
            ipc(&neighbour)? != ipc(&server)?,
            "they share what they did not ask for"
        );
    }
    bed.remove(&neighbour)?;
    same(&bed.sh(&server, "echo still")?, "still")?;
    bed.remove(&server)
}

fn a_namespace_that_was_made_before_is_taken_over(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&["--network=bridge"])?;
    let namespace = bed.inspect(&name, ".NetworkSettings.SandboxKey")?;
    has(&namespace, "/run/netns/")?;
    let bundle = bed.inspect(&name, ".OCIConfigPath")?;
    let spec: serde_json::Value = serde_json::from_str(&fs::read_to_string(bundle)?)?;
    let namespaces = spec["linux"]["namespaces"].as_array().context("namespaces")?;
    ensure!(
        namespaces
            .iter()
            .any(|entry| entry["type"] == "network" && entry["path"] == namespace.as_str()),
        "the namespace is not in the specification: {namespaces:?}"
    );
    // Podman's figures of the network are those of its interface there.
    let links = Program::new("nsenter")
        .args([format!("--net={namespace}")])
        .args(["ip", "-oneline", "link"])
        .read()?;
    has(&links, " eth0@")?;
    if bed.runtime() == Runtime::Kata {
        has(&links, " kata")?;
    }
    bed.remove(&name)?;
    ensure!(!Path::new(&namespace).exists(), "{namespace} is left");
    Ok(())
}

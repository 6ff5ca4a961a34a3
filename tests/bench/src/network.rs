//! N1: what two pods send each other over a bridge, as a CNI plugin connects them, by IPv4 and by IPv6.
//!
//! The programs at both ends read and write the socket itself, in large pieces. busybox's `nc` moves 1 KiB at a time between
//! the socket and a pipe: a transfer through it measures how long a guest takes to switch between two processes, 1000 times
//! for each MiB, and hardly the network.

use anyhow::{Context as _, Result, ensure};
use e2e::program::{Program, search_path};

use crate::Amount;
use crate::bed::{Bed, Runtime};
use crate::deadlines;
use crate::report::{Figure, Results};
use crate::statistics::Ratio;

/// Pieces of one transfer, after the first byte, and the bytes of a piece. Clocks in containers have ticks of 10 ms, of which
/// the faster side needs some dozens.
const PIECES: usize = 4096;
const PIECE: usize = 65536;
const PORT: &str = "5001";
const BRIDGE: &str = "bench0";

/// A network namespace with an address on the bridge.
struct Joint {
    name: String,
    /// IPv4 and IPv6.
    addresses: [String; 2],
}

/// What is measured: a figure's id, its name, and which of the addresses it is about.
const FAMILIES: [(&str, &str, usize); 2] = [("N1", "TCP", 0), ("N1.ipv6", "TCP on IPv6", 1)];

impl Joint {
    fn new(name: String, number: usize) -> Result<Self> {
        let joint = Self {
            name,
            addresses: [
                format!("10.99.0.{}", 10 + number),
                format!("fd99::{}", 10 + number),
            ],
        };
        let (inner, outer) = (format!("in{number}"), format!("out{number}"));
        let name = joint.name.as_str();
        ip(&["netns", "add", name])?;
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner])?;
        ip(&["link", "set", &inner, "netns", name, "name", "eth0"])?;
        ip(&["link", "set", &outer, "master", BRIDGE, "up"])?;
        let [four, six] = &joint.addresses;
        ip(&["-n", name, "addr", "add", &format!("{four}/24"), "dev", "eth0"])?;
        ip(&[
            "-n",
            name,
            "addr",
            "add",
            &format!("{six}/64"),
            "dev",
            "eth0",
            "nodad",
        ])?;
        ip(&["-n", name, "link", "set", "eth0", "up"])?;
        ip(&["-n", name, "link", "set", "lo", "up"])?;
        Ok(joint)
    }

    /// For `ctr run`.
    fn flag(&self) -> String {
        format!("network:/run/netns/{}", self.name)
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    Program::new("ip")
        .env("PATH", search_path())
        .args(arguments)
        .read()
        .map(drop)
}

/// Measures it.
///
/// # Errors
/// The bytes do not arrive.
pub fn run(bed: &Bed, amount: &Amount, results: &mut Results) -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    let mut number = 0;
    let mut pairs = Vec::new();
    for runtime in Runtime::BOTH {
        let mut pod = || -> Result<(String, Joint)> {
            number += 1;
            let id = bed.name("net");
            let joint = Joint::new(id.clone(), number)?;
            bed.start(runtime, &["--with-ns", &joint.flag()], &id)?;
            Ok((id, joint))
        };
        pairs.push((pod()?, pod()?));
    }
    for (id, name, family) in FAMILIES {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=amount.output {
            for (((from, _), (to, at)), rates) in pairs.iter().zip(&mut rates) {
                let rate = rate(bed, from, to, &at.addresses[family])?;
                if round > 0 {
                    rates.push(rate);
                }
            }
        }
        let [ours, runc] = &rates;
        results.measured(&format!("{name} between two pods, ours"), "MiB/s", ours);
        results.measured(&format!("{name} between two pods, runc"), "MiB/s", runc);
        results.figures.push(Figure::new(
            id,
            &format!("256 MiB by {name} between two pods on a bridge, ours / runc (more is better)"),
            "MiB/s",
            ours,
            runc,
            Ratio::of(ours, runc),
        ));
    }
    for (id, joint) in pairs.into_iter().flat_map(|(one, other)| [one, other]) {
        bed.remove(&id)?;
        ip(&["netns", "delete", &joint.name])?;
    }
    ip(&["link", "delete", BRIDGE])
}

/// MiB per second from the arrival of the first byte to that of the last, by the receiver's clock.
fn rate(bed: &Bed, from: &str, to: &str, address: &str) -> Result<f64> {
    // nc's standard input and output are the socket in both, once it is connected; its standard error stays what it was.
    let receive = format!(
        "dd bs=1 count=1 of=/dev/null 2>/dev/null; read -r begin rest </proc/uptime; \
         records=$(dd bs={PIECE} iflag=fullblock of=/dev/null 2>&1); read -r end rest </proc/uptime; \
         echo ${{records%% *}} $begin $end >&2"
    );
    let receiving = bed
        .exec(to, &["nc", "-l", "-p", PORT, "-e", "sh", "-c", &receive])
        .within(deadlines::OUTPUT)
        .start()?;
    let send = format!("echo; exec dd if=/dev/zero bs={PIECE} count={PIECES} 2>/dev/null");
    // The receiver may not listen yet.
    let send = format!(
        "tries=0; until nc {address} {PORT} -e sh -c '{send}'; \
         do tries=$((tries+1)); test $tries -lt 100 || exit 1; sleep 0.1; done"
    );
    bed.exec(from, &["sh", "-c", &send])
        .within(deadlines::OUTPUT)
        .read()?;
    let said = receiving.end()?.stderr;
    let full = format!("{PIECES}+0");
    let (came, clock) = said.trim().split_once(' ').unwrap_or_default();
    ensure!(
        came == full,
        "{full} pieces were sent, and the receiver said {said:?}"
    );
    let numbers: Vec<f64> = clock
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the receiver said {said:?}"))?;
    let [begin, end] = numbers[..] else {
        anyhow::bail!("the receiver said {said:?}");
    };
    ensure!(end > begin, "the transfer took no time: {said:?}");
    Ok((PIECES * PIECE) as f64 / (1 << 20) as f64 / (end - begin))
}

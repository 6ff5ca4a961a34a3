//! N1: what two pods send each other over a bridge, as a CNI plugin connects them.

use anyhow::{Context as _, Result, ensure};
use e2e::program::{Program, search_path};

use crate::Amount;
use crate::bed::{Bed, Runtime};
use crate::deadlines;
use crate::report::{Figure, Results};
use crate::statistics::Ratio;

/// Bytes of one transfer, after the first one.
const BYTES: usize = 128 << 20;
const PORT: &str = "5001";
const BRIDGE: &str = "bench0";

/// A network namespace with an address on the bridge.
struct Joint {
    name: String,
    address: String,
}

impl Joint {
    fn new(name: String, number: usize) -> Result<Self> {
        let joint = Self {
            name,
            address: format!("10.99.0.{}", 10 + number),
        };
        let (inner, outer) = (format!("in{number}"), format!("out{number}"));
        let name = joint.name.as_str();
        ip(&["netns", "add", name])?;
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner])?;
        ip(&["link", "set", &inner, "netns", name, "name", "eth0"])?;
        ip(&["link", "set", &outer, "master", BRIDGE, "up"])?;
        let address = format!("{}/24", joint.address);
        ip(&["-n", name, "addr", "add", &address, "dev", "eth0"])?;
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
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..=amount.output {
        for (((from, _), (to, at)), rates) in pairs.iter().zip(&mut rates) {
            let rate = rate(bed, from, to, &at.address)?;
            if round > 0 {
                rates.push(rate);
            }
        }
    }
    let [ours, runc] = &rates;
    results.measured("TCP between two pods, ours", "MiB/s", ours);
    results.measured("TCP between two pods, runc", "MiB/s", runc);
    results.figures.push(Figure::new(
        "N1",
        "128 MiB by TCP between two pods on a bridge, ours / runc (more is better)",
        "MiB/s",
        ours,
        runc,
        Ratio::of(ours, runc),
    ));
    for (id, joint) in pairs.into_iter().flat_map(|(one, other)| [one, other]) {
        bed.remove(&id)?;
        ip(&["netns", "delete", &joint.name])?;
    }
    ip(&["link", "delete", BRIDGE])
}

/// MiB per second from the arrival of the first byte to that of the last, by the receiver's clock.
fn rate(bed: &Bed, from: &str, to: &str, address: &str) -> Result<f64> {
    let receive = format!(
        "nc -l -p {PORT} | {{ dd bs=1 count=1 >/dev/null 2>&1; read -r begin rest </proc/uptime; \
         count=$(wc -c); read -r end rest </proc/uptime; echo $count $begin $end; }}"
    );
    let receiving = bed
        .exec(to, &["sh", "-c", &receive])
        .within(deadlines::OUTPUT)
        .start()?;
    let send = format!(
        "tries=0; until {{ echo; dd if=/dev/zero bs=65536 count={}; }} 2>/dev/null | nc {address} {PORT}; \
         do tries=$((tries+1)); test $tries -lt 100 || exit 1; sleep 0.1; done",
        BYTES >> 16
    );
    bed.exec(from, &["sh", "-c", &send])
        .within(deadlines::OUTPUT)
        .read()?;
    let said = String::from_utf8(receiving.end()?.stdout)?;
    let numbers: Vec<f64> = said
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the receiver said {said:?}"))?;
    let [count, begin, end] = numbers[..] else {
        anyhow::bail!("the receiver said {said:?}");
    };
    ensure!(count == BYTES as f64, "{count} bytes came instead of {BYTES}");
    ensure!(end > begin, "the transfer took no time: {said:?}");
    Ok(BYTES as f64 / (1 << 20) as f64 / (end - begin))
}

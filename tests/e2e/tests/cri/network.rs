//! The network of the pods: a bridge, made by Debian's CNI plugins. It is the cell's own, and so are its addresses.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use e2e::program::{Program, search_path};
use e2e::{deadlines, wait};
use serde_json::json;

/// Where Debian has the plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

/// The cell's side of the bridge.
pub const GATEWAY: &str = "10.88.0.1";

/// The cell's side of the bridge.
pub const GATEWAY_V6: &str = "fd00:88::1";

/// Where addresses are handed out. Ends with the cell.
const ADDRESSES: &str = "/run/cni";

/// Writes what containerd reads, below `directory`, and answers where.
pub fn configure(directory: &Path) -> Result<PathBuf> {
    let directory = directory.join("cni");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let text = list().to_string();
    fs::write(directory.join("10-pods.conflist"), text).context("write the network's configuration")?;
    // A namespace is made with it down.
    Program::new("ip")
        .env("PATH", search_path())
        .args(["link", "set", "dev", "lo", "up"])
        .read()?;
    Ok(directory)
}

fn list() -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "pods0",
                "isGateway": true,
                "ipMasq": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": ADDRESSES,
                    "ranges": [[{ "subnet": "10.88.0.0/16" }], [{ "subnet": "fd00:88::/64" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// Connects to a port, as soon as somebody listens there; sends all of `bytes`, and checks that exactly `answer` comes back.
pub fn send(address: &str, port: u16, bytes: &[u8], answer: &[u8]) -> Result<()> {
    let address: IpAddr = address.parse()?;
    let stream = wait::until(
        &format!("{address} listens on {port}"),
        deadlines::PROGRESS,
        || Ok(TcpStream::connect_timeout(&(address, port).into(), deadlines::GONE).ok()),
    )?;
    stream.set_read_timeout(Some(deadlines::CALL))?;
    stream.set_write_timeout(Some(deadlines::CALL))?;
    let got = thread::scope(|scope| {
        // It may answer while we send.
        scope.spawn(|| (&stream).write_all(bytes));
        let mut got = vec![0; answer.len()];
        (&stream).read_exact(&mut got).map(|()| got)
    })
    .with_context(|| format!("read what {address} answers on {port}"))?;
    ensure!(
        got == answer,
        "another answer came from {address}: {} bytes",
        got.len()
    );
    Ok(())
}

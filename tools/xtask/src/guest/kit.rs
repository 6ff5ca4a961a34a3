//! The kit for iptables: what a guest is sent when somebody asks for the rules of its packet filter. Debian's programs, and the
//! kernel's modules, in one packed archive of plain files (agent/protocol/PROTOCOL.md). In the image they would be unpacked by
//! every guest's kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::compression::gzip;
use super::debian;
use super::initramfs::Initramfs;
use crate::Workspace;

/// Largest kit that a guest takes, bytes.
const MOST: usize = 3 << 20;

/// Package, path in it, name in the kit.
const FILES: [(&str, &str, &str); 7] = [
    ("iptables", "usr/sbin/xtables-nft-multi", "xtables"),
    ("libc6", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", "ld.so"),
    ("libc6", "lib/x86_64-linux-gnu/libc.so.6", "libc.so.6"),
    ("libc6", "lib/x86_64-linux-gnu/libm.so.6", "libm.so.6"),
    ("libmnl0", "usr/lib/x86_64-linux-gnu/libmnl.so.0", "libmnl.so.0"),
    (
        "libnftnl11",
        "usr/lib/x86_64-linux-gnu/libnftnl.so.11",
        "libnftnl.so.11",
    ),
    (
        "libxtables12",
        "usr/lib/x86_64-linux-gnu/libxtables.so.12",
        "libxtables.so.12",
    ),
];

/// Of the package iptables: what knows of matches and targets.
const EXTENSIONS: &str = "usr/lib/x86_64-linux-gnu/xtables";

/// How they are called; others are for arptables and ebtables.
const OURS: [&str; 3] = ["libxt_", "libipt_", "libip6t_"];

/// Needs libraries that nothing else does.
const LEFT_OUT: &str = "libxt_connlabel.so";

/// Name of the list of modules, in load order.
const MODULES: &str = "modules";

/// Makes it, with these modules, name and bytes, in load order.
///
/// # Errors
/// A package is neither installed nor to be had.
pub fn build(workspace: &Workspace, modules: Vec<(String, Vec<u8>)>) -> Result<Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut place = |package: &'static str, path: &str| -> Result<PathBuf> {
        let installed = Path::new("/").join(path);
        if installed.exists() {
            return Ok(installed);
        }
        let root = match found.get(package) {
            Some(root) => root,
            None => found
                .entry(package)
                .or_insert(debian::content(workspace, package)?),
        };
        Ok(root.join(path))
    };
    let mut files = Vec::new();
    for (package, path, name) in FILES {
        files.push((name.to_owned(), read(&place(package, path)?)?));
    }
    let extensions = place("iptables", EXTENSIONS)?;
    let entries = fs::read_dir(&extensions).with_context(|| format!("read {}", extensions.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_ours = OURS.iter().any(|prefix| name.starts_with(prefix)) && name != LEFT_OUT;
        if is_ours && name.ends_with(".so") {
            files.push((name, read(&entry.path())?));
        }
    }
    let kit = archive(files, modules)?;
    ensure!(
        kit.len() <= MOST,
        "the kit for iptables has {} bytes, and a guest takes {MOST}: shorten tools/guest/modules.iptables",
        kit.len()
    );
    Ok(kit)
}

fn archive(files: Vec<(String, Vec<u8>)>, modules: Vec<(String, Vec<u8>)>) -> Result<Vec<u8>> {
    let mut archive = Initramfs::default();
    let mut list = String::new();
    for (name, bytes) in files {
        archive.file(&format!("/{name}"), 0o755, bytes)?;
    }
    for (path, bytes) in modules {
        let name = path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name);
        list.push_str(name);
        list.push('\n');
        archive.file(&format!("/{name}"), 0o644, bytes)?;
    }
    archive.file(&format!("/{MODULES}"), 0o644, list.into_bytes())?;
    gzip(&archive.archive()?)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::compression::decompress;

    #[test]
    fn modules_are_listed_in_the_order_in_which_they_are_to_be_loaded() {
        let module = |path: &str| (path.to_owned(), path.as_bytes().to_vec());
        let kit = archive(
            vec![("ld.so".into(), b"linker".to_vec())],
            vec![module("kernel/net/z.ko"), module("kernel/net/a.ko")],
        )
        .unwrap();
        let bytes = decompress(&kit).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("z.ko\na.ko\n"), "{text}");
        assert!(
            text.contains("linker") && text.contains("kernel/net/a.ko"),
            "{text}"
        );
    }
}

//! Images for containerd, made on the spot: nothing is pulled. The format is that of an OCI image layout in a tar file.
//!
//! The same content gives the same bytes, and so the same digest.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::pause;

/// The name of the image of busybox in containerd.
pub const BUSYBOX: &str = "e2e.test/busybox:latest";

/// The name of the image of a pod's first container.
pub const PAUSE: &str = "e2e.test/pause:latest";

/// busybox, as Debian's package installs it.
pub const BUSYBOX_PROGRAM: &str = "/bin/busybox";

/// Where images find their programs.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Programs that busybox is under each of its names.
const APPLETS: &[&str] = &[
    "ash",
    "base64",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "cut",
    "date",
    "dd",
    "df",
    "echo",
    "env",
    "expr",
    "false",
    "find",
    "free",
    "grep",
    "head",
    "hostname",
    "id",
    "ifconfig",
    "ip",
    "kill",
    "killall",
    "ln",
    "ls",
    "md5sum",
    "mkdir",
    "mkfifo",
    "mknod",
    "mount",
    "mv",
    "nc",
    "nproc",
    "nslookup",
    "od",
    "ping",
    "printf",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "route",
    "sed",
    "seq",
    "sh",
    "sha256sum",
    "sleep",
    "sort",
    "stat",
    "stty",
    "sync",
    "tail",
    "tar",
    "tee",
    "test",
    "timeout",
    "top",
    "touch",
    "tr",
    "true",
    "tty",
    "umask",
    "umount",
    "uname",
    "unshare",
    "uptime",
    "vi",
    "wc",
    "wget",
    "which",
    "whoami",
    "xargs",
    "yes",
];

/// Writes the image of busybox, which has nothing else, to `path`.
///
/// # Errors
/// busybox can't be read, or the image not written.
pub fn write_busybox(path: &Path) -> Result<()> {
    let program = fs::read(BUSYBOX_PROGRAM).with_context(|| format!("read {BUSYBOX_PROGRAM}"))?;
    let mut layer = Builder::new(Vec::new());
    for directory in [
        "bin", "dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var",
    ] {
        let mode = if directory == "tmp" { 0o1777 } else { 0o755 };
        add(&mut layer, directory, EntryType::Directory, mode, &[])?;
    }
    add(&mut layer, "bin/busybox", EntryType::Regular, 0o755, &program)?;
    for applet in APPLETS {
        let mut header = header(EntryType::Symlink, 0o777, 0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    for (file, text) in [
        (
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1000:guest:/home:/bin/sh\n",
        ),
        ("etc/group", "root:x:0:\nguest:x:1000:\nextra:x:2000:guest\n"),
        ("etc/hosts", "127.0.0.1 localhost\n"),
    ] {
        add(&mut layer, file, EntryType::Regular, 0o644, text.as_bytes())?;
    }
    write(&layer.into_inner()?, BUSYBOX, path)
}

/// Writes the image of a pod's first container, which has one program, to `path`.
///
/// # Errors
/// It can't be written.
pub fn write_pause(path: &Path) -> Result<()> {
    let mut layer = Builder::new(Vec::new());
    add(&mut layer, "pause", EntryType::Regular, 0o755, &pause::program())?;
    write_with(
        &layer.into_inner()?,
        PAUSE,
        &json!({ "Entrypoint": ["/pause"] }),
        path,
    )
}

/// Writes an image with this one layer, a tar file, to `path`.
///
/// # Errors
/// It can't be written.
pub fn write(layer: &[u8], name: &str, path: &Path) -> Result<()> {
    let config = json!({ "Env": [PATH], "Cmd": ["/bin/sh"], "WorkingDir": "/" });
    write_with(layer, name, &config, path)
}

/// The same, with this as what the image says of its containers.
///
/// # Errors
/// It can't be written.
pub fn write_with(layer: &[u8], name: &str, config: &Value, path: &Path) -> Result<()> {
    let layer = Blob::new("application/vnd.oci.image.layer.v1.tar", layer.to_vec());
    let config = Blob::json(
        "application/vnd.oci.image.config.v1+json",
        &json!({
            "architecture": "amd64",
            "os": "linux",
            "config": config,
            // The layer is not compressed, so both of its digests are the same.
            "rootfs": { "type": "layers", "diff_ids": [layer.digest()] },
        }),
    );
    let manifest = Blob::json(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        }),
    );
    let mut listed = manifest.descriptor();
    listed["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name,
    });
    listed["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    let index = json!({ "schemaVersion": 2, "manifests": [listed] }).to_string();

    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut tar = Builder::new(BufWriter::new(file));
    let version = json!({ "imageLayoutVersion": "1.0.0" }).to_string();
    add(
        &mut tar,
        "oci-layout",
        EntryType::Regular,
        0o644,
        version.as_bytes(),
    )?;
    add(
        &mut tar,
        "index.json",
        EntryType::Regular,
        0o644,
        index.as_bytes(),
    )?;
    for blob in [&manifest, &config, &layer] {
        let name = format!("blobs/sha256/{}", blob.sha256);
        add(&mut tar, &name, EntryType::Regular, 0o644, &blob.bytes)?;
    }
    tar.into_inner()?
        .flush()
        .with_context(|| format!("write {}", path.display()))
}

/// Something that is known by its digest.
struct Blob {
    media_type: &'static str,
    sha256: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        let sha256 = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            media_type,
            sha256,
            bytes,
        }
    }

    fn json(media_type: &'static str, value: &Value) -> Self {
        Self::new(media_type, value.to_string().into_bytes())
    }

    fn digest(&self) -> String {
        format!("sha256:{}", self.sha256)
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len() })
    }
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn add(tar: &mut Builder<impl Write>, path: &str, kind: EntryType, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = header(kind, mode, bytes.len());
    tar.append_data(&mut header, path, bytes)?;
    Ok(())
}

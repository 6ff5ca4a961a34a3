//! The files of a guest image, and which image is the default.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::compression::{decompress, gzip};
use super::initramfs::Initramfs;
use super::kernel::{Choice, Kernel};
use super::{kit, modules, vmlinux};
use crate::{Workspace, digest};

const KERNEL: &str = "vmlinux";
const INITRD: &str = "initrd.img";
const MANIFEST: &str = "manifest.json";
/// Beside the initramfs, where the runtime looks for it.
const KIT: &str = "iptables.img";

/// The modules that go into that.
const KIT_MODULES: &str = "modules.iptables";

/// Lists of modules, in our recipes and in the guest: what every guest loads, what one loads that can grow, and what one loads that
/// mounts such a file system from a disk.
const LISTS: [&str; 4] = ["modules", "modules.growth", "modules.erofs", "modules.xfs"];

/// From this list on, modules are packed: few guests load them, and every guest's kernel unpacks the image.
const FIRST_PACKED: usize = 2;

/// Link to the directory of the default image.
const DEFAULT: &str = "default";

/// What an image is made of.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    /// The choice of kernel: `debian`, `source` or a path.
    source: String,
    /// `uname -r` in the guest.
    kernel_release: String,
    /// Version of the agent's crate.
    agent_version: String,
    /// Modules in the order in which the agent loads them.
    modules: Vec<String>,
    /// Of every file, and of the agent within the initramfs.
    sha256: BTreeMap<String, String>,
}

/// Makes the image's files. What is the same already is not written again.
///
/// # Errors
/// A part can't be read, or is not what it should be.
pub fn build(workspace: &Workspace, choice: &Choice, kernel: &Kernel, agent: &Path) -> Result<PathBuf> {
    let vmlinux = vmlinux::extract(read(&kernel.image)?)
        .with_context(|| format!("take the kernel out of {}", kernel.image.display()))?;
    let release = vmlinux::release(&vmlinux)?;
    let agent = read(agent)?;
    let (modules, of_kit) = match &kernel.modules {
        Some(directory) => {
            let mut lists = Vec::new();
            for list in LISTS {
                lists.push(read_text(&workspace.recipes().join(list))?);
            }
            let of_kit = read_text(&workspace.recipes().join(KIT_MODULES))?;
            (
                read_modules(directory, &lists)?,
                read_modules(directory, &[of_kit])?,
            )
        }
        None => (Vec::new(), Vec::new()),
    };
    let of_kit = of_kit.into_iter().map(|module| (module.path, module.bytes));
    let kit = kit::build(workspace, of_kit.collect())?;
    let mut manifest = Manifest {
        source: choice.text(),
        kernel_release: release.clone(),
        agent_version: env!("CARGO_PKG_VERSION").into(),
        modules: modules.iter().map(|module| module.path.clone()).collect(),
        sha256: BTreeMap::from([("kata-agent".into(), digest::of(&agent))]),
    };
    let initrd = initramfs(agent, &release, modules)?.archive()?;

    let directory = workspace.guest().join(choice.directory());
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let mut written = false;
    for (name, bytes) in [(KERNEL, vmlinux), (INITRD, initrd), (KIT, kit)] {
        manifest.sha256.insert(name.into(), digest::of(&bytes));
        written |= write_if_new(&directory.join(name), &bytes)?;
    }
    let mut text = serde_json::to_string_pretty(&manifest)?;
    text.push('\n');
    written |= write_if_new(&directory.join(MANIFEST), text.as_bytes())?;
    let state = if written { "built" } else { "up to date" };
    eprintln!("guest: {} (Linux {release}) {state}", directory.display());
    Ok(directory)
}

/// A module of the guest.
#[derive(Debug)]
struct Module {
    /// Index of the first of [`LISTS`] that it is in.
    list: usize,
    /// As in `modules.dep`, but for the compression's suffix.
    path: String,
    bytes: Vec<u8>,
}

/// The modules that the lists' roots need, in load order. The other lists go without what the first one has.
fn read_modules(directory: &Path, lists: &[String]) -> Result<Vec<Module>> {
    let [dep, softdep, builtin] =
        ["modules.dep", "modules.softdep", "modules.builtin"].map(|name| read_text(&directory.join(name)));
    let dep = dep?;
    let index = modules::Index::parse(&dep, &softdep?, &builtin?)?;
    let mut found: Vec<Module> = Vec::new();
    for (list, text) in lists.iter().enumerate() {
        let paths = index
            .resolve(modules::roots(text))
            .with_context(|| format!("resolve modules in {}", directory.display()))?;
        for path in paths {
            let bytes = read(&directory.join(path))?;
            let (path, bytes) = match path.rsplit_once(".ko.") {
                None => (path.to_owned(), bytes),
                Some((stem, _)) => {
                    let bytes = decompress(&bytes).with_context(|| format!("read the module {path}"))?;
                    (format!("{stem}.ko"), bytes)
                }
            };
            // Every guest has loaded the first list by then; of the others it may be the only one.
            let is_loaded = |module: &Module| module.path == path && module.list == 0;
            if !found.iter().any(is_loaded) {
                found.push(match list >= FIRST_PACKED {
                    true => Module {
                        list,
                        path: format!("{path}.gz"),
                        bytes: gzip(&bytes)?,
                    },
                    false => Module { list, path, bytes },
                });
            }
        }
    }
    Ok(found)
}

/// The agent's world at its start: itself, the modules and their list, and what the kernel needs to start it.
fn initramfs(agent: Vec<u8>, release: &str, modules: Vec<Module>) -> Result<Initramfs> {
    let mut initramfs = Initramfs::default();
    for mount_point in ["/dev", "/newroot", "/proc", "/run", "/sys", "/tmp"] {
        initramfs.directory(mount_point)?;
    }
    // The kernel opens the first for init's standard streams (its Documentation/admin-guide/devices.txt).
    initramfs.character_device("/dev/console", 0o600, 5, 1)?;
    initramfs.character_device("/dev/null", 0o666, 1, 3)?;
    initramfs.file("/init", 0o755, agent)?;
    let mut lists = LISTS.map(|_| String::new());
    let mut written = BTreeSet::new();
    for module in modules {
        let path = format!("/lib/modules/{release}/{}", module.path);
        let list = lists.get_mut(module.list).context("a module is in no list")?;
        list.push_str(&path);
        list.push('\n');
        // Several lists may have it.
        if written.insert(path.clone()) {
            initramfs.file(&path, 0o644, module.bytes)?;
        }
    }
    for (name, list) in LISTS.into_iter().zip(lists) {
        if !list.is_empty() {
            initramfs.file(&format!("/etc/kata/{name}"), 0o644, list.into_bytes())?;
        }
    }
    Ok(initramfs)
}

/// The choice whose image is the default; Debian's where there is none.
///
/// # Errors
/// The default image's manifest is broken.
pub fn default_choice(workspace: &Workspace) -> Result<Choice> {
    let path = workspace.guest().join(DEFAULT).join(MANIFEST);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Choice::Debian),
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    let manifest: Manifest =
        serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))?;
    Choice::parse(&manifest.source)
}

/// Whether the image in `directory` is the default, or none is yet.
pub fn may_be_default(workspace: &Workspace, directory: &Path) -> bool {
    match fs::canonicalize(workspace.guest().join(DEFAULT)) {
        Ok(default) => fs::canonicalize(directory).is_ok_and(|directory| directory == default),
        Err(_) => true,
    }
}

/// Makes the image in `directory` the default: one link decides, so that kernel and initramfs change together.
///
/// # Errors
/// The links can't be made.
pub fn set_default(workspace: &Workspace, directory: &Path) -> Result<()> {
    let guest = workspace.guest();
    let name = directory.file_name().context("an image's directory has a name")?;
    link(Path::new(name), &guest.join(DEFAULT))?;
    for file in [KERNEL, INITRD, KIT, MANIFEST] {
        link(&Path::new(DEFAULT).join(file), &guest.join(file))?;
    }
    eprintln!("guest: the default image is {}", directory.display());
    Ok(())
}

/// Makes `path` a link to `to`, in one step also where it is one already.
fn link(to: &Path, path: &Path) -> Result<()> {
    let fresh = path.with_extension("new");
    if fresh.symlink_metadata().is_ok() {
        fs::remove_file(&fresh)?;
    }
    symlink(to, &fresh).with_context(|| format!("create {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replace {}", path.display()))
}

/// Writes a file unless it has this content. The old one is replaced, not changed: a VM may have it open.
fn write_if_new(path: &Path, bytes: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let fresh = path.with_extension("new");
    fs::write(&fresh, bytes).with_context(|| format!("write {}", fresh.display()))?;
    fs::rename(&fresh, path).with_context(|| format!("replace {}", path.display()))?;
    Ok(true)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Vec<Module> {
        let module = |list, path: &str| Module {
            list,
            path: path.into(),
            bytes: path.into(),
        };
        vec![
            module(0, "kernel/z.ko"),
            module(0, "kernel/a.ko"),
            module(1, "kernel/m.ko"),
            module(2, "kernel/c.ko.gz"),
            module(3, "kernel/c.ko.gz"),
        ]
    }

    #[test]
    fn the_same_parts_give_the_same_bytes() {
        let build = || {
            initramfs(b"agent".to_vec(), "6.1", modules())
                .unwrap()
                .archive()
                .unwrap()
        };
        assert_eq!(build(), build());
    }

    #[test]
    fn the_agent_is_told_the_modules_in_load_order() {
        let bytes = initramfs(b"agent".to_vec(), "6.1", modules())
            .unwrap()
            .archive()
            .unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(
            text.contains("/lib/modules/6.1/kernel/z.ko\n/lib/modules/6.1/kernel/a.ko\n"),
            "{text}"
        );
        assert!(text.contains("etc/kata/modules.growth"), "{text}");
        assert!(
            text.contains("\0/lib/modules/6.1/kernel/m.ko\n"),
            "a list of its own: {text}"
        );
        let packed = "/lib/modules/6.1/kernel/c.ko.gz";
        assert_eq!(
            text.matches(&format!("\0{packed}\n")).count(),
            2,
            "in both lists: {text}"
        );
        assert_eq!(
            text.matches(&format!("{}\0", &packed[1..])).count(),
            1,
            "once: {text}"
        );
    }

    #[test]
    fn a_file_is_written_only_when_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(KERNEL);
        assert!(write_if_new(&path, b"1").unwrap());
        assert!(!write_if_new(&path, b"1").unwrap());
        assert!(write_if_new(&path, b"2").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"2");
    }
}

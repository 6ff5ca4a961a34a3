//! Which kernel modules a guest needs, in the order to load them. Pure: depmod's files in, paths out.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result, bail};

/// What depmod and the kernel's build know about a kernel's modules (see modules.dep(5)).
#[derive(Debug, Default)]
pub struct Index<'a> {
    /// Path and direct or indirect dependencies, by name.
    modules: HashMap<String, (&'a str, Vec<String>)>,
    /// What a module wants loaded before and after it, by name.
    soft: HashMap<String, Soft>,
    builtin: HashSet<String>,
}

#[derive(Debug, Default)]
struct Soft {
    before: Vec<String>,
    after: Vec<String>,
}

impl<'a> Index<'a> {
    /// Reads `modules.dep`, `modules.softdep` and `modules.builtin`.
    ///
    /// # Errors
    /// A line of `modules.dep` is not of its form.
    pub fn parse(dep: &'a str, softdep: &str, builtin: &str) -> Result<Self> {
        let mut index = Self {
            builtin: builtin.lines().map(name).collect(),
            ..Self::default()
        };
        for line in dep.lines() {
            let (path, needs) = line
                .split_once(':')
                .with_context(|| format!("modules.dep: no colon in {line:?}"))?;
            // What is needed first comes last.
            let needs = needs.split_ascii_whitespace().rev().map(name).collect();
            index.modules.insert(name(path), (path, needs));
        }
        for line in softdep.lines() {
            let mut words = line.split_ascii_whitespace();
            if let (Some("softdep"), Some(module)) = (words.next(), words.next()) {
                index.soft.entry(name(module)).or_default().read(words);
            }
        }
        Ok(index)
    }

    /// Paths (as in `modules.dep`) of `roots` and of all they need, each once, in the order to load them.
    ///
    /// # Errors
    /// A root, or what one needs, is neither a module nor built in.
    pub fn resolve<'r>(&self, roots: impl IntoIterator<Item = &'r str>) -> Result<Vec<&'a str>> {
        let mut order = Order {
            index: self,
            seen: HashSet::new(),
            paths: Vec::new(),
        };
        for root in roots {
            order.add(&name(root))?;
        }
        Ok(order.paths)
    }

    fn is_module(&self, name: &str) -> bool {
        self.modules.contains_key(name)
    }
}

impl Soft {
    fn read<'w>(&mut self, words: impl Iterator<Item = &'w str>) {
        // As modprobe does: words before the first of the two labels mean nothing.
        let mut list = None;
        for word in words {
            match word {
                "pre:" => list = Some(&mut self.before),
                "post:" => list = Some(&mut self.after),
                _ => {
                    if let Some(list) = &mut list {
                        list.push(name(word));
                    }
                }
            }
        }
    }
}

struct Order<'i, 'a> {
    index: &'i Index<'a>,
    seen: HashSet<String>,
    paths: Vec<&'a str>,
}

impl Order<'_, '_> {
    fn add(&mut self, module: &str) -> Result<()> {
        if self.index.builtin.contains(module) || !self.seen.insert(module.to_owned()) {
            return Ok(());
        }
        let Some((path, needs)) = self.index.modules.get(module) else {
            bail!("this kernel has no module {module}, nor is it built in");
        };
        let soft = self.index.soft.get(module);
        // A soft dependency that the kernel lacks, or that is an alias, is one that can be done without.
        for wanted in soft
            .iter()
            .flat_map(|soft| &soft.before)
            .filter(|wanted| self.index.is_module(wanted))
        {
            self.add(wanted)?;
        }
        for needed in needs {
            self.add(needed)?;
        }
        self.paths.push(path);
        for wanted in soft
            .iter()
            .flat_map(|soft| &soft.after)
            .filter(|wanted| self.index.is_module(wanted))
        {
            self.add(wanted)?;
        }
        Ok(())
    }
}

/// The roots that `list` names: one to a line, `#` begins a comment.
pub fn roots(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|line| !line.is_empty())
}

/// A module's name from its path. The kernel takes `-` for `_`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "\
kernel/virtio/virtio_pci.ko: kernel/virtio/pci-legacy.ko kernel/virtio/virtio.ko kernel/virtio/ring.ko
kernel/virtio/pci-legacy.ko:
kernel/virtio/virtio.ko: kernel/virtio/ring.ko
kernel/virtio/ring.ko:
kernel/net/virtio_net.ko.xz: kernel/net/failover.ko.xz kernel/virtio/virtio.ko kernel/virtio/ring.ko
kernel/net/failover.ko.xz:
kernel/fs/erofs.ko:
kernel/lib/crc.ko:
kernel/broken.ko: kernel/gone.ko
";
    const SOFT: &str = "\
# Soft dependencies extracted from modules themselves.
softdep erofs ignored pre: crc crypto-alias post: failover
";
    const BUILTIN: &str = "kernel/fs/ext4/ext4.ko\nkernel/serial-8250.ko\n";

    fn resolve(roots: &[&str]) -> Result<String> {
        let index = Index::parse(DEP, SOFT, BUILTIN)?;
        let names: Vec<_> = index
            .resolve(roots.iter().copied())?
            .into_iter()
            .map(name)
            .collect();
        Ok(names.join(" "))
    }

    #[test]
    fn dependencies_come_first_and_once() {
        for (roots, expected) in [
            (&[][..], ""),
            (&["ring"], "ring"),
            (&["virtio_pci"], "ring virtio pci_legacy virtio_pci"),
            (
                &["virtio-pci", "virtio_pci", "virtio"],
                "ring virtio pci_legacy virtio_pci",
            ),
            (
                &["virtio_pci", "virtio_net"],
                "ring virtio pci_legacy virtio_pci failover virtio_net",
            ),
            // Built in, under either spelling.
            (&["ext4", "serial_8250"], ""),
            (&["erofs"], "crc erofs failover"),
        ] {
            assert_eq!(resolve(roots).unwrap(), expected, "{roots:?}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(resolve(&["floppy"]).unwrap_err().to_string().contains("floppy"));
        assert!(resolve(&["broken"]).unwrap_err().to_string().contains("gone"));
        assert!(
            Index::parse("no colon\n", "", "")
                .unwrap_err()
                .to_string()
                .contains("no colon")
        );
    }

    #[test]
    fn a_list_has_comments() {
        let list = "# all\n\n  virtio_pci\nvirtio_net # network\n#last\n";
        assert_eq!(roots(list).collect::<Vec<_>>(), ["virtio_pci", "virtio_net"]);
    }
}

//! The command lines of a running sandbox, made over for a virtual machine that has no runtime: another directory, other
//! numbers of descriptors, and nothing else. Pure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// The processes of a sandbox: program and arguments of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The virtual machine monitor.
    pub qemu: Vec<String>,
    /// What serves devices of it.
    pub daemons: Vec<Vec<String>>,
}

/// A descriptor that a process is to have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Inherited {
    /// One end of a pair of connected sockets, of which nobody but us has the other.
    Paired,
    /// A socket that listens at this path.
    Listening(PathBuf),
}

/// A command line with descriptors: the number in it, and what it is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Program and arguments.
    pub words: Vec<String>,
    /// By the numbers that are in the words.
    pub inherited: BTreeMap<i32, Inherited>,
}

/// All that is to be started, and where the agent comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The virtual machine monitor.
    pub qemu: Line,
    /// To be started before.
    pub daemons: Vec<Line>,
    /// Sockets that daemons make, to be awaited.
    pub awaited: Vec<PathBuf>,
    /// Directories that are to be there.
    pub directories: Vec<PathBuf>,
    /// To be listened on: here the agent greets.
    pub agent: PathBuf,
}

impl Plan {
    /// The same virtual machine, in `directory`.
    ///
    /// # Errors
    /// The sandbox has something that has no counterpart here; the error names it.
    pub fn like(sandbox: &Sandbox, directory: &Path) -> Result<Self> {
        let from = home(&sandbox.qemu)?;
        let moved = |words: &[String]| -> Vec<String> {
            words
                .iter()
                .map(|word| replaced(word, &from, directory))
                .collect()
        };
        let qemu = qemu(moved(&sandbox.qemu))?;
        let mut plan = Self {
            agent: PathBuf::new(),
            daemons: Vec::new(),
            awaited: Vec::new(),
            directories: Vec::new(),
            qemu,
        };
        for words in &sandbox.daemons {
            plan.add_daemon(moved(words))?;
        }
        plan.agent = plan.agent_socket()?;
        Ok(plan)
    }

    fn add_daemon(&mut self, words: Vec<String>) -> Result<()> {
        let program = words.first().cloned().unwrap_or_default();
        let mut inherited = BTreeMap::new();
        if program.ends_with("/virtiofsd") {
            let number = after(&words, "--fd").context("virtiofsd has a --fd")?;
            let socket = chardev_path(&self.qemu.words, "fs-").context("QEMU has a shared file system")?;
            inherited.insert(number.parse()?, Inherited::Listening(socket));
            let shared = after(&words, "--shared-dir").context("virtiofsd has a --shared-dir")?;
            self.directories.push(shared.into());
        } else if program.ends_with("/vhost-device-vsock") {
            let socket = chardev_path(&self.qemu.words, "virtio-vsock").context("QEMU has a vsock")?;
            self.awaited.push(socket);
        } else {
            bail!(
                "the sandbox has a daemon that is not known here: {}",
                words.join(" ")
            );
        }
        self.daemons.push(Line { words, inherited });
        Ok(())
    }

    fn agent_socket(&self) -> Result<PathBuf> {
        let kernel = after(&self.qemu.words, "-append").context("the guest's kernel has parameters")?;
        let channel = kernel
            .split(' ')
            .find_map(|parameter| parameter.strip_prefix("kata.agent="))
            .context("the guest's kernel is told where to dial (kata.agent=)")?;
        if channel == "serial" {
            return chardev_path(&self.qemu.words, "port-kata.agent").context("QEMU has a serial port");
        }
        let port = channel
            .strip_prefix("vsock:")
            .with_context(|| format!("the agent's channel {channel:?} is not known here"))?;
        // Of the daemon's `--vm guest-cid=…,socket=…,uds-path=…` the last is the base of paths with ports.
        let base = self
            .daemons
            .iter()
            .flat_map(|daemon| &daemon.words)
            .flat_map(|word| word.split(','))
            .find_map(|part| part.strip_prefix("uds-path="))
            .context("the agent's channel is the kernel's vsock, which is none of a bare virtual machine's; measure another one (--channel)")?;
        Ok(format!("{base}_{port}").into())
    }
}

/// The directory of a sandbox: that of the sockets of its devices.
fn home(qemu: &[String]) -> Result<PathBuf> {
    let mut directories = chardevs(qemu)
        .filter_map(|(_, properties)| path_of(properties))
        .filter_map(|path| path.parent().map(Path::to_owned));
    let first = directories
        .next()
        .context("QEMU has no device with a socket, from which its directory could be known")?;
    for other in directories {
        ensure!(
            other == first,
            "QEMU's sockets are in two directories: {} and {}",
            first.display(),
            other.display()
        );
    }
    Ok(first)
}

/// Which descriptors it inherits: the sockets of its control protocol and of the console.
fn qemu(words: Vec<String>) -> Result<Line> {
    for option in ["-netdev", "-add-fd"] {
        if let Some(value) = after(&words, option) {
            bail!("the sandbox has a device that a bare virtual machine can't have: {option} {value}");
        }
    }
    let mut inherited = BTreeMap::new();
    for (_, properties) in chardevs(&words) {
        if let Some(number) = properties.split(',').find_map(|part| part.strip_prefix("fd=")) {
            inherited.insert(number.parse()?, Inherited::Paired);
        }
    }
    Ok(Line { words, inherited })
}

impl Line {
    /// The words with other numbers.
    pub fn renumbered(&self, numbers: &BTreeMap<i32, i32>) -> Vec<String> {
        let mut words = self.words.clone();
        for place in 1..words.len() {
            let [before, word] = &mut words[place - 1..=place] else {
                continue;
            };
            for (old, new) in numbers {
                if before == "-chardev"
                    && let Some(begin) = word.strip_suffix(&format!(",fd={old}"))
                {
                    *word = format!("{begin},fd={new}");
                    break;
                }
                if before == "--fd" && *word == old.to_string() {
                    *word = new.to_string();
                    break;
                }
            }
        }
        words
    }
}

/// The word after the first of `option`.
fn after<'a>(words: &'a [String], option: &str) -> Option<&'a str> {
    let place = words.iter().position(|word| word == option)?;
    words.get(place + 1).map(String::as_str)
}

/// Id and all properties of every chardev that is a socket.
fn chardevs(words: &[String]) -> impl Iterator<Item = (&str, &str)> {
    words.windows(2).filter_map(|pair| match pair {
        [option, value] if option == "-chardev" => {
            let properties = value.strip_prefix("socket,id=")?;
            let (id, _) = properties.split_once(',')?;
            Some((id, properties))
        }
        _ => None,
    })
}

/// The path of the chardev whose id begins so.
fn chardev_path(words: &[String], id: &str) -> Option<PathBuf> {
    let (_, properties) = chardevs(words).find(|(name, _)| name.starts_with(id))?;
    path_of(properties)
}

/// QEMU doubles commas in values.
fn path_of(properties: &str) -> Option<PathBuf> {
    let (_, path) = properties.split_once(",path=")?;
    Some(path.replace(",,", ",").into())
}

fn replaced(word: &str, from: &Path, to: &Path) -> String {
    let plain = |path: &Path| path.display().to_string();
    let doubled = |path: &Path| plain(path).replace(',', ",,");
    if word.contains(&doubled(from)) {
        return word.replace(&doubled(from), &doubled(to));
    }
    word.replace(&plain(from), &plain(to))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    const QEMU: &str = "/usr/bin/qemu-system-x86_64 -name guest=a,debug-threads=on -kernel /k/vmlinux \
        -append quiet~kata.agent=vsock:1024 -chardev socket,id=control,fd=12 -mon chardev=control,mode=control \
        -chardev socket,id=console,fd=14 \
        -chardev socket,id=virtio-vsock-backend,path=/run/kata/n@a/vhost.sock \
        -chardev socket,id=fs-kataShared-backend,path=/run/kata/n@a/fs.sock";

    fn sandbox() -> Sandbox {
        Sandbox {
            // A word with spaces in it.
            qemu: words(QEMU).iter().map(|word| word.replace('~', " ")).collect(),
            daemons: vec![
                words("/t/virtiofsd --fd 12 --shared-dir /run/kata/n@a/shared --cache auto"),
                words(
                    "/t/vhost-device-vsock --vm guest-cid=3,socket=/run/kata/n@a/vhost.sock,uds-path=/run/kata/n@a/vsock",
                ),
            ],
        }
    }

    #[test]
    fn the_directory_and_nothing_else_is_another_one() {
        let plan = Plan::like(&sandbox(), Path::new("/run/bare")).unwrap();
        let back = |line: &Line| -> Vec<String> {
            line.words
                .iter()
                .map(|word| word.replace("/run/bare", "/run/kata/n@a"))
                .collect()
        };
        assert_eq!(back(&plan.qemu), sandbox().qemu);
        assert_eq!(
            plan.daemons.iter().map(back).collect::<Vec<_>>(),
            sandbox().daemons
        );
        assert!(!format!("{plan:?}").contains("/run/kata/"));
        assert_eq!(plan.agent, Path::new("/run/bare/vsock_1024"));
        assert_eq!(plan.awaited, [Path::new("/run/bare/vhost.sock")]);
        assert_eq!(plan.directories, [Path::new("/run/bare/shared")]);
    }

    #[test]
    fn descriptors_are_found_and_renumbered() {
        let plan = Plan::like(&sandbox(), Path::new("/run/bare")).unwrap();
        let paired = [(12, Inherited::Paired), (14, Inherited::Paired)];
        assert_eq!(plan.qemu.inherited, paired.into());
        let listening = Inherited::Listening("/run/bare/fs.sock".into());
        assert_eq!(plan.daemons[0].inherited, [(12, listening)].into());
        assert_eq!(plan.daemons[1].inherited, BTreeMap::new());

        // One's new number is another's old one.
        let qemu = plan.qemu.renumbered(&[(12, 14), (14, 20)].into());
        assert!(qemu.contains(&"socket,id=control,fd=14".to_owned()), "{qemu:?}");
        assert!(qemu.contains(&"socket,id=console,fd=20".to_owned()), "{qemu:?}");
        let daemon = plan.daemons[0].renumbered(&[(12, 30)].into());
        assert_eq!(daemon[1..3], ["--fd", "30"]);
        assert_eq!(plan.qemu.renumbered(&BTreeMap::new()), plan.qemu.words);
    }

    #[test]
    fn an_agent_on_a_serial_port_comes_to_the_ports_socket() {
        let mut sandbox = sandbox();
        sandbox.daemons.pop();
        for word in &mut sandbox.qemu {
            *word = word
                .replace("kata.agent=vsock:1024", "kata.agent=serial")
                .replace("virtio-vsock-backend", "port-kata.agent.0-backend");
        }
        let plan = Plan::like(&sandbox, Path::new("/run/bare")).unwrap();
        assert_eq!(plan.agent, Path::new("/run/bare/vhost.sock"));
    }

    #[test]
    fn commas_in_paths_are_doubled_for_qemu_alone() {
        let mut sandbox = sandbox();
        for word in sandbox.qemu.iter_mut() {
            *word = word.replace("/n@a/", "/n@a,,b/");
        }
        for word in sandbox.daemons.iter_mut().flatten() {
            *word = word.replace("/n@a/", "/n@a,b/");
        }
        let plan = Plan::like(&sandbox, Path::new("/run/x,y")).unwrap();
        assert!(
            plan.qemu
                .words
                .iter()
                .any(|word| word.ends_with("path=/run/x,,y/fs.sock"))
        );
        assert_eq!(plan.directories, [Path::new("/run/x,y/shared")]);
    }

    #[test]
    fn what_has_no_counterpart_is_named() {
        let edited = |edit: fn(&mut Sandbox)| {
            let mut sandbox = sandbox();
            edit(&mut sandbox);
            format!("{:#}", Plan::like(&sandbox, Path::new("/run/bare")).unwrap_err())
        };
        let tap = edited(|sandbox| sandbox.qemu.extend(words("-netdev tap,id=n,fds=5:6")));
        assert!(tap.contains("-netdev tap,id=n,fds=5:6"), "{tap}");
        let daemon = edited(|sandbox| sandbox.daemons.push(words("/bin/other --thing")));
        assert!(daemon.contains("/bin/other --thing"), "{daemon}");
        let kernel = edited(|sandbox| drop(sandbox.daemons.pop()));
        assert!(kernel.contains("kernel's vsock"), "{kernel}");
        let nowhere = edited(|sandbox| sandbox.qemu.truncate(8));
        assert!(nowhere.contains("no device with a socket"), "{nowhere}");
        let two = edited(|sandbox| {
            sandbox
                .qemu
                .extend(words("-chardev socket,id=x,path=/elsewhere/x"));
        });
        assert!(two.contains("/elsewhere"), "{two}");
    }
}

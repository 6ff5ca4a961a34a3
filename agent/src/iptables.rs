//! The guest's packet filter, by iptables: its programs and the kernel's modules for it are the host's to send (a kit), when
//! somebody asks for rules. Few guests need them, and every guest's kernel unpacks the image.
//!
//! Must not know of the wire, nor what is in a rule.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use agent_protocol::{MAX_KIT, MAX_RULES};
use flate2::read::GzDecoder;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rustix::fs::MemfdFlags;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::init::modules;
use crate::reaper::{self, Reaper};
use crate::sys;

mod archive;

/// Most that a kit is unpacked, bytes.
const MOST_UNPACKED: u64 = 48 << 20;

/// In a kit: the dynamic linker, iptables (called by its verb, so not named like one), and the names of modules in load order.
const LINKER: &str = "ld.so";
const PROGRAM: &str = "xtables";
const MODULES: &str = "modules";

/// For iptables to be done.
const DONE: Duration = Duration::from_secs(30);

/// Bytes of what it has to say about its failure.
const MOST_SAID: u64 = 2048;

/// What is asked for.
#[derive(Debug)]
pub struct FilterRequest {
    /// Rules for IPv6.
    pub v6: bool,
    /// New ones; `None`: those that there are.
    pub rules: Option<Vec<u8>>,
    /// The kit; empty: the one that was sent before.
    pub kit: Vec<u8>,
}

/// The packet filter of this guest.
#[derive(Debug)]
pub struct Filter {
    dir: PathBuf,
    /// Whether modules may be loaded.
    owns_kernel: bool,
    reaper: Reaper,
    /// Whether the kit is there. One at a time, in any case.
    has_kit: Mutex<bool>,
}

impl Filter {
    /// One of which nobody has asked anything yet. What is sent is kept in `dir`, which is the agent's.
    pub fn new(dir: &Path, owns_kernel: bool, reaper: Reaper) -> Self {
        Self {
            dir: dir.join("iptables"),
            owns_kernel,
            reaper,
            has_kit: Mutex::new(false),
        }
    }

    /// Prints or replaces rules. `None`: nothing was done, and a kit is wanted for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for rules that iptables refuses, or a kit that is none; [`Error::Unsupported`] by this kernel;
    /// [`Error::Late`].
    pub async fn ask(&self, request: FilterRequest) -> Result<Option<Vec<u8>>> {
        check(&request)?;
        let mut has_kit = self.has_kit.lock().await;
        if !*has_kit && !request.kit.is_empty() {
            self.install(&request.kit).await?;
            *has_kit = true;
        }
        if !can_filter() {
            return match (&request.rules, *has_kit) {
                // Who cannot have rules has none.
                (None, _) => Ok(Some(Vec::new())),
                (Some(_), false) => Ok(None),
                (Some(_), true) => Err(Error::Unsupported(
                    "a packet filter (its kernel has none, and no modules for one are in the image: use the kernel of `make guest`)"
                        .to_owned(),
                )),
            };
        }
        match *has_kit {
            true => self.run(&request).await.map(Some),
            false => Ok(None),
        }
    }

    /// Unpacks a kit and loads its modules. Others are served between two of its steps: an emulated guest takes its time.
    async fn install(&self, kit: &[u8]) -> Result<()> {
        let wrong = |reason: String| Error::invalid("kit", reason);
        let mut unpacked = Vec::new();
        let length = GzDecoder::new(kit)
            .take(MOST_UNPACKED + 1)
            .read_to_end(&mut unpacked);
        let length = length.map_err(|error| wrong(format!("it cannot be unpacked: {error}")))?;
        if length as u64 > MOST_UNPACKED {
            return Err(wrong(format!("it has more than {MOST_UNPACKED} bytes")));
        }
        tokio::task::yield_now().await;
        let files = archive::files(&unpacked).map_err(wrong)?;
        fs::create_dir_all(&self.dir).map_err(Error::file("create", &self.dir))?;
        let list = files.iter().find(|file| file.name == MODULES);
        let list = list.map_or("", |file| std::str::from_utf8(file.content).unwrap_or_default());
        let is_module = |name: &str| list.lines().any(|module| module == name);
        for file in files.iter().filter(|file| !is_module(file.name)) {
            let path = self.dir.join(file.name);
            fs::write(&path, file.content).map_err(Error::file("write", &path))?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
                .map_err(Error::file("make executable", &path))?;
            tokio::task::yield_now().await;
        }
        if !self.owns_kernel {
            return Ok(());
        }
        for name in list.lines() {
            let module = files.iter().find(|file| file.name == name);
            let module = module.ok_or_else(|| wrong(format!("it has no module {name}")))?;
            modules::load_bytes(name, module.content)?;
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    async fn run(&self, request: &FilterRequest) -> Result<Vec<u8>> {
        let (verb, v6) = match &request.rules {
            None => ("save", "ip6tables-save"),
            Some(_) => ("restore", "ip6tables-restore"),
        };
        let verb = match request.v6 {
            true => v6.to_owned(),
            false => format!("iptables-{verb}"),
        };
        let (mut input, output, said) = (file("rules")?, file("output")?, file("errors")?);
        let fail = Error::system::<std::io::Error>;
        if let Some(rules) = &request.rules {
            input
                .write_all(rules)
                .and_then(|()| input.seek(SeekFrom::Start(0)))
                .map_err(fail("keep the rules"))?;
        }
        let program = self.dir.join(PROGRAM);
        let mut command = Command::new(self.dir.join(LINKER));
        command
            .arg("--library-path")
            .arg(&self.dir)
            .arg(&program)
            .arg(&verb)
            .env_clear()
            .env("XTABLES_LIBDIR", &self.dir)
            .current_dir("/")
            .stdin(input)
            .stdout(copy(&output)?)
            .stderr(copy(&said)?);
        sys::lead_session(&mut command, false);
        let expectation = self.reaper.expect();
        let child = command.spawn().map_err(Error::file("execute", &program))?;
        let pid = child.id().cast_signed();
        let exited = expectation.claim(pid);
        drop(expectation);
        let exit = match timeout(DONE, reaper::ended(exited)).await {
            Ok(exit) => exit?,
            Err(_) => {
                // It may have ended just now.
                let _ = sys::kill(pid, libc::SIGKILL);
                return Err(Error::Late(format!("the end of {verb}"), DONE));
            }
        };
        if exit.status != 0 {
            let said = read(said, MOST_SAID)?;
            let said = String::from_utf8_lossy(&said);
            return Err(Error::invalid(
                "rules",
                format!("{verb} refuses (status {}): {}", exit.status, said.trim()),
            ));
        }
        let most = MAX_RULES as u64;
        let rules = read(output, most + 1)?;
        match rules.len() as u64 > most {
            true => Err(Error::Unsupported(format!(
                "an answer of more than {most} bytes of rules"
            ))),
            false => Ok(rules),
        }
    }
}

fn check(request: &FilterRequest) -> Result<()> {
    let rules = request.rules.as_deref().unwrap_or_default();
    for (field, bytes, most) in [
        ("kit", request.kit.as_slice(), MAX_KIT),
        ("rules", rules, MAX_RULES),
    ] {
        if bytes.len() > most {
            return Err(Error::invalid(
                field,
                format!("{} bytes; it takes at most {most}", bytes.len()),
            ));
        }
    }
    Ok(())
}

/// Whether the kernel has what every packet filter that we know is told by.
fn can_filter() -> bool {
    let opened = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    );
    !matches!(opened, Err(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT))
}

/// A file in memory.
fn file(name: &'static str) -> Result<File> {
    let made = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC);
    made.map(File::from)
        .map_err(Error::system("make a file in memory"))
}

fn copy(file: &File) -> Result<OwnedFd> {
    let copied = file.try_clone().map(OwnedFd::from);
    copied.map_err(Error::system("copy a descriptor"))
}

/// The beginning of what was written to a file in memory.
fn read(mut file: File, most: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(most).read_to_end(&mut bytes));
    read.map(|_| bytes)
        .map_err(Error::system("read what iptables has written"))
}

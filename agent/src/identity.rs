//! What makes this guest this sandbox: name, clock, randomness, DNS, sysctls, machine id.
//!
//! A guest may be the clone of a template, so nothing of this may be decided before `CreateSandbox`. Where the agent is
//! an ordinary process, the kernel belongs to somebody else and only files of its own directory are written.

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::error::{Error, Result};
use crate::sys;
use crate::sysctl;

/// Where the guest's own programs look for it.
const MACHINE_ID: &str = "/etc/machine-id";

/// The identity that the host gives to a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Empty: unchanged.
    pub hostname: String,
    /// Wall clock, nanoseconds since 1970; 0: unchanged.
    pub now_unix_ns: i64,
    /// Fresh randomness; empty: none.
    pub entropy: Vec<u8>,
    /// `resolv.conf` of the pod.
    pub dns: Dns,
    /// Sysctls with dots or slashes, in the order they are set.
    pub sysctls: Vec<(String, String)>,
}

/// Settings of the resolver.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Domains to search.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Identity {
    /// Checks everything that can be checked without touching the guest.
    ///
    /// # Errors
    /// [`Error::Invalid`] with field and reason.
    pub fn check(&self) -> Result<()> {
        if self.hostname.len() > 64 || self.hostname.contains(['\0', '/']) {
            return Err(Error::invalid(
                "hostname",
                "longer than 64 bytes, or has a slash or zero byte",
            ));
        }
        if self.now_unix_ns < 0 {
            return Err(Error::invalid("now_unix_ns", "before 1970"));
        }
        check_entropy(&self.entropy)?;
        let dns = [&self.dns.servers, &self.dns.searches, &self.dns.options];
        if dns
            .into_iter()
            .flatten()
            .any(|word| word.is_empty() || word.contains(|c: char| c.is_whitespace() || c == '\0'))
        {
            return Err(Error::invalid("dns", "an entry is empty or has white space"));
        }
        self.sysctls
            .iter()
            .try_for_each(|(key, _)| sysctl_file(key).map(drop))
    }

    /// Gives the guest its identity, but for the sysctls. Entropy first: everything after it may need randomness.
    ///
    /// # Errors
    /// [`Error::System`] and [`Error::File`] with the kernel's reason.
    pub fn apply_to_guest(&self) -> Result<()> {
        if !self.entropy.is_empty() {
            credit_entropy(&self.entropy)?;
            write_machine_id(Path::new(MACHINE_ID))?;
        }
        if self.now_unix_ns > 0 {
            let now = Timespec {
                tv_sec: self.now_unix_ns / 1_000_000_000,
                tv_nsec: self.now_unix_ns % 1_000_000_000,
            };
            clock_settime(ClockId::Realtime, now).map_err(Error::system("set the clock"))?;
        }
        if !self.hostname.is_empty() {
            nix::unistd::sethostname(&self.hostname).map_err(Error::system("set the hostname"))?;
        }
        Ok(())
    }

    /// Sets the sysctls. They may name network interfaces, which are to have their names before.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the kernel's reason.
    pub fn apply_sysctls(&self) -> Result<()> {
        for (key, value) in &self.sysctls {
            let path = sysctl_file(key)?;
            std::fs::write(&path, value)
                .map_err(|cause| Error::invalid("sysctls", sysctl::refusal(key, value, &cause)))?;
        }
        Ok(())
    }
}

/// Checks that this much randomness can be taken.
///
/// # Errors
/// [`Error::Invalid`].
pub fn check_entropy(entropy: &[u8]) -> Result<()> {
    if entropy.len() > sys::MAX_ENTROPY {
        let problem = format!("more than {} bytes", sys::MAX_ENTROPY);
        return Err(Error::invalid("entropy", problem));
    }
    Ok(())
}

/// Credits randomness to the kernel's pool, and has its generator take it.
///
/// # Errors
/// [`Error::File`] with the kernel's reason.
pub fn credit_entropy(entropy: &[u8]) -> Result<()> {
    let path = Path::new("/dev/random");
    let random = File::open(path).map_err(Error::file("open", path))?;
    sys::credit_entropy(random.as_fd(), entropy).map_err(Error::file("credit entropy to", path))
}

/// Takes away what was made of an identity that was for practice. Its name is to have been none.
pub fn forget() {
    // It is made anew with the next one.
    let _ = std::fs::remove_file(MACHINE_ID);
}

impl Dns {
    /// Text of the `resolv.conf`; `None` without any setting.
    pub fn resolv_conf(&self) -> Option<String> {
        if *self == Self::default() {
            return None;
        }
        let mut text = String::new();
        for server in &self.servers {
            let _ = writeln!(text, "nameserver {server}");
        }
        for (keyword, words) in [("search", &self.searches), ("options", &self.options)] {
            if !words.is_empty() {
                let _ = writeln!(text, "{keyword} {}", words.join(" "));
            }
        }
        Some(text)
    }
}

/// File of a sysctl, `net.ipv4.ip_forward` or `net/ipv4/conf/eth0.1/forwarding`.
fn sysctl_file(key: &str) -> Result<PathBuf> {
    // As sysctl(8): the first separator decides which one it is.
    let path = match key.find(['.', '/']) {
        Some(at) if key.as_bytes().get(at) == Some(&b'.') => key.replace('.', "/"),
        _ => key.to_owned(),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
    let valid = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(plain);
    if key.len() > 255 || !path.split('/').all(valid) {
        return Err(Error::invalid(
            "sysctls",
            format!("{key:?} is not the name of a sysctl"),
        ));
    }
    Ok(Path::new("/proc/sys").join(path))
}

/// A random UUID. The kernel would make one as well, but to look for it in its /proc is far more code than to ask for the bits.
fn draw_uuid() -> Result<u128> {
    let mut bytes = [0; 16];
    getrandom(&mut bytes, GetRandomFlags::empty()).map_err(Error::system("draw a machine id"))?;
    // Version 4, variant 1 of RFC 9562.
    const MARKS: u128 = 0xf000_c000_0000_0000_0000;
    const MARKED: u128 = 0x4000_8000_0000_0000_0000;
    Ok(u128::from_be_bytes(bytes) & !MARKS | MARKED)
}

/// Writes a fresh machine id.
fn write_machine_id(path: &Path) -> Result<()> {
    let id = draw_uuid()?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::file("create", dir))?;
    }
    std::fs::write(path, format!("{id:032x}\n")).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_says_what_was_asked() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        let dns = Dns {
            servers: words(&["10.0.0.1", "fd00::1"]),
            searches: words(&["a.example", "example"]),
            options: words(&["ndots:5"]),
        };
        let text = "nameserver 10.0.0.1\nnameserver fd00::1\nsearch a.example example\noptions ndots:5\n";
        assert_eq!(dns.resolv_conf().as_deref(), Some(text));
        assert_eq!(Dns::default().resolv_conf(), None);
    }

    #[test]
    fn a_machine_id_is_a_random_uuid_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("etc/machine-id");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..64 {
            write_machine_id(&path).unwrap();
            let id = std::fs::read_to_string(&path).unwrap();
            let digits = id.strip_suffix('\n').unwrap().as_bytes();
            assert!(
                digits.len() == 32 && digits.iter().all(u8::is_ascii_hexdigit),
                "{id}"
            );
            assert!(digits[12] == b'4' && b"89ab".contains(&digits[16]), "{id}");
            assert!(seen.insert(id));
        }
    }

    #[test]
    fn a_sysctl_stays_below_proc_sys() {
        assert_eq!(
            sysctl_file("net.ipv4.ip_forward").unwrap(),
            Path::new("/proc/sys/net/ipv4/ip_forward")
        );
        let dotted = sysctl_file("net/ipv4/conf/eth0.1/forwarding").unwrap();
        assert_eq!(dotted, Path::new("/proc/sys/net/ipv4/conf/eth0.1/forwarding"));
        for bad in [
            "",
            ".",
            "..",
            "a/../../b",
            "/etc/passwd",
            "a..b",
            "a b",
            "a\0b",
            "net/",
        ] {
            assert!(sysctl_file(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_wrong_identity_is_refused_with_its_field() {
        let ok = Identity::default();
        ok.check().unwrap();
        let word = |w: &str| Dns {
            searches: vec![w.to_owned()],
            ..Default::default()
        };
        for (field, wrong) in [
            (
                "hostname",
                Identity {
                    hostname: "x".repeat(65),
                    ..ok.clone()
                },
            ),
            (
                "now_unix_ns",
                Identity {
                    now_unix_ns: -1,
                    ..ok.clone()
                },
            ),
            (
                "entropy",
                Identity {
                    entropy: vec![0; sys::MAX_ENTROPY + 1],
                    ..ok.clone()
                },
            ),
            (
                "dns",
                Identity {
                    dns: word("a\nnameserver 6.6.6.6"),
                    ..ok.clone()
                },
            ),
            (
                "sysctls",
                Identity {
                    sysctls: vec![("../x".into(), "1".into())],
                    ..ok.clone()
                },
            ),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}

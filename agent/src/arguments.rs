//! The command line of an agent that runs as an ordinary process. Pure.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::dial::Channel;
use crate::error::{Error, Result};

/// How to call it.
pub const USAGE: &str = "kata-agent --connect unix:<path> --root <dir> [--cgroup-root <dir>] [--share <tag>=<dir>]... [--network own|host]
(as PID 1 it takes no arguments: kata.agent=vsock:<port>|serial on the kernel's command line names the channel)";

/// What an ordinary process is told.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// How to reach the host.
    pub channel: Channel,
    /// Stands for the agent's directory in a guest.
    pub root: PathBuf,
    /// The cgroup (version 2) to use; none: where the host has mounted it.
    pub cgroup_root: Option<PathBuf>,
    /// Directories that stand for virtio-fs shares, by tag.
    pub shares: HashMap<String, PathBuf>,
    /// The network namespace that it runs in is the sandbox's own, to be set up as the host says.
    pub owns_network: bool,
}

impl Arguments {
    /// Reads the arguments, without the program's name.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong.
    pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self> {
        const FIELD: &str = "arguments";
        let mut arguments = arguments.into_iter();
        let (mut channel, mut root, mut cgroup_root, mut shares) = (None, None, None, HashMap::new());
        let mut owns_network = false;
        while let Some(flag) = arguments.next() {
            let flag = flag.to_string_lossy().into_owned();
            let value = arguments
                .next()
                .ok_or_else(|| Error::invalid(FIELD, format!("{flag}: no value")))?;
            let text = || {
                value
                    .to_str()
                    .ok_or_else(|| Error::invalid(FIELD, format!("{flag}: not UTF-8")))
            };
            match flag.as_str() {
                "--connect" => channel = Some(Channel::parse(text()?)?),
                "--root" => root = Some(PathBuf::from(value)),
                "--cgroup-root" => cgroup_root = Some(PathBuf::from(value)),
                "--share" => {
                    let (tag, dir) = text()?
                        .split_once('=')
                        .ok_or_else(|| Error::invalid(FIELD, "--share: not of the form <tag>=<dir>"))?;
                    shares.insert(tag.to_owned(), PathBuf::from(dir));
                }
                "--network" => {
                    owns_network = match text()? {
                        "own" => true,
                        "host" => false,
                        _ => return Err(Error::invalid(FIELD, "--network: neither own nor host")),
                    }
                }
                _ => return Err(Error::invalid(FIELD, format!("{flag} is unknown"))),
            }
        }
        let missing = |flag: &str| Error::invalid(FIELD, format!("{flag} is missing"));
        Ok(Self {
            channel: channel.ok_or_else(|| missing("--connect"))?,
            root: root.ok_or_else(|| missing("--root"))?,
            cgroup_root,
            shares,
            owns_network,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Arguments> {
        Arguments::parse(words.split_ascii_whitespace().map(OsString::from))
    }

    #[test]
    fn arguments_are_read_in_any_order() {
        let parsed = parse("--share a=/x --root /r --connect unix:/s --share b=/y=z").unwrap();
        assert_eq!(parsed.channel, Channel::Unix("/s".into()));
        assert_eq!((parsed.root.as_path(), parsed.cgroup_root), ("/r".as_ref(), None));
        assert_eq!(parsed.shares["b"], PathBuf::from("/y=z"));
        assert!(!parsed.owns_network, "an agent leaves its host's network alone");
        assert!(
            parse("--root /r --connect unix:/s --network own")
                .unwrap()
                .owns_network
        );
    }

    #[test]
    fn what_is_missing_or_unknown_is_named() {
        for (words, named) in [
            ("", "--connect"),
            ("--connect unix:/s", "--root"),
            ("--root", "--root"),
            ("--verbose 1", "--verbose"),
            ("--share x --root /r --connect unix:/s", "--share"),
            ("--connect tcp:1 --root /r", "tcp"),
            ("--connect unix:/s --root /r --network mine", "--network"),
        ] {
            let error = parse(words).unwrap_err().to_string();
            assert!(error.contains(named), "{words}: {error}");
        }
    }
}

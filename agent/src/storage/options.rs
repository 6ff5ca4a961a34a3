//! Mount options as text, split into the kernel's flags and what the file system itself reads. Pure.

use std::ffi::CString;

use rustix::mount::MountFlags;

use crate::error::{Error, Result};

/// Options of one mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// Flags of mount(2).
    pub flags: Flags,
    /// Everything else, in order, for the file system.
    pub data: Vec<String>,
}

/// [`MountFlags`] with a default of none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub MountFlags);

impl Default for Flags {
    fn default() -> Self {
        Self(MountFlags::empty())
    }
}

/// Most options of one mount.
const MAX_OPTIONS: usize = 256;

impl Options {
    /// Sorts options as mount(8) names them. `bind` and `rbind` are the driver's business and are dropped here.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an option that could smuggle in another one (comma) or end the text (zero byte).
    pub fn parse(options: &[String]) -> Result<Self> {
        if options.len() > MAX_OPTIONS {
            return Err(Error::invalid(
                "storage.options",
                format!("more than {MAX_OPTIONS} options"),
            ));
        }
        let mut parsed = Self::default();
        for option in options {
            if option.contains(['\0', ',']) {
                return Err(Error::invalid(
                    "storage.options",
                    format!("{option:?} has a comma or a zero byte"),
                ));
            }
            match option.as_str() {
                "" | "defaults" | "bind" | "rbind" => {}
                "rw" => parsed.flags.0 -= MountFlags::RDONLY,
                "ro" => parsed.flags.0 |= MountFlags::RDONLY,
                "nosuid" => parsed.flags.0 |= MountFlags::NOSUID,
                "nodev" => parsed.flags.0 |= MountFlags::NODEV,
                "noexec" => parsed.flags.0 |= MountFlags::NOEXEC,
                "noatime" => parsed.flags.0 |= MountFlags::NOATIME,
                "nodiratime" => parsed.flags.0 |= MountFlags::NODIRATIME,
                "relatime" => parsed.flags.0 |= MountFlags::RELATIME,
                "strictatime" => parsed.flags.0 |= MountFlags::STRICTATIME,
                "sync" => parsed.flags.0 |= MountFlags::SYNCHRONOUS,
                "dirsync" => parsed.flags.0 |= MountFlags::DIRSYNC,
                "lazytime" => parsed.flags.0 |= MountFlags::LAZYTIME,
                "silent" => parsed.flags.0 |= MountFlags::SILENT,
                data => parsed.data.push(data.to_owned()),
            }
        }
        Ok(parsed)
    }

    /// What the file system itself reads, after what goes `before`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero byte.
    pub fn text(&self, before: &[String]) -> Result<CString> {
        let data: Vec<&str> = before.iter().chain(&self.data).map(String::as_str).collect();
        CString::new(data.join(",")).map_err(|_| Error::invalid("storage.options", "zero byte"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Result<Options> {
        Options::parse(&options.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn flags_and_data_are_told_apart() {
        let parsed = parse(&["rw", "nosuid", "mode=1777", "bind", "size=64m", "ro"]).unwrap();
        assert_eq!(parsed.flags.0, MountFlags::NOSUID | MountFlags::RDONLY);
        assert_eq!(parsed.data, ["mode=1777", "size=64m"]);
        assert_eq!(
            parse(&["ro", "rw"]).unwrap(),
            Options::default(),
            "the last one wins"
        );
        assert_eq!(parse(&[]).unwrap(), Options::default());
    }

    #[test]
    fn an_option_is_one_option() {
        for bad in ["size=1,exec", "a\0b"] {
            assert!(parse(&[bad]).is_err(), "{bad:?}");
        }
        assert!(parse(&vec!["x"; MAX_OPTIONS + 1]).is_err());
    }
}

//! Mount options in fstab form become flags and the file system's own data. Pure.

use std::path::PathBuf;

use rustix::mount::MountFlags;

/// Longest data that every kernel takes, in bytes: a page without the zero at its end.
const LONGEST_DATA: usize = 4095;

/// Options of a mount, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// What the kernel's own flags say.
    pub(super) flags: MountFlags,
    /// It is a bind mount: of the source with everything mounted below it, or without.
    pub(super) bind: Option<Bind>,
    /// The rest, for the file system.
    data: Vec<String>,
}

/// How much of its source a bind mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bind {
    /// One mount.
    Single,
    /// And all below it.
    Recursive,
}

/// The data of a mount, and where its relative paths begin.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) text: String,
    pub(super) base: Option<PathBuf>,
}

impl Options {
    /// Takes options apart.
    ///
    /// # Errors
    /// One that cannot be honoured, and why.
    pub(super) fn parse(fs_type: &str, options: &[String]) -> Result<Self, String> {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            bind: (fs_type == "bind").then_some(Bind::Single),
            data: Vec::new(),
        };
        for option in options.iter().flat_map(|option| pieces(option)) {
            parsed.take(option)?;
        }
        match (&parsed.bind, parsed.data.first()) {
            (Some(_), Some(option)) => Err(format!("a bind mount has no option {option:?}")),
            _ => Ok(parsed),
        }
    }

    fn take(&mut self, option: &str) -> Result<(), String> {
        // The last one of two that contradict each other counts, as with mount(8).
        let (set, clear) = match option {
            "" | "defaults" | "suid" | "dev" | "exec" | "async" | "atime" | "rw" => {
                (MountFlags::empty(), cleared(option))
            }
            "ro" => (MountFlags::RDONLY, MountFlags::empty()),
            "nosuid" => (MountFlags::NOSUID, MountFlags::empty()),
            "nodev" => (MountFlags::NODEV, MountFlags::empty()),
            "noexec" => (MountFlags::NOEXEC, MountFlags::empty()),
            "sync" => (MountFlags::SYNCHRONOUS, MountFlags::empty()),
            "dirsync" => (MountFlags::DIRSYNC, MountFlags::empty()),
            "noatime" => (MountFlags::NOATIME, ATIME),
            "relatime" => (MountFlags::RELATIME, ATIME),
            "strictatime" => (MountFlags::STRICTATIME, ATIME),
            "nodiratime" => (MountFlags::NODIRATIME, MountFlags::empty()),
            "diratime" => (MountFlags::empty(), MountFlags::NODIRATIME),
            "bind" | "rbind" => {
                self.bind = Some(match option {
                    "bind" => Bind::Single,
                    _ => Bind::Recursive,
                });
                return Ok(());
            }
            // Mounts of the host's are never shown to it again, nor its to them.
            "private" | "rprivate" | "slave" | "rslave" => return Ok(()),
            "loop" | "remount" | "move" | "shared" | "rshared" | "unbindable" | "runbindable" => {
                return Err(format!("the option {option:?} is not supported"));
            }
            data => {
                if data.contains('\0') {
                    return Err(format!("the option {data:?} contains a zero byte"));
                }
                self.data.push(data.to_owned());
                return Ok(());
            }
        };
        self.flags = self.flags.difference(clear).union(set);
        Ok(())
    }

    /// The data. Where it is too long for the kernel, an overlay's lower directories are named from their common parent.
    ///
    /// # Errors
    /// It is too long even so.
    pub(super) fn data(&self) -> Result<Data, String> {
        let text = self.data.join(",");
        if text.len() <= LONGEST_DATA {
            return Ok(Data { text, base: None });
        }
        let too_long = || {
            Err(format!(
                "its options have {} bytes, of which the kernel takes {LONGEST_DATA}",
                text.len()
            ))
        };
        let Some(lower) = self
            .data
            .iter()
            .find_map(|option| option.strip_prefix("lowerdir="))
        else {
            return too_long();
        };
        let lower = split_unescaped(lower);
        let Some(base) = common_parent(&lower) else {
            return too_long();
        };
        let relative: Vec<&str> = lower
            .iter()
            .map(|dir| dir.get(base.len()..).unwrap_or(dir))
            .collect();
        let text: Vec<String> = self
            .data
            .iter()
            .map(|option| match option.starts_with("lowerdir=") {
                true => format!("lowerdir={}", relative.join(":")),
                false => option.clone(),
            })
            .collect();
        let text = text.join(",");
        if text.len() > LONGEST_DATA {
            return Err(format!(
                "its {} lower directories have names of {} bytes, of which the kernel takes {LONGEST_DATA}",
                lower.len(),
                text.len()
            ));
        }
        Ok(Data {
            text,
            base: Some(PathBuf::from(base)),
        })
    }
}

/// Flags of which only one holds.
const ATIME: MountFlags = MountFlags::NOATIME
    .union(MountFlags::RELATIME)
    .union(MountFlags::STRICTATIME);

/// What an option takes back.
fn cleared(option: &str) -> MountFlags {
    match option {
        "rw" => MountFlags::RDONLY,
        "suid" => MountFlags::NOSUID,
        "dev" => MountFlags::NODEV,
        "exec" => MountFlags::NOEXEC,
        "async" => MountFlags::SYNCHRONOUS,
        "atime" => MountFlags::NOATIME,
        _ => MountFlags::empty(),
    }
}

/// One string may hold several options, but a comma behind a backslash belongs to a path.
fn pieces(option: &str) -> Vec<&str> {
    split(option, b',')
}

fn split_unescaped(dirs: &str) -> Vec<&str> {
    split(dirs, b':')
}

fn split(text: &str, separator: u8) -> Vec<&str> {
    let (mut pieces, mut begin, mut escaped) = (Vec::new(), 0, false);
    for (at, byte) in text.bytes().enumerate() {
        if byte == separator && !escaped {
            pieces.extend(text.get(begin..at));
            begin = at + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    pieces.extend(text.get(begin..));
    pieces
}

/// The longest path, with the `/` at its end, with which all of these begin. `None`: it is `/`, or there is none, or it
/// cannot be told because of escapes.
fn common_parent<'a>(dirs: &[&'a str]) -> Option<&'a str> {
    let (first, rest) = dirs.split_first()?;
    let mut length = first.len();
    for dir in rest {
        let same = first.bytes().zip(dir.bytes()).take_while(|(a, b)| a == b).count();
        length = length.min(same);
    }
    let parent = first.get(..=first.get(..length)?.rfind('/')?)?;
    (parent.len() > 1 && parent.starts_with('/') && !parent.contains('\\')).then_some(parent)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(fs_type: &str, options: &[&str]) -> Result<Options, String> {
        let options: Vec<String> = options.iter().map(|&option| option.to_owned()).collect();
        Options::parse(fs_type, &options)
    }

    #[test]
    fn options_are_flags_or_data() {
        let none = MountFlags::empty();
        let layers = ["index=off", "workdir=/w", "upperdir=/u", "lowerdir=/a:/b"];
        let table = [
            (
                "overlay",
                &layers[..],
                none,
                None,
                "index=off,workdir=/w,upperdir=/u,lowerdir=/a:/b",
            ),
            (
                "overlay",
                &["lowerdir=/a\\,b:/c"],
                none,
                None,
                "lowerdir=/a\\,b:/c",
            ),
            (
                "bind",
                &["rbind", "ro"],
                MountFlags::RDONLY,
                Some(Bind::Recursive),
                "",
            ),
            ("bind", &["rw"], none, Some(Bind::Single), ""),
            ("bind", &["bind", "rprivate"], none, Some(Bind::Single), ""),
            (
                "ext4",
                &["ro,nodev", "rw", "discard"],
                MountFlags::NODEV,
                None,
                "discard",
            ),
            ("ext4", &["noatime", "relatime"], MountFlags::RELATIME, None, ""),
        ];
        for (fs_type, options, flags, bind, data) in table {
            let parsed = parse(fs_type, options).unwrap();
            assert_eq!((parsed.flags, parsed.bind), (flags, bind), "{options:?}");
            assert_eq!(parsed.data().unwrap().text, data, "{options:?}");
        }
        for (fs_type, option) in [
            ("bind", "discard"),
            ("ext4", "loop"),
            ("bind", "rshared"),
            ("x", "a\0b"),
        ] {
            assert!(parse(fs_type, &[option]).is_err(), "{option}");
        }
    }

    #[test]
    fn many_layers_are_named_from_their_parent() {
        let parent = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/";
        let layers: Vec<String> = (0..120).map(|n| format!("{parent}{n}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        assert!(lower.len() > LONGEST_DATA);
        let options = parse("overlay", &["upperdir=/u", &lower, "workdir=/w"]).unwrap();
        let data = options.data().unwrap();
        assert_eq!(data.base.as_deref(), Some(std::path::Path::new(parent)));
        assert!(
            data.text.starts_with("upperdir=/u,lowerdir=0/fs:1/fs:"),
            "{}",
            data.text
        );
        assert!(data.text.ends_with(":119/fs,workdir=/w"), "{}", data.text);

        let apart: Vec<String> = (0..120).map(|n| format!("/{n}/{}", "x".repeat(40))).collect();
        let options = parse("overlay", &[&format!("lowerdir={}", apart.join(":"))]).unwrap();
        assert!(options.data().unwrap_err().contains("bytes"));
        let same: Vec<String> = (0..1500).map(|n| format!("{parent}{n}")).collect();
        let options = parse("overlay", &[&format!("lowerdir={}", same.join(":"))]).unwrap();
        assert!(options.data().unwrap_err().contains("1500 lower directories"));
    }

    proptest! {
        #[test]
        fn what_is_named_from_a_parent_is_the_same(
            names in proptest::collection::vec("[a-z]{1,5}(/[a-z]{1,5}){0,2}", 1..20),
            parent in "/[a-z]{300}/[a-z]{300}/",
        ) {
            let lower: Vec<String> = names.iter().cycle().take(20).map(|name| format!("{parent}{name}")).collect();
            let option = format!("lowerdir={}", lower.join(":"));
            let data = parse("overlay", &[&option]).unwrap().data().unwrap();
            let base = data.base.unwrap();
            let again: Vec<String> = data.text.strip_prefix("lowerdir=").unwrap().split(':')
                .map(|dir| base.join(dir).to_str().unwrap().to_owned()).collect();
            prop_assert_eq!(again, lower);
        }

        #[test]
        fn any_options_are_taken_or_refused(options in proptest::collection::vec(any::<String>(), 0..5)) {
            if let Ok(options) = Options::parse("overlay", &options) {
                let _ = options.data();
            }
        }
    }
}

//! The options of an OCI mount, as `runc` knows them, sorted into what the kernel's mount calls take.
//!
//! Pure: a table and a fold over it. Must not know where the mount goes or who makes it.

use libc::{
    MOUNT_ATTR__ATIME as ATIME, MOUNT_ATTR_NOATIME as NOATIME, MOUNT_ATTR_NODEV as NODEV,
    MOUNT_ATTR_NODIRATIME as NODIRATIME, MOUNT_ATTR_NOEXEC as NOEXEC, MOUNT_ATTR_NOSUID as NOSUID,
    MOUNT_ATTR_NOSYMFOLLOW as NOSYMFOLLOW, MOUNT_ATTR_RDONLY as RDONLY,
    MOUNT_ATTR_STRICTATIME as STRICTATIME,
};

/// Attributes (`MOUNT_ATTR_*`) to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) set: u64,
    pub(super) clear: u64,
}

impl Attributes {
    fn then(&mut self, next: Attributes) {
        self.set = (self.set & !next.clear) | next.set;
        self.clear = (self.clear & !(next.set & !next.clear)) | next.clear;
    }

    /// Nothing to do.
    pub(super) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// What a mount's options ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct MountOptions {
    /// A bind mount of the source; the value says whether its submounts come along.
    pub(super) bind: Option<bool>,
    /// Change the mount that is there instead of making one.
    pub(super) remount: bool,
    /// For the mount itself.
    pub(super) attributes: Attributes,
    /// For the mount and everything below it.
    pub(super) recursive: Attributes,
    /// Propagations in order: `MS_PRIVATE` and its like, and whether they include the submounts.
    pub(super) propagation: Vec<(u64, bool)>,
    /// The new tmpfs starts as a copy of what it hides.
    pub(super) copy_up: bool,
    /// Left to the file system: `key`, or `key=value`.
    pub(super) data: Vec<String>,
}

/// An option that is known and that the guest does not do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotSupported(pub(super) String);

enum Effect {
    Nothing,
    Bind {
        recursive: bool,
    },
    Remount,
    Set(u64),
    Clear(u64),
    Replace {
        set: u64,
        clear: u64,
    },
    SetAll(u64),
    ClearAll(u64),
    ReplaceAll {
        set: u64,
        clear: u64,
    },
    Propagate(u64),
    PropagateAll(u64),
    /// A flag of the super block, by the kernel's own name for it.
    Flag(&'static str),
    CopyUp,
    Refuse,
}

fn effect(option: &str) -> Option<Effect> {
    use Effect::*;
    Some(match option {
        "defaults" | "loud" | "silent" | "" => Nothing,
        "bind" => Bind { recursive: false },
        "rbind" => Bind { recursive: true },
        "remount" => Remount,
        "ro" => Set(RDONLY),
        "rw" => Clear(RDONLY),
        "nosuid" => Set(NOSUID),
        "suid" => Clear(NOSUID),
        "nodev" => Set(NODEV),
        "dev" => Clear(NODEV),
        "noexec" => Set(NOEXEC),
        "exec" => Clear(NOEXEC),
        "nodiratime" => Set(NODIRATIME),
        "diratime" => Clear(NODIRATIME),
        "nosymfollow" => Set(NOSYMFOLLOW),
        "symfollow" => Clear(NOSYMFOLLOW),
        // The three ways to treat access times are one field of two bits; relative is its zero.
        "noatime" => Replace {
            set: NOATIME,
            clear: ATIME,
        },
        "strictatime" => Replace {
            set: STRICTATIME,
            clear: ATIME,
        },
        "atime" | "relatime" | "norelatime" | "nostrictatime" => Clear(ATIME),
        "rro" => SetAll(RDONLY),
        "rrw" => ClearAll(RDONLY),
        "rnosuid" => SetAll(NOSUID),
        "rsuid" => ClearAll(NOSUID),
        "rnodev" => SetAll(NODEV),
        "rdev" => ClearAll(NODEV),
        "rnoexec" => SetAll(NOEXEC),
        "rexec" => ClearAll(NOEXEC),
        "rnodiratime" => SetAll(NODIRATIME),
        "rdiratime" => ClearAll(NODIRATIME),
        "rnosymfollow" => SetAll(NOSYMFOLLOW),
        "rsymfollow" => ClearAll(NOSYMFOLLOW),
        "rnoatime" => ReplaceAll {
            set: NOATIME,
            clear: ATIME,
        },
        "rstrictatime" => ReplaceAll {
            set: STRICTATIME,
            clear: ATIME,
        },
        "ratime" | "rrelatime" | "rnorelatime" | "rnostrictatime" => ClearAll(ATIME),
        "private" => Propagate(libc::MS_PRIVATE),
        "shared" => Propagate(libc::MS_SHARED),
        "slave" => Propagate(libc::MS_SLAVE),
        "unbindable" => Propagate(libc::MS_UNBINDABLE),
        "rprivate" => PropagateAll(libc::MS_PRIVATE),
        "rshared" => PropagateAll(libc::MS_SHARED),
        "rslave" => PropagateAll(libc::MS_SLAVE),
        "runbindable" => PropagateAll(libc::MS_UNBINDABLE),
        "sync" => Flag("sync"),
        "async" => Flag("async"),
        "dirsync" => Flag("dirsync"),
        "lazytime" => Flag("lazytime"),
        "nolazytime" => Flag("nolazytime"),
        "mand" => Flag("mand"),
        "nomand" => Flag("nomand"),
        "iversion" => Flag("iversion"),
        "noiversion" => Nothing,
        "tmpcopyup" => CopyUp,
        "idmap" | "ridmap" => Refuse,
        _ => return None,
    })
}

/// Sorts the options of one mount. A later option overrides an earlier one, as with mount(8).
pub(super) fn parse<S: AsRef<str>>(options: &[S]) -> Result<MountOptions, NotSupported> {
    let mut parsed = MountOptions::default();
    for option in options {
        let option = option.as_ref();
        let Some(effect) = effect(option) else {
            parsed.data.push(option.to_owned());
            continue;
        };
        match effect {
            Effect::Nothing => {}
            Effect::Bind { recursive } => {
                parsed.bind = Some(recursive || parsed.bind == Some(true));
            }
            Effect::Remount => parsed.remount = true,
            Effect::Set(set) => parsed.attributes.then(Attributes { set, clear: 0 }),
            Effect::Clear(clear) => parsed.attributes.then(Attributes { set: 0, clear }),
            Effect::Replace { set, clear } => parsed.attributes.then(Attributes { set, clear }),
            Effect::SetAll(set) => parsed.recursive.then(Attributes { set, clear: 0 }),
            Effect::ClearAll(clear) => parsed.recursive.then(Attributes { set: 0, clear }),
            Effect::ReplaceAll { set, clear } => parsed.recursive.then(Attributes { set, clear }),
            Effect::Propagate(kind) => parsed.propagation.push((kind, false)),
            Effect::PropagateAll(kind) => parsed.propagation.push((kind, true)),
            Effect::Flag(name) => parsed.data.push(name.to_owned()),
            Effect::CopyUp => parsed.copy_up = true,
            Effect::Refuse => return Err(NotSupported(option.to_owned())),
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_become_what_the_kernel_takes() {
        let attributes = |set, clear| MountOptions {
            attributes: Attributes { set, clear },
            ..MountOptions::default()
        };
        let table: [(&[&str], MountOptions); 10] = [
            (&[], MountOptions::default()),
            (&["defaults", "silent"], MountOptions::default()),
            (
                &["nosuid", "noexec", "nodev"],
                attributes(NOSUID | NOEXEC | NODEV, 0),
            ),
            (&["ro", "rw"], attributes(0, RDONLY)),
            (&["rw", "ro"], attributes(RDONLY, 0)),
            (&["strictatime"], attributes(STRICTATIME, ATIME)),
            (&["noatime", "relatime"], attributes(0, ATIME)),
            (
                &["rbind", "rro", "rprivate"],
                MountOptions {
                    bind: Some(true),
                    recursive: Attributes {
                        set: RDONLY,
                        clear: 0,
                    },
                    propagation: vec![(libc::MS_PRIVATE, true)],
                    ..MountOptions::default()
                },
            ),
            (
                &["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
                MountOptions {
                    data: ["newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
                        .map(str::to_owned)
                        .into(),
                    ..MountOptions::default()
                },
            ),
            (
                &["tmpcopyup", "sync", "size=64k"],
                MountOptions {
                    copy_up: true,
                    data: vec!["sync".into(), "size=64k".into()],
                    ..MountOptions::default()
                },
            ),
        ];
        for (options, expected) in table {
            assert_eq!(parse(options), Ok(expected), "{options:?}");
        }
        assert_eq!(parse(&["ro", "idmap"]), Err(NotSupported("idmap".into())));
    }

    proptest! {
        /// The kernel refuses attributes that are both set and cleared, except the field of access times, which
        /// must be cleared as a whole when it is changed.
        #[test]
        fn set_and_clear_never_contradict(options in proptest::collection::vec(
            proptest::sample::select(vec!["ro", "rw", "nosuid", "suid", "noatime", "strictatime", "relatime", "atime",
                "nodev", "dev", "noexec", "exec", "diratime", "nodiratime"]), 0..12)) {
            let parsed = parse(&options).unwrap().attributes;
            prop_assert_eq!(parsed.set & parsed.clear & !ATIME, 0);
            prop_assert!(parsed.set & ATIME != ATIME);
            prop_assert!(parsed.set & ATIME == 0 || parsed.clear & ATIME == ATIME);
            // The last word on writing wins.
            if let Some(last) = options.iter().rev().find(|o| ["ro", "rw"].contains(*o)) {
                prop_assert_eq!(parsed.set & RDONLY != 0, *last == "ro");
            }
        }
    }
}

//! Validated identifiers. An id becomes part of host paths, so it is checked once, here.

use crate::error::{Error, ErrorKind, Result};

/// Longest id, in bytes: socket paths (at most 107 bytes) contain ids, and containerd allows 76.
const MAX: usize = 76;

fn check(kind: &str, id: &str) -> Result<()> {
    let bad = |why: &str| {
        Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("{kind} id {:?} {why}", truncated(id)),
        ))
    };
    if id.is_empty() {
        return bad("is empty");
    }
    if id.len() > MAX {
        return bad(&format!("has {} bytes; at most {MAX} are allowed", id.len()));
    }
    if !id
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    {
        return bad("has a character that is not a letter, a digit, '_', '-' or '.'");
    }
    if !id.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) {
        return bad("does not start with a letter or a digit");
    }
    Ok(())
}

fn truncated(id: &str) -> String {
    id.chars().take(MAX).collect()
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps an id.
            pub fn new(id: impl Into<String>) -> Result<Self> {
                let id = id.into();
                check($kind, &id)?;
                Ok(Self(id))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// Id of a sandbox: of its first container.
    SandboxId,
    "sandbox"
);
id!(
    /// Id of a container.
    ContainerId,
    "container"
);
id!(
    /// Id of an additional process in a container.
    ExecId,
    "exec"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_could_leave_a_directory_are_refused() {
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "-x",
            ".x",
            "a\0b",
            "ü",
            &"x".repeat(77),
        ] {
            assert!(ContainerId::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "0123456789abcdef", "my_container-1.x", &"x".repeat(76)] {
            assert!(ContainerId::new(good).is_ok(), "{good:?}");
        }
    }
}

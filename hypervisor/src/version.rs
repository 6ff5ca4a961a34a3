//! Versions of monitors, as far as they are looked at. Must not know a monitor.

/// Major and minor number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

impl Version {
    /// The version that a text begins with: `54.0.0`, `v1.7.1`, `1.17-dev`.
    pub fn leading(text: &str) -> Option<Self> {
        let (major, rest) = text.trim_start_matches('v').split_once('.')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self(major.parse().ok()?, rest[..end].parse().ok()?))
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_numbers_are_looked_at() {
        for (text, expected) in [
            ("v50.1.0", Some(Version(50, 1))),
            ("1.17-dev", Some(Version(1, 17))),
            ("54.0", Some(Version(54, 0))),
            ("54", None),
            ("54.", None),
            ("54.x", None),
            (".1", None),
            ("x.1", None),
            ("", None),
        ] {
            assert_eq!(Version::leading(text), expected, "{text:?}");
        }
        assert!(Version(1, 9) < Version(1, 17) && Version(50, 1) < Version(51, 0));
    }
}

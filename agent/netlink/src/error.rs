//! What the kernel says when it refuses.

use std::io;

/// A refused or failed request. The text is the kernel's own explanation where it gives one, else that of the number.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", text(*number, words.as_deref()))]
pub struct Error {
    /// `errno`.
    pub number: i32,
    /// The kernel's words (NETLINK_EXT_ACK), if it had any.
    pub words: Option<String>,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(number: i32, words: Option<String>) -> Self {
        Self { number, words }
    }

    /// What was received is not what the kernel sends.
    pub(crate) fn malformed() -> Self {
        Self::new(libc::EBADMSG, None)
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::new(errno.raw_os_error(), None)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error.words {
            None => Self::from_raw_os_error(error.number),
            Some(_) => Self::new(Self::from_raw_os_error(error.number).kind(), error),
        }
    }
}

fn text(number: i32, words: Option<&str>) -> String {
    let number = io::Error::from_raw_os_error(number);
    match words {
        None => number.to_string(),
        Some(words) => format!("{} ({number})", words.trim_end_matches('.')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_come_first() {
        let plain = Error::new(libc::ENODEV, None);
        assert_eq!(plain.to_string(), "No such device (os error 19)");
        let told = Error::new(libc::ENETUNREACH, Some("Nexthop has invalid gateway.".into()));
        assert_eq!(
            told.to_string(),
            "Nexthop has invalid gateway (Network is unreachable (os error 101))"
        );
        let io: io::Error = told.into();
        assert_eq!(io.kind(), io::ErrorKind::NetworkUnreachable);
    }
}

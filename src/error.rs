//! The one error type that leaves this crate: a kind for the caller's status code, a context a user can act on, a cause.

use serde::{Deserialize, Serialize};

/// Kind of an error; each edge maps it once to its own codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The named object does not exist.
    NotFound,
    /// Several objects have what was given of a name.
    Ambiguous,
    /// The id is taken.
    AlreadyExists,
    /// The request or the bundle is wrong.
    InvalidArgument,
    /// The object is in a state that does not allow the request.
    FailedPrecondition,
    /// This driver, configuration or host lacks the ability.
    Unsupported,
    /// Something that has to be there is gone: the VM, the agent, a daemon.
    Unavailable,
    /// No answer in time.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

/// A failed operation. `Display` prints the context only; [`Error::chain`] prints it with its causes, once each.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// Kind, for decisions.
    pub kind: ErrorKind,
    /// What went wrong and, where known, what to do.
    pub context: String,
    /// The cause below.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An error with its cause.
    pub fn caused(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into()),
        }
    }

    /// The same error, with what was attempted in front.
    pub(crate) fn while_doing(self, what: impl std::fmt::Display) -> Self {
        Self {
            context: format!("{what}: {}", self.context),
            ..self
        }
    }

    /// The same error, with another that happened while it was dealt with.
    pub(crate) fn and(self, second: &Self) -> Self {
        Self {
            context: format!("{} (and then: {})", self.context, second.chain()),
            ..self
        }
    }

    /// The whole story on one line: context and every cause, separated by ": ", each once: a context may quote its cause.
    pub fn chain(&self) -> String {
        story(self)
    }
}

/// The whole story of any error on one line: see [`Error::chain`].
pub fn story(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.ends_with(&told) {
            text.push_str(": ");
            text.push_str(&told);
        }
        next = cause.source();
    }
    text
}

/// An error of the agent or of the way to it: the kinds are the same.
impl From<agent_client::Error> for Error {
    fn from(error: agent_client::Error) -> Self {
        use agent_client::ErrorKind as Agent;
        let kind = match error.kind {
            Agent::NotFound => ErrorKind::NotFound,
            Agent::AlreadyExists => ErrorKind::AlreadyExists,
            Agent::InvalidArgument => ErrorKind::InvalidArgument,
            Agent::FailedPrecondition => ErrorKind::FailedPrecondition,
            Agent::Unsupported => ErrorKind::Unsupported,
            Agent::Unavailable => ErrorKind::Unavailable,
            Agent::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Agent::Internal => ErrorKind::Internal,
        };
        Self::new(kind, error.to_string())
    }
}

/// An error of a virtual machine monitor: the kinds are the same.
impl From<hypervisor::Error> for Error {
    fn from(error: hypervisor::Error) -> Self {
        use hypervisor::ErrorKind as Vmm;
        let kind = match error.kind {
            // A program or image that is missing is not the object that the caller asked for.
            Vmm::NotFound => ErrorKind::FailedPrecondition,
            Vmm::InvalidArgument => ErrorKind::InvalidArgument,
            Vmm::FailedPrecondition => ErrorKind::FailedPrecondition,
            Vmm::Unsupported => ErrorKind::Unsupported,
            Vmm::Unavailable => ErrorKind::Unavailable,
            Vmm::DeadlineExceeded => ErrorKind::DeadlineExceeded,
            Vmm::Internal => ErrorKind::Internal,
        };
        Self {
            kind,
            context: error.context,
            source: error.source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn every_cause_is_told_once() {
        let denied = || io::Error::from(io::ErrorKind::PermissionDenied);
        for (context, expected) in [
            ("cannot open /x".to_owned(), "cannot open /x: permission denied"),
            (
                format!("/x cannot be used: {}", denied()),
                "/x cannot be used: permission denied",
            ),
        ] {
            let inner = Error::caused(ErrorKind::Internal, context, denied());
            assert_eq!(inner.chain(), expected);
            let outer = Error::caused(ErrorKind::Internal, "container c", inner);
            assert_eq!(outer.chain(), format!("container c: {expected}"));
        }
    }
}

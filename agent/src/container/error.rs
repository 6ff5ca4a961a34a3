//! What can go wrong with a container, each error with the kind the agent answers with.
//!
//! Must not know of the wire; the text is for a person, and where `runc` has a well-known text for the same failure
//! (a program that is not there), it is that text.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::Kind;

/// An error of container creation, of an exec or of a container's control.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The OCI specification is wrong in itself; found before any side effect.
    #[error("{field}: {reason}")]
    Spec {
        /// The specification's field, with the element that is wrong.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The specification asks for something that this agent or the guest's kernel does not do.
    #[error("{field}: {what} is not supported in the guest")]
    Unsupported {
        /// The specification's field.
        field: String,
        /// What it asks for.
        what: String,
    },
    /// The program can't be executed; the text is `runc`'s.
    #[error("{0}")]
    Program(String),
    /// A step of the set-up failed, in the agent or in the container's first process.
    #[error("{step}: {source}")]
    Step {
        /// What was tried, and on what.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A control file of the container's cgroup could not be used.
    #[error("cgroup: {action} {path}: {source}")]
    Cgroup {
        /// "write \"100\" to", "create".
        action: String,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A limit was asked for whose controller the guest's cgroup tree does not have.
    #[error("{field}: the cgroup controller {controller:?} is not available")]
    NoController {
        /// The specification's field.
        field: &'static str,
        /// The missing controller.
        controller: String,
    },
    /// The container's state does not allow the call.
    #[error("{0}")]
    State(&'static str),
    /// The container's process ended while it was set up.
    #[error("the container's process ended during its set-up")]
    Vanished,
    /// A wait took too long.
    #[error("{what} did not happen within {limit:?}")]
    Late {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
}

/// Result of this module's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A specification that is wrong in itself.
    pub(super) fn spec(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Spec {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// A specification that asks for more than there is.
    pub(super) fn unsupported(field: impl Into<String>, what: impl Into<String>) -> Self {
        Self::Unsupported {
            field: field.into(),
            what: what.into(),
        }
    }

    /// Kind of this error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Spec { .. } | Self::Program(_) => Kind::InvalidArgument,
            Self::Unsupported { .. } | Self::NoController { .. } => Kind::Unsupported,
            Self::State(_) => Kind::FailedPrecondition,
            Self::Late { .. } => Kind::DeadlineExceeded,
            Self::Step { .. } | Self::Cgroup { .. } | Self::Vanished => Kind::Internal,
        }
    }
}

/// Gives a failed system call the step that it was part of.
pub(super) trait Step<T> {
    /// The text is made on failure only.
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Step<T> for std::result::Result<T, E> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Step {
            step: step().into(),
            source: source.into(),
        })
    }
}

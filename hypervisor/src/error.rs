//! What can go wrong with a virtual machine monitor.

/// Kind of a hypervisor error, for decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// A program, kernel or image is not there.
    NotFound,
    /// The specification asks for something impossible.
    InvalidArgument,
    /// The VM is in a state that does not allow the request.
    FailedPrecondition,
    /// The driver or the VMM's version lacks the ability.
    Unsupported,
    /// The VMM died or its control socket is gone.
    Unavailable,
    /// No answer in time.
    DeadlineExceeded,
    /// Anything else.
    Internal,
}

/// A failed operation: what was attempted, why it failed, and what to do if that is known.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    /// Kind, for decisions.
    pub kind: ErrorKind,
    /// What was attempted and went wrong, with the remedy where there is one.
    pub context: String,
    /// The cause below, if any.
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

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

    /// Whether what was asked for will not happen any more. A VMM that has not answered in time may still do it.
    pub(crate) fn is_final(&self) -> bool {
        self.kind != ErrorKind::DeadlineExceeded
    }

    /// The error of a VM that is to grow beyond its limit.
    pub(crate) fn no_room(asked: impl std::fmt::Display, most: impl std::fmt::Display) -> Self {
        Self::new(
            ErrorKind::InvalidArgument,
            format!("the VM cannot have {asked}: it was started with room for {most}"),
        )
    }
}

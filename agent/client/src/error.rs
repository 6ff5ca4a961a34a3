//! What can go wrong between host and agent, with a kind that survives to the caller's status code.

/// Kind of an agent error; mirrors the status codes the agent answers with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The container or process is not known to the agent.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The request itself is wrong.
    InvalidArgument,
    /// The object is in a state that does not allow the call.
    FailedPrecondition,
    /// The agent or the guest's kernel lacks the ability.
    Unsupported,
    /// The connection is gone: the agent, its kernel or the VM died.
    Unavailable,
    /// No answer in time.
    DeadlineExceeded,
    /// Anything else the agent reported.
    Internal,
}

/// An agent call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("agent {call}: {message}")]
pub struct Error {
    /// Kind, for decisions.
    pub kind: ErrorKind,
    /// Name of the RPC or of the step ("accept", "greeting").
    pub call: &'static str,
    /// What the agent or the transport said. From the guest, so untrusted: length-limited, control characters removed.
    pub message: String,
}

/// Longest message taken over from the guest, in characters.
const MAX_MESSAGE: usize = 2048;

impl Error {
    /// Builds an error; the message is cleaned and cut.
    pub fn new(kind: ErrorKind, call: &'static str, message: impl AsRef<str>) -> Self {
        let message = message
            .as_ref()
            .chars()
            .take(MAX_MESSAGE)
            .map(|c| {
                if c.is_control() && c != '\n' && c != '\t' {
                    '\u{fffd}'
                } else {
                    c
                }
            })
            .collect();
        Self { kind, call, message }
    }

    /// The error of a call that has ended; deadlines are not ttrpc's to keep.
    pub(crate) fn from_ttrpc(call: &'static str, error: ttrpc::Error) -> Self {
        use ttrpc::Code;
        match error {
            ttrpc::Error::RpcStatus(status) => {
                let kind = match status.code() {
                    Code::NOT_FOUND => ErrorKind::NotFound,
                    Code::ALREADY_EXISTS => ErrorKind::AlreadyExists,
                    Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => ErrorKind::InvalidArgument,
                    Code::FAILED_PRECONDITION => ErrorKind::FailedPrecondition,
                    Code::UNIMPLEMENTED => ErrorKind::Unsupported,
                    Code::UNAVAILABLE => ErrorKind::Unavailable,
                    Code::DEADLINE_EXCEEDED => ErrorKind::DeadlineExceeded,
                    _ => ErrorKind::Internal,
                };
                Self::new(kind, call, status.message())
            }
            ttrpc::Error::Socket(text) => Self::new(ErrorKind::Unavailable, call, text),
            ttrpc::Error::LocalClosed | ttrpc::Error::RemoteClosed | ttrpc::Error::Eof => Self::new(
                ErrorKind::Unavailable,
                call,
                "the connection to the guest is closed",
            ),
            other => Self::new(ErrorKind::Unavailable, call, other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_text_is_cleaned_and_cut() {
        let error = Error::new(
            ErrorKind::Internal,
            "hello",
            "\u{1b}[31mred".to_string() + &"x".repeat(10_000),
        );
        assert!(error.message.starts_with("\u{fffd}[31mred"));
        assert_eq!(error.message.chars().count(), MAX_MESSAGE);
    }

    #[test]
    fn an_end_without_a_status_is_a_lost_connection() {
        let ended = ttrpc::Error::Others("whatever the words".into());
        assert_eq!(Error::from_ttrpc("x", ended).kind, ErrorKind::Unavailable);
    }

    #[test]
    fn status_codes_keep_their_kind() {
        for (code, kind) in [
            (ttrpc::Code::NOT_FOUND, ErrorKind::NotFound),
            (ttrpc::Code::ALREADY_EXISTS, ErrorKind::AlreadyExists),
            (ttrpc::Code::FAILED_PRECONDITION, ErrorKind::FailedPrecondition),
            (ttrpc::Code::UNKNOWN, ErrorKind::Internal),
        ] {
            let error = Error::from_ttrpc("x", ttrpc::Error::RpcStatus(ttrpc::get_status(code, "m")));
            assert_eq!(error.kind, kind);
        }
    }
}

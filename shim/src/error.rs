//! The one place where the kind of an error becomes a status code of containerd's API.

use runtime::{Error, ErrorKind};
use ttrpc::Code;

/// The error as containerd gets it: its code, and the whole story on one line.
pub fn status(error: &Error) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code(error.kind), error.chain()))
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::NotFound => Code::NOT_FOUND,
        ErrorKind::AlreadyExists => Code::ALREADY_EXISTS,
        ErrorKind::InvalidArgument | ErrorKind::Ambiguous => Code::INVALID_ARGUMENT,
        ErrorKind::FailedPrecondition => Code::FAILED_PRECONDITION,
        ErrorKind::Unsupported => Code::UNIMPLEMENTED,
        ErrorKind::Unavailable => Code::UNAVAILABLE,
        ErrorKind::DeadlineExceeded => Code::DEADLINE_EXCEEDED,
        ErrorKind::Internal => Code::INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_and_the_whole_story_arrive() {
        let error = Error::caused(
            ErrorKind::NotFound,
            "container c1 does not exist",
            std::io::Error::other("the cause"),
        );
        let ttrpc::Error::RpcStatus(status) = status(&error) else {
            panic!("no status");
        };
        assert_eq!(status.code(), Code::NOT_FOUND);
        assert_eq!(status.message, "container c1 does not exist: the cause");
    }
}

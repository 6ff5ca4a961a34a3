//! What can go wrong in the agent, each error with the kind that its status code on the wire is made from.
//!
//! Must not know of ttrpc: `rpc` maps a kind to a code, once.

use std::io;
use std::path::PathBuf;

/// Kind of an error, for the caller's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The container, process or device is not there.
    NotFound,
    /// The id is taken.
    AlreadyExists,
    /// The request is wrong in itself and will never succeed.
    InvalidArgument,
    /// The object is in a state that does not allow the call.
    FailedPrecondition,
    /// Guest kernel or agent lacks the ability.
    Unsupported,
    /// A wait inside the agent took too long.
    DeadlineExceeded,
    /// The guest's kernel refused, or the agent is at fault.
    Internal,
}

/// An error of the agent. Its text is for a person; it names the object and the cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No container has this id.
    #[error("container {0:?} is not known")]
    NoContainer(String),
    /// The container has no process with this id.
    #[error("process {process:?} of container {container:?} is not known")]
    NoProcess {
        /// Container's id.
        container: String,
        /// Exec id.
        process: String,
    },
    /// The id is in use.
    #[error("{what} {id:?} exists already")]
    Exists {
        /// "container", "process", "sandbox".
        what: &'static str,
        /// The id.
        id: String,
    },
    /// The request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// Field of the request.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The state does not allow the call.
    #[error("{0}")]
    State(&'static str),
    /// The stream was not asked for when the process was created, or its end was closed since.
    #[error("the process has no {0}")]
    NoStream(&'static str),
    /// The sandbox's policy does not allow the request.
    #[error("the policy of this sandbox does not allow {0}Request")]
    Refused(String),
    /// The guest lacks something.
    #[error("{0} is not supported by this guest")]
    Unsupported(String),
    /// There is no room for huge pages.
    #[error(
        "the guest cannot have {wanted} huge pages of {kilobytes} kB, only {free}; give its virtual machine more memory, or the \
         container a smaller limit of huge pages"
    )]
    NoPages {
        /// Of one page.
        kilobytes: u64,
        /// Pages that were asked for.
        wanted: u64,
        /// Pages that there are.
        free: u64,
    },
    /// Something did not happen in time.
    #[error("{0} did not happen within {1:?}")]
    Late(String, std::time::Duration),
    /// Nobody accepts connections there.
    #[error("nothing listens on port {port} of the pod's localhost: {source}")]
    NoListener {
        /// The port.
        port: u16,
        /// Why it failed.
        source: io::Error,
    },
    /// No connection has this number, or it is closed.
    #[error("connection {0} is not known")]
    NoConnection(u64),
    /// No disk is mounted there.
    #[error("no disk is mounted at {0}")]
    NoVolume(PathBuf),
    /// A device did not appear.
    #[error("no device {0}")]
    NoDevice(String),
    /// A system call on a file failed.
    #[error("{action} {path}: {source}")]
    File {
        /// What was tried ("mount", "write").
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A system call failed.
    #[error("{action}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a part of the network.
    #[error("{action}: {source}")]
    Network {
        /// What was tried, on which object.
        action: String,
        /// Why it failed.
        source: netlink::Error,
    },
    /// The container could not be made or changed.
    #[error(transparent)]
    Container(#[from] crate::container::Error),
    /// The sandbox's task is gone: the agent is about to end.
    #[error("the agent is shutting down")]
    ShuttingDown,
}

/// Result of the agent's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A request that is wrong in itself.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid {
            field,
            reason: reason.into(),
        }
    }

    /// A closure for `map_err` on a system call that concerns a path.
    pub fn file<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::File {
            action,
            path: path.into(),
            source: source.into(),
        }
    }

    /// A closure for `map_err` on a system call.
    pub fn system<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System {
            action,
            source: source.into(),
        }
    }

    /// A closure for `map_err` on a request to the kernel's rtnetlink.
    pub fn network(action: impl Into<String>) -> impl FnOnce(netlink::Error) -> Self {
        move |source| Self::Network {
            action: action.into(),
            source,
        }
    }

    /// Kind of this error.
    pub fn kind(&self) -> Kind {
        match self {
            Self::NoContainer(_)
            | Self::NoProcess { .. }
            | Self::NoDevice(_)
            | Self::NoListener { .. }
            | Self::NoConnection(_)
            | Self::NoVolume(_) => Kind::NotFound,
            Self::Exists { .. } => Kind::AlreadyExists,
            Self::Invalid { .. } => Kind::InvalidArgument,
            Self::NoPages { .. } => Kind::FailedPrecondition,
            Self::State(_) | Self::NoStream(_) | Self::ShuttingDown | Self::Refused(_) => {
                Kind::FailedPrecondition
            }
            Self::Unsupported(_) => Kind::Unsupported,
            Self::Late(..) => Kind::DeadlineExceeded,
            Self::Container(error) => error.kind(),
            Self::File { .. } | Self::System { .. } | Self::Network { .. } => Kind::Internal,
        }
    }
}

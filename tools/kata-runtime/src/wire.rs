//! What a command asks of a sandbox's daemon, and what it is answered: one line of JSON each way, with the descriptors of a new
//! process beside the first byte. Pure.

use std::collections::BTreeMap;
use std::path::PathBuf;

use runtime::ErrorKind;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest line, bytes. The specification of a process or of limits is the longest thing in one.
pub const LONGEST: usize = 4 << 20;

/// Most descriptors that a process has beyond its standard streams.
pub const MORE: usize = 64;

/// Most descriptors beside a line: the stand-in's connection, three streams, and those.
pub const DESCRIPTORS: usize = 4 + MORE;

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub struct Call {
    /// Which container it is about.
    pub id: String,
    /// What is asked.
    pub ask: Ask,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Create a container.
    Create {
        /// Absolute path of its bundle.
        bundle: PathBuf,
        /// The configuration file that was named.
        config: Option<PathBuf>,
        /// Its process.
        process: NewProcess,
    },
    /// Let its process execute.
    Start,
    /// How it is.
    State,
    /// Send a signal.
    Kill {
        /// Its number.
        signal: u32,
        /// To all processes, not only the first one.
        all: bool,
    },
    /// Remove it.
    Delete {
        /// Even if it runs.
        force: bool,
    },
    /// Add a process, and start it.
    Exec {
        /// OCI process.
        spec: Value,
        /// Its other properties.
        process: NewProcess,
    },
    /// Pids in the guest.
    Processes,
    /// Pids of its stand-ins.
    Standins,
    /// Freeze it.
    Pause,
    /// Thaw it.
    Resume,
    /// Set limits.
    Update {
        /// OCI resources.
        resources: Value,
    },
    /// Figures of its cgroup in the guest.
    Stats,
}

/// A process that is to be, as its caller's host sees it.
#[derive(Debug, Serialize, Deserialize)]
pub struct NewProcess {
    /// Pid of its stand-in.
    pub standin: u32,
    /// That is whoever asks: it stays where it is.
    pub attached: bool,
    /// It gets a terminal.
    pub terminal: bool,
    /// Lines and characters of that, if they are known.
    pub size: Option<(u16, u16)>,
    /// Which of its streams are descriptors that follow, in this order, after the stand-in's connection.
    pub streams: [bool; 3],
    /// How many more of its descriptors follow those.
    pub more: usize,
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// How a container is.
    State(Shown),
    /// Pids.
    Processes(Vec<u32>),
    /// Figures, in the form of runc's `events`.
    Stats(Value),
    /// It is not done.
    Failed {
        /// Kind of the error.
        kind: Kind,
        /// What happened, and why.
        text: String,
    },
}

/// A container as its callers are shown it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// Its id.
    pub id: String,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// Pid of its stand-in; 0 when it has ended.
    pub pid: u32,
    /// Its bundle.
    pub bundle: PathBuf,
    /// When it was created (RFC 3339).
    pub created: String,
    /// Annotations of its specification.
    pub annotations: BTreeMap<String, String>,
}

/// Kind of an error, as the runtime has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// See [`ErrorKind`].
    NotFound,
    /// See [`ErrorKind`].
    AlreadyExists,
    /// See [`ErrorKind`].
    InvalidArgument,
    /// See [`ErrorKind`].
    FailedPrecondition,
    /// See [`ErrorKind`].
    Unsupported,
    /// See [`ErrorKind`].
    Unavailable,
    /// See [`ErrorKind`].
    DeadlineExceeded,
    /// See [`ErrorKind`].
    Internal,
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists => Self::AlreadyExists,
            ErrorKind::InvalidArgument | ErrorKind::Ambiguous => Self::InvalidArgument,
            ErrorKind::FailedPrecondition => Self::FailedPrecondition,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::DeadlineExceeded => Self::DeadlineExceeded,
            ErrorKind::Internal => Self::Internal,
        }
    }
}

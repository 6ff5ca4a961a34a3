//! What the owner of a pod is asked and answers: one line of JSON each, with descriptors beside the question. The same whether the
//! question comes from its own process or from another one. Pure.

use std::time::Duration;

use oci_spec::runtime::LinuxResources;
use serde::{Deserialize, Serialize};

use super::options::{ContainerOptions, ExecOptions};
use crate::admin::ContainerFigures;
use crate::container::ExitStatus;
use crate::error::{Error, ErrorKind, Result};

/// Longest question or answer, in bytes: what a specification may have, and room.
pub(super) const LONGEST: usize = 8 << 20;

/// Most descriptors of a question.
pub(super) const DESCRIPTORS: usize = 3;

/// Raised when another version could misunderstand it.
const VERSION: u32 = 1;

/// Which standard streams a question has descriptors for, in this order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
}

/// What is asked of the owner of a pod.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
pub(super) enum Request {
    Create {
        options: Box<ContainerOptions>,
    },
    Start {
        id: String,
    },
    Exec {
        id: String,
        options: Box<ExecOptions>,
        streams: Wanted,
    },
    ExecSync {
        id: String,
        options: Box<ExecOptions>,
        timeout: Option<Duration>,
    },
    Attach {
        id: String,
        streams: Wanted,
    },
    Resize {
        id: String,
        exec: Option<String>,
        rows: u16,
        columns: u16,
    },
    ReopenLog {
        id: String,
    },
    Signal {
        id: String,
        exec: Option<String>,
        signal: u32,
        all: bool,
    },
    Stop {
        id: String,
        timeout: Duration,
    },
    Wait {
        id: String,
        exec: Option<String>,
    },
    Pause {
        id: String,
    },
    Resume {
        id: String,
    },
    Update {
        id: String,
        resources: Box<LinuxResources>,
    },
    Stats {
        id: String,
    },
    Pids {
        id: String,
    },
    Remove {
        id: String,
        force: bool,
    },
    RemovePod {
        force: bool,
    },
    StopPod {
        timeout: Option<Duration>,
        /// What is known of its containers' own timeouts: the longest one.
        longest: Duration,
    },
    PortForward {
        port: u16,
    },
}

impl Request {
    /// Whether it only waits, so that it ends with whoever asks.
    pub(super) fn only_waits(&self) -> bool {
        matches!(
            self,
            Self::Wait { .. } | Self::Attach { .. } | Self::PortForward { .. }
        )
    }
}

/// How long the owner may take for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bound {
    /// As long as the workload does.
    Workload,
    /// What a creation may take, and this.
    Within(Duration),
}

impl Request {
    /// How long its owner may take for it, so that nobody waits for one that is stopped (SIGSTOP, a debugger).
    pub(super) fn bound(&self) -> Bound {
        match self {
            Self::ExecSync { timeout, .. } => timeout.map_or(Bound::Workload, Bound::Within),
            Self::Stop { timeout, .. } => Bound::Within(*timeout),
            Self::StopPod { timeout, longest } => Bound::Within(timeout.unwrap_or(*longest)),
            request if request.only_waits() => Bound::Workload,
            _ => Bound::Within(Duration::ZERO),
        }
    }
}

/// How a process that was waited for has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has ended, with this code.
    Exited(u32),
    /// It had not, and was killed.
    TimedOut,
}

/// What is answered.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "answer")]
pub(super) enum Answer {
    Done,
    Named { id: String },
    Exit { exit: ExitStatus },
    Outcome { outcome: Outcome },
    Stats { figures: ContainerFigures },
    Pids { pids: Vec<u32> },
    Failed { kind: ErrorKind, text: String },
}

impl Answer {
    /// One that tells an error.
    pub(super) fn failed(error: &Error) -> Self {
        Self::Failed {
            kind: error.kind,
            text: error.chain(),
        }
    }

    /// What it tells, or the error.
    pub(super) fn told(self) -> Result<Self> {
        match self {
            Self::Failed { kind, text } => Err(Error::new(kind, text)),
            told => Ok(told),
        }
    }
}

/// What is not answered as it was asked.
pub(super) fn mistaken() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "the pod's owner answers something else: it is of another version",
    )
}

#[derive(Serialize)]
struct Sent<'a, T> {
    version: u32,
    #[serde(flatten)]
    what: &'a T,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

/// A line.
pub(super) fn line<T: Serialize>(what: &T) -> Result<Vec<u8>> {
    let sent = Sent {
        version: VERSION,
        what,
    };
    let mut line = serde_json::to_vec(&sent)
        .map_err(|cause| Error::caused(ErrorKind::InvalidArgument, "the request is not JSON", cause))?;
    line.push(b'\n');
    if line.len() > LONGEST {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "the request has {} bytes; at most {LONGEST} are taken",
                line.len()
            ),
        ));
    }
    Ok(line)
}

/// What a line says.
pub(super) fn read<T: serde::de::DeserializeOwned>(line: &[u8]) -> Result<T> {
    let broken =
        |cause: serde_json::Error| Error::caused(ErrorKind::InvalidArgument, "this is not understood", cause);
    let Version { version } = serde_json::from_slice(line).map_err(broken)?;
    if version != VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("version {version} is spoken there, {VERSION} here: use the program that made the pod"),
        ));
    }
    serde_json::from_slice(line).map_err(broken)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ContainerId;

    #[test]
    fn what_is_asked_arrives() {
        let options = ContainerOptions::new(ContainerId::new("c").unwrap(), "/b").label("a", "b");
        for request in [
            Request::Create {
                options: Box::new(options),
            },
            Request::Stop {
                id: "c".into(),
                timeout: Duration::from_millis(1500),
            },
            Request::ExecSync {
                id: "c".into(),
                options: Box::new(ExecOptions::new(["ls"]).env("A", "b")),
                timeout: None,
            },
            Request::Update {
                id: "c".into(),
                resources: Box::default(),
            },
        ] {
            let read: Request = read(&line(&request).unwrap()).unwrap();
            assert_eq!(format!("{read:?}"), format!("{request:?}"));
        }
    }

    #[test]
    fn only_what_a_workload_does_is_waited_for_without_a_bound() {
        let [short, long] = [1, 90].map(Duration::from_secs);
        let id = || "c".to_owned();
        let exec = |timeout| Request::ExecSync {
            id: id(),
            options: Box::new(ExecOptions::new(["ls"])),
            timeout,
        };
        for (request, bound) in [
            (exec(None), Bound::Workload),
            (exec(Some(short)), Bound::Within(short)),
            (Request::Wait { id: id(), exec: None }, Bound::Workload),
            (Request::PortForward { port: 80 }, Bound::Workload),
            (
                Request::Stop {
                    id: id(),
                    timeout: long,
                },
                Bound::Within(long),
            ),
            (
                Request::StopPod {
                    timeout: None,
                    longest: long,
                },
                Bound::Within(long),
            ),
            (
                Request::StopPod {
                    timeout: Some(short),
                    longest: long,
                },
                Bound::Within(short),
            ),
            (Request::RemovePod { force: true }, Bound::Within(Duration::ZERO)),
        ] {
            assert_eq!(request.bound(), bound, "{request:?}");
        }
    }

    #[test]
    fn an_error_keeps_its_kind_and_story() {
        let error = Error::caused(ErrorKind::Ambiguous, "a", std::io::Error::other("b"));
        let sent = line(&Answer::failed(&error)).unwrap();
        let told = read::<Answer>(&sent).unwrap().told().unwrap_err();
        assert_eq!((told.kind, told.chain().as_str()), (ErrorKind::Ambiguous, "a: b"));
    }

    #[test]
    fn another_version_is_told_apart_from_nonsense() {
        let other = br#"{"version":2,"answer":"done"}"#;
        assert_eq!(read::<Answer>(other).unwrap_err().kind, ErrorKind::Unsupported);
        for nonsense in [
            &b""[..],
            b"{",
            b"{\"version\":1}",
            b"{\"version\":1,\"answer\":\"x\"}",
        ] {
            assert_eq!(
                read::<Answer>(nonsense).unwrap_err().kind,
                ErrorKind::InvalidArgument
            );
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read::<Request>(&bytes);
            let _ = read::<Answer>(&bytes);
        }
    }
}

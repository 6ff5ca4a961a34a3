//! The socket between the agent and a process that it is setting up: a few one-datagram messages, one descriptor.
//!
//! The agent's end never blocks and every wait has a deadline; the child's end blocks. What the child says is trusted
//! until it executes the container's program: until then it runs our code only.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::Interest;

use super::error::{Error, Result, Step};
use super::sys;
use crate::patience::patient;

/// Longest message; a longer error text is cut.
const MAX_MESSAGE: usize = 4096;

/// What the two ends say.
#[derive(Debug)]
pub(super) enum Message {
    /// Agent: the id mappings are written.
    Mapped,
    /// Child: all is set up, the program can be executed. Comes with the master of the terminal, if there is one.
    Ready,
    /// Agent: execute the program.
    Start,
    /// A go-between: the container's process is made. Comes with its pidfd.
    Cloned,
    /// Child: it failed. It exits after this.
    Failed(Failure),
}

/// A child's error, as it crosses the socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    kind: FailureKind,
    errno: i32,
    text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    Step,
    Program,
    Spec,
    Unsupported,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let (kind, errno, text) = match error {
            Error::Step { step, source } => (FailureKind::Step, source.raw_os_error(), step.clone()),
            Error::Program(text) => (FailureKind::Program, None, text.clone()),
            Error::Unsupported { field, what } => {
                (FailureKind::Unsupported, None, format!("{field}\0{what}"))
            }
            Error::Spec { field, reason } => (FailureKind::Spec, None, format!("{field}\0{reason}")),
            other => (FailureKind::Step, None, other.to_string()),
        };
        Self {
            kind,
            errno: errno.unwrap_or(0),
            text,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::Program => Error::Program(failure.text),
            FailureKind::Spec | FailureKind::Unsupported => {
                let (field, reason) = failure.text.split_once('\0').unwrap_or(("", &failure.text));
                match failure.kind {
                    FailureKind::Spec => Error::spec(field, reason),
                    _ => Error::unsupported(field, reason),
                }
            }
            FailureKind::Step => Error::Step {
                step: failure.text,
                source: match failure.errno {
                    0 => io::Error::other("refused"),
                    errno => io::Error::from_raw_os_error(errno),
                },
            },
        }
    }
}

impl Message {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Mapped => vec![b'M'],
            Self::Ready => vec![b'R'],
            Self::Start => vec![b'S'],
            Self::Cloned => vec![b'C'],
            Self::Failed(failure) => {
                let kind = match failure.kind {
                    FailureKind::Step => b's',
                    FailureKind::Program => b'p',
                    FailureKind::Spec => b'i',
                    FailureKind::Unsupported => b'u',
                };
                let mut bytes = vec![b'F', kind];
                bytes.extend(failure.errno.to_le_bytes());
                bytes.extend(failure.text.bytes());
                bytes.truncate(MAX_MESSAGE);
                bytes
            }
        }
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            b"M" => Some(Self::Mapped),
            b"R" => Some(Self::Ready),
            b"S" => Some(Self::Start),
            b"C" => Some(Self::Cloned),
            [b'F', kind, rest @ ..] => {
                let (errno, text) = rest.split_first_chunk::<4>()?;
                Some(Self::Failed(Failure {
                    kind: match kind {
                        b's' => FailureKind::Step,
                        b'p' => FailureKind::Program,
                        b'i' => FailureKind::Spec,
                        b'u' => FailureKind::Unsupported,
                        _ => return None,
                    },
                    errno: i32::from_le_bytes(*errno),
                    text: String::from_utf8_lossy(text).into_owned(),
                }))
            }
            _ => None,
        }
    }
}

/// Makes the two ends.
pub(super) fn pair() -> Result<(AgentEnd, ChildEnd)> {
    let (agent, child) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .step(|| "make a socket pair")?;
    rustix::io::ioctl_fionbio(&agent, true).step(|| "make a socket non-blocking")?;
    Ok((AgentEnd { socket: agent }, ChildEnd { socket: child }))
}

/// The agent's end. It is registered with the event loop only while something is waited for.
#[derive(Debug)]
pub(super) struct AgentEnd {
    socket: OwnedFd,
}

impl AgentEnd {
    /// Says something. The socket's buffer holds every message that the protocol can have in flight.
    pub(super) fn send(&self, message: &Message) -> Result<()> {
        send(self.socket.as_fd(), message, None).map_err(|error| match error.raw_os_error() {
            Some(libc::EPIPE | libc::ECONNRESET) => Error::Vanished,
            _ => Error::Step {
                step: "talk to the container's process".into(),
                source: error,
            },
        })
    }

    /// Waits for a message; `None` when the other end was closed, by the program's execution or by the child's end.
    pub(super) async fn receive(
        &self,
        what: &'static str,
        limit: Duration,
    ) -> Result<Option<(Message, Option<OwnedFd>)>> {
        let limit = patient(limit);
        let ready =
            sys::watch(self.socket.as_fd(), Interest::READABLE).step(|| "watch the container's process")?;
        let wait = ready.async_io(Interest::READABLE, |socket| receive(socket.as_fd()));
        tokio::time::timeout(limit, wait)
            .await
            .map_err(|_| Error::Late { what, limit })?
            .step(|| "listen to the container's process")
    }
}

/// The child's end.
#[derive(Debug)]
pub(super) struct ChildEnd {
    socket: OwnedFd,
}

impl ChildEnd {
    /// The same end, with a number that is not below this one: those are the program's.
    pub(super) fn not_below(self, number: i32) -> Result<Self> {
        if self.socket.as_raw_fd() >= number {
            return Ok(self);
        }
        let socket = rustix::io::fcntl_dupfd_cloexec(&self.socket, number).step(|| "move a socket")?;
        Ok(Self { socket })
    }

    /// Says something, with a descriptor or without.
    pub(super) fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        send(self.socket.as_fd(), message, fd)
    }

    /// Waits for the agent's word; an agent that is gone is an error.
    pub(super) fn receive(&self) -> io::Result<Message> {
        match receive(self.socket.as_fd())? {
            Some((message, _)) => Ok(message),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }
}

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn send(socket: BorrowedFd<'_>, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = message.encode();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = fd.as_slice();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(fds));
    }
    rustix::io::retry_on_intr(|| {
        sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut bytes = [0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut receive = || {
        rustix::io::retry_on_intr(|| {
            recvmsg(
                socket,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        })
    };
    let length = match receive() {
        // The other end was closed with a message of ours unread. The kernel says so once, before what it has sent itself.
        Err(rustix::io::Errno::CONNRESET) => receive()?.bytes,
        received => received?.bytes,
    };
    if length == 0 {
        return Ok(None);
    }
    let mut fd = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            fd = fds.last();
        }
    }
    Message::decode(&bytes[..length])
        .map(|message| Some((message, fd)))
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_survive_the_socket() {
        let (agent, child) = pair().unwrap();
        let error = Error::Step {
            step: "mount /proc".into(),
            source: io::Error::from_raw_os_error(libc::EPERM),
        };
        child.send(&Message::Failed(Failure::from(&error)), None).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let received = runtime
            .block_on(agent.receive("a failure", Duration::from_secs(5)))
            .unwrap();
        let Some((Message::Failed(failure), None)) = received else {
            panic!("{received:?}");
        };
        assert_eq!(Error::from(failure).to_string(), error.to_string());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn the_last_word_is_heard_from_a_child_that_did_not_listen() {
        let (agent, child) = pair().unwrap();
        agent.send(&Message::Start).unwrap();
        child.send(&Message::Ready, None).unwrap();
        drop(child);
        let limit = Duration::from_secs(5);
        let word = agent.receive("a word", limit).await.unwrap();
        assert!(matches!(word, Some((Message::Ready, None))), "{word:?}");
        assert!(agent.receive("a word", limit).await.unwrap().is_none());
    }

    #[test]
    fn texts_are_cut_and_garbage_is_refused() {
        let long = Message::Failed(Failure {
            kind: FailureKind::Program,
            errno: 0,
            text: "x".repeat(3 * MAX_MESSAGE),
        });
        assert_eq!(long.encode().len(), MAX_MESSAGE);
        for garbage in [&b""[..], b"X", b"F", b"Fs", b"Fs\0\0\0", b"Fz\0\0\0\0", b"RR"] {
            assert!(Message::decode(garbage).is_none(), "{garbage:?}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_silent_child_is_late_and_a_gone_one_is_none() {
        let (agent, child) = pair().unwrap();
        let late = agent.receive("a word", Duration::from_millis(1)).await;
        assert!(matches!(late, Err(Error::Late { what: "a word", .. })));
        drop(child);
        let gone = agent.receive("a word", Duration::from_secs(5)).await.unwrap();
        assert!(gone.is_none());
    }
}

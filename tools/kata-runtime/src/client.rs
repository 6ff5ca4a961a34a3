//! Asking a sandbox's daemon.

use std::fmt;
use std::io::{self, BufRead, BufReader, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::deadlines;
use crate::wire::{Answer, Call, DESCRIPTORS, Kind, LONGEST};

/// The daemon's refusal.
#[derive(Debug)]
pub struct Refusal {
    /// Kind of its error.
    pub kind: Kind,
    /// What it says.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Refusal {}

/// Asks, and waits for the answer.
///
/// # Errors
/// A [`Refusal`], or the daemon dies over it.
pub fn ask(daemon: &UnixStream, call: &Call, fds: &[BorrowedFd<'_>]) -> Result<Answer> {
    let mut line = serde_json::to_vec(call)?;
    line.push(b'\n');
    if line.len() > LONGEST {
        bail!(
            "the request has {} bytes; at most {LONGEST} are taken",
            line.len()
        );
    }
    send(daemon, &line, fds).context("the sandbox's daemon cannot be asked")?;
    daemon.set_read_timeout(Some(deadlines::ANSWER))?;
    let mut answer = Vec::new();
    let longest = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    BufReader::new(daemon)
        .take(longest)
        .read_until(b'\n', &mut answer)
        .context("the sandbox's daemon does not answer")?;
    if !answer.ends_with(b"\n") {
        bail!("the sandbox's daemon has ended before it could answer");
    }
    match serde_json::from_slice(&answer).context("the sandbox's daemon is of another version")? {
        Answer::Failed { kind, text } => Err(Refusal { kind, text }.into()),
        answer => Ok(answer),
    }
}

/// Sends one descriptor, as a terminal is sent to a console socket.
///
/// # Errors
/// Nobody takes it.
pub fn send_descriptor(to: &UnixStream, fd: BorrowedFd<'_>) -> io::Result<()> {
    // Something has to go with it; runc sends a name.
    send(to, b"terminal", &[fd])
}

fn send(mut daemon: &UnixStream, line: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        daemon.as_fd(),
        &[IoSlice::new(line)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    daemon.write_all(line.get(sent..).unwrap_or_default())
}

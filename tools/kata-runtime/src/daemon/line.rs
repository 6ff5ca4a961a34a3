//! The daemon's side of the wire: questions and answers, as lines.

use std::io;
use std::os::fd::OwnedFd;

use runtime::line::{self, Most};
use tokio::net::UnixStream;

use crate::wire::{Answer, Call, DESCRIPTORS, LONGEST};

/// Receives a question. There is one for each connection.
///
/// # Errors
/// The connection ends before the line does, or it is none of ours.
pub async fn receive(stream: &UnixStream) -> io::Result<(Call, Vec<OwnedFd>)> {
    let (mut rest, mut fds) = (Vec::new(), Vec::new());
    let most = Most {
        bytes: LONGEST,
        fds: DESCRIPTORS,
    };
    let text = line::next(stream, &mut rest, &mut fds, most).await?;
    Ok((serde_json::from_slice(&text)?, fds))
}

/// Sends an answer.
///
/// # Errors
/// Nobody takes it.
pub async fn send(stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    line::send(stream, &text, &[]).await
}

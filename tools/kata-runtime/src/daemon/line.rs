//! Lines with descriptors over a unix socket, on the event loop.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::wire::{Answer, Call, DESCRIPTORS, LONGEST};

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// Receives a question.
///
/// # Errors
/// The connection ends before the line does, or it is none of ours.
pub async fn receive(stream: &UnixStream) -> io::Result<(Call, Vec<OwnedFd>)> {
    let mut line = Vec::new();
    let mut fds = Vec::new();
    loop {
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || read(stream, &mut line, &mut fds)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if line.ends_with(b"\n") => break,
            Ok(_) if line.len() > LONGEST => return Err(io::Error::other("the line is too long")),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok((serde_json::from_slice(&line)?, fds))
}

fn read(stream: &UnixStream, line: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut data = vec![0; CHUNK];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut data)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    line.extend_from_slice(data.get(..received.bytes).unwrap_or_default());
    Ok(received.bytes)
}

/// Sends an answer.
///
/// # Errors
/// Nobody takes it.
pub async fn send(stream: &UnixStream, answer: &Answer) -> io::Result<()> {
    let mut text = serde_json::to_vec(answer)?;
    text.push(b'\n');
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns when whoever asked is gone.
pub async fn hung_up(stream: &UnixStream) {
    loop {
        let mut byte = [0];
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read(&mut byte) {
            Ok(0) => return,
            // It has no more to say.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

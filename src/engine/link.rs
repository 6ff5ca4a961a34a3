//! The way to a pod's owner in another process: a unix socket, one question for each connection. Only the user whose directory it
//! is in can reach it.
//!
//! It must not know what is asked.

use std::future::Future;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use slog::{Logger, warn};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::wire::{self, Answer, DESCRIPTORS, LONGEST, Request};
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};

/// Questions that are answered at a time; the next ones wait. Most of them wait for a container's end.
const MOST: usize = 1024;

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// Who answers.
pub(super) trait Answers: Send + Sync + 'static {
    /// Answers a question. One that only waits is dropped with whoever asks.
    fn answer(
        self: Arc<Self>,
        request: Request,
        fds: Vec<OwnedFd>,
    ) -> impl Future<Output = Result<Told>> + Send;
}

/// What is told: at once, or now that something has begun and again when it has ended.
pub(super) enum Told {
    Now(Answer),
    Begun(BoxFuture<'static, Result<Answer>>),
}

/// Takes questions until it is dropped.
#[derive(Debug)]
pub(super) struct Server(JoinHandle<()>);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Listens at a path. What is there is a dead owner's.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    let bound = || -> io::Result<UnixListener> {
        match std::fs::remove_file(path) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bound().map_err(|cause| {
        let text = format!("cannot listen at {}", path.display());
        Error::caused(ErrorKind::Internal, text, cause)
    })
}

impl Server {
    pub(super) fn start<A: Answers>(listener: UnixListener, desk: std::sync::Weak<A>, log: Logger) -> Self {
        Self(tokio::spawn(async move {
            let room = Arc::new(Semaphore::new(MOST));
            while let Ok(place) = Arc::clone(&room).acquire_owned().await {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let Some(desk) = desk.upgrade() else { return };
                        // Outlives this: the last question is for the end of the pod, and is answered after it.
                        tokio::spawn(async move {
                            serve(stream, desk).await;
                            drop(place);
                        });
                    }
                    Err(error) => {
                        // Descriptors have run out, say.
                        warn!(log, "a question about a pod is not heard"; "error" => %error);
                        tokio::time::sleep(deadlines::ACCEPT_PAUSE).await;
                    }
                }
            }
        }))
    }
}

async fn serve<A: Answers>(stream: UnixStream, desk: Arc<A>) {
    let mut fds = Vec::new();
    // Somebody who says nothing is told nothing.
    let received = timeout(deadlines::ADMIN, receive::<Request>(&stream, &mut fds)).await;
    let request = match received {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return tell(&stream, &Answer::failed(&error)).await,
        Err(_) => return,
    };
    let only_waits = request.only_waits();
    // What is to be done is done, whether or not its caller stays for the answer.
    let mut answering = tokio::spawn(desk.answer(request, fds));
    let told = tokio::select! {
        told = &mut answering => told,
        () = hung_up(&stream), if only_waits => {
            answering.abort();
            return;
        }
    };
    let told = told.unwrap_or_else(|cause| {
        Err(Error::caused(
            ErrorKind::Internal,
            "the answer was cut off",
            cause,
        ))
    });
    match told {
        Err(error) => tell(&stream, &Answer::failed(&error)).await,
        Ok(Told::Now(answer)) => tell(&stream, &answer).await,
        Ok(Told::Begun(end)) => {
            tell(&stream, &Answer::Done).await;
            tokio::select! {
                ended = end => {
                    let answer = ended.unwrap_or_else(|error| Answer::failed(&error));
                    tell(&stream, &answer).await;
                }
                () = hung_up(&stream) => {}
            }
        }
    }
}

async fn tell(stream: &UnixStream, answer: &Answer) {
    let line = match wire::line(answer) {
        Ok(line) => line,
        Err(error) => match wire::line(&Answer::failed(&error)) {
            Ok(line) => line,
            Err(_) => return,
        },
    };
    // One who has gone does not miss it.
    let _ = timeout(deadlines::ADMIN, send(stream, &line, &[])).await;
}

/// A question under way. Dropping it takes back one that only waits.
#[derive(Debug)]
pub(super) struct Asked {
    stream: UnixStream,
    rest: Vec<u8>,
}

/// Asks the owner at this path.
pub(super) async fn ask(path: &Path, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Asked> {
    let line = wire::line(request)?;
    let asked = async {
        let stream = UnixStream::connect(path).await?;
        send(&stream, &line, fds).await?;
        io::Result::Ok(stream)
    };
    let unreachable = |cause| {
        let text = format!("the pod's owner does not answer at {}", path.display());
        Error::caused(ErrorKind::Unavailable, text, cause)
    };
    match timeout(deadlines::ADMIN, asked).await {
        Ok(Ok(stream)) => Ok(Asked {
            stream,
            rest: Vec::new(),
        }),
        Ok(Err(cause)) => Err(unreachable(cause)),
        Err(late) => Err(unreachable(late.into())),
    }
}

impl Asked {
    /// The next answer. There is one, or a second one for what has begun. An owner that dies closes the connection, so that
    /// nobody waits for one that is dead.
    pub(super) async fn answer(&mut self) -> Result<Answer> {
        let mut none = Vec::new();
        let line = next_line(&self.stream, &mut self.rest, &mut none).await?;
        wire::read::<Answer>(&line)?.told()
    }
}

async fn receive<T: DeserializeOwned>(stream: &UnixStream, fds: &mut Vec<OwnedFd>) -> Result<T> {
    let mut rest = Vec::new();
    wire::read(&next_line(stream, &mut rest, fds).await?)
}

async fn next_line(stream: &UnixStream, rest: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> Result<Vec<u8>> {
    let gone = |cause: io::Error| {
        Error::caused(
            ErrorKind::Unavailable,
            "the pod's owner, or whoever asks it, is gone",
            cause,
        )
    };
    let mut looked_at = 0;
    loop {
        let new = rest.get(looked_at..).unwrap_or_default();
        if let Some(end) = new.iter().position(|byte| *byte == b'\n') {
            let after = rest.split_off(looked_at + end + 1);
            return Ok(std::mem::replace(rest, after));
        }
        looked_at = rest.len();
        if looked_at > LONGEST || fds.len() > DESCRIPTORS {
            return Err(gone(io::Error::other("more is said than is taken")));
        }
        stream.readable().await.map_err(gone)?;
        match stream.try_io(Interest::READABLE, || read(stream, rest, fds)) {
            Ok(0) => return Err(gone(io::ErrorKind::UnexpectedEof.into())),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(gone(error)),
            Ok(_) | Err(_) => {}
        }
    }
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

/// Sends a line; the descriptors go with its first bytes.
async fn send(stream: &UnixStream, line: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut rest = line;
    let mut fds = fds;
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || write(stream, rest, fds)) {
            Ok(written) => {
                rest = rest.get(written..).unwrap_or_default();
                fds = &[];
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn write(stream: &UnixStream, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(sendmsg(
        stream.as_fd(),
        &[IoSlice::new(data)],
        &mut control,
        flags,
    )?)
}

/// Returns when whoever asked is gone.
async fn hung_up(stream: &UnixStream) {
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

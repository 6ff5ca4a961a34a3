//! The way to a pod's owner in another process: a unix socket, one question for each connection. Only the user whose directory it
//! is in can reach it.
//!
//! It must not know what is asked.

use std::future::Future;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use serde::de::DeserializeOwned;
use slog::{Logger, warn};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::wire::{self, Answer, DESCRIPTORS, LONGEST, Request};
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::line::{self, Most};

/// Questions that are answered at a time; the next ones wait. Most of them wait for a container's end.
const MOST: usize = 1024;

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
        () = line::hung_up(&stream), if only_waits => {
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
                () = line::hung_up(&stream) => {}
            }
        }
    }
}

async fn tell(stream: &UnixStream, answer: &Answer) {
    let text = match wire::line(answer) {
        Ok(text) => text,
        Err(error) => match wire::line(&Answer::failed(&error)) {
            Ok(text) => text,
            Err(_) => return,
        },
    };
    // One who has gone does not miss it.
    let _ = timeout(deadlines::ADMIN, line::send(stream, &text, &[])).await;
}

/// A question under way. Dropping it takes back one that only waits.
#[derive(Debug)]
pub(super) struct Asked {
    stream: UnixStream,
    rest: Vec<u8>,
}

/// Asks the owner at this path.
pub(super) async fn ask(path: &Path, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Asked> {
    let text = wire::line(request)?;
    let asked = async {
        let stream = UnixStream::connect(path).await?;
        line::send(&stream, &text, fds).await?;
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
        let text = next_line(&self.stream, &mut self.rest, &mut none).await?;
        wire::read::<Answer>(&text)?.told()
    }
}

async fn receive<T: DeserializeOwned>(stream: &UnixStream, fds: &mut Vec<OwnedFd>) -> Result<T> {
    let mut rest = Vec::new();
    wire::read(&next_line(stream, &mut rest, fds).await?)
}

async fn next_line(stream: &UnixStream, rest: &mut Vec<u8>, fds: &mut Vec<OwnedFd>) -> Result<Vec<u8>> {
    let most = Most {
        bytes: LONGEST,
        fds: DESCRIPTORS,
    };
    line::next(stream, rest, fds, most).await.map_err(|cause| {
        Error::caused(
            ErrorKind::Unavailable,
            "the pod's owner, or whoever asks it, is gone",
            cause,
        )
    })
}

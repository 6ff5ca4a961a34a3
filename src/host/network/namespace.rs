//! A network namespace of the host, and work inside it: on a thread that lives only for that, because a namespace is a thread's,
//! and ours must never wander into a pod's.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use netlink::{LinkChange, Socket};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::sys;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::store::NetworkRecord;

/// The calling thread's.
const OWN: &str = "/proc/thread-self/ns/net";

/// Number of the loopback device, the first in every namespace.
const LOOPBACK: u32 = 1;

/// Bytes of stack of a thread that makes a few requests to the kernel.
const STACK: usize = 256 * 1024;

/// A network namespace that exists as long as this does.
#[derive(Debug)]
pub(super) struct Namespace {
    /// `None`: ours alone, until others find it by a process in it.
    path: Option<PathBuf>,
    fd: Arc<OwnedFd>,
    /// Device and inode numbers: which one it is, whatever its path.
    identity: (u64, u64),
    /// Whose turn it is to be inside: one after the other, also when nobody waits for the one any more.
    turn: Arc<Semaphore>,
}

impl Namespace {
    /// The one at this path; not the host's own.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let refused = |kind, why: &str| {
            Error::new(
                kind,
                format!("{} is {why}; name the pod's network namespace", path.display()),
            )
        };
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path);
        let file = opened.map_err(|cause| {
            let kind = match cause.kind() {
                io::ErrorKind::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::InvalidArgument,
            };
            Error::caused(
                kind,
                format!(
                    "the network namespace {} cannot be opened (is it removed already?)",
                    path.display()
                ),
                cause,
            )
        })?;
        let own = identity(Path::new(OWN))?;
        let namespace = Self {
            path: Some(path.to_owned()),
            identity: identity_of(&file, path)?,
            fd: Arc::new(file.into()),
            turn: Arc::new(Semaphore::new(1)),
        };
        // Every namespace of the kernel's is on one device; this tells others that may have the same inode number.
        if namespace.identity.0 != own.0 {
            return Err(refused(ErrorKind::InvalidArgument, "not a namespace"));
        }
        if namespace.identity == own {
            return Err(refused(
                ErrorKind::InvalidArgument,
                "the host's own, whose interfaces a virtual machine must not take",
            ));
        }
        Ok(namespace)
    }

    /// A new one, whose loopback device is up.
    pub(super) async fn create() -> Result<Self> {
        let failed = |what: &str, cause: io::Error| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot {what} a new network namespace"),
                cause,
            )
        };
        let make = move || {
            sys::unshare_network().map_err(|cause| failed("make (is this root?)", cause))?;
            let own = Path::new(OWN);
            let file = File::open(own).map_err(|cause| unreadable(own, cause))?;
            let up = LinkChange {
                up: Some(true),
                ..LinkChange::default()
            };
            Socket::open()
                .and_then(|mut kernel| kernel.change_link(LOOPBACK, &up))
                .map_err(|cause| failed("bring up the loopback device of", cause.into()))?;
            Ok(Self {
                path: None,
                identity: identity_of(&file, own)?,
                fd: Arc::new(file.into()),
                turn: Arc::new(Semaphore::new(1)),
            })
        };
        let (answer, answered) = oneshot::channel();
        start(move || drop(answer.send(make())))?;
        match timeout(deadlines::NETWORK, answered).await {
            Ok(Ok(made)) => made,
            Ok(Err(_)) | Err(_) => Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "a new network namespace was not made within {:?}",
                    deadlines::NETWORK
                ),
            )),
        }
    }

    /// One that was made by [`Namespace::create`], of whatever process.
    pub(super) fn given(fd: Arc<OwnedFd>) -> Result<Self> {
        let stat = rustix::fs::fstat(&fd).map_err(|cause| {
            Error::caused(ErrorKind::Internal, "cannot examine a network namespace", cause)
        })?;
        Ok(Self {
            path: None,
            identity: (stat.st_dev, stat.st_ino),
            fd,
            turn: Arc::new(Semaphore::new(1)),
        })
    }

    /// The one of a record. `None`: it is gone.
    pub(super) fn of(record: &NetworkRecord) -> Result<Option<Self>> {
        let namespace = match Self::open(&record.namespace) {
            Ok(namespace) => namespace,
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::InvalidArgument) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let same = namespace.identity == (record.device, record.inode);
        Ok(same.then_some(namespace))
    }

    /// The namespace itself.
    pub(super) fn descriptor(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.fd)
    }

    fn failed(&self) -> Error {
        Error::new(ErrorKind::Internal, format!("the work in {self} has failed"))
    }

    /// Its part of a record. One that we made needs none.
    pub(super) fn record(&self) -> Option<NetworkRecord> {
        Some(NetworkRecord {
            namespace: self.path.clone()?,
            device: self.identity.0,
            inode: self.identity.1,
            redirected: Vec::new(),
            made: Vec::new(),
        })
    }

    /// Does something inside, and waits for it where nothing else can go on.
    pub(super) fn run_now(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        let (fd, name) = (Arc::clone(&self.fd), self.to_string());
        let thread = start(move || enter(&fd, &name).and_then(|()| work()))?;
        thread.join().unwrap_or_else(|_| Err(self.failed()))
    }

    /// Does something inside. If nobody waits for what comes of it any more, that is given to `unwanted`, inside as well.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
        unwanted: impl FnOnce(T) + Send + 'static,
    ) -> Result<T> {
        let (fd, name) = (Arc::clone(&self.fd), self.to_string());
        let done = async {
            let turn = self.turn().await?;
            let (answer, answered) = oneshot::channel();
            start(move || {
                let result = enter(&fd, &name).and_then(|()| work());
                if let Err(Ok(value)) = answer.send(result) {
                    unwanted(value);
                }
                drop(turn);
            })?;
            answered.await.unwrap_or_else(|_| Err(self.failed()))
        };
        self.in_time(done).await
    }

    /// Waits until nobody is inside.
    pub(super) async fn settled(&self) -> Result<()> {
        self.in_time(async { self.turn().await.map(drop) }).await
    }

    async fn turn(&self) -> Result<OwnedSemaphorePermit> {
        // It is never closed.
        let turn = Arc::clone(&self.turn).acquire_owned().await;
        turn.map_err(|_| self.failed())
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        timeout(deadlines::NETWORK, work).await.unwrap_or_else(|_| {
            Err(Error::new(
                ErrorKind::DeadlineExceeded,
                format!(
                    "the kernel is busy with {self} for longer than {:?}",
                    deadlines::NETWORK
                ),
            ))
        })
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "network namespace {}", path.display()),
            None => f.write_str("the sandbox's own network namespace"),
        }
    }
}

/// Starts a thread that ends with this.
fn start<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
    thread::Builder::new()
        .name("network".into())
        .stack_size(STACK)
        .spawn(body)
        .map_err(|cause| Error::caused(ErrorKind::Internal, "cannot start a thread", cause))
}

fn enter(fd: impl AsFd, name: &str) -> Result<()> {
    move_into_link_name_space(fd.as_fd(), Some(LinkNameSpaceType::Network)).map_err(|cause| {
        let (kind, why) = match cause {
            rustix::io::Errno::INVAL => (ErrorKind::InvalidArgument, "is something else"),
            _ => (ErrorKind::Internal, "cannot be entered (is this root?)"),
        };
        Error::caused(kind, format!("{name} {why}"), cause)
    })
}

fn identity(path: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(path).map_err(|cause| unreadable(path, cause))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn identity_of(file: &File, path: &Path) -> Result<(u64, u64)> {
    let metadata = file.metadata().map_err(|cause| unreadable(path, cause))?;
    Ok((metadata.dev(), metadata.ino()))
}

fn unreadable(path: &Path, cause: io::Error) -> Error {
    Error::caused(
        ErrorKind::Internal,
        format!("cannot examine {}", path.display()),
        cause,
    )
}

//! The virtio-serial port as a byte stream.
//!
//! A port is there before its name is, and both may come after the agent: the kernel's announcements say when to look.
//! While the host is away the port polls as hung up and reads as ended, so the end of a connection is the end of the
//! stream, and the first use waits until the host is back. Not the finding of the port: whoever serves on it is ready by then,
//! which is in a template and not in each of its copies.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use agent_protocol::SERIAL_PORT_NAME;
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::time::Timespec;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

use crate::{sys, uevent};

/// How long the port may take to appear. The VMM plugs it before it boots.
const PORT_DEADLINE: Duration = Duration::from_secs(10);

/// The port. It is opened, and the host waited for, when it is first read or written.
pub struct Port(State);

/// How far it is.
enum State {
    Found(PathBuf),
    Waiting(Wait),
    Open(AsyncFd<OwnedFd>),
}

/// Finds the port.
pub async fn find() -> io::Result<Port> {
    let path = uevent::wait_for(SERIAL_PORT_NAME, PORT_DEADLINE, look)
        .await
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
    Ok(Port(State::Found(path)))
}

/// The device node of the port with the agreed name.
fn look() -> Option<PathBuf> {
    std::fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|port| {
            let name = std::fs::read_to_string(port.path().join("name")).ok()?;
            let node = PathBuf::from("/dev").join(port.file_name());
            (name.trim() == SERIAL_PORT_NAME && node.exists()).then_some(node)
        })
}

/// Waits until the port can be written.
///
/// Tokio remembers a hang-up for ever, so the port is watched through an epoll instance of its own, which in turn is
/// what Tokio watches.
struct Wait {
    watch: AsyncFd<OwnedFd>,
    /// Until the host is there.
    port: Option<OwnedFd>,
}

impl Wait {
    fn open(path: &Path) -> io::Result<Self> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let watch = sys::register(watch, Interest::READABLE)?;
        // The VMM sees this, and may save the guest from here on: what could be done before was done.
        let port = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        let port = OwnedFd::from(port);
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(watch.get_ref(), &port, epoll::EventData::new_u64(0), flags)?;
        Ok(Self {
            watch,
            port: Some(port),
        })
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.watch.poll_read_ready(cx))?;
            let mut events = Vec::with_capacity(1);
            epoll::wait(
                self.watch.get_ref(),
                spare_capacity(&mut events),
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                }),
            )?;
            // The kernel's structure is packed: its fields are copied before they are looked at.
            let flags = events.iter().map(|event: &epoll::Event| event.flags).next();
            if flags.is_some_and(|flags| flags.contains(epoll::EventFlags::OUT)) {
                return Poll::Ready(Ok(()));
            }
            ready.clear_ready();
        }
    }
}

impl Port {
    /// The port once the host is there. Only one task may wait: the one that greets.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&AsyncFd<OwnedFd>>> {
        loop {
            match &mut self.0 {
                State::Found(path) => self.0 = State::Waiting(Wait::open(path)?),
                State::Waiting(wait) => {
                    ready!(wait.poll(cx))?;
                    let port = wait.port.take().ok_or(io::ErrorKind::NotConnected)?;
                    let both = Interest::READABLE | Interest::WRITABLE;
                    self.0 = State::Open(sys::register(port, both)?);
                }
                State::Open(_) => break,
            }
        }
        match &self.0 {
            State::Open(port) => Poll::Ready(Ok(port)),
            State::Found(_) | State::Waiting(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl AsyncRead for Port {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let port = ready!(self.poll_open(cx))?;
        loop {
            let mut ready = ready!(port.poll_read_ready(cx))?;
            let hung_up = ready.ready().is_read_closed();
            match ready.try_io(|fd| Ok(rustix::io::read(fd, buffer.initialize_unfilled())?)) {
                Ok(Ok(read)) => {
                    buffer.advance(read);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                // The host was away and came back: for whoever reads here, this is the end.
                Err(_) if hung_up => return Poll::Ready(Ok(())),
                // Not ready after all.
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let port = ready!(self.poll_open(cx))?;
        loop {
            let mut ready = ready!(port.poll_write_ready(cx))?;
            let hung_up = ready.ready().is_write_closed();
            match ready.try_io(|fd| Ok(rustix::io::write(fd, data)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_) if hung_up => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                // Not ready after all.
                Err(_) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

//! The virtio-serial port as a byte stream.
//!
//! A port is there before its name is, and both may come after the agent: the kernel's announcements say when to look.
//! While the host is away the port polls as hung up and reads as ended, so the end of a connection is the end of the
//! stream, and opening waits until the host is back.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
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

/// An open port.
pub struct Port(AsyncFd<OwnedFd>);

/// Finds and opens the port, and waits until the host is there.
pub async fn open() -> io::Result<Port> {
    let path = uevent::wait_for(SERIAL_PORT_NAME, PORT_DEADLINE, find)
        .await
        .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?;
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    let port = OwnedFd::from(port);
    host_is_there(&port).await?;
    Ok(Port(sys::register(
        port,
        Interest::READABLE | Interest::WRITABLE,
    )?))
}

/// The device node of the port with the agreed name.
fn find() -> Option<PathBuf> {
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
async fn host_is_there(port: &OwnedFd) -> io::Result<()> {
    let watch = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
    epoll::add(&watch, port, epoll::EventData::new_u64(0), flags)?;
    let watch = sys::register(watch, Interest::READABLE)?;
    loop {
        let mut ready = watch.readable().await?;
        let mut events = Vec::with_capacity(1);
        epoll::wait(
            watch.get_ref(),
            spare_capacity(&mut events),
            Some(&Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            }),
        )?;
        // The kernel's structure is packed: its fields are copied before they are looked at.
        let flags = events.iter().map(|event: &epoll::Event| event.flags).next();
        if flags.is_some_and(|flags| flags.contains(epoll::EventFlags::OUT)) {
            return Ok(());
        }
        ready.clear_ready();
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
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
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
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

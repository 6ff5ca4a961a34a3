//! A named pipe that output is written to, and whose reader may come, go, and come back.
//!
//! We keep it open for reading as well: so a write never fails for want of a reader, and what nobody has read yet stays
//! in the pipe. At the end the reader must get an end of file, which it does when we are the last to let go; but not
//! before there is a reader, or what is in the pipe would be lost with it (containerd may be restarting just then).

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::Interest;

use super::sys;

/// Our own reading end.
#[derive(Debug)]
pub(super) struct Keeper(OwnedFd);

/// Opens a pipe for writing, without waiting for a reader.
pub(super) fn open_to_write(path: &Path) -> io::Result<(OwnedFd, Keeper)> {
    let keeper = open_to_read(path)?;
    let writer = options().write(true).open(path)?;
    Ok((checked(writer)?, Keeper(keeper)))
}

/// Opens a pipe for input, without waiting for a writer, and for writing as well: the end of one writer is not the end of
/// the input. Clients come and go (one detaches, another one attaches, containerd is restarted), and say when there will be
/// no more.
pub(super) fn open_for_input(path: &Path) -> io::Result<(OwnedFd, OwnedFd)> {
    let reader = open_to_read(path)?;
    let writer = options().write(true).open(path)?;
    Ok((reader, checked(writer)?))
}

/// Opens a pipe for reading, without waiting for a writer.
fn open_to_read(path: &Path) -> io::Result<OwnedFd> {
    checked(options().read(true).open(path)?)
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    options
}

fn checked(file: File) -> io::Result<OwnedFd> {
    if file.metadata()?.file_type().is_fifo() {
        Ok(file.into())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a named pipe"))
    }
}

impl Keeper {
    /// Waits until everything is read or there is somebody else to read it. Then the pipe can be closed.
    pub(super) async fn settled(self, writer: impl AsFd) -> io::Result<()> {
        if rustix::io::ioctl_fionread(&self.0)? == 0 {
            return Ok(());
        }
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // This very pipe, whatever is at its path by now.
        let pipe = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        inotify::add_watch(&watch, pipe, WatchFlags::OPEN)?;
        let watch = sys::register(watch, Interest::READABLE).map_err(|(_, error)| error)?;
        drop(self);
        while !has_reader(&writer)? {
            let mut events = [MaybeUninit::uninit(); 64];
            watch
                .async_io(Interest::READABLE, |fd| {
                    Ok(inotify::Reader::new(fd, &mut events).next().map(drop)?)
                })
                .await?;
        }
        Ok(())
    }
}

fn has_reader(writer: impl AsFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(&writer, PollFlags::OUT)];
    poll(&mut polled, Some(&Timespec::default()))?;
    Ok(polled.iter().all(|fd| !fd.revents().contains(PollFlags::ERR)))
}

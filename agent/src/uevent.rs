//! Waits for a device to appear: the kernel announces changes of its devices on a netlink socket.
//!
//! An announcement only says "look again"; what is looked at is sysfs. One change is not announced, that of a disk that had no size
//! and has one, so that there is a look now and then without. Must not know what devices are for.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Error, Result};
use crate::patience::patient;
use crate::sys;

/// Multicast group of the kernel's own announcements (group 2 is udev's).
const KERNEL_GROUP: u32 = 1;

/// How long nobody looks where nothing is announced.
const UNANNOUNCED: Duration = Duration::from_millis(50);

/// Looks until something is found, again after every announcement.
///
/// # Errors
/// [`Error::NoDevice`] at the deadline; [`Error::System`] when the kernel can't be listened to.
pub async fn wait_for<T>(device: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    if let Some(found) = look() {
        return Ok(found);
    }
    let deadline = patient(deadline);
    // Listening starts before the second look, so that nothing happens unseen between the two.
    let kernel = listen()?;
    let search = async {
        loop {
            if let Some(found) = look() {
                return Ok(found);
            }
            // Its end means to look as well.
            if let Ok(announced) = tokio::time::timeout(UNANNOUNCED, announced(&kernel)).await {
                announced?;
            }
        }
    };
    match tokio::time::timeout(deadline, search).await {
        Ok(found) => found,
        Err(_) => Err(Error::NoDevice(format!(
            "{device} within {:.1} s",
            deadline.as_secs_f64()
        ))),
    }
}

fn listen() -> Result<AsyncFd<OwnedFd>> {
    let fail = Error::system::<std::io::Error>;
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )
    .map_err(|e| fail("open a uevent socket")(e.into()))?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, KERNEL_GROUP))
        .map_err(|e| fail("bind the uevent socket")(e.into()))?;
    sys::register(fd, Interest::READABLE).map_err(fail("register the uevent socket"))
}

/// Waits for an announcement and takes every one that is there.
async fn announced(kernel: &AsyncFd<OwnedFd>) -> Result<()> {
    let receive = |fd: &OwnedFd| {
        let mut ignored = [0_u8; 64];
        recv(fd.as_raw_fd(), &mut ignored, MsgFlags::MSG_DONTWAIT).map_err(std::io::Error::from)
    };
    let fail = Error::system("receive uevents");
    match kernel.async_io(Interest::READABLE, receive).await {
        // ENOBUFS: some were lost, which is one more reason to look again.
        Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(fail(error)),
        _ => {}
    }
    loop {
        match receive(kernel.get_ref()) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => return Err(fail(error)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_there_is_found_at_once_and_what_never_comes_runs_into_the_deadline() {
        assert_eq!(wait_for("x", Duration::ZERO, || Some(1)).await.unwrap(), 1);
        let error = wait_for::<()>("disk 7", Duration::from_millis(20), || None)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, Error::NoDevice(text) if text.contains("disk 7")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_announcement_makes_it_look_again() {
        let mut looks = 0;
        let search = wait_for("null", Duration::from_secs(10), || {
            looks += 1;
            if looks == 2 {
                // The socket listens by now.
                uevent_of("/sys/class/mem/null/uevent");
            }
            (looks > 2).then_some(())
        });
        search.await.unwrap();
    }

    /// Makes the kernel announce a device once more.
    fn uevent_of(path: &str) {
        std::fs::write(path, "change")
            .unwrap_or_else(|e| panic!("this test needs root and a writable sysfs: {path}: {e}"));
    }
}

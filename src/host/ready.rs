//! Waits for a daemon that makes its own socket to listen on it.
//!
//! The socket's file appearing is an event. That it is listened on as well, an instant later, is none: the kernel tells
//! nobody of a listen(2), and to connect would be to take the VMM's place.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hypervisor::Created;

/// Between two looks at a socket that is there and not listened on yet.
const INSTANT: Duration = Duration::from_millis(1);

/// A watch on a socket that is to be.
#[derive(Debug)]
pub(super) struct Awaited {
    socket: PathBuf,
    created: Created,
}

impl Awaited {
    /// Begins to watch, before its maker is started. The directory is there.
    pub(super) fn new(dir: &Path, name: &str) -> io::Result<Self> {
        Ok(Self {
            socket: dir.join(name),
            created: Created::new(dir)?,
        })
    }

    /// Waits until the socket is listened on.
    pub(super) async fn listens(&self) -> io::Result<()> {
        while !self.socket.exists() {
            self.created.changed().await?;
        }
        while !is_listened_on(&std::fs::read("/proc/net/unix")?, &self.socket) {
            tokio::time::sleep(INSTANT).await;
        }
        Ok(())
    }
}

/// Whether the kernel's list of unix sockets (`/proc/net/unix`) has a listening one of this path.
fn is_listened_on(list: &[u8], socket: &Path) -> bool {
    /// The flag of a socket that accepts connections (linux/net.h, `__SO_ACCEPTCON`).
    const ACCEPTS: u32 = 1 << 16;
    let socket = socket.as_os_str().as_bytes();
    list.split(|&byte| byte == b'\n')
        .filter_map(|line| line.strip_suffix(socket)?.strip_suffix(b" "))
        .any(|line| {
            // Num, RefCount, Protocol, Flags, Type, St, Inode
            std::str::from_utf8(line)
                .ok()
                .and_then(|line| line.split_ascii_whitespace().nth(3))
                .and_then(|flags| u32::from_str_radix(flags, 16).ok())
                .is_some_and(|flags| flags & ACCEPTS != 0)
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use tokio::time::timeout;

    use super::*;
    use crate::deadlines::DAEMON_READY;

    #[test]
    fn only_a_socket_that_accepts_listens() {
        let list = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17000 /run/a@b/vhost.sock\n\
            0000000000000000: 00000002 00000000 00000000 0001 01 17001 /run/a@c/vhost.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 17002\n";
        for (path, expected) in [
            ("/run/a@b/vhost.sock", true),
            ("/run/a@c/vhost.sock", false),
            ("/vhost.sock", false),
            ("", false),
        ] {
            assert_eq!(is_listened_on(list, Path::new(path)), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn a_socket_is_awaited_among_other_files() {
        let dir = tempfile::tempdir().unwrap();
        let awaited = Awaited::new(dir.path(), "x.sock").unwrap();
        std::fs::write(dir.path().join("other"), "").unwrap();
        let early = timeout(Duration::from_millis(20), awaited.listens()).await;
        assert!(early.is_err(), "nobody listens yet");
        let path = dir.path().join("x.sock");
        let maker = tokio::task::spawn_blocking(|| UnixListener::bind(path).unwrap());
        timeout(DAEMON_READY, awaited.listens()).await.unwrap().unwrap();
        drop(maker.await.unwrap());
    }
}

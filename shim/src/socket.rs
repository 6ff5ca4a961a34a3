//! The server's listening socket: its path, its creation, and whether somebody listens on one that is there already.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use sha2::{Digest, Sha256};

/// Where containerd's shims have their sockets.
const DIRECTORY: &str = "/run/containerd/s";

/// Longest path of a unix socket, bytes.
const MAX: usize = 106;

/// Path of the socket of a sandbox: the same for every container of it, different for every containerd, namespace and
/// sandbox.
///
/// # Errors
/// It would be too long.
pub fn path(directory: Option<&str>, address: &str, namespace: &str, sandbox: &str) -> Result<PathBuf> {
    let name = [address, namespace, sandbox]
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("/");
    let hash: String = Sha256::digest(name.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let path = Path::new(directory.unwrap_or(DIRECTORY)).join(hash);
    let length = path.as_os_str().len();
    if !path.is_absolute() {
        bail!("the socket directory {} is not absolute", path.display());
    }
    if length > MAX {
        bail!(
            "the socket's path {} has {length} bytes, more than {MAX}: set a shorter socket_dir",
            path.display()
        );
    }
    Ok(path)
}

/// A path as containerd writes it.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// The path in such an address.
pub fn path_of(address: &str) -> Option<PathBuf> {
    address
        .strip_prefix("unix://")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
}

/// Whether somebody listens.
///
/// # Errors
/// It cannot be known.
pub fn is_live(path: &Path) -> io::Result<bool> {
    match connect(path) {
        Ok(_) => Ok(true),
        Err(error) => match error.kind() {
            // It listens, but has not come to accept for a while.
            io::ErrorKind::WouldBlock => Ok(true),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Ok(false),
            _ => Err(error),
        },
    }
}

/// Connects without waiting for a place in the listener's queue, as std's streams would. The connection does not block.
///
/// # Errors
/// The system's: WouldBlock when the queue is full.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Creates the socket, for root alone. `None`: somebody listens there already. What a dead server left is replaced.
///
/// # Errors
/// The system's.
pub fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let doing = || format!("cannot create the socket {}", path.display());
    if let Some(parent) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o711).create(parent);
        made.with_context(doing)?;
    }
    match bind(path) {
        Ok(listener) => return Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        Err(error) => return Err(error).with_context(doing),
    }
    if is_live(path).with_context(doing)? {
        return Ok(None);
    }
    fs::remove_file(path).with_context(doing)?;
    bind(path).map(Some).with_context(doing)
}

/// There must be no moment at which others could connect; so the process's mask is set for the time of the call.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let before = rustix::process::umask(Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(before);
    listener
}

/// The file of a socket, so that only this one is removed, and not a successor's at the same path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// The file at the address of a listener.
    ///
    /// # Errors
    /// There is none.
    pub fn of(listener: &UnixListener) -> io::Result<Self> {
        let path = listener
            .local_addr()?
            .as_pathname()
            .map(Path::to_path_buf)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the socket has no path"))?;
        let id = identity(&path)?;
        Ok(Self { path, id })
    }

    /// Removes it; gone already is fine.
    pub fn remove(&self) {
        if identity(&self.path).is_ok_and(|id| id == self.id) {
            // The directory is root's alone: nobody else removes it meanwhile but another action of ours.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Whether a call failed because there is nobody at the other end any more. Which error ttrpc has for it depends on how far the call
/// had come; one of them has no kind of its own.
pub fn is_lost(error: &ttrpc::Error) -> bool {
    match error {
        ttrpc::Error::RemoteClosed
        | ttrpc::Error::LocalClosed
        | ttrpc::Error::Eof
        | ttrpc::Error::Socket(_) => true,
        ttrpc::Error::Others(text) => text.starts_with("reserve channel capacity failed"),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_path_is_that_of_containerds_convention() {
        let path = |address, id| path(None, address, "default", id).unwrap();
        // printf %s /run/containerd/containerd.sock/default/c1 | sha256sum
        assert_eq!(
            path("/run/containerd/containerd.sock", "c1"),
            Path::new("/run/containerd/s/")
                .join("d25aa4ef11a84e954e74a5bcff06557d0b6ea8d0c00243896f29826694bbd888")
        );
        // CRI-O has no address.
        assert_ne!(path("", "c1"), path("", "c2"));
        assert_ne!(path("", "c1"), path("/run/containerd/containerd.sock", "c1"));
    }

    #[tokio::test]
    async fn a_call_to_a_server_that_has_gone_is_lost_however_it_fails() {
        let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
        let client = containerd_shim_protos::shim_async::TaskClient::new(ttrpc::asynchronous::Client::new(
            ttrpc::asynchronous::transport::Socket::from(ours),
        ));
        drop(theirs);
        let request = containerd_shim_protos::api::ConnectRequest::default();
        // The first may be on its way already; the later ones find the way closed.
        for _ in 0..5 {
            let error = client
                .connect(ttrpc::context::with_timeout(0), &request)
                .await
                .unwrap_err();
            assert!(is_lost(&error), "{error}");
            tokio::task::yield_now().await;
        }
        let status = ttrpc::get_status(ttrpc::Code::NOT_FOUND, "no such container");
        assert!(!is_lost(&ttrpc::Error::RpcStatus(status)));
    }

    #[test]
    fn a_directory_that_cannot_be_is_refused() {
        let long = format!("/{}", "x".repeat(60));
        let error = path(Some(&long), "", "n", "c").unwrap_err();
        assert!(error.to_string().contains("socket_dir"), "{error}");
        assert!(path(Some("relative"), "", "n", "c").is_err());
        let fits = path(Some("/run/s"), "", "n", "c").unwrap();
        assert_eq!(path_of(&address(&fits)), Some(fits));
        for bad in ["", "/run/s", "unix://", "unix://x", "vsock://1:2"] {
            assert_eq!(path_of(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s").join("socket");
        assert!(!is_live(&path).unwrap());
        let first = listen(&path).unwrap().unwrap();
        assert!(is_live(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(listen(&path).unwrap().is_none(), "it is taken");

        drop(first);
        assert!(path.exists() && !is_live(&path).unwrap());
        let second = listen(&path).unwrap().unwrap();
        assert!(is_live(&path).unwrap());
        drop(second);
    }

    #[test]
    fn a_listener_that_does_not_accept_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let _listener = listen(&path).unwrap().unwrap();
        let mut waiting = Vec::new();
        let full = loop {
            match connect(&path) {
                Ok(connection) => waiting.push(connection),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        assert!(is_live(&path).unwrap());
    }

    #[test]
    fn only_our_own_socket_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = listen(&path).unwrap().unwrap();
        let file = SocketFile::of(&first).unwrap();
        // A successor is there before we go. (Moved away, so that its inode is not given to the successor.)
        fs::rename(&path, dir.path().join("old")).unwrap();
        let _second = listen(&path).unwrap().unwrap();
        file.remove();
        assert!(path.exists());
        fs::remove_file(&path).unwrap();
        fs::rename(dir.path().join("old"), &path).unwrap();
        file.remove();
        assert!(!path.exists());
        file.remove();
    }
}

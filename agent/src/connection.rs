//! Connections to the pod's localhost that the host carries into the guest: data is pulled and pushed, as a process's streams.
//!
//! Must not know who is at the host's end, nor of the wire.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::{Error, Result};

/// A program that has too many connections waiting takes no more for a while; a host that waits longer than this has given up.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// Connections at a time: bounds what a host that forgets to close them costs.
const MOST: usize = 1024;

/// The connections that are open, each under its number.
#[derive(Debug, Default)]
pub struct Connections {
    last: u64,
    open: BTreeMap<u64, Kept>,
}

#[derive(Debug)]
struct Kept {
    stream: Arc<TcpStream>,
    /// Ends what is under way when the connection is closed.
    _close: watch::Sender<()>,
    closed: watch::Receiver<()>,
}

/// A connection in use. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connection {
    stream: Arc<TcpStream>,
    closed: watch::Receiver<()>,
}

/// Connects to a port of localhost, in the network namespace of the process.
///
/// # Errors
/// [`Error::NoListener`], [`Error::Late`].
pub async fn open(port: u16, ipv6_first: bool) -> Result<TcpStream> {
    let four = IpAddr::from(Ipv4Addr::LOCALHOST);
    let six = IpAddr::from(Ipv6Addr::LOCALHOST);
    let (first, second) = if ipv6_first { (six, four) } else { (four, six) };
    let connect = async {
        match TcpStream::connect((first, port)).await {
            Ok(stream) => Ok(stream),
            // The first one is what was asked for; it says why.
            Err(error) => TcpStream::connect((second, port)).await.map_err(|_| error),
        }
    };
    let connected = timeout(CONNECT_DEADLINE, connect)
        .await
        .map_err(|_| Error::Late(format!("a connection to port {port}"), CONNECT_DEADLINE))?;
    connected.map_err(|source| Error::NoListener { port, source })
}

impl Connections {
    /// Whether there is room for one more.
    ///
    /// # Errors
    /// [`Error::State`].
    pub fn check(&self) -> Result<()> {
        if self.open.len() < MOST {
            Ok(())
        } else {
            Err(Error::State("too many connections to localhost are open"))
        }
    }

    /// Keeps one; the answer is its number.
    pub fn add(&mut self, stream: TcpStream) -> u64 {
        self.last += 1;
        let (close, closed) = watch::channel(());
        let kept = Kept {
            stream: Arc::new(stream),
            _close: close,
            closed,
        };
        self.open.insert(self.last, kept);
        self.last
    }

    /// The connection with this number.
    ///
    /// # Errors
    /// [`Error::NoConnection`].
    pub fn get(&self, number: u64) -> Result<Connection> {
        let kept = self.open.get(&number).ok_or(Error::NoConnection(number))?;
        Ok(Connection {
            stream: Arc::clone(&kept.stream),
            closed: kept.closed.clone(),
        })
    }

    /// Forgets the one with this number, and with it what is under way on it.
    ///
    /// # Errors
    /// [`Error::NoConnection`].
    pub fn close(&mut self, number: u64) -> Result<()> {
        match self.open.remove(&number) {
            Some(_) => Ok(()),
            None => Err(Error::NoConnection(number)),
        }
    }

    /// Forgets them all.
    pub fn close_all(&mut self) {
        self.open.clear();
    }
}

impl Connection {
    /// Waits for data and takes up to `max` bytes of it; empty: no more will come.
    ///
    /// # Errors
    /// The kernel's, as when the other end has reset it.
    pub async fn read(&self, max: usize) -> Result<Vec<u8>> {
        let mut closed = self.closed.clone();
        let take = || -> io::Result<Vec<u8>> {
            let mut data = Vec::with_capacity(max);
            recv(&self.stream, spare_capacity(&mut data), RecvFlags::DONTWAIT)?;
            Ok(data)
        };
        tokio::select! {
            biased;
            read = self.stream.async_io(Interest::READABLE, take) => {
                read.map_err(Error::system("read from a connection"))
            }
            _ = closed.changed() => Ok(Vec::new()),
        }
    }

    /// Writes all of it; false: the other end is gone.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn write(&self, data: &[u8]) -> Result<bool> {
        let mut closed = self.closed.clone();
        tokio::select! {
            biased;
            written = self.write_all(data) => written.map_err(Error::system("write to a connection")),
            _ = closed.changed() => Ok(false),
        }
    }

    async fn write_all(&self, mut data: &[u8]) -> io::Result<bool> {
        while !data.is_empty() {
            let put = || {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                send(&self.stream, data, flags).map_err(io::Error::from)
            };
            match self.stream.async_io(Interest::WRITABLE, put).await {
                Ok(written) => data = data.get(written..).unwrap_or_default(),
                Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Sends no more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn finish(&self) -> Result<()> {
        match shutdown(&self.stream, Shutdown::Write) {
            // The other end has reset it: nothing will be sent indeed.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Ok(()),
            Err(error) => Err(Error::system("finish a connection")(error)),
        }
    }
}

//! Lines with descriptors beside them over a unix socket, on the event loop: what the processes of this project say to each other.
//!
//! It must not know what is said.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes that are read at once.
const CHUNK: usize = 64 * 1024;

/// How much is taken from the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Most {
    /// Bytes of a line. As what is there is read in chunks, a little more may be held for a moment.
    pub bytes: usize,
    /// Descriptors beside it.
    pub fds: usize,
}

/// Receives the next line, with its end. What comes after it is left in `rest`, for the next call; the descriptors that come are added to
/// `fds`. Dropped before its end, it loses nothing.
///
/// # Errors
/// [`io::ErrorKind::UnexpectedEof`]: the connection ends before the line does. [`io::ErrorKind::InvalidData`]: more is said than is
/// taken. The socket's.
pub async fn next(
    stream: &UnixStream,
    rest: &mut Vec<u8>,
    fds: &mut Vec<OwnedFd>,
    most: Most,
) -> io::Result<Vec<u8>> {
    let mut looked_at = 0;
    loop {
        let new = rest.get(looked_at..).unwrap_or_default();
        let end = new.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(rest.len(), |end| looked_at + end + 1);
        if length > most.bytes || fds.len() > most.fds {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "more is said than is taken: {} bytes and {} descriptors at most",
                    most.bytes, most.fds
                ),
            ));
        }
        if end.is_some() {
            let after = rest.split_off(length);
            return Ok(std::mem::replace(rest, after));
        }
        looked_at = length;
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || read(stream, rest, fds, most.fds)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

fn read(stream: &UnixStream, line: &mut Vec<u8>, fds: &mut Vec<OwnedFd>, most: usize) -> io::Result<usize> {
    let mut data = vec![0; CHUNK];
    // Room for one more than is taken, so that it is seen that there are more.
    let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(most + 1))];
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
///
/// # Errors
/// Nobody takes it.
pub async fn send(stream: &UnixStream, line: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
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
    let mut space = vec![MaybeUninit::uninit(); cmsg_space!(ScmRights(fds.len()))];
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

/// Returns when the other side is gone. What it says until then is thrown away.
pub async fn hung_up(stream: &UnixStream) {
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// Longer than anything here takes on a busy machine.
    const SOON: Duration = Duration::from_secs(20);

    const MOST: Most = Most {
        bytes: 300_000,
        fds: 3,
    };

    #[tokio::test]
    async fn lines_arrive_whole_and_one_by_one_with_their_descriptors() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // More than the socket holds, and two at once.
        let long = [vec![b'x'; MOST.bytes - 1], vec![b'\n']].concat();
        let saying = async {
            send(&ours, &long, &[ours.as_fd(); 3]).await.unwrap();
            send(&ours, b"one\ntwo\n", &[]).await.unwrap();
        };
        let (mut rest, mut fds) = (Vec::new(), Vec::new());
        let hearing = async {
            let mut heard = Vec::new();
            for _ in 0..3 {
                heard.push(next(&theirs, &mut rest, &mut fds, MOST).await.unwrap());
            }
            heard
        };
        let ((), heard) = timeout(SOON, async { tokio::join!(saying, hearing) })
            .await
            .unwrap();
        assert!(heard == [long, b"one\n".to_vec(), b"two\n".to_vec()]);
        assert_eq!((rest.len(), fds.len()), (0, 3));
    }

    #[tokio::test]
    async fn more_than_is_taken_is_refused() {
        let long = vec![b'x'; MOST.bytes + 1];
        for (line, each, times) in [(&long[..], 0, 1), (b"x\n", 4, 1), (b"x", 1, 4)] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let saying = async {
                for _ in 0..times {
                    send(&ours, line, &vec![ours.as_fd(); each]).await.unwrap();
                }
                std::future::pending().await
            };
            let (mut rest, mut fds) = (Vec::new(), Vec::new());
            let heard = async {
                tokio::select! {
                    heard = next(&theirs, &mut rest, &mut fds, MOST) => heard,
                    () = saying => Ok(Vec::new()),
                }
            };
            let error = timeout(SOON, heard).await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{each} descriptors");
        }
    }

    #[tokio::test]
    async fn an_end_before_the_lines_is_told_apart_and_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        send(&ours, b"half", &[]).await.unwrap();
        drop(ours);
        let (mut rest, mut fds) = (Vec::new(), Vec::new());
        let error = next(&theirs, &mut rest, &mut fds, MOST).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        timeout(SOON, hung_up(&theirs)).await.unwrap();
    }
}

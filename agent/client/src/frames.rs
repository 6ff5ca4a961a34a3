//! What a guest may send: answers, of a bounded size. Anything else ends the connection before it costs anything.
//!
//! ttrpc would take data frames as answers and keep their streams for ever, and accept messages that decode to many times
//! their size. Must not know what the messages mean.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use agent_protocol::MAX_CHUNK;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of ttrpc's header: length (4, big endian), stream (4), type, flags.
const HEADER: usize = 10;
/// ttrpc's type of an answer.
const RESPONSE: u8 = 2;
/// Longest answer: a chunk of output with what is around it; a list of processes or events is shorter.
const LONGEST: usize = MAX_CHUNK + 64 * 1024;

/// A stream of which only answers are read.
pub(crate) struct Checked<S> {
    stream: S,
    frames: Frames,
}

impl<S> Checked<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            frames: Frames::default(),
        }
    }
}

/// Where in a frame the stream is.
#[derive(Debug, Default)]
struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the body that are to come.
    body: usize,
}

impl Frames {
    /// Looks at the next bytes of the stream.
    fn see(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.body > 0 {
                let taken = self.body.min(bytes.len());
                self.body -= taken;
                bytes = bytes.get(taken..).unwrap_or_default();
                continue;
            }
            let taken = (HEADER - self.have).min(bytes.len());
            let (head, rest) = bytes.split_at(taken);
            if let Some(place) = self.header.get_mut(self.have..self.have + taken) {
                place.copy_from_slice(head);
            }
            self.have += taken;
            bytes = rest;
            if self.have == HEADER {
                self.have = 0;
                self.body = self.checked()?;
            }
        }
        Ok(())
    }

    /// The length of the body that the header announces.
    fn checked(&self) -> io::Result<usize> {
        let [a, b, c, d, _, _, _, _, kind, _] = self.header;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if kind != RESPONSE || length > LONGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the guest sends a message of type {kind} and {length} bytes, which is no answer"),
            ));
        }
        Ok(length)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Checked<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(cx, buffer))?;
        let fresh = buffer.filled().get(before..).unwrap_or_default();
        Poll::Ready(this.frames.see(fresh))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Checked<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod fuzzed {
    use super::*;

    #[test]
    fn answers_of_a_guest() {
        let seeds = [
            &[
                0, 0, 0, 2, 0, 0, 0, 1, RESPONSE, 0, 8, 1, 0, 0, 0, 0, 0, 0, 0, 3, RESPONSE, 0,
            ][..],
            &[0, 4, 255, 255, 0, 0, 0, 1, RESPONSE, 0],
            &[255, 255, 255, 255, 0, 0, 0, 1, RESPONSE, 0],
            &[0, 0, 0, 0, 0, 0, 0, 1, 3, 0],
        ];
        fuzz::target("answers-of-a-guest", seeds, |input| {
            let read = |size: usize| {
                let mut frames = Frames::default();
                let ended = input
                    .chunks(size)
                    .try_for_each(|piece| frames.see(piece))
                    .is_err();
                assert!(frames.have < HEADER && frames.body <= LONGEST);
                (ended, (!ended).then_some((frames.have, frames.body)))
            };
            // However it comes, it is the same.
            let whole = read(input.len().max(1));
            assert_eq!(read(1), whole);
            assert_eq!(read(7), whole);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, length: usize) -> Vec<u8> {
        let mut frame = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        frame.extend([0, 0, 0, 1, kind, 0]);
        frame.resize(HEADER + length, 7);
        frame
    }

    #[test]
    fn answers_pass_however_they_are_cut() {
        let mut stream = Vec::new();
        for length in [0, 1, 300, LONGEST] {
            stream.extend(frame(RESPONSE, length));
        }
        for size in [1, 3, 10, 11, 4096, stream.len()] {
            let mut frames = Frames::default();
            for piece in stream.chunks(size) {
                frames.see(piece).unwrap();
            }
            assert_eq!((frames.have, frames.body), (0, 0));
        }
    }

    #[test]
    fn whatever_is_no_answer_ends_the_stream() {
        for (kind, length) in [(1, 10), (3, 0), (3, 10), (0, 0), (RESPONSE, LONGEST + 1)] {
            let mut frames = Frames::default();
            frames.see(&frame(RESPONSE, 5)).unwrap();
            let error = frames
                .see(frame(kind, length).get(..HEADER).unwrap())
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{kind} {length}");
        }
    }
}

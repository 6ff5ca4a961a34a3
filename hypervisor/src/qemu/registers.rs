//! A machine's registers, read and written as its guest does it, while the guest stands still: over QEMU's object `qtest`, whose
//! protocol is lines of text (QEMU, `softmmu/qtest.c`).
//!
//! Must not know what the registers mean.

use std::fmt::Write as _;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::socket_pair;
use crate::qmp::Client;
use crate::{Error, ErrorKind, deadlines};

/// Id of the object and of the connection behind it. QEMU has one in its life.
const OBJECT: &str = "registers";

/// Longest line that is read, bytes: an answer is a word and a number.
const LONGEST: usize = 256;

/// Bits that are accessed at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// 8.
    Byte,
    /// 16.
    Word,
    /// 32.
    Long,
}

impl Width {
    fn letter(self) -> char {
        match self {
            Self::Byte => 'b',
            Self::Word => 'w',
            Self::Long => 'l',
        }
    }
}

/// What a processor does to a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reads a port.
    In(Width, u16),
    /// Writes a port.
    Out(Width, u16, u32),
    /// Reads an address.
    Read(Width, u64),
    /// Writes an address.
    Write(Width, u64, u32),
}

impl Access {
    fn is_read(self) -> bool {
        matches!(self, Self::In(..) | Self::Read(..))
    }

    /// In the words of the protocol. To write to a text does not fail.
    fn say(self, text: &mut String) {
        let _ = match self {
            Self::In(width, port) => writeln!(text, "in{} {port:#x}", width.letter()),
            Self::Out(width, port, value) => writeln!(text, "out{} {port:#x} {value:#x}", width.letter()),
            Self::Read(width, at) => writeln!(text, "read{} {at:#x}", width.letter()),
            Self::Write(width, at, value) => writeln!(text, "write{} {at:#x} {value:#x}", width.letter()),
        };
    }
}

/// The connection. It ends with this value.
#[derive(Debug)]
pub struct Registers {
    stream: UnixStream,
}

impl Registers {
    /// Has QEMU make one; there can be only one of a QEMU.
    pub async fn open(client: &Client) -> Result<Self, Error> {
        let (ours, theirs) = socket_pair()?;
        client
            .execute_with_fd("getfd", json!({"fdname": OBJECT}), Arc::new(theirs))
            .await?;
        let address = json!({"type": "fd", "data": {"str": OBJECT}});
        let socket = json!({"type": "socket", "data": {"addr": address, "server": false}});
        client
            .execute("chardev-add", json!({"id": OBJECT, "backend": socket}))
            .await?;
        // Or it writes a log.
        let object = json!({"qom-type": "qtest", "id": OBJECT, "chardev": OBJECT, "log": "/dev/null"});
        client.execute("object-add", object).await?;
        Ok(Self { stream: ours })
    }

    /// Goes on with a connection that somebody else has opened, who must not use it any more.
    pub fn adopt(fd: OwnedFd) -> io::Result<Self> {
        let stream = StdUnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
        })
    }

    /// The connection, for somebody who goes on with it. Nothing is under way between two calls.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.stream.as_fd().try_clone_to_owned()
    }

    /// Does all of this, one after the other. Answers with what was read.
    ///
    /// # Errors
    /// QEMU refuses one, has ended, or is late.
    pub async fn perform(&mut self, accesses: &[Access]) -> Result<Vec<u32>, Error> {
        let mut text = String::new();
        for access in accesses {
            access.say(&mut text);
        }
        let lost = |cause: io::Error| {
            let what = format!("QEMU does not access its machine's registers: {cause}");
            Error::caused(ErrorKind::Unavailable, what, cause)
        };
        let work = async {
            let (from, mut to) = self.stream.split();
            let mut from = BufReader::new(from);
            let said = async { to.write_all(text.as_bytes()).await };
            let heard = async {
                let mut values = Vec::new();
                for access in accesses {
                    let line = line(&mut from).await?;
                    let value = answer(&line, access.is_read()).ok_or_else(|| {
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("it says {line:?} to {access:x?}"),
                        )
                    })?;
                    values.extend(value);
                }
                Ok(values)
            };
            // It may have to be read before all is written.
            tokio::try_join!(said, heard)
                .map(|((), values)| values)
                .map_err(lost)
        };
        timeout(deadlines::COMMAND, work).await.unwrap_or_else(|_| {
            let late = format!(
                "QEMU did not access its machine's registers within {:?}",
                deadlines::COMMAND
            );
            Err(Error::new(ErrorKind::DeadlineExceeded, late))
        })
    }
}

/// The next line that is an answer: what it says of interrupts by itself is none.
async fn line(from: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<String> {
    loop {
        let mut line = Vec::new();
        let mut limited = tokio::io::AsyncReadExt::take(&mut *from, LONGEST as u64);
        limited.read_until(b'\n', &mut line).await?;
        match line.strip_suffix(b"\n") {
            Some(b"") => {}
            Some(line) if line.starts_with(b"IRQ ") => {}
            Some(line) => return Ok(String::from_utf8_lossy(line).into_owned()),
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// What an answer says: `Some(None)`, that it is done; a number, if one was to be read.
fn answer(line: &str, is_read: bool) -> Option<Option<u32>> {
    let rest = line.strip_prefix("OK")?.trim();
    match (is_read, rest) {
        (false, "") => Some(None),
        (true, number) => {
            let value = u64::from_str_radix(number.strip_prefix("0x")?, 16).ok()?;
            u32::try_from(value).ok().map(Some)
        }
        (false, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_and_what_is_answered() {
        let table = [
            (Access::In(Width::Byte, 0x620), "inb 0x620\n"),
            (
                Access::Out(Width::Long, 0xcf8, 0x8001_0000),
                "outl 0xcf8 0x80010000\n",
            ),
            (Access::Read(Width::Word, 0xfe00_0012), "readw 0xfe000012\n"),
            (
                Access::Write(Width::Byte, 1 << 32, 15),
                "writeb 0x100000000 0xf\n",
            ),
        ];
        for (access, expected) in table {
            let mut text = String::new();
            access.say(&mut text);
            assert_eq!(text, expected);
        }
        let table = [
            ("OK", false, Some(None)),
            ("OK 0x000f", true, Some(Some(15))),
            ("OK 0x0000000080010000", true, Some(Some(0x8001_0000))),
            ("OK", true, None),
            ("OK 0x1", false, None),
            ("OK 0x100000000", true, None),
            ("FAIL Unknown command 'x'", false, None),
            ("ERR", true, None),
        ];
        for (line, is_read, expected) in table {
            assert_eq!(answer(line, is_read), expected, "{line}");
        }
    }

    #[tokio::test]
    async fn what_comes_between_is_no_answer_and_an_end_is_an_error() {
        let mut said = &b"IRQ raise 9\n\nOK 0x1\nIRQ low"[..];
        assert_eq!(line(&mut said).await.unwrap(), "OK 0x1");
        let ended = line(&mut said).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
        let endless = [b'x'; 2 * LONGEST];
        line(&mut &endless[..]).await.unwrap_err();
    }
}

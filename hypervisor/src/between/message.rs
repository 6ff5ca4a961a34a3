//! The vhost-user protocol's messages, as far as a device needs that has a process of its own behind it: framing, and the few
//! payloads that are looked into.
//!
//! Must not know what the queues carry.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_OWNER: u32 = 3;
pub const RESET_OWNER: u32 = 4;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const GET_PROTOCOL_FEATURES: u32 = 15;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const GET_QUEUE_NUM: u32 = 17;
pub const SET_VRING_ENABLE: u32 = 18;

/// Virtio: a descriptor may name a table of others.
pub const RING_INDIRECT_DESC: u64 = 1 << 28;
/// vhost-user: there are protocol features.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio 1.
pub const VERSION_1: u64 = 1 << 32;

/// Protocol feature: several queues.
pub const MULTIPLE_QUEUES: u64 = 1 << 0;
/// Protocol feature: whoever asks can be told when it is done.
pub const REPLY_ACK: u64 = 1 << 3;

const VERSION: u32 = 1;
const IS_REPLY: u32 = 1 << 2;
const WANTS_REPLY: u32 = 1 << 3;

/// Bytes of a message's head: request, flags, size.
const HEAD: usize = 12;

/// Longest payload. A table of memory has up to eight regions of 32 bytes.
const MOST: usize = 4096;

/// Descriptors beside one: those of a table of memory.
const MOST_FDS: usize = 8;

/// One message.
#[derive(Debug)]
pub struct Message {
    pub request: u32,
    flags: u32,
    pub payload: Vec<u8>,
    pub fds: Vec<OwnedFd>,
}

/// A part of the guest's memory: where the guest has it, and where its VMM has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub guest: u64,
    pub size: u64,
    pub vmm: u64,
}

/// A queue's parts, as addresses of the VMM's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Addresses {
    pub descriptors: u64,
    pub used: u64,
    pub available: u64,
}

impl Message {
    /// Receives the next one; `None`: the other side has hung up.
    pub fn receive(mut socket: &UnixStream) -> io::Result<Option<Self>> {
        let mut head = [0; HEAD];
        let mut fds = Vec::new();
        let mut have = 0;
        while have < HEAD {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let rest = head.get_mut(have..).unwrap_or_default();
            let flags = RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(socket, &mut [IoSliceMut::new(rest)], &mut control, flags)?;
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(rights) = message {
                    fds.extend(rights);
                }
            }
            match (received.bytes, have) {
                (0, 0) => return Ok(None),
                (0, _) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (bytes, _) => have += bytes,
            }
        }
        let mut words = Words(&head);
        let (request, flags, size) = (words.u32()?, words.u32()?, words.u32()? as usize);
        if flags & 3 != VERSION || size > MOST {
            return Err(invalid(format!(
                "message {request} has flags {flags:#x} and {size} bytes"
            )));
        }
        let mut payload = vec![0; size];
        socket.read_exact(&mut payload)?;
        Ok(Some(Self {
            request,
            flags,
            payload,
            fds,
        }))
    }

    /// Whether the other side waits for the word that it is done.
    pub fn wants_reply(&self) -> bool {
        self.flags & WANTS_REPLY != 0
    }

    /// The payload, if it is a number.
    pub fn number(&self) -> io::Result<u64> {
        self.words().u64()
    }

    /// The payload, if it is a queue's index and a number.
    pub fn state(&self) -> io::Result<(u32, u32)> {
        let mut words = self.words();
        Ok((words.u32()?, words.u32()?))
    }

    /// The payload, if it is a queue's index and where its parts are.
    pub fn addresses(&self) -> io::Result<(u32, Addresses)> {
        let mut words = self.words();
        let (index, _flags) = (words.u32()?, words.u32()?);
        let addresses = Addresses {
            descriptors: words.u64()?,
            used: words.u64()?,
            available: words.u64()?,
        };
        Ok((index, addresses))
    }

    /// The payload, if it is a queue's index, and the descriptor beside it, if there is one.
    pub fn queue_fd(&mut self) -> io::Result<(u32, Option<OwnedFd>)> {
        /// Where the number says that there is none.
        const NONE: u64 = 1 << 8;
        let number = self.number()?;
        let fd = match number & NONE {
            0 => Some(
                self.fds
                    .pop()
                    .ok_or_else(|| invalid("a descriptor is missing".to_owned()))?,
            ),
            _ => None,
        };
        Ok(((number & 0xff) as u32, fd))
    }

    /// The payload, if it is a table of memory.
    pub fn regions(&self) -> io::Result<Vec<Region>> {
        let mut words = self.words();
        let (count, _padding) = (words.u32()? as usize, words.u32()?);
        if count > MOST_FDS {
            return Err(invalid(format!("memory of {count} regions")));
        }
        (0..count)
            .map(|_| {
                let (guest, size, vmm) = (words.u64()?, words.u64()?, words.u64()?);
                let _offset = words.u64()?;
                match (guest.checked_add(size), vmm.checked_add(size)) {
                    (Some(_), Some(_)) => Ok(Region { guest, size, vmm }),
                    _ => Err(invalid(format!("memory of {size:#x} bytes at {guest:#x}"))),
                }
            })
            .collect()
    }

    fn words(&self) -> Words<'_> {
        Words(&self.payload)
    }
}

/// Says something; `fds` go along.
pub fn send(socket: &UnixStream, request: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    transmit(socket, request, VERSION, payload, fds)
}

/// Answers.
pub fn reply(socket: &UnixStream, request: u32, payload: &[u8]) -> io::Result<()> {
    transmit(socket, request, VERSION | IS_REPLY, payload, &[])
}

/// Asks for a number.
pub fn ask(socket: &UnixStream, request: u32) -> io::Result<u64> {
    send(socket, request, &[], &[])?;
    match Message::receive(socket)? {
        Some(answer) if answer.request == request => answer.number(),
        Some(answer) => Err(invalid(format!(
            "the answer to {request} is one to {}",
            answer.request
        ))),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn transmit(
    mut socket: &UnixStream,
    request: u32,
    flags: u32,
    payload: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let size = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut text: Vec<u8> = [request, flags, size]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    text.extend_from_slice(payload);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MOST_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(
        socket.as_fd(),
        &[IoSlice::new(&text)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    socket.write_all(text.get(sent..).unwrap_or_default())
}

/// Numbers in the host's byte order.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        match self.0.split_first_chunk::<N>() {
            Some((word, rest)) => {
                self.0 = rest;
                Ok(*word)
            }
            None => Err(invalid("a message is too short".to_owned())),
        }
    }

    fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> io::Result<u64> {
        self.take().map(u64::from_ne_bytes)
    }
}

pub fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

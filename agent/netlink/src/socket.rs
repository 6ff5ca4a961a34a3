//! A socket to the kernel's rtnetlink: requests and their answers, one after the other.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

use crate::error::{Error, Result};
use crate::message::{Message, Request};
use crate::sys;

/// For one answer. The kernel answers within the call, once it has its lock, which another's slow device may hold.
const ANSWER: Duration = Duration::from_secs(10);

/// Room for what the kernel sends at once: at most 32 KiB (NLMSG_GOODSIZE and its kin).
const BUFFER: usize = 32 * 1024;

/// Attempts to list objects that others are changing.
const DUMPS: usize = 10;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// What else the kernel does with an object that is there already, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The object exists: change or remove it.
    Change,
    /// Make it; that one of its name exists is an error.
    Create,
    /// Make it, or give it the new values.
    Replace,
    /// Make it beside others of the same destination.
    Append,
}

impl Mode {
    pub(crate) fn flags(self) -> u16 {
        const REPLACE: u16 = 0x100;
        const EXCL: u16 = 0x200;
        const CREATE: u16 = 0x400;
        const APPEND: u16 = 0x800;
        let more = match self {
            Self::Change => 0,
            Self::Create => CREATE | EXCL,
            Self::Replace => CREATE | REPLACE,
            Self::Append => CREATE | APPEND,
        };
        NLM_F_REQUEST | NLM_F_ACK | more
    }
}

/// A socket to one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens one in the calling thread's network namespace.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open() -> Result<Self> {
        let fd = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE.
            None::<rustix::net::Protocol>,
        )?;
        bind(&fd, &SocketAddrNetlink::new(0, 0))?;
        set_socket_timeout(&fd, Timeout::Recv, Some(ANSWER))?;
        // An old kernel's refusals are numbers only.
        let _ = sys::explain(fd.as_fd());
        Ok(Self { fd, sequence: 0 })
    }

    fn send(&mut self, request: Request) -> Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        let sent = send(&self.fd, &bytes, SendFlags::empty())?;
        if sent == bytes.len() {
            Ok(self.sequence)
        } else {
            Err(Error::new(libc::EMSGSIZE, None))
        }
    }

    /// Makes a request that is answered with success or refusal.
    pub(crate) fn request(&mut self, request: Request) -> Result<()> {
        let sequence = self.send(request)?;
        let mut acknowledged = false;
        while !acknowledged {
            self.receive(sequence, |message| {
                if message.kind == NLMSG_ERROR {
                    acknowledged = true;
                    message.refusal()?.map_or(Ok(()), Err)
                } else {
                    Ok(())
                }
            })?;
        }
        Ok(())
    }

    /// Asks for all objects of a kind; `body` says of which family. What `parse` does not understand is left out.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMPS {
            if let Some(objects) = self.dump_once(kind, body, &parse)? {
                return Ok(objects);
            }
        }
        Err(Error::new(
            libc::EAGAIN,
            Some("the objects change faster than they can be listed".into()),
        ))
    }

    /// `None`: something changed meanwhile, so that the list may lack some.
    fn dump_once<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let sequence = self.send(Request::new(kind, NLM_F_REQUEST | NLM_F_DUMP, body))?;
        let mut objects = Vec::new();
        let (mut done, mut changed) = (false, false);
        while !done {
            self.receive(sequence, |message| {
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_DONE => done = true,
                    NLMSG_ERROR => {
                        done = true;
                        return message.refusal()?.map_or(Ok(()), Err);
                    }
                    _ => objects.extend(parse(message.body)),
                }
                Ok(())
            })?;
        }
        Ok((!changed).then_some(objects))
    }

    /// Receives once, and shows every message that answers the request.
    fn receive(&self, sequence: u32, mut see: impl FnMut(Message<'_>) -> Result<()>) -> Result<()> {
        let mut buffer = vec![0; BUFFER];
        let (received, whole) = recv(&self.fd, &mut *buffer, RecvFlags::TRUNC)?;
        if whole > received {
            return Err(Error::malformed());
        }
        let mut rest = buffer.get(..received).unwrap_or_default();
        while let Some(message) = Message::take(&mut rest)? {
            // An answer to a request that was given up before is nobody's.
            if message.sequence == sequence {
                see(message)?;
            }
        }
        Ok(())
    }
}

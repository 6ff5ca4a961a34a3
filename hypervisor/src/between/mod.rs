//! A device's process that must not map the guest's memory: what passes between the two is carried, by us.
//!
//! vhost-user wants the guest's memory shared between the VMM and the device's process. A copy of a saved VM whose memory is mapped
//! privately on the saved file, so that all copies have its pages in common, has none that could be shared. So the VMM is given one
//! of our sockets for its device. A thread of ours reads what the guest has put into its queues out of the VMM's memory
//! (`/proc/<pid>/mem`), puts it into memory of its own that it shares with the device's process, and brings the answers back.
//! Each of the two believes to speak with the other.
//!
//! Must not know what is carried, nor which VMM and which device.

mod chain;
mod message;
mod own;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{CapabilitySet, capabilities};
use slog::{Logger, warn};

use crate::deadlines;
use chain::{Chain, Piece, offset};
use message::{Addresses, Message, Region, invalid};
use own::Own;

/// What the guest and the device's process may agree on with us between them.
const FEATURES: u64 = message::VERSION_1 | message::RING_INDIRECT_DESC | message::PROTOCOL_FEATURES;

/// What a VMM may agree on with us.
const PROTOCOL: u64 = message::MULTIPLE_QUEUES | message::REPLY_ACK;

/// Bytes that are carried at once.
const CARRIED: usize = 64 << 10;

/// Whether this process may look into the memory of those that it starts, and of those that others have started.
pub fn is_permitted() -> bool {
    // Yama, which may forbid it to everybody.
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    scope.trim() != "3"
        && capabilities(None).is_ok_and(|all| all.effective.contains(CapabilitySet::SYS_PTRACE))
}

/// The memory of a process, which must have executed its program already.
///
/// # Errors
/// It has ended; it is not for us to look at.
pub fn memory_of(pid: u32) -> io::Result<File> {
    let path = format!("/proc/{pid}/mem");
    File::options().read(true).write(true).open(path)
}

/// Begins to carry between a VMM with this memory and the process that listens at `daemon`. What is answered is the socket for the
/// VMM; when it closes that, it is the end, as it is when the process goes.
///
/// # Errors
/// Nobody listens; there are no resources for it.
pub fn start(memory: File, daemon: &Path, log: Logger) -> io::Result<OwnedFd> {
    let daemon = UnixStream::connect(daemon)?;
    let (ours, theirs) = UnixStream::pair()?;
    for socket in [&daemon, &ours] {
        socket.set_read_timeout(Some(deadlines::BETWEEN))?;
        socket.set_write_timeout(Some(deadlines::BETWEEN))?;
    }
    thread::Builder::new().name("between".into()).spawn(move || {
        let carried = Between::new(memory, ours, daemon).and_then(|mut between| between.carry());
        if let Err(error) = carried {
            // The end of both connections is what others learn of it.
            warn!(log, "what passes between a virtual machine and the process behind its device is carried no more"; "error" => %error);
        }
    })?;
    Ok(theirs.into())
}

/// Stands for the process of a device that nobody uses before it has a real one: it agrees on what is carried otherwise, and answers
/// no request of the guest's. What is answered is the socket for the VMM; when it closes that, it is the end.
///
/// # Errors
/// There are no resources for it.
pub fn nobody(log: Logger) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    thread::Builder::new().name("nobody".into()).spawn(move || {
        let attend = || -> io::Result<()> {
            while let Some(message) = Message::receive(&ours)? {
                let request = message.request;
                let answer = match request {
                    message::GET_FEATURES => FEATURES.to_ne_bytes(),
                    message::GET_PROTOCOL_FEATURES => PROTOCOL.to_ne_bytes(),
                    message::GET_QUEUE_NUM => (own::MOST_QUEUES as u64).to_ne_bytes(),
                    message::GET_VRING_BASE => {
                        let (index, _) = message.state()?;
                        u64::from(index).to_ne_bytes()
                    }
                    _ if message.wants_reply() => [0; 8],
                    _ => continue,
                };
                message::reply(&ours, request, &answer)?;
            }
            Ok(())
        };
        if let Err(error) = attend() {
            warn!(log, "a device that nobody serves yet has lost who stands for that"; "error" => %error);
        }
    })?;
    Ok(theirs.into())
}

struct Between {
    vmm: UnixStream,
    daemon: UnixStream,
    memory: File,
    regions: Vec<Region>,
    /// What the device's process offers, as far as we can carry it.
    features: u64,
    own: Own,
    has_begun: bool,
    queues: Vec<Queue>,
    /// Holds what is being carried.
    buffer: Box<[u8]>,
}

/// The guest's side of a queue.
#[derive(Debug, Default)]
struct Queue {
    size: u16,
    at: Addresses,
    /// How many requests were taken, and how many were answered, modulo 2^16.
    taken: u16,
    answered: u16,
    kick: Option<OwnedFd>,
    call: Option<OwnedFd>,
    is_enabled: bool,
    under_way: Vec<Request>,
}

/// A request that is under way.
#[derive(Debug)]
struct Request {
    place: u16,
    head: u16,
    asked: usize,
    answer: Vec<Piece>,
}

/// What there is to do.
#[derive(Debug, Default)]
struct Work {
    vmm: bool,
    daemon: bool,
    kicked: Vec<usize>,
    answered: Vec<usize>,
}

impl Between {
    /// Agrees with the device's process.
    fn new(memory: File, vmm: UnixStream, daemon: UnixStream) -> io::Result<Self> {
        message::send(&daemon, message::SET_OWNER, &[], &[])?;
        let features = message::ask(&daemon, message::GET_FEATURES)?;
        if features & FEATURES & !message::RING_INDIRECT_DESC != FEATURES & !message::RING_INDIRECT_DESC {
            return Err(invalid(format!(
                "the features {features:#x} of a device's process are too few"
            )));
        }
        let offered = message::ask(&daemon, message::GET_PROTOCOL_FEATURES)?;
        let protocol = offered & message::MULTIPLE_QUEUES;
        let accepted = protocol.to_ne_bytes();
        message::send(&daemon, message::SET_PROTOCOL_FEATURES, &accepted, &[])?;
        let count = match protocol {
            0 => 1,
            _ => message::ask(&daemon, message::GET_QUEUE_NUM)?,
        };
        let count = usize::try_from(count).map_or(own::MOST_QUEUES, |count| count.min(own::MOST_QUEUES));
        let mut queues = Vec::new();
        queues.resize_with(count, Queue::default);
        Ok(Self {
            vmm,
            daemon,
            memory,
            regions: Vec::new(),
            features: features & FEATURES,
            own: Own::new(count)?,
            has_begun: false,
            queues,
            buffer: vec![0; CARRIED].into(),
        })
    }

    /// Carries until one of the two hangs up.
    fn carry(&mut self) -> io::Result<()> {
        loop {
            let limit = match self.own.is_large() {
                true => Some(deadlines::BETWEEN_IDLE),
                false => None,
            };
            let work = self.wait(limit)?;
            if work.daemon {
                return Ok(());
            }
            self.pass(&work)?;
            if work.vmm {
                match Message::receive(&self.vmm)? {
                    Some(message) => self.obey(message)?,
                    None => return Ok(()),
                }
            }
            if !work.vmm && work.kicked.is_empty() && work.answered.is_empty() {
                self.own.shrink()?;
            }
        }
    }

    /// Carries what there is, both ways.
    fn pass(&mut self, work: &Work) -> io::Result<()> {
        for &queue in &work.answered {
            self.answer(queue)?;
            // There may have been no place for it.
            self.take(queue)?;
        }
        for &queue in &work.kicked {
            if let Some(kick) = self.queues.get(queue).and_then(|queue| queue.kick.as_ref()) {
                own::clear(kick)?;
            }
            self.take(queue)?;
        }
        Ok(())
    }

    /// Waits for something to do.
    fn wait(&self, limit: Option<std::time::Duration>) -> io::Result<Work> {
        let limit = limit
            .map(Timespec::try_from)
            .transpose()
            .map_err(io::Error::other)?;
        let mut fds = vec![
            PollFd::new(&self.vmm, PollFlags::IN),
            PollFd::new(&self.daemon, PollFlags::IN),
        ];
        let running = self.queues.iter().enumerate().filter(|(_, queue)| queue.runs());
        let mut kicks = Vec::new();
        for (index, queue) in running {
            if let Some(kick) = &queue.kick {
                fds.push(PollFd::new(kick, PollFlags::IN));
                kicks.push(index);
            }
        }
        let calls = self.own.queues.iter();
        fds.extend(calls.map(|queue| PollFd::new(&queue.called, PollFlags::IN)));
        loop {
            match poll(&mut fds, limit.as_ref()) {
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or_default();
        Ok(Work {
            vmm: next(),
            daemon: next(),
            kicked: kicks.into_iter().filter(|_| next()).collect(),
            answered: (0..self.own.queues.len()).filter(|_| next()).collect(),
        })
    }

    /// Does what the VMM says.
    fn obey(&mut self, mut message: Message) -> io::Result<()> {
        let request = message.request;
        let answer = match request {
            message::GET_FEATURES => Some(self.features),
            message::GET_PROTOCOL_FEATURES => Some(PROTOCOL),
            message::GET_QUEUE_NUM => Some(self.queues.len() as u64),
            message::GET_VRING_BASE => {
                let (index, _) = message.state()?;
                let base = self.stop(index)?;
                let payload: Vec<u8> = [index, base.into()]
                    .into_iter()
                    .flat_map(u32::to_ne_bytes)
                    .collect();
                return message::reply(&self.vmm, request, &payload);
            }
            _ => {
                self.change(&mut message)?;
                message.wants_reply().then_some(0)
            }
        };
        match answer {
            Some(answer) => message::reply(&self.vmm, request, &answer.to_ne_bytes()),
            None => Ok(()),
        }
    }

    fn change(&mut self, message: &mut Message) -> io::Result<()> {
        match message.request {
            message::SET_OWNER
            | message::RESET_OWNER
            | message::SET_PROTOCOL_FEATURES
            | message::SET_VRING_BASE
            | message::SET_VRING_ERR => Ok(()),
            message::SET_FEATURES => {
                // Each side's queues follow what was agreed with it; ours are of one kind.
                let agreed = message.number()? & self.features | message::PROTOCOL_FEATURES;
                let payload = agreed.to_ne_bytes();
                message::send(&self.daemon, message::SET_FEATURES, &payload, &[])
            }
            message::SET_MEM_TABLE => {
                self.regions = message.regions()?;
                Ok(())
            }
            message::SET_VRING_NUM => {
                let (index, size) = message.state()?;
                let size = u16::try_from(size).ok().filter(|size| size.is_power_of_two());
                let size = size.ok_or_else(|| invalid(format!("queue {index} of no size")))?;
                self.queue(index)?.size = size;
                Ok(())
            }
            message::SET_VRING_ADDR => {
                let (index, at) = message.addresses()?;
                self.queue(index)?.at = at;
                Ok(())
            }
            message::SET_VRING_CALL => {
                let (index, call) = message.queue_fd()?;
                self.queue(index)?.call = call;
                Ok(())
            }
            message::SET_VRING_KICK => {
                let (index, kick) = message.queue_fd()?;
                let memory = self.memory.try_clone()?;
                let queue = self.queue(index)?;
                // As many as the guest was told of. All that was taken was answered when a queue was stopped; a VMM whose device is
                // a new one to it knows less of that than the guest.
                queue.answered = u16_at(&memory, offset(queue.at.used, 2)?)?;
                queue.taken = queue.answered;
                queue.kick = kick;
                self.resume(index)
            }
            message::SET_VRING_ENABLE => {
                let (index, enabled) = message.state()?;
                self.queue(index)?.is_enabled = enabled != 0;
                if !self.has_begun {
                    self.has_begun = true;
                    self.own.begin(&self.daemon)?;
                }
                self.resume(index)
            }
            other => Err(invalid(format!("message {other}, of which nothing was agreed"))),
        }
    }

    fn queue(&mut self, index: u32) -> io::Result<&mut Queue> {
        let queue = self.queues.get_mut(index as usize);
        queue.ok_or_else(|| invalid(format!("there is no queue {index}")))
    }

    /// The guest may have asked before we listened.
    fn resume(&mut self, index: u32) -> io::Result<()> {
        match self.queue(index)?.runs() && self.has_begun {
            true => self.take(index as usize),
            false => Ok(()),
        }
    }

    /// Ends a queue when all that is under way is answered. Answers with the number of requests that were taken.
    fn stop(&mut self, index: u32) -> io::Result<u16> {
        self.queue(index)?.is_enabled = false;
        let begun = Instant::now();
        while !self.queue(index)?.under_way.is_empty() {
            let left = deadlines::BETWEEN.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Err(invalid(format!("queue {index} does not come to rest")));
            }
            let work = self.wait(Some(left))?;
            // The VMM waits for our answer, and says nothing.
            if work.daemon || work.vmm {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pass(&work)?;
        }
        let queue = self.queue(index)?;
        queue.kick = None;
        queue.call = None;
        Ok(queue.taken)
    }

    /// Takes what the guest has put into a queue, as much as there is room for.
    fn take(&mut self, index: usize) -> io::Result<()> {
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.runs()) else {
            return Ok(());
        };
        let mut is_new = false;
        loop {
            let available = u16_at(&self.memory, offset(queue.at.available, 2)?)?;
            let waiting = available.wrapping_sub(queue.taken);
            if waiting == 0 {
                break;
            }
            if waiting > queue.size {
                return Err(invalid(format!(
                    "{waiting} requests in a queue of {}",
                    queue.size
                )));
            }
            let Some(place) = self.own.place(index) else {
                break;
            };
            fence(Ordering::SeqCst);
            let entry = usize::from(queue.taken % queue.size) * 2;
            let head = u16_at(&self.memory, offset(queue.at.available, 4 + entry)?)?;
            let table = (queue.at.descriptors, queue.size);
            let chain = Chain::follow(&self.regions, table, head, |at, bytes| {
                self.memory.read_exact_at(bytes, at)
            })?;
            let (asked, room) = chain.lengths();
            if asked + room == 0 {
                return Err(invalid("a request without a byte".to_owned()));
            }
            gather(&self.memory, &chain.readable, &mut self.buffer, |begin, part| {
                self.own.fill(index, &place, begin, part)
            })?;
            self.own.put(index, &place, asked, room)?;
            queue.taken = queue.taken.wrapping_add(1);
            queue.under_way.push(Request {
                place: place.number(),
                head,
                asked,
                answer: chain.writable,
            });
            is_new = true;
        }
        match is_new {
            true => self.own.kick(index),
            false => Ok(()),
        }
    }

    /// Brings back what was answered.
    fn answer(&mut self, index: usize) -> io::Result<()> {
        let (Some(queue), Some(own)) = (self.queues.get_mut(index), self.own.queues.get(index)) else {
            return Ok(());
        };
        own::clear(&own.called)?;
        let mut is_new = false;
        while let Some(answer) = self.own.answered(index)? {
            let place = answer.place.number();
            let mut under_way = queue.under_way.iter();
            let Some(at) = under_way.position(|request| request.place == place) else {
                return Err(invalid(format!(
                    "the answer to a request {place} that was not made"
                )));
            };
            let request = queue.under_way.swap_remove(at);
            let room: usize = request.answer.iter().map(|piece| piece.length).sum();
            if answer.length > room {
                return Err(invalid(format!("{} bytes for {room}", answer.length)));
            }
            let mut begin = 0;
            for part in parts(&request.answer, answer.length) {
                let bytes = self.buffer.get_mut(..part.length).unwrap_or_default();
                self.own
                    .read(index, &answer.place, (request.asked, begin), bytes)?;
                self.memory.write_all_at(bytes, part.address)?;
                begin += part.length;
            }
            self.own.release(index, answer.place);
            let mut entry = [0; 8];
            let (id, length) = entry.split_at_mut(4);
            id.copy_from_slice(&u32::from(request.head).to_le_bytes());
            length.copy_from_slice(&(answer.length as u32).to_le_bytes());
            let at = 4 + usize::from(queue.answered % queue.size) * 8;
            self.memory.write_all_at(&entry, offset(queue.at.used, at)?)?;
            queue.answered = queue.answered.wrapping_add(1);
            // The answer is there before it is told.
            fence(Ordering::SeqCst);
            let told = queue.answered.to_le_bytes();
            self.memory.write_all_at(&told, offset(queue.at.used, 2)?)?;
            is_new = true;
        }
        if !is_new {
            return Ok(());
        }
        fence(Ordering::SeqCst);
        let does_not_care = u16_at(&self.memory, queue.at.available)? & 1 != 0;
        match &queue.call {
            Some(call) if !does_not_care => own::signal(call),
            _ => Ok(()),
        }
    }
}

impl Queue {
    fn runs(&self) -> bool {
        self.is_enabled && self.kick.is_some() && self.size > 0
    }
}

/// Reads pieces of memory, and has `take` take them, as much at once as fits into the buffer: how many bytes came before, and these.
fn gather(
    memory: &File,
    pieces: &[Piece],
    buffer: &mut [u8],
    mut take: impl FnMut(usize, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let (mut before, mut filled) = (0, 0);
    for part in parts(pieces, usize::MAX) {
        if filled + part.length > buffer.len() {
            take(before, buffer.get(..filled).unwrap_or_default())?;
            (before, filled) = (before + filled, 0);
        }
        let end = filled + part.length;
        memory.read_exact_at(buffer.get_mut(filled..end).unwrap_or_default(), part.address)?;
        filled = end;
    }
    take(before, buffer.get(..filled).unwrap_or_default())
}

/// The first `most` bytes of pieces of memory, in parts that can be carried at once.
fn parts(pieces: &[Piece], most: usize) -> impl Iterator<Item = Piece> {
    let mut left = most;
    let wanted = pieces.iter().map(move |piece| {
        let length = piece.length.min(left);
        left -= length;
        Piece { length, ..*piece }
    });
    wanted.flat_map(|piece| {
        (0..piece.length).step_by(CARRIED).map(move |begin| Piece {
            // Within the piece, whose end is an address.
            address: piece.address + begin as u64,
            length: (piece.length - begin).min(CARRIED),
        })
    })
}

fn u16_at(memory: &File, address: u64) -> io::Result<u16> {
    let mut bytes = [0; 2];
    memory.read_exact_at(&mut bytes, address)?;
    Ok(u16::from_le_bytes(bytes))
}

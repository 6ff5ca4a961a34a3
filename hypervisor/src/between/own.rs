//! The memory that is shared with a device's process in place of the guest's, and the queues in it: each with room for a few
//! requests at once.
//!
//! Must not know the guest's memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};

use super::chain::MOST;
use super::message::{self, invalid};

/// Requests of a queue that are under way at once: whoever serves them takes one after the other.
const PLACES: u16 = 8;

/// Descriptors of a queue: one to be read and one to be written for each request.
const DESCRIPTORS: u16 = 2 * PLACES;

/// Where a queue's parts are within its page.
const AVAILABLE: u64 = 1024;
const USED: u64 = 2048;

const PAGE: u64 = 4096;

/// Room for one request and its answer.
const PLACE: u64 = 2 * (MOST as u64 + PAGE);

/// Room for a queue.
const QUEUE: u64 = PAGE + PLACES as u64 * PLACE;

/// Most queues: a device of ours has two.
pub const MOST_QUEUES: usize = 8;

/// The address under which the daemon is told of it. Any will do.
const ADDRESS: u64 = 1 << 32;

/// What a place may keep when nothing is to be done, bytes: small requests need no more.
const KEPT: u64 = 64 << 10;

/// The memory, and what is signalled about each queue in it.
#[derive(Debug)]
pub struct Own {
    memory: File,
    pub queues: Vec<OwnQueue>,
}

/// The daemon's side of a queue.
#[derive(Debug)]
pub struct OwnQueue {
    begin: u64,
    kick: OwnedFd,
    /// Becomes readable when something was answered.
    pub called: OwnedFd,
    available: u16,
    used: u16,
    free: Vec<u16>,
    /// Up to where places were written to, since they were last made small.
    reached: Vec<u64>,
}

/// A place for a request.
#[derive(Debug)]
pub struct Place(u16);

impl Place {
    pub fn number(&self) -> u16 {
        self.0
    }
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub place: Place,
    /// Bytes.
    pub length: usize,
}

impl Own {
    pub fn new(queues: usize) -> io::Result<Self> {
        let memory = memfd_create("between", MemfdFlags::CLOEXEC)?;
        let queues = (0..queues as u64).map(|index| OwnQueue::new(index * QUEUE));
        let queues = queues.collect::<io::Result<Vec<_>>>()?;
        ftruncate(&memory, QUEUE * queues.len() as u64)?;
        Ok(Self {
            memory: memory.into(),
            queues,
        })
    }

    /// Tells the daemon of the memory and of all queues, and has it begin.
    pub fn begin(&self, daemon: &UnixStream) -> io::Result<()> {
        let number = |queue: usize| u32::try_from(queue).map_err(io::Error::other);
        let state = |queue: usize, value: u32| -> io::Result<Vec<u8>> {
            Ok([number(queue)?, value]
                .into_iter()
                .flat_map(u32::to_ne_bytes)
                .collect())
        };
        let mut table: Vec<u8> = [1_u32, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        let size = QUEUE * self.queues.len() as u64;
        table.extend([0, size, ADDRESS, 0].into_iter().flat_map(u64::to_ne_bytes));
        message::send(daemon, message::SET_MEM_TABLE, &table, &[self.memory.as_fd()])?;
        for (index, queue) in self.queues.iter().enumerate() {
            let say = |request, payload: &[u8]| message::send(daemon, request, payload, &[]);
            say(message::SET_VRING_NUM, &state(index, DESCRIPTORS.into())?)?;
            let mut addresses = state(index, 0)?;
            let at = ADDRESS + queue.begin;
            let parts = [at, at + USED, at + AVAILABLE, 0];
            addresses.extend(parts.into_iter().flat_map(u64::to_ne_bytes));
            say(message::SET_VRING_ADDR, &addresses)?;
            say(message::SET_VRING_BASE, &state(index, 0)?)?;
            let which = u64::from(number(index)?).to_ne_bytes();
            message::send(daemon, message::SET_VRING_CALL, &which, &[queue.called.as_fd()])?;
            message::send(daemon, message::SET_VRING_KICK, &which, &[queue.kick.as_fd()])?;
            say(message::SET_VRING_ENABLE, &state(index, 1)?)?;
        }
        Ok(())
    }

    /// A place for a request, if there is one.
    pub fn place(&mut self, queue: usize) -> Option<Place> {
        self.queues.get_mut(queue)?.free.pop().map(Place)
    }

    /// Writes a part of a request into a place, `begin` bytes after its beginning.
    pub fn fill(&self, queue: usize, place: &Place, begin: usize, part: &[u8]) -> io::Result<()> {
        match self.queues.get(queue) {
            Some(own) => self.memory.write_all_at(part, own.at(place.0) + begin as u64),
            None => Err(invalid(format!("queue {queue}"))),
        }
    }

    /// Offers the request of so many bytes that is in a place; there is to be room for `answer` bytes. Both are [`MOST`] at most.
    pub fn put(&mut self, queue: usize, place: &Place, asked: usize, answer: usize) -> io::Result<()> {
        let Some(own) = self.queues.get_mut(queue) else {
            return Err(invalid(format!("queue {queue}")));
        };
        let at = own.at(place.0);
        let (asked, room) = (asked as u64, answer as u64);
        if let Some(reached) = own.reached.get_mut(usize::from(place.0)) {
            *reached = (*reached).max(align(asked) + room);
        }
        // The daemon skips parts without bytes.
        let (first, second) = (2 * place.0, 2 * place.0 + 1);
        let head = match (asked, room) {
            (0, _) => second,
            _ => first,
        };
        let mut descriptors = Vec::with_capacity(32);
        describe(&mut descriptors, at, asked, u16::from(room > 0), second);
        describe(&mut descriptors, at + align(asked), room, 2, 0);
        self.memory
            .write_all_at(&descriptors, own.begin + u64::from(first) * 16)?;
        let entry = own.begin + AVAILABLE + 4 + u64::from(own.available % DESCRIPTORS) * 2;
        self.memory.write_all_at(&head.to_le_bytes(), entry)?;
        own.available = own.available.wrapping_add(1);
        // What is offered is there before it is offered.
        fence(Ordering::SeqCst);
        self.memory
            .write_all_at(&own.available.to_le_bytes(), own.begin + AVAILABLE + 2)
    }

    /// Has the daemon look.
    pub fn kick(&self, queue: usize) -> io::Result<()> {
        match self.queues.get(queue) {
            Some(own) => signal(&own.kick),
            None => Err(invalid(format!("queue {queue}"))),
        }
    }

    /// What was answered, if anything was that nobody has taken.
    pub fn answered(&mut self, queue: usize) -> io::Result<Option<Answer>> {
        let Some(own) = self.queues.get_mut(queue) else {
            return Ok(None);
        };
        let mut count = [0; 2];
        self.memory.read_exact_at(&mut count, own.begin + USED + 2)?;
        if u16::from_le_bytes(count) == own.used {
            return Ok(None);
        }
        fence(Ordering::SeqCst);
        let mut entry = [0; 8];
        let at = own.begin + USED + 4 + u64::from(own.used % DESCRIPTORS) * 8;
        self.memory.read_exact_at(&mut entry, at)?;
        own.used = own.used.wrapping_add(1);
        let [i0, i1, i2, i3, l0, l1, l2, l3] = entry;
        let (head, length) = (
            u32::from_le_bytes([i0, i1, i2, i3]),
            u32::from_le_bytes([l0, l1, l2, l3]),
        );
        match u16::try_from(head / 2) {
            Ok(place) if place < PLACES => Ok(Some(Answer {
                place: Place(place),
                length: length as usize,
            })),
            _ => Err(invalid(format!(
                "the answer to a request {head} that was not made"
            ))),
        }
    }

    /// Reads a part of the answer to a request of `asked` bytes, `begin` bytes after its beginning.
    pub fn read(
        &self,
        queue: usize,
        place: &Place,
        (asked, begin): (usize, usize),
        part: &mut [u8],
    ) -> io::Result<()> {
        match self.queues.get(queue) {
            Some(own) => {
                let at = own.at(place.0) + align(asked as u64) + begin as u64;
                self.memory.read_exact_at(part, at)
            }
            None => Err(invalid(format!("queue {queue}"))),
        }
    }

    /// A place is free again.
    pub fn release(&mut self, queue: usize, place: Place) {
        if let Some(own) = self.queues.get_mut(queue) {
            own.free.push(place.0);
        }
    }

    /// Whether places take more than they need to.
    pub fn is_large(&self) -> bool {
        let mut all = self.queues.iter().flat_map(|own| &own.reached);
        all.any(|reached| *reached > KEPT)
    }

    /// Gives memory back that large requests have used.
    pub fn shrink(&mut self) -> io::Result<()> {
        for own in &mut self.queues {
            for &place in &own.free {
                let at = own.at(place);
                let Some(reached) = own.reached.get_mut(usize::from(place)) else {
                    continue;
                };
                if *reached > KEPT {
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&self.memory, flags, at + KEPT, PLACE - KEPT)?;
                    *reached = 0;
                }
            }
        }
        Ok(())
    }
}

impl OwnQueue {
    fn new(begin: u64) -> io::Result<Self> {
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            begin,
            kick: event()?,
            called: event()?,
            available: 0,
            used: 0,
            // The first one is taken first, and used most.
            free: (0..PLACES).rev().collect(),
            reached: vec![0; PLACES.into()],
        })
    }

    fn at(&self, place: u16) -> u64 {
        self.begin + PAGE + u64::from(place) * PLACE
    }
}

/// Signals an event.
pub fn signal(event: &OwnedFd) -> io::Result<()> {
    match rustix::io::write(event, &1_u64.to_ne_bytes()) {
        // It is signalled more often than anybody could count.
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Takes note of a signalled event.
pub fn clear(event: &OwnedFd) -> io::Result<()> {
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn describe(table: &mut Vec<u8>, at: u64, length: u64, flags: u16, next: u16) {
    table.extend(at.to_le_bytes());
    table.extend((length as u32).to_le_bytes());
    table.extend(flags.to_le_bytes());
    table.extend(next.to_le_bytes());
}

/// The answer begins on a line of its own.
fn align(length: u64) -> u64 {
    length.next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn what_large_requests_have_used_is_given_back() {
        let mut own = Own::new(2).unwrap();
        let blocks = |own: &Own| own.memory.metadata().unwrap().blocks();
        let place = own.place(1).unwrap();
        own.fill(1, &place, 0, &vec![7; MOST]).unwrap();
        own.put(1, &place, MOST, 0).unwrap();
        let large = blocks(&own);
        own.shrink().unwrap();
        assert!(own.is_large() && blocks(&own) == large, "it is under way");
        own.release(1, place);
        own.shrink().unwrap();
        assert!(!own.is_large() && blocks(&own) < large / 8);
        let places: Vec<_> = (0..).map_while(|_: u16| own.place(1)).collect();
        assert_eq!(places.len(), usize::from(PLACES));
        assert!(own.place(0).is_some(), "another queue has its own");
    }
}

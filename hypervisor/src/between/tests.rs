//! A guest, its VMM and a device's process, all played, with the real carrying between them: what the guest asks comes to the
//! process, what that answers comes back, and what no guest may ask ends it.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use slog::{Discard, o};

use super::chain::MOST;
use super::message::{Message, reply, send};
use super::*;

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Where the guest has its memory.
const GUEST: u64 = 0x10_0000;

/// Descriptors of the guest's queue.
const SIZE: u16 = 8;

/// Places in the guest's memory.
const TABLE: usize = 0;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
const INDIRECT: usize = 0x3000;
const DATA: usize = 0x4000;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const NAMES_A_TABLE: u16 = 4;

/// The process behind a device: it answers each request with the request's bytes in reverse, as many as there is room for.
fn daemon(listener: UnixListener) {
    let (socket, _) = listener.accept().unwrap();
    let mut memory = None;
    let mut queues: Vec<(Addresses, Option<OwnedFd>, Option<OwnedFd>, u16)> = Vec::new();
    queues.resize_with(2, Default::default);
    // Until all is set up, messages; then requests, for which one thread is enough.
    while let Some(mut message) = Message::receive(&socket).unwrap() {
        let request = message.request;
        let answer = match request {
            message::GET_FEATURES => Some(FEATURES | 1 << 29),
            message::GET_PROTOCOL_FEATURES => Some(0xffff),
            message::GET_QUEUE_NUM => Some(2),
            _ => None,
        };
        if let Some(answer) = answer {
            reply(&socket, request, &answer.to_ne_bytes()).unwrap();
            continue;
        }
        match request {
            message::SET_FEATURES => assert_eq!(message.number().unwrap() & 1 << 29, 0),
            message::SET_MEM_TABLE => {
                let regions = message.regions().unwrap();
                memory = Some((regions[0], File::from(message.fds.pop().unwrap())));
            }
            message::SET_VRING_ADDR => {
                let (index, at) = message.addresses().unwrap();
                queues[index as usize].0 = at;
            }
            message::SET_VRING_CALL => {
                let (index, fd) = message.queue_fd().unwrap();
                queues[index as usize].1 = fd;
            }
            message::SET_VRING_KICK => {
                let (index, fd) = message.queue_fd().unwrap();
                queues[index as usize].2 = fd;
            }
            message::SET_VRING_ENABLE if message.state().unwrap() == (1, 1) => break,
            _ => {}
        }
    }
    let (region, memory) = memory.unwrap();
    loop {
        for (at, call, kick, done) in &mut queues {
            own::clear(kick.as_ref().unwrap()).unwrap();
            while serve(&memory, &region, at, done) {
                own::signal(call.as_ref().unwrap()).unwrap();
            }
        }
        let mut fds = vec![PollFd::new(&socket, PollFlags::IN)];
        fds.extend(
            queues
                .iter()
                .map(|queue| PollFd::new(queue.2.as_ref().unwrap(), PollFlags::IN)),
        );
        poll(&mut fds, None).unwrap();
        if !fds[0].revents().is_empty() {
            return;
        }
    }
}

/// One request of a queue, if there is one.
fn serve(memory: &File, region: &Region, at: &Addresses, done: &mut u16) -> bool {
    let file = |address: u64| address - region.vmm;
    let number = |address: u64| u16_at(memory, file(address)).unwrap();
    if number(at.available + 2) == *done {
        return false;
    }
    let entry = u64::from(*done % 16);
    let head = number(at.available + 4 + 2 * entry);
    let chain = Chain::follow(
        &[Region { vmm: 0, ..*region }],
        (at.descriptors, 16),
        head,
        |address, bytes| memory.read_exact_at(bytes, file(address)),
    )
    .unwrap();
    let mut bytes = Vec::new();
    for piece in &chain.readable {
        let mut part = vec![0; piece.length];
        memory.read_exact_at(&mut part, piece.address).unwrap();
        bytes.extend(part);
    }
    bytes.reverse();
    bytes.truncate(chain.lengths().1);
    let mut rest = &bytes[..];
    for part in parts(&chain.writable, bytes.len()) {
        let (now, after) = rest.split_at(part.length);
        memory.write_all_at(now, part.address).unwrap();
        rest = after;
    }
    let mut told = u32::from(head).to_le_bytes().to_vec();
    told.extend((bytes.len() as u32).to_le_bytes());
    memory.write_all_at(&told, file(at.used + 4 + 8 * entry)).unwrap();
    *done = done.wrapping_add(1);
    memory
        .write_all_at(&done.to_le_bytes(), file(at.used + 2))
        .unwrap();
    true
}

/// The guest and its VMM, whose memory is this process's.
struct Guest {
    memory: &'static [AtomicU8],
    socket: UnixStream,
    kick: OwnedFd,
    call: OwnedFd,
    asked: u16,
    _directory: tempfile::TempDir,
}

impl Guest {
    /// Both begin, as QEMU does.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("daemon.sock");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || daemon(listener));
        let memory = memory_of(std::process::id()).unwrap();
        let socket = UnixStream::from(start(memory, &path, Logger::root(Discard, o!())).unwrap());
        socket.set_read_timeout(Some(SOON)).unwrap();
        // As long as the thread may look at it.
        let memory: Vec<AtomicU8> = std::iter::repeat_with(AtomicU8::default)
            .take(DATA + 8 * MOST)
            .collect();
        let event = || rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        let guest = Self {
            memory: Vec::leak(memory),
            socket,
            kick: event(),
            call: event(),
            asked: 0,
            _directory: directory,
        };
        let features = message::ask(&guest.socket, message::GET_FEATURES).unwrap();
        assert_eq!(features, FEATURES, "and not what we cannot carry");
        let protocol = message::ask(&guest.socket, message::GET_PROTOCOL_FEATURES).unwrap();
        assert_eq!(protocol, PROTOCOL);
        assert_eq!(message::ask(&guest.socket, message::GET_QUEUE_NUM).unwrap(), 2);
        guest.say(message::SET_FEATURES, &features.to_ne_bytes());
        let mut table = [1_u32, 0].map(u32::to_ne_bytes).concat();
        // Of two regions, so that something lies across both.
        table[0] = 2;
        let (at, half) = (guest.address(0), guest.memory.len() as u64 / 2);
        for region in [
            [GUEST, half, at, 0],
            [GUEST + half, guest.memory.len() as u64 - half, at + half, 0],
        ] {
            table.extend(region.map(u64::to_ne_bytes).concat());
        }
        guest.say(message::SET_MEM_TABLE, &table);
        guest.begin(0);
        guest
    }

    fn begin(&self, base: u32) {
        let state = |value: u32| [1, value].map(u32::to_ne_bytes).concat();
        self.say(message::SET_VRING_NUM, &state(SIZE.into()));
        self.say(message::SET_VRING_BASE, &state(base));
        let mut addresses = state(0);
        let parts = [
            self.address(TABLE),
            self.address(USED),
            self.address(AVAILABLE),
            0,
        ];
        addresses.extend(parts.map(u64::to_ne_bytes).concat());
        self.say(message::SET_VRING_ADDR, &addresses);
        for (request, fd) in [
            (message::SET_VRING_KICK, &self.kick),
            (message::SET_VRING_CALL, &self.call),
        ] {
            send(&self.socket, request, &1_u64.to_ne_bytes(), &[fd.as_fd()]).unwrap();
        }
        self.say(message::SET_VRING_ENABLE, &state(1));
    }

    /// Says something, and waits until it is done.
    fn say(&self, request: u32, payload: &[u8]) {
        let head = [request, 1 | 1 << 3, payload.len() as u32]
            .map(u32::to_ne_bytes)
            .concat();
        (&self.socket).write_all(&[&head, payload].concat()).unwrap();
        let answer = Message::receive(&self.socket).unwrap().unwrap();
        assert_eq!((answer.request, answer.number().unwrap()), (request, 0));
    }

    fn address(&self, at: usize) -> u64 {
        self.memory.as_ptr() as u64 + at as u64
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        for (cell, byte) in self.memory[at..].iter().zip(bytes) {
            cell.store(*byte, Ordering::SeqCst);
        }
    }

    fn read(&self, at: usize, length: usize) -> Vec<u8> {
        let cells = self.memory[at..at + length].iter();
        cells.map(|cell| cell.load(Ordering::SeqCst)).collect()
    }

    fn describe(&self, table: usize, index: u16, (at, length): (usize, usize), flags: u16, next: u16) {
        let mut bytes = (GUEST + at as u64).to_le_bytes().to_vec();
        bytes.extend((length as u32).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + 16 * usize::from(index), &bytes);
    }

    /// Puts a chain into the queue.
    fn ask(&mut self, head: u16) {
        let entry = AVAILABLE + 4 + 2 * usize::from(self.asked % SIZE);
        self.write(entry, &head.to_le_bytes());
        self.asked = self.asked.wrapping_add(1);
        self.write(AVAILABLE + 2, &self.asked.to_le_bytes());
        own::signal(&self.kick).unwrap();
    }

    /// Waits until all is answered; answers with the last entry.
    fn answered(&self) -> (u32, u32) {
        loop {
            let count = self.read(USED + 2, 2);
            if count == self.asked.to_le_bytes() {
                let last = usize::from(self.asked.wrapping_sub(1) % SIZE);
                let entry = self.read(USED + 4 + 8 * last, 8);
                let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
                return (word(0), word(4));
            }
            let limit = Timespec::try_from(SOON).unwrap();
            let fds = &mut [PollFd::new(&self.call, PollFlags::IN)];
            assert!(poll(fds, Some(&limit)).unwrap() > 0, "there is no answer");
            own::clear(&self.call).unwrap();
        }
    }

    fn is_hung_up(&self) -> bool {
        matches!(Message::receive(&self.socket), Ok(None))
    }
}

#[test]
fn what_a_guest_asks_is_answered_wherever_it_lies_and_however_often() {
    let mut guest = Guest::new();
    for round in 0..40_u8 {
        let question: Vec<u8> = (0..100).map(|byte| byte ^ round).collect();
        guest.write(DATA, &question[..30]);
        guest.write(DATA + 1000, &question[30..]);
        guest.describe(TABLE, 3, (DATA, 30), NEXT, 5);
        guest.describe(TABLE, 5, (DATA + 1000, 70), NEXT, 0);
        guest.describe(TABLE, 0, (DATA + 2000, 64), NEXT | WRITABLE, 1);
        guest.describe(TABLE, 1, (DATA + 3000, 64), WRITABLE, 0);
        guest.ask(3);
        assert_eq!(guest.answered(), (3, 100));
        let mut answer = guest.read(DATA + 2000, 64);
        answer.extend(guest.read(DATA + 3000, 36));
        answer.reverse();
        assert_eq!(answer, question, "round {round}");
    }
    // It is stopped and goes on, as when a driver is loaded again.
    send(
        &guest.socket,
        message::GET_VRING_BASE,
        &[1_u32, 0].map(u32::to_ne_bytes).concat(),
        &[],
    )
    .unwrap();
    let answer = Message::receive(&guest.socket).unwrap().unwrap();
    assert_eq!(answer.state().unwrap(), (1, 40));
    // Who goes on may be a VMM to which the device is new, and says nothing of what was.
    guest.begin(0);
    guest.describe(TABLE, 3, (DATA, 30), NEXT, 0);
    guest.ask(3);
    assert_eq!(guest.answered(), (3, 30));
}

#[test]
fn who_stands_for_a_process_agrees_and_answers_nothing() {
    let socket = UnixStream::from(nobody(Logger::root(Discard, o!())).unwrap());
    socket.set_read_timeout(Some(SOON)).unwrap();
    let ask = |request| message::ask(&socket, request).unwrap();
    assert_eq!(ask(message::GET_FEATURES), FEATURES);
    assert_eq!(ask(message::GET_PROTOCOL_FEATURES), PROTOCOL);
    assert!(ask(message::GET_QUEUE_NUM) >= 2);
    for request in [
        message::SET_OWNER,
        message::SET_MEM_TABLE,
        message::SET_VRING_ENABLE,
    ] {
        let head = [request, 1 | 1 << 3, 0].map(u32::to_ne_bytes).concat();
        (&socket).write_all(&head).unwrap();
        let answer = Message::receive(&socket).unwrap().unwrap();
        assert_eq!((answer.request, answer.number().unwrap()), (request, 0));
    }
    let which = [1_u32, 0].map(u32::to_ne_bytes).concat();
    send(&socket, message::GET_VRING_BASE, &which, &[]).unwrap();
    let answer = Message::receive(&socket).unwrap().unwrap();
    assert_eq!(
        answer.state().unwrap(),
        (1, 0),
        "the queue, and that it is where it was"
    );
}

#[test]
fn a_large_request_by_a_table_across_regions_is_carried_whole() {
    let mut guest = Guest::new();
    let half = guest.memory.len() / 2;
    let question: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 7) as u8).collect();
    let at = half - question.len() / 2;
    guest.write(at, &question);
    guest.describe(INDIRECT, 0, (at, question.len()), NEXT, 1);
    guest.describe(INDIRECT, 1, (DATA, 1 << 20), WRITABLE, 0);
    guest.describe(TABLE, 7, (INDIRECT, 32), NAMES_A_TABLE, 0);
    guest.ask(7);
    assert_eq!(guest.answered(), (7, 1 << 20));
    let mut answer = guest.read(DATA, 1 << 20);
    answer.reverse();
    assert!(answer == question);
}

#[test]
fn what_no_guest_may_ask_is_the_end() {
    type Ask = fn(&mut Guest);
    let table: &[(&str, Ask)] = &[
        ("a descriptor that is not there", |guest| guest.ask(SIZE)),
        ("a circle", |guest| {
            guest.describe(TABLE, 0, (DATA, 0), NEXT, 0);
            guest.ask(0);
        }),
        ("another's memory", |guest| {
            let end = guest.memory.len();
            guest.describe(TABLE, 0, (end - 8, 16), WRITABLE, 0);
            guest.ask(0);
        }),
        ("more than there is room for", |guest| {
            guest.describe(TABLE, 0, (DATA, MOST + 1), WRITABLE, 0);
            guest.ask(0);
        }),
        ("an answer before the question", |guest| {
            guest.describe(TABLE, 0, (DATA, 8), NEXT | WRITABLE, 1);
            guest.describe(TABLE, 1, (DATA, 8), 0, 0);
            guest.ask(0);
        }),
        ("a table in a table", |guest| {
            guest.describe(TABLE, 0, (INDIRECT, 16), NAMES_A_TABLE, 0);
            guest.describe(INDIRECT, 0, (INDIRECT, 16), NAMES_A_TABLE, 0);
            guest.ask(0);
        }),
        ("a table that is not whole", |guest| {
            guest.describe(TABLE, 0, (INDIRECT, 24), NAMES_A_TABLE, 0);
            guest.ask(0);
        }),
        ("nothing", |guest| {
            guest.describe(TABLE, 0, (DATA, 0), 0, 0);
            guest.ask(0);
        }),
        ("more than a queue holds", |guest| {
            guest.write(AVAILABLE + 2, &(SIZE + 1).to_le_bytes());
            own::signal(&guest.kick).unwrap();
        }),
    ];
    for (what, ask) in table {
        let mut guest = Guest::new();
        ask(&mut guest);
        assert!(guest.is_hung_up(), "{what}");
    }
}

proptest! {
    /// Whatever is in a table, what a chain names is the guest's, and no more than there is room for.
    #[test]
    fn a_chain_names_only_the_guests_memory(
        table in proptest::collection::vec((0_u64..0x6000, 0_u32..0x3000, 0_u16..8, 0_u16..9), 8),
        head in 0_u16..10,
    ) {
        let regions = [
            Region { guest: 0, size: 0x2000, vmm: 0x10_0000 },
            Region { guest: 0x3000, size: 0x1000, vmm: 0x20_0000 },
        ];
        let mut bytes = Vec::new();
        for (address, length, flags, next) in table {
            bytes.extend(address.to_le_bytes());
            bytes.extend(length.to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend(next.to_le_bytes());
        }
        let followed = Chain::follow(&regions, (0, 8), head, |at, into| {
            // A table that a descriptor names has the same in it.
            let at = at as usize % bytes.len();
            for (to, from) in into.iter_mut().zip(bytes.iter().cycle().skip(at)) {
                *to = *from;
            }
            Ok(())
        });
        if let Ok(chain) = followed {
            let (asked, room) = chain.lengths();
            prop_assert!(asked <= MOST && room <= MOST);
            for piece in chain.readable.iter().chain(&chain.writable) {
                let end = piece.address + piece.length as u64;
                let inside = |from: u64, size: u64| piece.address >= from && end <= from + size;
                prop_assert!(inside(0x10_0000, 0x2000) || inside(0x20_0000, 0x1000), "{:?}", piece);
            }
        }
    }
}

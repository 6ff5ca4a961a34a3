//! An agent made for tests of the runtime that need no guest: it keeps processes as the protocol says, and does with them
//! what the test tells it.

mod calls;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol as p;
use tokio::sync::watch;

use crate::{Error, ErrorKind};

/// What a test has ordered for every later call of an RPC.
#[derive(Debug, Clone, Copy)]
enum Order {
    Fail(ErrorKind, &'static str),
    /// Never answer: a frozen guest.
    Hang,
}

#[derive(Debug, Default)]
struct Stream {
    data: VecDeque<u8>,
    ended: bool,
}

/// A descriptor beyond the standard ones.
#[derive(Debug, Default)]
struct More {
    output: Stream,
    /// The host does not read it any more.
    broken: bool,
    input: Vec<u8>,
    /// The host, or the process, has ended it.
    closed: bool,
}

#[derive(Debug, Default)]
struct Process {
    exit: Option<u32>,
    exited_at: i64,
    stdout: Stream,
    stderr: Stream,
    stdin: Vec<u8>,
    stdin_closed: bool,
    more: Vec<More>,
    terminal: Option<(u32, u32)>,
}

#[derive(Debug, Default)]
struct State {
    calls: Vec<&'static str>,
    orders: HashMap<&'static str, Order>,
    processes: HashMap<(String, String), Process>,
    immortal: bool,
    /// vCPUs and memory that were last to be taken into use, and the most that are.
    growth: Option<(u32, u64)>,
    most_growth: Option<(u32, u64)>,
    oom_kills: u64,
    /// Of the packet filter; of IPv6's where it is true.
    rules: HashMap<bool, Vec<u8>>,
    connected: bool,
    largest_read: usize,
}

/// Keeps what it is told to create, records the order of calls, and fails or hangs where a test says so.
///
/// A process ends by [`FakeAgent::exit`], by SIGKILL, or with its container; its output is what [`FakeAgent::print`]
/// was given, and ends with [`FakeAgent::end_output`] or with the process's container. Methods that name a process take
/// the container's id and the exec id, empty for init.
#[derive(Debug)]
pub struct FakeAgent {
    state: Mutex<State>,
    /// Changes with every change of the state, for the calls that wait.
    changed: watch::Sender<u64>,
}

impl Default for FakeAgent {
    fn default() -> Self {
        let state = State {
            connected: true,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            changed: watch::Sender::new(0),
        }
    }
}

impl FakeAgent {
    /// A fake on which everything succeeds.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let value = change(&mut self.state());
        self.changed.send_modify(|n| *n += 1);
        value
    }

    /// Makes every later call of this RPC fail.
    pub fn fail(&self, call: &'static str, kind: ErrorKind, message: &'static str) {
        self.change(|state| state.orders.insert(call, Order::Fail(kind, message)));
    }

    /// Makes every later call of this RPC wait for its deadline.
    pub fn hang(&self, call: &'static str) {
        self.change(|state| state.orders.insert(call, Order::Hang));
    }

    /// Takes back [`Self::fail`] and [`Self::hang`].
    pub fn obey(&self, call: &'static str) {
        self.change(|state| state.orders.remove(call));
    }

    /// Ends the connection: every call fails, those under way included.
    pub fn disconnect(&self) {
        self.change(|state| state.connected = false);
    }

    /// From now on SIGKILL is taken, and nothing ends.
    pub fn become_immortal(&self) {
        self.change(|state| state.immortal = true);
    }

    /// From now on no more vCPUs, and no more added MiB, than these are taken into use.
    pub fn stop_growing(&self, vcpus: u32, added_mib: u64) {
        self.change(|state| state.most_growth = Some((vcpus, added_mib)));
    }

    /// The vCPUs and the added MiB that were last to be taken into use, if any were.
    pub fn growth(&self) -> Option<(u32, u64)> {
        self.state().growth
    }

    /// From now on the figures of every container say that so many of its processes were killed for memory.
    pub fn run_out_of_memory(&self, kills: u64) {
        self.change(|state| state.oom_kills = kills);
    }

    /// Ends a process with this status, at this time of the guest (nanoseconds since 1970). Its output stays open.
    pub fn exit(&self, container: &str, exec: &str, status: u32, at: i64) {
        self.change(|state| {
            if let Some(process) = state.process(container, exec) {
                process.exit = Some(status);
                process.exited_at = at;
            }
        });
    }

    /// Adds output.
    pub fn print(&self, container: &str, exec: &str, stream: p::Stream, data: &[u8]) {
        self.change(|state| {
            if let Some(process) = state.process(container, exec) {
                process.stream(stream).data.extend(data);
            }
        });
    }

    /// Adds output to one of a process's descriptors beyond the standard ones; `end`: no more will come.
    pub fn print_to(&self, container: &str, exec: &str, descriptor: u32, data: &[u8], end: bool) {
        self.change(|state| {
            if let Some(more) = state
                .process(container, exec)
                .and_then(|process| process.more(descriptor))
            {
                more.output.data.extend(data);
                more.output.ended |= end;
            }
        });
    }

    /// A process does not read one of those any more.
    pub fn stop_reading(&self, container: &str, exec: &str, descriptor: u32) {
        self.change(|state| {
            if let Some(more) = state
                .process(container, exec)
                .and_then(|process| process.more(descriptor))
            {
                more.closed = true;
            }
        });
    }

    /// What was written to one of those, whether it was ended, and whether the host has stopped reading it.
    pub fn descriptor(&self, container: &str, exec: &str, descriptor: u32) -> (Vec<u8>, bool, bool) {
        let mut state = self.state();
        let more = state
            .process(container, exec)
            .and_then(|process| process.more(descriptor));
        more.map_or_else(Default::default, |more| {
            (more.input.clone(), more.closed, more.broken)
        })
    }

    /// Ends both outputs of a process, after what was printed.
    pub fn end_output(&self, container: &str, exec: &str) {
        self.change(|state| {
            if let Some(process) = state.process(container, exec) {
                process.stdout.ended = true;
                process.stderr.ended = true;
            }
        });
    }

    /// Bytes of standard output that nobody has fetched.
    pub fn unread(&self, container: &str, exec: &str) -> usize {
        let mut state = self.state();
        let process = state.process(container, exec);
        process.map_or(0, |process| process.stdout.data.len())
    }

    /// What was written to a process's standard input, and whether it was closed.
    pub fn stdin(&self, container: &str, exec: &str) -> (Vec<u8>, bool) {
        let mut state = self.state();
        let process = state.process(container, exec);
        process.map_or_else(Default::default, |process| {
            (process.stdin.clone(), process.stdin_closed)
        })
    }

    /// Rows and columns of a process's terminal.
    pub fn terminal(&self, container: &str, exec: &str) -> Option<(u32, u32)> {
        self.state()
            .process(container, exec)
            .and_then(|process| process.terminal)
    }

    /// Most bytes that one call has asked for.
    pub fn largest_read(&self) -> usize {
        self.state().largest_read
    }

    /// Names of the calls made so far, in order.
    pub fn calls(&self) -> Vec<&'static str> {
        self.state().calls.clone()
    }

    /// Waits until the calls made so far, and everything else, satisfy this.
    pub async fn until(&self, condition: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        while !condition(self) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes a call: as soon as `answer` has one, unless an order or a lost connection comes before it.
    async fn answer<T>(
        &self,
        call: &'static str,
        deadline: Option<Duration>,
        mut answer: impl FnMut(&mut State) -> Option<Result<T, ErrorKind>>,
    ) -> Result<T, Error> {
        let mut changed = self.changed.subscribe();
        self.change(|state| state.calls.push(call));
        let calling = async {
            loop {
                changed.borrow_and_update();
                {
                    let mut state = self.state();
                    if !state.connected {
                        return Err(Error::new(
                            ErrorKind::Unavailable,
                            call,
                            "the connection is closed",
                        ));
                    }
                    match state.orders.get(call) {
                        Some(Order::Fail(kind, message)) => return Err(Error::new(*kind, call, message)),
                        Some(Order::Hang) => {}
                        None => {
                            if let Some(answer) = answer(&mut state) {
                                return answer.map_err(|kind| Error::new(kind, call, "as a real agent"));
                            }
                        }
                    }
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let answer = match deadline {
            None => calling.await,
            Some(deadline) => tokio::time::timeout(deadline, calling)
                .await
                .unwrap_or_else(|_| Err(Error::new(ErrorKind::DeadlineExceeded, call, "no answer in time"))),
        };
        self.changed.send_modify(|n| *n += 1);
        answer
    }

    async fn empty(
        &self,
        call: &'static str,
        deadline: Option<Duration>,
        mut answer: impl FnMut(&mut State) -> Result<(), ErrorKind>,
    ) -> Result<p::Empty, Error> {
        self.answer(call, deadline, |state| {
            Some(answer(state).map(|()| p::Empty::default()))
        })
        .await
    }
}

impl State {
    fn process(&mut self, container: &str, exec: &str) -> Option<&mut Process> {
        self.processes.get_mut(&(container.to_owned(), exec.to_owned()))
    }

    fn known(&mut self, container: &str, exec: &str) -> Result<&mut Process, ErrorKind> {
        self.process(container, exec).ok_or(ErrorKind::NotFound)
    }

    fn add(
        &mut self,
        container: &str,
        exec: &str,
        stdio: &p::Stdio,
    ) -> Result<p::ProcessResponse, ErrorKind> {
        let name = (container.to_owned(), exec.to_owned());
        if self.processes.contains_key(&name) {
            return Err(ErrorKind::AlreadyExists);
        }
        let process = Process {
            terminal: stdio.size.as_ref().map(|size| (size.rows, size.columns)),
            more: stdio.descriptors.iter().map(|_| More::default()).collect(),
            ..Process::default()
        };
        let descriptors = process.more.len() as u32;
        self.processes.insert(name, process);
        Ok(p::ProcessResponse {
            pid: 100 + self.processes.len() as u32,
            descriptors,
            ..Default::default()
        })
    }
}

impl Process {
    fn stream(&mut self, stream: p::Stream) -> &mut Stream {
        match stream {
            p::Stream::STDOUT => &mut self.stdout,
            p::Stream::STDERR => &mut self.stderr,
        }
    }

    /// One beyond the standard ones.
    fn more(&mut self, descriptor: u32) -> Option<&mut More> {
        let index = descriptor.checked_sub(p::FIRST_DESCRIPTOR)?;
        self.more.get_mut(usize::try_from(index).ok()?)
    }

    fn kill(&mut self) {
        self.exit.get_or_insert(137);
        self.stdout.ended = true;
        self.stderr.ended = true;
        self.more.iter_mut().for_each(|more| more.output.ended = true);
    }
}

//! Who keeps virtual machines: one task has them all, and gives each to whoever asks first. Another one is made then, one at a
//! time, as long as the host has memory for it.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::pin::pin;
use std::sync::Arc;

use configuration::Config;
use futures::future::{FutureExt as _, select_all};
use hypervisor::Hypervisor;
use rustix::process::geteuid;
use slog::{Logger, info, warn};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

use super::Place;
use super::keep::{Maker, Ready};
use super::wire::{self, Answer, Ask, Call, Closing};
use super::{Line, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::{deadlines, line};

/// Commands that wait for the owner.
const QUEUE: usize = 16;

/// This part of the host's memory is for others.
const SPARED: u64 = 16;

/// Characters of a reason that are kept.
const REASON: usize = 1000;

/// What the owner is asked.
pub(super) enum Command {
    Get(String, oneshot::Sender<Result<Ready, String>>),
    /// What became of one that was got.
    Went(Result<(), String>),
    Config(oneshot::Sender<(String, u32)>),
    Status(oneshot::Sender<Status>),
    Settle(oneshot::Sender<Result<(), String>>),
    Quit(oneshot::Sender<()>),
}

/// Keeps virtual machines until it is told to end, or `stop` is done. Those that were given away go on.
///
/// # Errors
/// It cannot begin.
pub async fn serve(
    config: Config,
    hypervisor: Arc<dyn Hypervisor>,
    listener: StdListener,
    stop: impl Future<Output = ()>,
    log: Logger,
) -> Result<()> {
    let unfit = |cause: io::Error| Error::caused(ErrorKind::Internal, "cannot watch the socket", cause);
    listener.set_nonblocking(true).map_err(unfit)?;
    let listener = UnixListener::from_std(listener).map_err(unfit)?;
    let place = Place::of(&config);
    let endpoint = config.factory.vm_cache_endpoint.clone();
    let key = super::key(&config, &*hypervisor)?;
    let (unwanted, is_unwanted) = watch::channel(false);
    let mut owner = Owner {
        number: config.factory.vm_cache_number,
        maker: Arc::new(Maker {
            key: key.clone(),
            dir: place.dir().to_owned(),
            hypervisor,
            config,
            log: log.clone(),
        }),
        ready: VecDeque::new(),
        making: None,
        is_unwanted,
        made: 0,
        retry: None,
        waiting: Vec::new(),
        status: Status {
            pid: std::process::id(),
            key,
            ..Status::default()
        },
        log: log.clone(),
    };
    info!(log, "virtual machines are kept ready"; "number" => owner.number, "key" => &owner.status.key);
    let mut talks = JoinSet::new();
    let asked = owner.run(&listener, &mut talks, stop).await;
    // Nobody finds it any more.
    let _ = fs::remove_file(&endpoint);
    unwanted.send_replace(true);
    owner.end().await;
    if let Some(reply) = asked {
        let _ = reply.send(());
    }
    // Answers may be on their way.
    let said = async { while talks.join_next().await.is_some() {} };
    let _ = timeout(deadlines::CACHE_HANDOVER, said).await;
    Ok(())
}

struct Owner {
    number: u32,
    maker: Arc<Maker>,
    ready: VecDeque<Ready>,
    making: Option<JoinHandle<Result<Ready>>>,
    is_unwanted: watch::Receiver<bool>,
    /// How many were begun.
    made: u64,
    /// When the next attempt is due, after one that failed, or after one was taken: who took it is just starting, and others may.
    retry: Option<Instant>,
    waiting: Vec<oneshot::Sender<Result<(), String>>>,
    /// Its figures.
    status: Status,
    log: Logger,
}

impl Owner {
    /// Lives until it is asked to end; by whom, is the answer.
    async fn run(
        &mut self,
        listener: &UnixListener,
        talks: &mut JoinSet<()>,
        stop: impl Future<Output = ()>,
    ) -> Option<oneshot::Sender<()>> {
        let (commands, mut asked) = mpsc::channel(QUEUE);
        let mut stop = pin!(stop);
        loop {
            self.refill();
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => drop(talks.spawn(attend(stream, commands.clone(), self.log.clone()))),
                    Err(error) => {
                        warn!(self.log, "a connection is lost"; "error" => %error);
                        // Until descriptors may be free again.
                        tokio::time::sleep(deadlines::ACCEPT_PAUSE).await;
                    }
                },
                Some(command) = asked.recv() => match command {
                    Command::Quit(reply) => return Some(reply),
                    other => self.command(other),
                },
                made = done(&mut self.making) => self.made(made),
                dead = first_dead(&self.ready) => self.forget(dead),
                () = due(self.retry) => self.retry = None,
                Some(_) = talks.join_next() => {}
                () = &mut stop => return None,
            }
        }
    }

    /// Begins to make one, if there are too few.
    fn refill(&mut self) {
        if self.making.is_some() || self.retry.is_some() {
            return;
        }
        if self.ready.len() >= self.number as usize {
            self.status.short = None;
            self.settled(&Ok(()));
            return;
        }
        if let Err(why) = self.has_room() {
            self.later(why);
            return;
        }
        self.made += 1;
        let (maker, number, unwanted) = (Arc::clone(&self.maker), self.made, self.is_unwanted.clone());
        self.making = Some(tokio::spawn(async move { maker.make(number, unwanted).await }));
    }

    /// Whether the host can spare the memory that one more may come to use, without which others would be in want.
    fn has_room(&self) -> Result<(), String> {
        let needed = self.maker.config.hypervisor.default_memory_mib;
        let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        match (mib(&text, "MemAvailable:"), mib(&text, "MemTotal:")) {
            (Some(available), Some(total)) if available < needed + total / SPARED => Err(format!(
                "the host has {available} MiB of memory to spare; one more needs {needed}, and {} are left to others",
                total / SPARED
            )),
            // A kernel that does not say is not asked.
            _ => Ok(()),
        }
    }

    fn made(&mut self, made: Result<Ready>) {
        self.making = None;
        match made {
            Ok(ready) => {
                self.status.short = None;
                self.ready.push_back(ready);
            }
            Err(error) => self.later(error.chain()),
        }
    }

    /// There is to be one more, and cannot be now.
    fn later(&mut self, why: String) {
        // It is told once, and kept.
        if self.status.short.as_ref() != Some(&why) {
            warn!(self.log, "a virtual machine cannot be kept ready"; "reason" => &why);
        }
        self.settled(&Err(why.clone()));
        self.status.short = Some(why.chars().take(REASON).collect());
        self.retry = Some(Instant::now() + deadlines::CACHE_RETRY);
    }

    fn settled(&mut self, how: &Result<(), String>) {
        for waiting in self.waiting.drain(..) {
            // Nobody may wait any more.
            let _ = waiting.send(how.clone());
        }
    }

    fn command(&mut self, command: Command) {
        // Nobody may wait for an answer any more.
        match command {
            Command::Get(key, reply) => {
                let got = self.get(&key);
                if got.is_ok() && self.retry.is_none() && !self.ready.is_empty() {
                    self.retry = Some(Instant::now() + deadlines::CACHE_CALM);
                }
                if let Err(Ok(ready)) = reply.send(got) {
                    self.ready.push_front(ready);
                }
            }
            Command::Went(how) => self.note(how),
            Command::Config(reply) => drop(reply.send((self.status.key.clone(), self.number))),
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Settle(reply) => {
                let is_full = self.ready.len() >= self.number as usize;
                match (is_full, &self.status.short) {
                    (true, _) => drop(reply.send(Ok(()))),
                    (false, Some(why)) => drop(reply.send(Err(why.clone()))),
                    (false, None) => self.waiting.push(reply),
                }
            }
            Command::Quit(_) => {}
        }
    }

    fn get(&mut self, key: &str) -> Result<Ready, String> {
        if key != self.status.key {
            return Err(format!(
                "those that are kept ready are of another configuration ({}, and not {key})",
                self.status.key
            ));
        }
        self.ready.pop_front().ok_or_else(|| match &self.status.short {
            Some(why) => format!("none is ready: {why}"),
            None => "none is ready; the next one is being made".to_owned(),
        })
    }

    fn note(&mut self, how: Result<(), String>) {
        match how {
            Ok(()) => self.status.hits += 1,
            Err(why) => {
                self.status.misses += 1;
                self.status.last_miss = Some(why.chars().take(REASON).collect());
            }
        }
    }

    fn status(&self) -> Status {
        Status {
            number: self.number,
            kept: self.ready.iter().map(|ready| ready.about.clone()).collect(),
            ..self.status.clone()
        }
    }

    /// One has ended by itself.
    fn forget(&mut self, at: usize) {
        if let Some(dead) = self.ready.remove(at) {
            warn!(self.log, "a virtual machine that was kept ready has ended"; "pid" => dead.about.pid);
        }
    }

    /// Ends all that are left.
    async fn end(&mut self) {
        if let Some(making) = self.making.take()
            && let Ok(Ok(ready)) = making.await
        {
            self.ready.push_back(ready);
        }
        for mut ready in self.ready.drain(..) {
            if let Err(error) = ready.vm.stop().await {
                warn!(self.log, "a virtual machine does not end"; "pid" => ready.about.pid, "error" => %error);
            }
        }
        info!(self.log, "no virtual machines are kept any more");
    }
}

/// What is being made, when it is.
async fn done(making: &mut Option<JoinHandle<Result<Ready>>>) -> Result<Ready> {
    match making {
        Some(making) => making.await.unwrap_or_else(|lost| {
            Err(Error::new(
                ErrorKind::Internal,
                format!("the task that made it is lost: {lost}"),
            ))
        }),
        None => std::future::pending().await,
    }
}

/// Which one has ended, when one has.
async fn first_dead(ready: &VecDeque<Ready>) -> usize {
    let ends = ready.iter().map(|ready| {
        let mut exited = ready.vm.exited();
        async move {
            // Nobody to tell means that it is gone as well.
            let _ = exited.wait_for(Option::is_some).await;
        }
        .boxed()
    });
    let ends: Vec<_> = ends.collect();
    match ends.is_empty() {
        true => std::future::pending().await,
        false => select_all(ends).await.1,
    }
}

async fn due(retry: Option<Instant>) {
    match retry {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// A figure of /proc/meminfo, MiB.
fn mib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// Answers one question.
async fn attend(stream: UnixStream, commands: mpsc::Sender<Command>, log: Logger) {
    let is_ours = stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == geteuid().as_raw());
    let mut line = Line::over(stream);
    let asked = match is_ours {
        true => timeout(deadlines::ADMIN, line.hear::<Call>())
            .await
            .unwrap_or_else(|_| Err("nothing was asked".to_owned())),
        false => Err("it is another user's".to_owned()),
    };
    let said = match asked {
        Ok(call) if call.version == wire::VERSION => answer(&mut line, call.ask, &commands).await,
        Ok(call) => {
            let why = format!(
                "version {} is not understood, but {}",
                call.version,
                wire::VERSION
            );
            line.say(&Answer::Failed { why }).await
        }
        Err(why) => Err(why),
    };
    if let Err(why) = said {
        warn!(log, "a question is not answered"; "reason" => why);
    }
}

async fn answer(line: &mut Line, ask: Ask, commands: &mpsc::Sender<Command>) -> Result<(), String> {
    let answer = match ask {
        Ask::Get { key } => return give(line, key, commands).await,
        Ask::Config => {
            let (key, number) = order(commands, Command::Config).await?;
            Answer::Config { key, number }
        }
        Ask::Status => Answer::Status(order(commands, Command::Status).await?),
        Ask::Settle => match order(commands, Command::Settle).await? {
            Ok(()) => Answer::Done,
            Err(why) => Answer::Failed { why },
        },
        Ask::Quit => {
            order(commands, Command::Quit).await?;
            Answer::Done
        }
    };
    line.say(&answer).await
}

async fn order<T>(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T, String> {
    let gone = |_| "it is ending".to_owned();
    let (reply, answered) = oneshot::channel();
    commands.send(command(reply)).await.map_err(|_| gone(()))?;
    answered.await.map_err(|_| gone(()))
}

/// Gives one away, or says why there is none.
pub(super) async fn give(
    line: &mut Line,
    key: String,
    commands: &mpsc::Sender<Command>,
) -> Result<(), String> {
    let ready = match order(commands, |reply| Command::Get(key, reply)).await? {
        Ok(ready) => ready,
        Err(why) => {
            let _ = commands.send(Command::Went(Err(why.clone()))).await;
            return line.say(&Answer::Miss { why }).await;
        }
    };
    let went = hand_over(line, ready).await;
    // The owner may be ending.
    let _ = commands.send(Command::Went(went.clone())).await;
    match went {
        // Whoever does not hear it lets go, and with that the machine ends.
        Ok(()) => line.say(&Closing::Yours).await,
        Err(why) => Err(why),
    }
}

/// Until this has answered it is ours; and if it fails it ends.
async fn hand_over(line: &mut Line, mut ready: Ready) -> Result<(), String> {
    let handed = async {
        let transfer = ready.vm.transfer().ok_or("it cannot be handed over")?;
        let (offer, deed) = transfer.offer().map_err(|error| error.to_string())?;
        let said = wire::line(&Answer::Offer { about: offer.about });
        let mut fds: Vec<_> = offer.fds.iter().map(OwnedFd::as_fd).collect();
        fds.push(ready.agent.as_fd());
        fds.push(ready.namespace.as_fd());
        let closing = async {
            line::send(&line.stream, &said, &fds)
                .await
                .map_err(|cause| format!("the other side takes no more: {cause}"))?;
            line.hear().await
        };
        match timeout(deadlines::CACHE_HANDOVER, closing).await {
            Ok(Ok(Closing::Taken)) => {}
            Ok(Ok(Closing::Yours)) => return Err("the answer was that it is ours".to_owned()),
            Ok(Err(why)) => return Err(why),
            Err(_) => return Err(format!("it was not taken within {:?}", deadlines::CACHE_HANDOVER)),
        }
        transfer.give_away(deed);
        Ok(())
    }
    .await;
    let why = match handed {
        Ok(()) => return Ok(()),
        Err(why) => why,
    };
    match ready.vm.stop().await {
        Ok(()) => Err(format!("one that was offered was not taken, and is ended: {why}")),
        Err(error) => Err(format!(
            "one that was offered was not taken ({why}), and does not end: {error}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_memory_is_read() {
        let text = "MemTotal:       24650628 kB\nMemFree:          2048 kB\nMemAvailable:   23068672 kB\n";
        assert_eq!(mib(text, "MemAvailable:"), Some(22528));
        assert_eq!(mib(text, "MemTotal:"), Some(24072));
        assert_eq!(mib(text, "Swap:"), None);
        assert_eq!(mib("MemTotal: x kB", "MemTotal:"), None);
    }
}

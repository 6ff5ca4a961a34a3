//! A process changes hands, or dies: real processes, and the two sides that hand one over, each of which may go at any moment.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hypervisor::process::{self, Process, Program, Status};
use hypervisor::{
    Deed, Exit, ExitReason, Hotplug, Offer, Origin, Resize, SaveTo, Transfer, Vm, VmRecord, VmReport,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::keep::Ready;
use super::server::{Command, give};
use super::wire::{self, Answer, Ask, Call};
use super::{Claimed, Kept, Line};
use crate::line;

/// Longer than anything here takes on a busy machine.
const SOON: Duration = Duration::from_secs(30);

const KEY: &str = "a";

/// A machine that is a process, and does nothing.
struct Sleeper {
    process: Arc<Process>,
    lifeline: Option<OwnedFd>,
    exited: watch::Receiver<Option<Exit>>,
}

impl Sleeper {
    async fn start() -> Self {
        let program = Program {
            path: PathBuf::from("/bin/sleep"),
            args: vec!["1000".into()],
            fds: Vec::new(),
            network_namespace: None,
            cgroups: Vec::new(),
            labels: Vec::new(),
            litter: process::Litter::default(),
        };
        let (process, _, lifeline) = process::start_for_another(program).await.unwrap();
        let process = Arc::new(process);
        let (sender, exited) = watch::channel(None);
        let reaped = Arc::clone(&process);
        tokio::spawn(async move {
            let status = reaped.ended().await.unwrap();
            assert!(matches!(status, Status::Killed(_)));
            sender.send_replace(Some(Exit {
                reason: ExitReason::Stopped,
                console: Vec::new(),
            }));
        });
        Self {
            process,
            lifeline: Some(lifeline),
            exited,
        }
    }
}

#[async_trait]
impl Vm for Sleeper {
    fn pid(&self) -> u32 {
        self.process.id()
    }

    fn record(&self) -> VmRecord {
        unreachable!("nobody keeps it")
    }

    fn report(&self) -> VmReport {
        VmReport {
            vmm: "sleep".into(),
            machine: "none".into(),
            accelerator: "none".into(),
            reason: "a test".into(),
            origin: Origin::Boot,
        }
    }

    fn exited(&self) -> watch::Receiver<Option<Exit>> {
        self.exited.clone()
    }

    async fn stop(&mut self) -> Result<(), hypervisor::Error> {
        self.process.kill();
        let mut exited = self.exited.clone();
        timeout(SOON, exited.wait_for(Option::is_some))
            .await
            .unwrap()
            .unwrap();
        Ok(())
    }

    fn hotplug(&mut self) -> Option<&mut dyn Hotplug> {
        None
    }

    fn resize(&mut self) -> Option<&mut dyn Resize> {
        None
    }

    fn transfer(&mut self) -> Option<&mut dyn Transfer> {
        Some(self)
    }

    async fn save(&mut self, _: SaveTo) -> Result<(), hypervisor::Error> {
        unreachable!("nobody saves it")
    }
}

#[async_trait]
impl Transfer for Sleeper {
    async fn pause(&mut self) -> Result<(), hypervisor::Error> {
        Ok(())
    }

    fn offer(&self) -> Result<(Offer, Deed), hypervisor::Error> {
        let (ward, owner) = self.process.offer().unwrap();
        let lifeline = self.lifeline.as_ref().unwrap().try_clone().unwrap();
        let offer = Offer {
            about: ward.pid.to_string(),
            fds: vec![ward.pidfd, ward.news, lifeline],
        };
        Ok((offer, Deed(owner)))
    }

    fn give_away(&mut self, deed: Deed) {
        self.process.give_away(deed.0);
        self.lifeline = None;
    }
}

/// One that is ready, and what becomes readable at its end.
async fn ready() -> (Ready, OwnedFd) {
    let vm = Sleeper::start().await;
    let pid = Pid::from_raw(vm.pid().try_into().unwrap()).unwrap();
    let end = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let (agent, _) = UnixStream::pair().unwrap();
    let namespace: OwnedFd = std::fs::File::open("/proc/self/ns/net").unwrap().into();
    let ready = Ready {
        about: Kept {
            pid: vm.pid(),
            vcpus: 1,
            memory_mib: 1,
            ready_at: 0,
            is_copy: false,
        },
        vm: Box::new(vm),
        agent,
        namespace: Arc::new(namespace),
    };
    (ready, end)
}

/// Whether it has ended, or does within this time.
fn has_ended(end: &OwnedFd, within: Duration) -> bool {
    let within = Timespec::try_from(within).unwrap();
    poll(&mut [PollFd::new(end, PollFlags::IN)], Some(&within)).unwrap() > 0
}

async fn dies(end: OwnedFd) {
    let ended = tokio::task::spawn_blocking(move || has_ended(&end, SOON));
    assert!(ended.await.unwrap(), "it lives");
}

fn lives(end: &OwnedFd) -> bool {
    !has_ended(end, Duration::ZERO)
}

/// Plays the owner for one question, and tells what he is told of it.
async fn owned(ready: Ready, mut asked: mpsc::Receiver<Command>) -> Result<(), String> {
    let mut ready = Some(ready);
    while let Some(command) = asked.recv().await {
        match command {
            Command::Get(key, reply) => {
                assert_eq!(key, KEY);
                assert!(reply.send(Ok(ready.take().unwrap())).is_ok());
            }
            Command::Went(how) => return how,
            _ => unreachable!("nobody asks that"),
        }
    }
    unreachable!("what becomes of it is told")
}

#[tokio::test]
async fn what_is_taken_is_his_who_took_it_and_ends_with_him() {
    let (ready, end) = ready().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (commands, asked) = mpsc::channel(4);
    let mut keeper = Line::over(ours);
    let mut client = Line::over(theirs);
    let giving = give(&mut keeper, KEY.to_owned(), &commands);
    let taking = async {
        // The question was heard already.
        let about = match client.hear().await.unwrap() {
            Answer::Offer { about } => about,
            other => unreachable!("{other:?}"),
        };
        client.close(about).await
    };
    let both = async { tokio::join!(giving, taking, owned(ready, asked)) };
    let (gave, taken, told) = timeout(SOON, both).await.unwrap();
    gave.unwrap();
    told.unwrap();
    let claimed: Claimed = taken.unwrap();
    // Whoever kept it may go.
    drop(keeper);
    assert!(lives(&end));
    drop(claimed);
    dies(end).await;
}

#[tokio::test]
async fn what_is_not_taken_ends_and_that_is_told() {
    let (ready, end) = ready().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (commands, asked) = mpsc::channel(4);
    let mut keeper = Line::over(ours);
    let mut client = Line::over(theirs);
    let giving = give(&mut keeper, KEY.to_owned(), &commands);
    let leaving = async move {
        let offered: Answer = client.hear().await.unwrap();
        assert!(matches!(offered, Answer::Offer { .. }));
    };
    let both = async { tokio::join!(giving, leaving, owned(ready, asked)) };
    let (gave, (), told) = timeout(SOON, both).await.unwrap();
    let why = gave.unwrap_err();
    assert!(why.contains("was not taken, and is ended"), "{why}");
    assert_eq!(told.unwrap_err(), why);
    dies(end).await;
}

#[tokio::test]
async fn who_keeps_it_dies_before_it_is_said_whose_it_is() {
    let (mut ready, end) = ready().await;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut keeper = Line::over(ours);
    let mut client = Line::over(theirs);
    let dying = async {
        let asked: Call = keeper.hear().await.unwrap();
        assert_eq!(asked.ask, Ask::Get { key: KEY.to_owned() });
        let (offer, _deed) = ready.vm.transfer().unwrap().offer().unwrap();
        let said = wire::line(&Answer::Offer { about: offer.about });
        let mut fds: Vec<_> = offer.fds.iter().map(OwnedFd::as_fd).collect();
        fds.extend([ready.agent.as_fd(), ready.namespace.as_fd()]);
        line::send(&keeper.stream, &said, &fds).await.unwrap();
        // It is taken, and nobody says that this was heard.
        let _: wire::Closing = keeper.hear().await.unwrap();
        drop(keeper);
    };
    let both = async { tokio::join!(client.claim(KEY.to_owned()), dying) };
    let (claimed, ()) = timeout(SOON, both).await.unwrap();
    let why = claimed.err().expect("it is nobody's");
    assert!(why.contains("says no more"), "{why}");
    assert!(lives(&end), "the dead one's descriptors are still open");
    drop(ready);
    dies(end).await;
}

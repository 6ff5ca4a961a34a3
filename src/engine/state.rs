//! What is known of a pod and its containers, as it is written to disk and shown to whoever asks, and what may happen to them.
//! Pure: no I/O, no clock.
//!
//! The owner of a pod is told by the runtime what happens; here is what that makes of what was known.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::container::ExitStatus;
use crate::error::{Error, ErrorKind, Result};

/// Raised when an older program could misunderstand what a newer one has written.
pub(super) const VERSION: u32 = 1;

/// The exit code of a process of which nobody knows how it ended.
const UNKNOWN: u32 = 255;

/// State of a container, in the words that engines use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// Its id is taken, and nothing else is there yet. Never shown.
    #[doc(hidden)]
    Creating,
    /// It is there, and its process waits to be started.
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Its process has ended.
    Exited,
}

impl ContainerState {
    /// The engines' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Exited => "exited",
        }
    }
}

impl fmt::Display for ContainerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ContainerState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "created" => Ok(Self::Created),
            "running" => Ok(Self::Running),
            "paused" => Ok(Self::Paused),
            // libpod's and CRI-O's words.
            "exited" | "stopped" => Ok(Self::Exited),
            _ => Err(Error::new(
                ErrorKind::InvalidArgument,
                format!("{text:?} is no state of a container: created, running, paused or exited"),
            )),
        }
    }
}

/// State of a pod: what its containers' states come to, as in libpod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodState {
    /// No container was started yet, or there is none.
    Created,
    /// All run.
    Running,
    /// Some run.
    Degraded,
    /// All are frozen.
    Paused,
    /// Some have ended, and none runs.
    Stopped,
    /// All have ended.
    Exited,
}

impl PodState {
    /// The engines' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Degraded => "degraded",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Exited => "exited",
        }
    }

    /// Of a pod with containers in these states.
    fn of(states: impl Iterator<Item = ContainerState>) -> Self {
        let (mut all, mut running, mut paused, mut exited) = (0, 0, 0, 0);
        for state in states {
            all += 1;
            match state {
                ContainerState::Running => running += 1,
                ContainerState::Paused => paused += 1,
                ContainerState::Exited => exited += 1,
                ContainerState::Creating | ContainerState::Created => {}
            }
        }
        match all {
            0 => Self::Created,
            _ if running == all => Self::Running,
            _ if running > 0 => Self::Degraded,
            _ if paused == all => Self::Paused,
            _ if exited == all => Self::Exited,
            _ if exited > 0 => Self::Stopped,
            _ => Self::Created,
        }
    }
}

impl fmt::Display for PodState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for PodState {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [
            Self::Created,
            Self::Running,
            Self::Degraded,
            Self::Paused,
            Self::Stopped,
            Self::Exited,
        ];
        all.into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| {
                let words: Vec<_> = all.iter().map(|state| state.as_str()).collect();
                Error::new(
                    ErrorKind::InvalidArgument,
                    format!("{text:?} is no state of a pod: {}", words.join(", ")),
                )
            })
    }
}

/// What is known of a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// Its id.
    pub id: String,
    /// Its name; empty: it has none.
    pub name: String,
    /// Id of the pod that it is in.
    pub pod: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Where its output is logged.
    pub log_path: Option<PathBuf>,
    /// Its process has a terminal.
    pub terminal: bool,
    /// State.
    pub state: ContainerState,
    /// When it was created.
    pub created: SystemTime,
    /// When it was started.
    pub started: Option<SystemTime>,
    /// How and when its process ended.
    pub exit: Option<ExitStatus>,
    /// The signal that asks it to end.
    pub stop_signal: u32,
    /// How long it has to do so, where its caller does not say.
    pub stop_timeout: Duration,
}

impl ContainerInfo {
    /// It executes. The news may come after those of its end.
    pub(super) fn start(&mut self, at: SystemTime) -> Result<()> {
        match self.state {
            ContainerState::Created => self.state = ContainerState::Running,
            ContainerState::Exited if self.started.is_none() => {}
            state => return Err(self.refused("started", state)),
        }
        self.started = Some(at);
        Ok(())
    }

    /// Its processes are frozen.
    pub(super) fn pause(&mut self) -> Result<()> {
        self.change("paused", ContainerState::Running, ContainerState::Paused)
    }

    /// They are thawed.
    pub(super) fn resume(&mut self) -> Result<()> {
        self.change("resumed", ContainerState::Paused, ContainerState::Running)
    }

    /// Its process has ended. Only the first news counts.
    pub(super) fn end(&mut self, exit: ExitStatus) {
        if self.exit.is_none() {
            self.exit = Some(exit);
            self.state = ContainerState::Exited;
        }
    }

    fn change(&mut self, done: &str, from: ContainerState, to: ContainerState) -> Result<()> {
        match self.state {
            state if state == from => {
                self.state = to;
                Ok(())
            }
            // The end has overtaken it.
            ContainerState::Exited => Ok(()),
            state => Err(self.refused(done, state)),
        }
    }

    fn refused(&self, done: &str, state: ContainerState) -> Error {
        Error::new(
            ErrorKind::FailedPrecondition,
            format!("container {} cannot be {done}: it is {state}", self.id),
        )
    }

    /// Whether it has to be stopped before it can be removed.
    pub fn is_alive(&self) -> bool {
        matches!(self.state, ContainerState::Running | ContainerState::Paused)
    }
}

/// What is known of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// Of what is written.
    pub(super) version: u32,
    /// Its id.
    pub id: String,
    /// Its name; empty: it has none.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// When it was created.
    pub created: SystemTime,
    /// Pid of the process that owns it: the virtual machine lives and dies with that.
    pub owner: u32,
    /// Pid of the virtual machine monitor, in the pod's network namespace.
    pub pid: u32,
    /// It was made for its one container, and goes with it.
    pub is_alone: bool,
    /// It is there. Before, only its id is taken.
    pub(super) is_ready: bool,
    /// Why its virtual machine is gone, if it is.
    pub ended: Option<String>,
    /// Its containers, by id.
    pub containers: BTreeMap<String, ContainerInfo>,
}

impl PodInfo {
    /// State.
    pub fn state(&self) -> PodState {
        PodState::of(self.shown().map(|container| container.state))
    }

    /// Containers that are there.
    pub(super) fn shown(&self) -> impl Iterator<Item = &ContainerInfo> {
        self.containers
            .values()
            .filter(|container| container.state != ContainerState::Creating)
    }

    /// Its virtual machine is gone, and with it every process of which nothing else is known.
    pub(super) fn end(&mut self, why: &str, at: SystemTime) {
        if self.ended.is_none() {
            self.ended = Some(why.to_owned());
        }
        self.containers
            .retain(|_, container| container.state != ContainerState::Creating);
        for container in self.containers.values_mut() {
            container.end(ExitStatus {
                code: UNKNOWN,
                at,
                oom: false,
            });
        }
    }

    /// Those that keep it from being removed without force.
    pub(super) fn alive(&self) -> Vec<&str> {
        self.containers
            .values()
            .filter(|container| container.is_alive())
            .map(|container| container.id.as_str())
            .collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    const AT: SystemTime = SystemTime::UNIX_EPOCH;

    pub(in crate::engine) fn container(id: &str, state: ContainerState) -> ContainerInfo {
        ContainerInfo {
            id: id.into(),
            name: String::new(),
            pod: "p".into(),
            labels: BTreeMap::new(),
            bundle: "/b".into(),
            log_path: None,
            terminal: false,
            state,
            created: AT,
            started: None,
            exit: None,
            stop_signal: 15,
            stop_timeout: Duration::from_secs(10),
        }
    }

    pub(in crate::engine) fn pod(id: &str, containers: Vec<ContainerInfo>) -> PodInfo {
        PodInfo {
            version: VERSION,
            id: id.into(),
            name: String::new(),
            labels: BTreeMap::new(),
            created: AT,
            owner: 1,
            pid: 2,
            is_alone: false,
            is_ready: true,
            ended: None,
            containers: containers.into_iter().map(|one| (one.id.clone(), one)).collect(),
        }
    }

    fn exit(code: u32) -> ExitStatus {
        ExitStatus {
            code,
            at: AT,
            oom: false,
        }
    }

    #[test]
    fn a_pods_state_is_what_its_containers_come_to() {
        use ContainerState::{Created, Creating, Exited, Paused, Running};
        for (states, expected) in [
            (&[][..], PodState::Created),
            (&[Created], PodState::Created),
            (&[Created, Created], PodState::Created),
            (&[Creating, Running], PodState::Running),
            (&[Running, Running], PodState::Running),
            (&[Running, Exited], PodState::Degraded),
            (&[Running, Created], PodState::Degraded),
            (&[Running, Paused], PodState::Degraded),
            (&[Paused, Paused], PodState::Paused),
            (&[Exited, Exited], PodState::Exited),
            (&[Exited, Created], PodState::Stopped),
            (&[Exited, Paused], PodState::Stopped),
            (&[Paused, Created], PodState::Created),
        ] {
            let containers = states.iter().enumerate();
            let containers = containers
                .map(|(n, state)| container(&n.to_string(), *state))
                .collect();
            assert_eq!(pod("p", containers).state(), expected, "{states:?}");
        }
    }

    #[test]
    fn the_news_of_an_end_may_overtake_those_of_a_start() {
        let mut one = container("c", ContainerState::Created);
        one.end(exit(3));
        one.start(AT).unwrap();
        assert_eq!((one.state, one.started), (ContainerState::Exited, Some(AT)));
        one.pause().unwrap();
        assert_eq!(one.exit.unwrap().code, 3);
        let error = one.start(AT).unwrap_err();
        assert_eq!(error.kind, ErrorKind::FailedPrecondition);
        assert!(
            error
                .context
                .contains("container c cannot be started: it is exited"),
            "{error}"
        );
    }

    #[test]
    fn a_dead_owner_leaves_what_is_known_and_nothing_half_made() {
        let mut left = pod(
            "p",
            vec![
                container("half", ContainerState::Creating),
                container("ran", ContainerState::Running),
            ],
        );
        let mut done = container("done", ContainerState::Running);
        done.end(exit(0));
        left.containers.insert("done".into(), done);
        left.end("its owner is dead", AT);
        let codes: Vec<_> = left
            .shown()
            .map(|one| (one.id.as_str(), one.exit.unwrap().code))
            .collect();
        assert_eq!(codes, [("done", 0), ("ran", UNKNOWN)]);
        assert!(left.alive().is_empty());
        left.end("something else", AT);
        assert_eq!(left.ended.as_deref(), Some("its owner is dead"));
    }

    #[test]
    fn states_are_read_as_they_are_written() {
        for state in ["created", "running", "paused", "exited"] {
            assert_eq!(state.parse::<ContainerState>().unwrap().as_str(), state);
        }
        assert_eq!(
            "stopped".parse::<ContainerState>().unwrap(),
            ContainerState::Exited
        );
        for wrong in ["creating", "", "Running"] {
            let error = wrong.parse::<ContainerState>().unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
        assert_eq!("degraded".parse::<PodState>().unwrap(), PodState::Degraded);
        assert!("dead".parse::<PodState>().is_err());
    }

    proptest! {
        #[test]
        fn an_end_is_final_and_told_once(steps in prop::collection::vec(0..4u8, 0..24)) {
            let mut one = container("c", ContainerState::Created);
            let mut first = None;
            for (n, step) in steps.into_iter().enumerate() {
                let _ = match step {
                    0 => one.start(AT),
                    1 => one.pause(),
                    2 => one.resume(),
                    _ => {
                        first.get_or_insert(n as u32);
                        one.end(exit(n as u32));
                        Ok(())
                    }
                };
                prop_assert_eq!(one.exit.map(|exit| exit.code), first);
                prop_assert_eq!(one.state == ContainerState::Exited, first.is_some());
            }
        }
    }
}

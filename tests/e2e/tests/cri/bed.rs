//! What a case is given: a pod that it shares with the other cases of its chapter, or one of its own.

use std::sync::Arc;

use anyhow::{Result, anyhow};

use crate::left::Left;
use crate::pod::{Pod, PodSpec};
use crate::suite::Runtime;
use crate::world::World;

/// What a case is given.
pub struct Bed {
    /// What all cases live in.
    pub world: Arc<World>,
    /// What there is when there is no pod.
    empty: Left,
    runtime: Runtime,
    /// The chapter's pod, or why it can't be had: then each case of the chapter fails at once.
    shared: Option<(&'static str, Result<Arc<Pod>, String>)>,
}

impl Bed {
    /// The first pod of a network makes what stays: the bridge, chains of rules, a list of addresses. So one is run first.
    pub fn new(world: Arc<World>) -> Result<Self> {
        Pod::run(&world, Runtime::Runc, PodSpec::new("first").port(80, 7080))?.remove()?;
        Ok(Self {
            empty: Left::take(&world)?,
            world,
            runtime: Runtime::Runc,
            shared: None,
        })
    }

    /// Prepares for a case of this runtime.
    pub fn turn_to(&mut self, runtime: Runtime) {
        if self.runtime != runtime {
            // It is the other one's, which no case of a run of few has cleared away.
            self.shared = None;
        }
        self.runtime = runtime;
    }

    /// What runs the case's pods.
    pub fn runtime(&self) -> Runtime {
        self.runtime
    }

    /// The pod of this name. It is started when it is first asked for, and ends when another one is.
    pub fn shared(&mut self, name: &'static str, spec: impl FnOnce(PodSpec) -> PodSpec) -> Result<Arc<Pod>> {
        if self.shared.as_ref().is_none_or(|(known, _)| *known != name) {
            self.shared = None;
            let pod = self.fresh(spec(PodSpec::new(name)));
            let pod = pod.map(Arc::new).map_err(|error| format!("{error:#}"));
            self.shared = Some((name, pod));
        }
        match &self.shared {
            Some((_, Ok(pod))) => Ok(Arc::clone(pod)),
            Some((_, Err(error))) => Err(anyhow!("the chapter's pod: {error}")),
            None => Err(anyhow!("there is no pod")),
        }
    }

    /// A pod of the case's own.
    pub fn fresh(&self, spec: PodSpec) -> Result<Pod> {
        Pod::run(&self.world, self.runtime, spec)
    }

    /// Forgets the shared pod: a case has failed, and what it left must not fail the next one.
    pub fn give_up(&mut self) {
        if matches!(self.shared, Some((_, Ok(_)))) {
            self.shared = None;
        }
    }

    /// Removes the shared pod, and checks that nothing is left.
    pub fn clear(&mut self) -> Result<()> {
        if let Some((_, Ok(pod))) = self.shared.take() {
            pod.remove()?;
        }
        self.nothing_left()
    }

    /// Waits until there is nothing that was not there before the first case.
    pub fn nothing_left(&mut self) -> Result<()> {
        self.empty.wait(&self.world, &[])
    }

    /// The same, but for what others leave, which has one of these words.
    pub fn nothing_left_but(&mut self, words: &[&str]) -> Result<()> {
        self.empty.wait(&self.world, words)
    }
}

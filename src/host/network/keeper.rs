//! The owner of a network: a task, so that what was begun is finished, or undone, whoever gives up waiting for it; and so that the
//! sandbox may look for new interfaces while the host's side is somebody else's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use agent_protocol as p;
use hypervisor::Device;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

use super::Attached;
use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Appeared;
use crate::store::NetworkRecord;

type Reply<T> = oneshot::Sender<Result<T>>;

enum Command {
    Connect {
        localhost: bool,
        reply: Reply<Connected>,
    },
    LookAgain(Reply<Appeared>),
    Release(Reply<()>),
    #[cfg(test)]
    Die(Reply<()>),
}

/// What a sandbox begins with.
#[derive(Debug)]
pub(crate) struct Connected {
    /// The network cards of the virtual machine, in the order of the interfaces.
    pub(crate) devices: Vec<Device>,
    /// What the guest is to be told.
    pub(crate) guest: p::Network,
    /// What it is not told, because it cannot be: one text for each route.
    pub(crate) left_out: Vec<String>,
    /// What is needed to undo it without us.
    pub(crate) record: Option<NetworkRecord>,
    /// Accept connections to localhost in the namespace; or why there are none.
    pub(crate) localhost: Result<Vec<TcpListener>>,
}

/// Handle to the owner. When the last one is dropped, everything is given back.
#[derive(Debug, Clone)]
pub(crate) struct Keeper {
    namespace: Arc<OwnedFd>,
    commands: mpsc::Sender<Command>,
}

impl Keeper {
    /// Gives a network to an owner. Needs a Tokio runtime.
    pub(crate) fn start(mut network: Attached) -> Self {
        let (commands, mut asked) = mpsc::channel(1);
        let namespace = network.namespace.descriptor();
        tokio::spawn(async move {
            while let Some(command) = asked.recv().await {
                // Nobody may wait for an answer any more.
                match command {
                    Command::Connect { localhost, reply } => {
                        drop(reply.send(network.begin(localhost).await));
                    }
                    Command::LookAgain(reply) => drop(reply.send(network.look_again().await)),
                    Command::Release(reply) => drop(reply.send(network.release().await)),
                    #[cfg(test)]
                    Command::Die(reply) => {
                        network.die();
                        drop(reply.send(Ok(())));
                        return;
                    }
                }
            }
        });
        Self { namespace, commands }
    }

    /// The namespace, for processes that are to be in it.
    pub(crate) fn namespace(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.namespace)
    }

    /// See [`Attached::connect`] and, with `localhost`, [`Attached::listen`].
    pub(crate) async fn connect(&self, localhost: bool) -> Result<Connected> {
        self.ask(|reply| Command::Connect { localhost, reply }).await
    }

    /// See [`Attached::look_again`].
    pub(crate) async fn look_again(&self) -> Result<Appeared> {
        self.ask(Command::LookAgain).await
    }

    /// See [`Attached::release`].
    pub(crate) async fn release(&self) -> Result<()> {
        self.ask(Command::Release).await
    }

    /// See [`Attached::die`].
    #[cfg(test)]
    pub(in crate::host) async fn die(self) {
        drop(self.ask(Command::Die).await);
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let gone = || Error::new(ErrorKind::Internal, "the network's task has ended");
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

impl Attached {
    async fn begin(&mut self, localhost: bool) -> Result<Connected> {
        self.connect().await?;
        Ok(Connected {
            localhost: match localhost {
                true => self.listen().await,
                false => Ok(Vec::new()),
            },
            devices: self.devices(),
            guest: self.guest().clone(),
            left_out: self.left_out().to_vec(),
            record: self.record(),
        })
    }
}

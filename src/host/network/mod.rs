//! A pod's network, from its namespace on the host to the virtual machine: what is in the namespace is read, every interface
//! is connected to a tap of the machine's, and what the guest is to be told follows from what was read. All of it is undone
//! by [`Attached::release`], and by [`clean_up_dead`] from a record alone.
//!
//! The namespace's own interfaces keep their names, addresses and routes: whoever made them finds them as they were.
//! It must not know the guest beyond the messages of the protocol, nor any hypervisor driver.

mod bpf;
mod connect;
mod keeper;
mod localhost;
mod namespace;
mod scan;
mod sys;
mod tap;
#[cfg(test)]
pub(super) mod tests;
mod view;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use agent_protocol as p;
use hypervisor::Device;
use netlink::Socket;
use tokio::net::TcpListener;

use connect::Connection;
pub(crate) use connect::Model;
pub(crate) use keeper::Keeper;
use localhost::Steering;
use namespace::Namespace;
use view::Known;

use crate::error::{Error, ErrorKind, Result};
use crate::sandbox::Appeared;
use crate::store::NetworkRecord;

/// A network namespace whose interfaces are the virtual machine's.
#[derive(Debug)]
pub(crate) struct Attached {
    namespace: Namespace,
    model: Option<Model>,
    queues: u32,
    connections: Vec<Connection>,
    known: Known,
    /// Of those that were connected first, until they are asked for.
    cards: Vec<Device>,
    guest: p::Network,
    left_out: Vec<String>,
    steering: Option<Steering>,
}

impl Attached {
    /// Takes hold of the namespace at this path, or makes one with nothing but a loopback device. Nothing is connected yet, and
    /// without a model nothing will be. `queues` is for each interface, at most as many as the machine has processors.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] when there is no such namespace, [`ErrorKind::InvalidArgument`] when the path is something
    /// else or the host's own.
    pub(crate) async fn hold(namespace: Option<&Path>, model: Option<Model>, queues: u32) -> Result<Self> {
        let namespace = match namespace {
            Some(path) => Namespace::open(path)?,
            None => Namespace::create().await?,
        };
        Ok(Self::of(namespace, model, queues))
    }

    /// The same with a new namespace that is there already: [`apart`] has made it.
    ///
    /// # Errors
    /// It cannot be examined.
    pub(crate) fn hold_new(namespace: Arc<OwnedFd>, model: Option<Model>, queues: u32) -> Result<Self> {
        Ok(Self::of(Namespace::given(namespace)?, model, queues))
    }

    fn of(namespace: Namespace, model: Option<Model>, queues: u32) -> Self {
        Self {
            namespace,
            model,
            queues: queues.clamp(1, connect::MAX_QUEUES),
            connections: Vec::new(),
            known: Known::default(),
            cards: Vec::new(),
            guest: p::Network::default(),
            left_out: Vec::new(),
            steering: None,
        }
    }

    /// Listens for connections to localhost in the namespace, on every port, which are the guest's. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] when the host's kernel cannot.
    pub(crate) async fn listen(&mut self) -> Result<Vec<TcpListener>> {
        let namespace = self.namespace.descriptor();
        let listen = move || localhost::listen_on_all(&*namespace).map_err(no_forwarding);
        let (listeners, steering) = self.namespace.run(listen, drop).await?;
        self.steering = Some(steering);
        let listeners = listeners.into_iter().map(TcpListener::from_std);
        listeners.collect::<Result<_, _>>().map_err(no_forwarding)
    }

    /// Connects every interface of the namespace.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for an interface that cannot be connected, [`ErrorKind::FailedPrecondition`] when another
    /// machine is. Nothing is connected then, nor when the caller gives up waiting.
    pub(crate) async fn connect(&mut self) -> Result<()> {
        let Appeared {
            devices,
            guest,
            left_out,
        } = self.look_again().await?;
        (self.cards, self.guest, self.left_out) = (devices, guest, left_out);
        Ok(())
    }

    /// The network cards of the virtual machine, in the order of the interfaces. Once.
    pub(crate) fn devices(&mut self) -> Vec<Device> {
        std::mem::take(&mut self.cards)
    }

    /// What the guest is to be told.
    pub(crate) fn guest(&self) -> &p::Network {
        &self.guest
    }

    /// What the guest is not told, because it cannot be: one text for each route or rule.
    pub(crate) fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// What is needed to undo it without us. `None`: nothing, because a namespace that we made goes with us.
    pub(crate) fn record(&self) -> Option<NetworkRecord> {
        let mut record = self.namespace.record()?;
        for connection in &self.connections {
            connection.add_to(&mut record);
        }
        Some(record)
    }

    /// Connects what has appeared in the namespace since the last look.
    ///
    /// # Errors
    /// As [`Attached::connect`]; what was connected before stays.
    pub(crate) async fn look_again(&mut self) -> Result<Appeared> {
        let Some(model) = self.model else {
            return Ok(Appeared::default());
        };
        let known = self.known.clone();
        let queues = self.queues;
        let look = move || {
            let mut kernel = open()?;
            let view = view::of(&scan::read(&mut kernel)?, &known)?;
            let made = connect::all(&mut kernel, &view.interfaces, model, queues)?;
            Ok((view, made))
        };
        let unwanted = |(_, made): (view::View, Vec<Connection>)| {
            if let Ok(mut kernel) = Socket::open() {
                let _ = connect::undo(&mut kernel, made);
            }
        };
        let (view, mut made) = self
            .namespace
            .run(look, unwanted)
            .await
            .map_err(|error| error.while_doing(&self.namespace))?;
        let devices = made.iter_mut().map(Connection::device).collect();
        let own = made.iter().filter_map(Connection::own);
        self.known.own.extend(own);
        let connected = view.interfaces.into_iter().map(|one| (one.index, one.name));
        self.known.connected.extend(connected);
        self.known.routes.extend_from_slice(&view.guest.routes);
        self.connections.extend(made);
        Ok(Appeared {
            devices,
            guest: view.guest,
            left_out: view.left_out,
        })
    }

    /// Gives the namespace's interfaces back. A namespace that is gone took everything with it. Idempotent.
    ///
    /// # Errors
    /// The first thing that cannot be undone; the rest is.
    pub(crate) async fn release(&mut self) -> Result<()> {
        self.steering = None;
        let connections = std::mem::take(&mut self.connections);
        if connections.is_empty() {
            // What somebody has given up on is being undone.
            return self.namespace.settled().await;
        }
        let undo = move || connect::undo(&mut open()?, connections);
        self.namespace.run(undo, drop).await
    }
}

/// Without a release, as when the runtime itself is torn down.
impl Drop for Attached {
    fn drop(&mut self) {
        let connections = std::mem::take(&mut self.connections);
        if !connections.is_empty() {
            // Nobody is left to tell of a failure.
            let _ = self
                .namespace
                .run_now(move || connect::undo(&mut open()?, connections));
        }
    }
}

/// Makes a namespace with nothing but a loopback device, for a virtual machine whose pod is not known yet.
///
/// # Errors
/// The kernel's.
pub(crate) async fn apart() -> Result<Arc<OwnedFd>> {
    Ok(Namespace::create().await?.descriptor())
}

/// Undoes what a dead owner has left in a namespace, if that is still there.
///
/// # Errors
/// What cannot be undone.
pub(crate) async fn clean_up_dead(record: &NetworkRecord) -> Result<()> {
    let Some(namespace) = Namespace::of(record)? else {
        return Ok(());
    };
    let record = record.clone();
    let undo = move || connect::undo_recorded(&mut open()?, &record);
    namespace.run(undo, drop).await
}

fn no_forwarding(cause: std::io::Error) -> Error {
    Error::caused(
        ErrorKind::Unsupported,
        "the host's kernel cannot give the guest the connections to the pod's localhost (that needs Linux 5.9, and BPF)",
        cause,
    )
}

/// A socket to the network namespace of this thread.
fn open() -> Result<Socket> {
    Socket::open().map_err(refused("open a socket to the kernel's rtnetlink"))
}

/// What to make of a request that the kernel refuses.
fn refused(what: impl std::fmt::Display) -> impl FnOnce(netlink::Error) -> Error {
    let context = format!("cannot {what}");
    move |cause| Error::caused(ErrorKind::Internal, context, cause)
}

//! Interfaces of the calling thread's network namespace, connected to taps, and disconnected again.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use configuration::NetworkModel;
use hypervisor::Device;
use netlink::{LinkChange, Mac, Macvtap, Socket};

use super::refused;
use super::tap;
use super::view::{Interface, Way};
use crate::error::{Error, ErrorKind, Result};
use crate::store::NetworkRecord;

/// Queues of one interface: more cost memory, and a guest with more processors has other bottlenecks.
pub(super) const MAX_QUEUES: u32 = 16;

/// How interfaces are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    /// Traffic control sends what the interface receives to a tap, and what the tap receives to the interface.
    TcFilter,
    /// A macvtap takes everything that the interface receives.
    Macvtap,
}

impl Model {
    /// The one that the administrator prefers. `None`: none at all.
    pub(crate) fn of(model: NetworkModel) -> Option<Self> {
        match model {
            NetworkModel::TcFilter => Some(Self::TcFilter),
            NetworkModel::Macvtap => Some(Self::Macvtap),
            NetworkModel::None => None,
        }
    }
}

/// An interface that is connected.
#[derive(Debug)]
pub(super) struct Connection {
    /// Number of the interface's link.
    link: u32,
    mac: Mac,
    taps: Vec<Arc<OwnedFd>>,
    undo: Undo,
}

/// What is to be undone. A tap of ours goes with its descriptors; but a process that is just being started may hold a copy of
/// them for a moment, and a VMM that is being killed for longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    Nothing,
    /// Of the link, and the number of its tap.
    Redirection {
        tap: u32,
    },
    /// The number of a macvtap.
    Macvtap(u32),
}

impl Connection {
    /// The machine's network card, once: its taps are the machine's then, because some monitors open them by name, which nobody
    /// else may have done.
    pub(super) fn device(&mut self) -> Device {
        Device::Net {
            id: self.link.to_string(),
            taps: std::mem::take(&mut self.taps),
            mac: self.mac.to_string(),
        }
    }

    /// Number of the link that is our own.
    pub(super) fn own(&self) -> Option<u32> {
        match self.undo {
            Undo::Nothing => None,
            Undo::Redirection { tap } | Undo::Macvtap(tap) => Some(tap),
        }
    }

    /// Adds what is to be undone.
    pub(super) fn add_to(&self, record: &mut NetworkRecord) {
        match self.undo {
            Undo::Nothing => {}
            Undo::Redirection { tap } => {
                record.redirected.push(self.link);
                record.made.push(tap);
            }
            Undo::Macvtap(index) => record.made.push(index),
        }
    }
}

/// Connects them all, or none.
pub(super) fn all(
    kernel: &mut Socket,
    interfaces: &[Interface],
    model: Model,
    queues: u32,
) -> Result<Vec<Connection>> {
    let mut made = Vec::with_capacity(interfaces.len());
    for interface in interfaces {
        let connected = match (interface.way, model) {
            (Way::Itself { multi_queue }, _) => itself(interface, multi_queue, queues),
            (Way::Filters, _) | (Way::Model, Model::TcFilter) => filtered(kernel, interface, queues),
            (Way::Model, Model::Macvtap) => macvtap(kernel, interface, queues),
        };
        match connected {
            Ok(connection) => made.push(connection),
            Err(mut error) => {
                if let Err(second) = undo(kernel, made) {
                    error = error.and(&second);
                }
                return Err(error.while_doing(format!("interface {}", interface.name)));
            }
        }
    }
    Ok(made)
}

/// The name of our own device beside an interface's: at most 14 bytes of the 15 that there are.
fn name_beside(interface: &Interface) -> String {
    format!("kata{}", interface.index)
}

fn connection(interface: &Interface, taps: Vec<OwnedFd>, undo: Undo) -> Connection {
    Connection {
        link: interface.index,
        mac: interface.mac,
        taps: taps.into_iter().map(Arc::new).collect(),
        undo,
    }
}

fn itself(interface: &Interface, multi_queue: bool, queues: u32) -> Result<Connection> {
    let taps = tap::open_existing(&interface.name, queues, multi_queue).map_err(|cause| {
        Error::caused(
            ErrorKind::FailedPrecondition,
            "it is a tap, and cannot be opened for the virtual machine",
            cause,
        )
    })?;
    Ok(connection(interface, taps, Undo::Nothing))
}

fn filtered(kernel: &mut Socket, interface: &Interface, queues: u32) -> Result<Connection> {
    let name = name_beside(interface);
    let taps = tap::make(&name, queues).map_err(|cause| no_tap(&name, cause))?;
    let tap = index_of(kernel, &name)?;
    set_up(kernel, tap, interface.mtu)?;
    kernel
        .add_ingress(tap)
        .and_then(|()| kernel.redirect(tap, interface.index))
        .map_err(no_traffic_control)?;
    match kernel.add_ingress(interface.index) {
        // A live machine's tap would have been in the way before; this one's owner is dead.
        Err(error) if error.number == libc::EEXIST => kernel
            .remove_ingress(interface.index)
            .and_then(|()| kernel.add_ingress(interface.index)),
        result => result,
    }
    .map_err(no_traffic_control)?;
    let connection = connection(interface, taps, Undo::Redirection { tap });
    if let Err(cause) = kernel.redirect(interface.index, tap) {
        let mut error = no_traffic_control(cause);
        if let Err(second) = undo(kernel, vec![connection]) {
            error = error.and(&second);
        }
        return Err(error);
    }
    Ok(connection)
}

fn macvtap(kernel: &mut Socket, interface: &Interface, queues: u32) -> Result<Connection> {
    let name = name_beside(interface);
    let wanted = Macvtap {
        name: &name,
        parent: interface.index,
        mtu: interface.mtu,
    };
    kernel.add_macvtap(&wanted).map_err(|cause| {
        let (kind, why) = match cause.number {
            libc::EEXIST | libc::EBUSY | libc::EINVAL => (
                ErrorKind::FailedPrecondition,
                "another virtual machine is connected, or was and left it behind",
            ),
            libc::EOPNOTSUPP | libc::ENOENT => (
                ErrorKind::Unsupported,
                "the host's kernel has no macvtap (load the module macvtap), or use internetworking_model = \"tcfilter\"",
            ),
            _ => (ErrorKind::Internal, "the kernel refuses"),
        };
        Error::caused(kind, format!("cannot make the macvtap {name}: {why}"), cause)
    })?;
    let mut open = || {
        let index = index_of(kernel, &name)?;
        set_up(kernel, index, interface.mtu)?;
        let taps = tap::open_macvtap(&name, index, queues).map_err(|cause| no_tap(&name, cause))?;
        Ok((taps, index))
    };
    match open() {
        Ok((taps, index)) => Ok(connection(interface, taps, Undo::Macvtap(index))),
        Err(mut error) => {
            let removed = index_of(kernel, &name).and_then(|index| remove(kernel, index));
            if let Err(second) = removed {
                error = Error::and(error, &second);
            }
            Err(error)
        }
    }
}

fn index_of(kernel: &mut Socket, name: &str) -> Result<u32> {
    let links = kernel.links().map_err(refused("list interfaces"))?;
    links
        .iter()
        .find(|link| link.name == name)
        .map(|link| link.index)
        .ok_or_else(|| Error::new(ErrorKind::Internal, format!("{name} vanished when it was made")))
}

/// Brings up a device of ours, which says nothing by itself.
fn set_up(kernel: &mut Socket, index: u32, mtu: u32) -> Result<()> {
    let change = LinkChange {
        mtu: Some(mtu),
        up: Some(true),
        no_link_local: true,
        ..LinkChange::default()
    };
    kernel
        .change_link(index, &change)
        .map_err(refused(format!("bring up a tap with an MTU of {mtu} bytes")))
}

fn no_tap(name: &str, cause: io::Error) -> Error {
    let (kind, why) = match cause.raw_os_error() {
        Some(libc::EBUSY | libc::EINVAL) => (
            ErrorKind::FailedPrecondition,
            "another virtual machine is connected to it already",
        ),
        _ => (ErrorKind::Internal, "is /dev/net/tun there (the module tun)?"),
    };
    Error::caused(kind, format!("cannot make the tap {name}: {why}"), cause)
}

fn no_traffic_control(cause: netlink::Error) -> Error {
    let (kind, why) = match cause.number {
        libc::ENOENT | libc::EOPNOTSUPP => (
            ErrorKind::Unsupported,
            "the host's kernel lacks one of sch_ingress, cls_u32 and act_mirred; load them, or use internetworking_model = \
             \"macvtap\"",
        ),
        _ => (ErrorKind::Internal, "the kernel refuses"),
    };
    Error::caused(kind, format!("cannot redirect frames to a tap: {why}"), cause)
}

/// Disconnects them. Goes on after an error and answers with the first; what is gone is success.
pub(super) fn undo(kernel: &mut Socket, connections: Vec<Connection>) -> Result<()> {
    let mut result = Ok(());
    for connection in connections.into_iter().rev() {
        result = result.and(match connection.undo {
            Undo::Nothing => Ok(()),
            Undo::Redirection { tap } => unredirect(kernel, connection.link).and(remove(kernel, tap)),
            Undo::Macvtap(index) => remove(kernel, index),
        });
    }
    result
}

/// Undoes what a record tells of.
pub(super) fn undo_recorded(kernel: &mut Socket, record: &NetworkRecord) -> Result<()> {
    let mut result = Ok(());
    for link in &record.redirected {
        result = result.and(unredirect(kernel, *link));
    }
    for link in &record.made {
        result = result.and(remove(kernel, *link));
    }
    result
}

fn unredirect(kernel: &mut Socket, link: u32) -> Result<()> {
    match kernel.remove_ingress(link) {
        // Without the interface, or with none of its queueing disciplines.
        Err(error) if [libc::ENODEV, libc::EINVAL, libc::ENOENT].contains(&error.number) => Ok(()),
        result => result.map_err(refused("give an interface its frames back")),
    }
}

fn remove(kernel: &mut Socket, link: u32) -> Result<()> {
    match kernel.remove_link(link) {
        Err(error) if error.number == libc::ENODEV => Ok(()),
        result => result.map_err(refused("remove a tap")),
    }
}

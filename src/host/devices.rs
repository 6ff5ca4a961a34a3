//! The devices that a virtual machine begins with, and the daemons behind them: the byte stream to its agent, and the
//! share.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use agent_client::{Channel, Listener};
use agent_protocol as p;
use hypervisor::{Device, SerialPort, VirtioFs, Vsock};
use rustix::process::{Resource, getrlimit};
use slog::Logger;
use tokio::time::timeout;

use super::daemon::{Daemon, Place};
use super::ready::Awaited;
use crate::deadlines;
use crate::error::{Error, ErrorKind, Result};
use crate::guest::{self, LOCAL_CID, SHARE_TAG, serial_channel};
use crate::model::ChannelPlan;

/// The agent's socket, where it comes over a serial port.
const AGENT_SOCKET: &str = "agent.sock";
/// Base of the sockets behind which guest ports are.
const VSOCK: &str = "vsock";
/// Socket of the daemon that serves vsock.
const VHOST_SOCKET: &str = "vhost.sock";
/// Socket of virtiofsd.
const FS_SOCKET: &str = "fs.sock";

/// Attempts to find a free port.
const PORTS: usize = 16;

/// Files that virtiofsd may have open at once, as it would ask for by itself.
const MAX_FILES: u64 = 1_000_000;

/// The host's end of the channel to the agent.
pub(super) struct Agents {
    pub(super) listener: Listener,
    pub(super) device: Device,
    /// What tells the guest where to dial.
    pub(super) kernel_param: String,
}

/// A channel without a daemon, or the part of one that comes before it.
pub(super) fn listen(dir: &Path, plan: &ChannelPlan) -> Result<Agents> {
    match plan {
        ChannelPlan::HybridVsock => {
            let uds = dir.join(VSOCK);
            Ok(Agents {
                listener: Listener::bind(&Channel::HybridVsock { uds: uds.clone() })?,
                device: Device::Vsock(Vsock::Hybrid { cid: LOCAL_CID, uds }),
                kernel_param: guest::vsock_channel(),
            })
        }
        ChannelPlan::KernelVsock => kernel_vsock(),
        ChannelPlan::DaemonVsock(_) => {
            let uds = dir.join(VSOCK);
            Ok(Agents {
                listener: Listener::bind(&Channel::HybridVsock { uds })?,
                device: Device::Vsock(Vsock::VhostUser {
                    socket: dir.join(VHOST_SOCKET),
                }),
                kernel_param: guest::vsock_channel(),
            })
        }
        ChannelPlan::Serial => {
            let socket = dir.join(AGENT_SOCKET);
            Ok(Agents {
                listener: Listener::bind(&Channel::Unix { path: socket.clone() })?,
                device: serial_port(&socket),
                kernel_param: serial_channel(),
            })
        }
    }
}

/// The port over which an agent comes to this socket.
pub(crate) fn serial_port(socket: &Path) -> Device {
    Device::SerialPort(SerialPort {
        name: p::SERIAL_PORT_NAME.to_owned(),
        socket: socket.to_owned(),
    })
}

/// Ports and CIDs are the whole host's: both are drawn. Nobody can say whether a CID is free but the VMM, which fails if it
/// is not; of four thousand million, one that is drawn is.
fn kernel_vsock() -> Result<Agents> {
    let cid = random()?.clamp(LOCAL_CID, u32::MAX - 1);
    let mut refused = None;
    for _ in 0..PORTS {
        // Ports below are for those who have a right to them.
        let port = random()?.clamp(1024, u32::MAX - 1);
        match Listener::bind(&Channel::Vsock { port, cid }) {
            Ok(listener) => {
                return Ok(Agents {
                    listener,
                    device: Device::Vsock(Vsock::Kernel { cid }),
                    kernel_param: format!("{}=vsock:{port}", p::CHANNEL_PARAM),
                });
            }
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.map_or_else(
        || Error::new(ErrorKind::Internal, "there is no free vsock port"),
        Error::from,
    ))
}

fn random() -> Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|cause| Error::caused(ErrorKind::Internal, "the kernel gives no randomness", cause))?;
    Ok(u32::from_ne_bytes(bytes))
}

/// Starts the daemon that serves vsock, and waits until the VMM can connect to it.
pub(super) async fn vsock_daemon(program: &Path, dir: &Path, place: &Place, log: &Logger) -> Result<Daemon> {
    const NAME: &str = "vhost-device-vsock";
    let failed = |cause: io::Error| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot watch {}", dir.join(VHOST_SOCKET).display()),
            cause,
        )
    };
    let mut vm = OsString::from(format!("guest-cid={LOCAL_CID},socket="));
    vm.push(dir.join(VHOST_SOCKET));
    vm.push(",uds-path=");
    vm.push(dir.join(VSOCK));
    let awaited = Awaited::new(dir, VHOST_SOCKET).map_err(failed)?;
    let daemon = Daemon::start(NAME, program, vec!["--vm".into(), vm], Vec::new(), place, log).await?;
    let ready = async {
        tokio::select! {
            listens = awaited.listens() => listens.map_err(failed),
            news = daemon.ended() => Err(Error::new(ErrorKind::Unavailable, news)),
        }
    };
    match timeout(deadlines::DAEMON_READY, ready).await {
        Ok(ready) => ready.map(|()| daemon),
        Err(_) => Err(Error::new(
            ErrorKind::DeadlineExceeded,
            format!(
                "{NAME} ({}) did not listen within {:?}",
                program.display(),
                deadlines::DAEMON_READY
            ),
        )),
    }
}

/// Starts virtiofsd on `shared`. It need not be awaited: the VMM connects to a socket that is listened on already, by us,
/// and finds it closed should the daemon have ended.
pub(crate) async fn virtiofsd(
    program: &Path,
    cache: &str,
    dir: &Path,
    shared: &Path,
    place: &Place,
    log: &Logger,
) -> Result<(Daemon, Device)> {
    let socket = dir.join(FS_SOCKET);
    let listener: Arc<OwnedFd> = UnixListener::bind(&socket)
        .map(|listener| Arc::new(OwnedFd::from(listener)))
        .map_err(|cause| {
            Error::caused(
                ErrorKind::Internal,
                format!("cannot make the socket {}", socket.display()),
                cause,
            )
        })?;
    // It gives up where it cannot have what it was told to ask for.
    let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(MAX_FILES);
    let mut args: Vec<OsString> = ["--fd", &listener.as_raw_fd().to_string()].map(Into::into).into();
    args.push("--shared-dir".into());
    args.push(shared.into());
    let files = limit.min(MAX_FILES).to_string();
    let fixed = [
        "--cache",
        cache,
        "--sandbox",
        "namespace",
        "--seccomp",
        "kill",
        "--log-level",
        "warn",
        // Capabilities of programs are extended attributes.
        "--xattr",
        "--rlimit-nofile",
        &files,
    ];
    args.extend(fixed.map(OsString::from));
    let daemon = Daemon::start("virtiofsd", program, args, vec![listener], place, log).await?;
    let device = Device::VirtioFs(VirtioFs {
        tag: SHARE_TAG.to_owned(),
        socket,
        directory: shared.to_owned(),
    });
    Ok((daemon, device))
}

/// The share of a guest that is a process of the host.
pub(super) fn process_share(shared: &Path) -> Device {
    Device::VirtioFs(VirtioFs {
        tag: SHARE_TAG.to_owned(),
        socket: Default::default(),
        directory: shared.to_owned(),
    })
}

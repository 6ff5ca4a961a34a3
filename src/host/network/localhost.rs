//! Connections to localhost in a pod's network namespace on the host. Callers that forward a port dial there (containerd, and
//! whoever enters the namespace by the pid they are shown), but the program is in the guest.
//!
//! Nothing listens on the many ports that could be meant. A small program in the kernel (BPF, attached to the namespace's look-up
//! of sockets) gives every connection to localhost to one listener of ours, which then sees the port that was dialled. There is
//! no rule in anybody's tables and no address to be seen, and all of it goes with its descriptors.

use std::ffi::OsString;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{setsockopt, sockopt};
use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};

use super::bpf::Register::{R0, R1, R2, R3, R6, R7, R10};
use super::bpf::{Code, Label};
use super::sys;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Places of the listeners in the map that the program looks into.
const FOUR: i32 = 0;
const SIX: i32 = 1;

/// What sends connections to the listeners, as long as it is open.
#[derive(Debug)]
pub(super) struct Steering {
    _link: OwnedFd,
}

/// Listens in the calling thread's network namespace, which is also `namespace`, for every connection to its localhost. The
/// listeners are non-blocking.
///
/// # Errors
/// The kernel's: EINVAL before Linux 5.9, EPERM where BPF is locked.
pub(super) fn listen_on_all(namespace: impl AsFd) -> io::Result<(Vec<TcpListener>, Steering)> {
    let map = sys::socket_map()?;
    let mut listeners = Vec::new();
    let mut add = |place, listener: TcpListener| -> io::Result<()> {
        sys::put_socket(&map, place, &listener)?;
        listeners.push(listener);
        Ok(())
    };
    add(FOUR, listener(AddressFamily::INET)?)?;
    match listener(AddressFamily::INET6) {
        Ok(listener) => add(SIX, listener)?,
        // A kernel without IPv6.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
        Err(error) => return Err(error),
    }
    let code = program(map.as_raw_fd()).ok_or_else(|| io::Error::other("a jump leads nowhere"))?;
    let program = sys::load_socket_lookup(&code)?;
    let link = sys::attach_socket_lookup(&program, namespace)?;
    Ok((listeners, Steering { _link: link }))
}

/// A listener on any port, which nobody is told. On no address, because the loopback device may yet have to come up; but only for
/// what that device receives.
fn listener(family: AddressFamily) -> io::Result<TcpListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    setsockopt(&socket, sockopt::BindToDevice, &OsString::from("lo"))?;
    let any: SocketAddr = if family == AddressFamily::INET6 {
        set_ipv6_v6only(&socket, true)?;
        (Ipv6Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    };
    bind(&socket, &any)?;
    listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// The instructions: TCP to 127.0.0.0/8 goes to one listener, to ::1 to the other, everything else where it always went.
fn program(map: i32) -> Option<Vec<u64>> {
    // Offsets in `struct bpf_sk_lookup` (linux/bpf.h).
    const FAMILY: i16 = 8;
    const PROTOCOL: i16 = 12;
    const LOCAL_IP4: i16 = 40;
    const LOCAL_IP6: [i16; 4] = [44, 48, 52, 56];
    // Functions of the kernel's.
    const MAP_LOOKUP: i32 = 1;
    const RELEASE: i32 = 86;
    const ASSIGN: i32 = 124;
    const PASS: i32 = 1;
    // Addresses are in the order of the wire; so are these.
    let first_byte = i32::from_ne_bytes([0xff, 0, 0, 0]);
    let loopback = i32::from_ne_bytes([127, 0, 0, 0]);
    let one = i32::from_ne_bytes([0, 0, 0, 1]);

    let mut code = Code::default();
    code.copy(R6, R1)
        .load(R2, R6, PROTOCOL)
        .unless_equal(R2, libc::IPPROTO_TCP, Label::Pass)
        .load(R2, R6, FAMILY)
        .if_equal(R2, libc::AF_INET6, Label::Six)
        .load(R2, R6, LOCAL_IP4)
        .and(R2, first_byte)
        .unless_equal(R2, loopback, Label::Pass)
        .set(R3, FOUR)
        .jump(Label::Find)
        .label(Label::Six);
    for (offset, word) in LOCAL_IP6.into_iter().zip([0, 0, 0, one]) {
        code.load(R2, R6, offset).unless_equal(R2, word, Label::Pass);
    }
    code.set(R3, SIX)
        .label(Label::Find)
        // The key is passed by address.
        .store(R10, -4, R3)
        .load_map(R1, map)
        .copy(R2, R10)
        .add(R2, -4)
        .call(MAP_LOOKUP)
        .if_zero(R0, Label::Pass)
        .copy(R7, R0)
        .copy(R1, R6)
        .copy(R2, R7)
        .set(R3, 0)
        .call(ASSIGN)
        .copy(R1, R7)
        .call(RELEASE)
        .label(Label::Pass)
        .set(R0, PASS)
        .exit();
    code.finish()
}

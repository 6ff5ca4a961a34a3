//! Messages of the wire to the agent's own values and back.

use agent_protocol as p;
use protobuf::{EnumOrUnknown, MessageField};
use rustix::system::uname;
use rustix::time::{ClockId, clock_gettime};

use crate::error::{Error, Kind, Result};
use crate::events::Event;
use crate::identity::{Dns, Identity};
use crate::network::{self, AddressWords, HopWords, Interface, Network, RouteWords, RuleWords};
use crate::process::stdio::{Direction, Wanted};
use crate::sandbox::Stream;
use crate::storage::{Copied, DiskDevice, GuestPath, Room, Storage};

/// Abilities of this agent that are not a matter of course.
const FEATURES: [&str; 2] = ["seccomp", "cgroup2"];

/// The one place where a kind of error becomes a status code.
pub fn status(error: Error) -> ttrpc::Error {
    let code = match error.kind() {
        Kind::NotFound => ttrpc::Code::NOT_FOUND,
        Kind::AlreadyExists => ttrpc::Code::ALREADY_EXISTS,
        Kind::InvalidArgument => ttrpc::Code::INVALID_ARGUMENT,
        Kind::FailedPrecondition => ttrpc::Code::FAILED_PRECONDITION,
        Kind::Unsupported => ttrpc::Code::UNIMPLEMENTED,
        Kind::DeadlineExceeded => ttrpc::Code::DEADLINE_EXCEEDED,
        Kind::Internal => ttrpc::Code::INTERNAL,
    };
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, error))
}

/// Who we are. The caller's version is for the caller to judge.
pub fn hello() -> p::HelloResponse {
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime_ns = u64::try_from(uptime.tv_sec * 1_000_000_000 + uptime.tv_nsec).unwrap_or_default();
    let version = match option_env!("KATA_COMMIT") {
        Some(commit) => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    };
    p::HelloResponse {
        protocol_version: p::VERSION,
        agent_version: version,
        kernel_release: uname().release().to_string_lossy().into_owned(),
        uptime_ns,
        features: FEATURES.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

/// A checked path below the agent's directory.
pub fn mount_point(path: &str) -> Result<GuestPath> {
    GuestPath::parse("mount_point", path)
}

/// How full a file system is.
pub fn room(room: Result<Room>) -> ttrpc::Result<p::VolumeStats> {
    let room = room.map_err(status)?;
    Ok(p::VolumeStats {
        total_bytes: room.total,
        free_bytes: room.free,
        available_bytes: room.available,
        total_inodes: room.inodes,
        free_inodes: room.free_inodes,
        ..Default::default()
    })
}

/// Rules of a packet filter; `None`: a kit is wanted first.
pub fn rules(rules: Result<Option<Vec<u8>>>) -> ttrpc::Result<p::IptablesResponse> {
    let rules = rules.map_err(status)?;
    Ok(p::IptablesResponse {
        wants_kit: rules.is_none(),
        rules: rules.unwrap_or_default(),
        ..Default::default()
    })
}

/// Checked storages, in order.
pub fn storages(storages: &[p::Storage]) -> Result<Vec<Storage>> {
    let parse = |s: &p::Storage| {
        let copied =
            |file: &p::CopiedFile| Copied::parse(&file.path, file.mode, (file.uid, file.gid), &file.data);
        let files = s.files.iter().map(copied).collect::<Result<_>>()?;
        let storage =
            Storage::parse(&s.driver, &s.source, &s.fstype, &s.options, &s.mount_point)?.with_files(files)?;
        match s.pod {
            true => storage.of_the_pod(),
            false => Ok(storage),
        }
    };
    storages.iter().map(parse).collect()
}

/// Checked disks that a container has as devices.
pub fn devices(devices: &[p::DiskDevice]) -> Result<Vec<DiskDevice>> {
    let parse = |d: &p::DiskDevice| DiskDevice::parse(&d.source, &d.path, &d.access);
    devices.iter().map(parse).collect()
}

/// Checked settings of the network; no message: none.
pub fn network(message: &MessageField<p::Network>) -> Result<Network> {
    let Some(message) = message.as_ref() else {
        return Ok(Network::default());
    };
    let address = |a: &p::Address| {
        network::address(&AddressWords {
            ip: &a.ip,
            peer: &a.peer,
            broadcast: &a.broadcast,
            scope: a.scope,
        })
    };
    let interface = |i: &p::Interface| {
        Ok(Interface {
            name: network::name(&i.name)?,
            mac: network::mac("network.interface.mac", &i.mac)?,
            mtu: (i.mtu != 0).then_some(i.mtu),
            up: i.up,
            no_ipv6: i.no_ipv6,
            no_arp: i.no_arp,
            addresses: i.addresses.iter().map(address).collect::<Result<_>>()?,
            sysctls: i
                .sysctls
                .iter()
                .map(|(name, value)| network::sysctl(name, value))
                .collect::<Result<_>>()?,
        })
    };
    let route = |r: &p::Route| {
        let hops = r.hops.iter().map(|h| HopWords {
            gateway: &h.gateway,
            device: &h.device,
            weight: h.weight,
            on_link: h.on_link,
        });
        network::route(&RouteWords {
            hops: &hops.collect::<Vec<_>>(),
            destination: &r.destination,
            gateway: &r.gateway,
            device: &r.device,
            source: &r.source,
            metric: r.metric,
            mtu: r.mtu,
            scope: r.scope,
            protocol: r.protocol,
            on_link: r.on_link,
            table: r.table,
        })
    };
    let rule = |r: &p::Rule| {
        network::rule(&RuleWords {
            priority: r.priority,
            table: r.table,
            source: &r.source,
            destination: &r.destination,
            input: &r.input,
            output: &r.output,
            mark: r.mark,
            mask: r.mask,
            invert: r.invert,
            least_prefix: r.least_prefix,
        })
    };
    let neighbour = |n: &p::Neighbour| network::neighbour(&n.ip, &n.mac, &n.device);
    Network {
        interfaces: message.interfaces.iter().map(interface).collect::<Result<_>>()?,
        routes: message.routes.iter().map(route).collect::<Result<_>>()?,
        neighbours: message.neighbours.iter().map(neighbour).collect::<Result<_>>()?,
        rules: message.rules.iter().map(rule).collect::<Result<_>>()?,
        sysctls: message
            .sysctls
            .iter()
            .map(|(name, value)| network::namespace_sysctl(name, value))
            .collect::<Result<_>>()?,
    }
    .check()
}

/// The identity in a request.
pub fn identity(request: p::CreateSandboxRequest) -> Identity {
    let dns = request.dns.into_option().unwrap_or_default();
    let mut sysctls: Vec<_> = request.sysctls.into_iter().collect();
    sysctls.sort();
    Identity {
        hostname: request.hostname,
        now_unix_ns: request.now_unix_ns,
        entropy: request.entropy,
        dns: Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        },
        sysctls,
    }
}

/// Streams that are wanted; no message: none.
pub fn stdio(stdio: &MessageField<p::Stdio>) -> Result<Wanted> {
    let Some(stdio) = stdio.as_ref() else {
        return Ok(Wanted::default());
    };
    Ok(Wanted {
        terminal: stdio.terminal,
        stdin: stdio.stdin,
        stdout: stdio.stdout,
        stderr: stdio.stderr,
        size: if stdio.size.is_some() {
            Some(size(&stdio.size)?)
        } else {
            None
        },
        descriptors: stdio
            .descriptors
            .iter()
            .take(p::MAX_DESCRIPTORS + 1)
            .map(direction)
            .collect::<Result<Vec<_>>>()
            .and_then(|descriptors| match descriptors.len() {
                0..=p::MAX_DESCRIPTORS => Ok(descriptors),
                _ => Err(Error::invalid(
                    "descriptors",
                    format!("more than {}", p::MAX_DESCRIPTORS),
                )),
            })?,
    })
}

fn direction(descriptor: &p::Descriptor) -> Result<Direction> {
    match (descriptor.readable, descriptor.writable) {
        (true, false) => Ok(Direction::Reads),
        (false, true) => Ok(Direction::Writes),
        (true, true) => Ok(Direction::Both),
        (false, false) => Err(Error::invalid("descriptors", "neither read nor written")),
    }
}

/// The number of a descriptor beyond the standard ones.
pub fn descriptor(number: u32) -> Result<u32> {
    match number {
        p::FIRST_DESCRIPTOR.. => Ok(number),
        _ => Err(Error::invalid(
            "descriptor",
            format!("{number} is a standard stream's"),
        )),
    }
}

/// Rows and columns.
pub fn size(size: &MessageField<p::TerminalSize>) -> Result<(u16, u16)> {
    let size = size.as_ref().ok_or_else(|| Error::invalid("size", "missing"))?;
    match (u16::try_from(size.rows), u16::try_from(size.columns)) {
        (Ok(rows), Ok(columns)) => Ok((rows, columns)),
        _ => Err(Error::invalid(
            "size",
            format!("{} x {} is not a terminal's size", size.rows, size.columns),
        )),
    }
}

/// Bytes that may be answered at once: what is asked for, up to the protocol's limit.
pub fn chunk(max: u32) -> Result<usize> {
    match usize::try_from(max) {
        Ok(0) | Err(_) => Err(Error::invalid("max", "zero: an empty answer would mean the end")),
        Ok(max) => Ok(max.min(p::MAX_CHUNK)),
    }
}

/// Refuses more data than one call may carry.
pub fn check_chunk(data: &[u8]) -> Result<()> {
    if data.len() <= p::MAX_CHUNK {
        return Ok(());
    }
    Err(Error::invalid(
        "data",
        format!("more than {} bytes", p::MAX_CHUNK),
    ))
}

/// A TCP port.
pub fn port(port: u32) -> Result<u16> {
    match u16::try_from(port) {
        Ok(0) | Err(_) => Err(Error::invalid("port", format!("{port} is not a TCP port"))),
        Ok(port) => Ok(port),
    }
}

/// Which output.
pub fn stream(stream: EnumOrUnknown<p::Stream>) -> Result<Stream> {
    match stream.enum_value() {
        Ok(p::Stream::STDOUT) => Ok(Stream::Stdout),
        Ok(p::Stream::STDERR) => Ok(Stream::Stderr),
        Err(number) => Err(Error::invalid("stream", format!("{number} is no stream"))),
    }
}

/// The answer with a pid, and how many descriptors it has beyond the standard ones.
pub fn process(pid: Result<i32>, descriptors: usize) -> ttrpc::Result<p::ProcessResponse> {
    let pid = pid.map_err(status)?.unsigned_abs();
    Ok(p::ProcessResponse {
        pid,
        descriptors: u32::try_from(descriptors).unwrap_or(u32::MAX),
        ..Default::default()
    })
}

/// An event and its sequence number.
pub fn event((sequence, event): (u64, Event)) -> p::Event {
    let mut message = p::Event {
        sequence,
        ..Default::default()
    };
    match event {
        Event::Oom { container } => {
            message.set_oom(p::OomEvent {
                container_id: container,
                ..Default::default()
            });
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_kept_at_the_edge() {
        assert!(chunk(0).is_err());
        assert_eq!(chunk(10).unwrap(), 10);
        assert_eq!(chunk(u32::MAX).unwrap(), p::MAX_CHUNK);
        let sized = |rows, columns| {
            size(&MessageField::some(p::TerminalSize {
                rows,
                columns,
                ..Default::default()
            }))
        };
        assert_eq!(sized(24, 80).unwrap(), (24, 80));
        assert!(sized(65_536, 80).is_err());
        assert!(size(&MessageField::none()).is_err());
        assert!(stream(EnumOrUnknown::from_i32(7)).is_err());
    }

    #[test]
    fn no_stdio_means_no_streams() {
        assert_eq!(stdio(&MessageField::none()).unwrap(), Wanted::default());
    }

    #[test]
    fn the_agent_says_who_it_is() {
        let hello = hello();
        assert_eq!(hello.protocol_version, p::VERSION);
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(hello.uptime_ns > 0);
        assert_eq!(hello.kernel_release, release.trim());
    }
}

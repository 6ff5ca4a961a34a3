//! A device that a guest has, and QEMU has not: behind the guest's back it is taken out of a machine that stands still, and put
//! back, into that machine or into a copy of it, with another process at its other end. The guest does not notice: neither is it told
//! (over the machine's hotplug controller), nor does a register have another value afterwards than its driver has left in it.
//!
//! Devices with a process at their other end cannot be saved with a machine (vhost-user-fs: "non-migratable"); to plug one
//! into each copy is a fifth of the code that a guest executes for a short container. So the machine is saved
//! without it, and with what is in its registers.
//!
//! What the registers are: PCI 3.0 (6.1, 6.7, 6.8.2), virtio 1.1 (4.1.4), QEMU's `docs/specs/acpi_pci_hotplug.rst`, and Intel's
//! ICH9 datasheet (13.1.1, 13.8.3) for the general purpose events. Must not know what device it is.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::argv::port_id;
use super::registers::{Access, Registers, Width};
use crate::qmp::Client;
use crate::{Error, ErrorKind};

use Access::{In, Out, Read, Write};
use Width::{Byte, Long, Word};

/// Ports of the configuration space.
const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// Registers of the hotplug controller of a q35: which slots have something new (they are forgotten when that was read), which are to be
/// emptied, and of which bus.
const HOTPLUG_UP: u16 = 0xcc0;
const HOTPLUG_EJECT: u16 = 0xcc8;
const HOTPLUG_BUS: u16 = 0xcd0;

/// The one slot of a root port.
const SLOT: u32 = 1;

/// The bridge that has the power management's ports, and where in its configuration space their base is.
const BRIDGE: u32 = 0x1f << 11;
const BRIDGE_BASE: u8 = 0x40;

/// The status and the enable bits of the first eight general purpose events, from that base on.
const EVENTS_STATUS: u16 = 0x20;
const EVENTS_ENABLED: u16 = 0x28;

/// The event of the hotplug controller.
const HOTPLUG_EVENT: u32 = 1 << 1;

/// Words of a configuration space.
const WORDS: usize = 64;

/// Registers in a configuration space, bytes.
const COMMAND: u8 = 0x04;
const BARS: std::ops::Range<u8> = 0x10..0x28;
const CAPABILITIES: u8 = 0x34;
const INTERRUPT: u8 = 0x3c;

/// Kinds of capabilities.
const MSIX: u8 = 0x11;
const VENDOR: u8 = 0x09;

/// The vendor's capability that tells where the registers of every virtio device are.
const COMMON: u8 = 1;

/// Most queues and vectors that are kept: a device of ours has two, and three.
const MOST: usize = 64;

/// What is in the registers of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dormant {
    /// The device's name.
    pub name: String,
    /// Number of its root port.
    pub port: usize,
    /// It had a process at its other end, to which the guest has spoken. Its queues go on where they are then, of which no VMM
    /// can be told.
    pub was_used: bool,
    /// The port's bus: its number in the hotplug controller, and in the guest.
    selector: u32,
    bus: u32,
    config: Vec<u32>,
    vectors: Vec<u32>,
    features: [u32; 2],
    config_vector: u32,
    queues: Vec<Queue>,
    status: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Queue {
    size: u32,
    vector: u32,
    is_enabled: bool,
    /// Where its three parts are, each in two words.
    parts: [u32; 6],
}

/// Where the registers are.
#[derive(Debug, PartialEq, Eq)]
struct Layout {
    /// In the configuration space.
    msix: u8,
    /// Addresses.
    table: u64,
    common: u64,
    vectors: usize,
}

/// Takes a device out of a machine that stands still. It is gone when QEMU tells of the end of a device with that id.
pub async fn withdraw(
    client: &Client,
    registers: &mut Registers,
    (name, device_id): (&str, &str),
    port: usize,
    was_used: bool,
) -> Result<Dormant, Error> {
    let buses = client.execute("query-pci", json!({})).await?;
    let found = buses.as_array().into_iter().flatten();
    let bus = found
        .filter_map(|bus| bus_of(&bus["devices"], device_id))
        .next()
        .ok_or_else(|| odd(name, "the guest has given it no bus"))?;
    let id = port_id(port);
    let which = json!({"path": format!("/machine/peripheral/{id}/{id}"), "property": "acpi-pcihp-bsel"});
    let selector = client.execute("qom-get", which).await?;
    let selector = selector.as_u64().and_then(|number| u32::try_from(number).ok());
    let selector = selector.ok_or_else(|| odd(name, "its bus has no number in the hotplug controller"))?;

    let every = (0..WORDS).map(|word| (word * 4) as u8);
    let mut accesses = vec![In(Long, CONFIG_ADDRESS)];
    accesses.extend(every.flat_map(|at| [select(bus, at), In(Long, CONFIG_DATA)]));
    let read = registers.perform(&accesses).await?;
    let Some((&before, config)) = read.split_first() else {
        return Err(odd(name, "it has no configuration space"));
    };
    let layout = Layout::of(config).ok_or_else(|| odd(name, "it is no virtio device with MSI-X"))?;

    let common = |at: u64| layout.common + at;
    let mut accesses = vec![Out(Long, CONFIG_ADDRESS, before)];
    let vectors = (0..4 * layout.vectors as u64).map(|word| Read(Long, layout.table + 4 * word));
    accesses.extend(vectors);
    for half in 0..2 {
        accesses.extend([Write(Long, common(8), half), Read(Long, common(12))]);
    }
    accesses.extend([
        Read(Word, common(16)),
        Read(Word, common(18)),
        Read(Byte, common(20)),
    ]);
    let mut read = registers.perform(&accesses).await?.into_iter();
    let vectors: Vec<u32> = read.by_ref().take(4 * layout.vectors).collect();
    let rest: Vec<u32> = read.collect();
    let [low, high, config_vector, count, status] = rest[..] else {
        return Err(odd(name, "it has no registers"));
    };
    if count as usize > MOST {
        return Err(odd(name, "it has too many queues"));
    }
    let mut queues = Vec::new();
    for index in 0..count {
        let mut accesses = vec![Write(Word, common(22), index)];
        accesses.extend([24, 26, 28].map(|at| Read(Word, common(at))));
        accesses.extend((0..6).map(|part| Read(Long, common(32 + 4 * part))));
        let read = registers.perform(&accesses).await?;
        let [size, vector, enabled, ref parts @ ..] = read[..] else {
            return Err(odd(name, "a queue has no registers"));
        };
        queues.push(Queue {
            size,
            vector,
            is_enabled: enabled != 0,
            parts: parts.try_into().unwrap_or_default(),
        });
    }
    let dormant = Dormant {
        name: name.to_owned(),
        port,
        was_used,
        selector,
        bus,
        config: config.to_vec(),
        vectors,
        features: [low, high],
        config_vector,
        queues,
        status,
    };
    let eject = [Out(Long, HOTPLUG_BUS, selector), Out(Long, HOTPLUG_EJECT, SLOT)];
    registers.perform(&eject).await.map(|_| dormant)
}

/// What keeps a guest from being told of a new device.
#[derive(Debug)]
pub struct Hush {
    base: u16,
    enabled: u32,
    /// Devices that it is to be told of are there already.
    has_news: bool,
}

impl Hush {
    /// The guest is told of nothing any more.
    pub async fn begin(registers: &mut Registers) -> Result<Self, Error> {
        let asked = [
            In(Long, CONFIG_ADDRESS),
            Out(Long, CONFIG_ADDRESS, 1 << 31 | BRIDGE | u32::from(BRIDGE_BASE)),
            In(Long, CONFIG_DATA),
        ];
        let read = registers.perform(&asked).await?;
        let [before, base] = read[..] else {
            return Err(odd("the bridge", "it has no configuration space"));
        };
        // The lowest bit tells that it is a port's.
        let base = (base & 0xff80) as u16;
        let asked = [
            Out(Long, CONFIG_ADDRESS, before),
            In(Byte, base + EVENTS_STATUS),
            In(Byte, base + EVENTS_ENABLED),
            Out(Byte, base + EVENTS_ENABLED, 0),
        ];
        match registers.perform(&asked).await?[..] {
            [status, enabled] => Ok(Self {
                base,
                enabled,
                has_news: status & HOTPLUG_EVENT != 0,
            }),
            _ => Err(odd("the bridge", "it has no events")),
        }
    }

    /// The guest is told of what is to come and of what was before, and never of this device.
    pub async fn end(self, registers: &mut Registers, dormant: &Dormant) -> Result<(), Error> {
        registers
            .perform(&self.accesses(dormant.selector))
            .await
            .map(drop)
    }

    fn accesses(&self, selector: u32) -> Vec<Access> {
        let mut asked = vec![Out(Long, HOTPLUG_BUS, selector), In(Long, HOTPLUG_UP)];
        if !self.has_news {
            asked.push(Out(Byte, self.base + EVENTS_STATUS, HOTPLUG_EVENT));
        }
        asked.push(Out(Byte, self.base + EVENTS_ENABLED, self.enabled));
        asked
    }
}

impl Dormant {
    /// Gives a device that has just been put into the port what was in its registers. The machine stands still, and its guest does not hear
    /// of it.
    pub async fn wake(&self, registers: &mut Registers) -> Result<(), Error> {
        let layout =
            Layout::of(&self.config).ok_or_else(|| odd(&self.name, "what is kept of it is damaged"))?;
        let kept = |at: u8| self.config.get(usize::from(at) / 4).copied().unwrap_or_default();
        let set = |at: u8, value: u32| [select(self.bus, at), Out(Long, CONFIG_DATA, value)];
        let mut accesses = vec![In(Long, CONFIG_ADDRESS)];
        for at in BARS.step_by(4).chain([INTERRUPT]) {
            accesses.extend(set(at, kept(at)));
        }
        // The upper half is the status, of which bits that are written are cleared.
        accesses.extend(set(COMMAND, kept(COMMAND) & 0xffff));
        let words = self.vectors.iter().zip(0..);
        accesses.extend(words.map(|(value, word): (_, u64)| Write(Long, layout.table + 4 * word, *value)));
        accesses.extend(set(layout.msix, kept(layout.msix)));

        let common = |at: u64| layout.common + at;
        // As a driver does it: reset, noticed, driven, agreed.
        const FEATURES_OK: u32 = 8;
        let before_agreed = self.status & 3;
        accesses.extend([0, before_agreed].map(|status| Write(Byte, common(20), status)));
        for (half, features) in (0..).zip(self.features) {
            accesses.extend([Write(Long, common(8), half), Write(Long, common(12), features)]);
        }
        let agreed = before_agreed | self.status & FEATURES_OK;
        accesses.extend([
            Write(Byte, common(20), agreed),
            Write(Word, common(16), self.config_vector),
        ]);
        for (index, queue) in (0..).zip(&self.queues) {
            accesses.extend([
                Write(Word, common(22), index),
                Write(Word, common(24), queue.size),
                Write(Word, common(26), queue.vector),
            ]);
            let parts = (0..).zip(queue.parts);
            accesses.extend(parts.map(|(part, value)| Write(Long, common(32 + 4 * part), value)));
            if queue.is_enabled {
                accesses.push(Write(Word, common(28), 1));
            }
        }
        accesses.extend([Write(Byte, common(20), self.status), Read(Byte, common(20))]);
        let read = registers.perform(&accesses).await?;
        let [before, status] = read[..] else {
            return Err(odd(&self.name, "it has no registers"));
        };
        registers.perform(&[Out(Long, CONFIG_ADDRESS, before)]).await?;
        match status == self.status {
            true => Ok(()),
            false => Err(odd(
                &self.name,
                "it is not what it was, and does not take what it had agreed on",
            )),
        }
    }
}

impl Layout {
    fn of(config: &[u32]) -> Option<Self> {
        let word = |at: u8| config.get(usize::from(at) / 4).copied();
        let byte = |at: u8| word(at).map(|word| (word >> (8 * (at % 4))) as u8);
        let (mut msix, mut common) = (None, None);
        let mut at = byte(CAPABILITIES)? & !3;
        // Each takes at least one word behind the head: there cannot be more, unless they are a circle.
        for _ in 0..WORDS {
            if at < 0x40 {
                break;
            }
            match byte(at)? {
                MSIX => msix = Some(at),
                VENDOR if byte(at.checked_add(3)?)? == COMMON => {
                    let bar = byte(at.checked_add(4)?)?;
                    common = Some(base(config, bar)? + u64::from(word(at.checked_add(8)?)?));
                }
                _ => {}
            }
            at = byte(at + 1)? & !3;
        }
        let msix = msix?;
        let (control, table) = (word(msix)? >> 16, word(msix.checked_add(4)?)?);
        let vectors = (control as usize & 0x7ff) + 1;
        Some(Self {
            msix,
            table: base(config, (table & 7) as u8)? + u64::from(table & !7),
            common: common?,
            vectors: Some(vectors).filter(|count| *count <= MOST)?,
        })
    }
}

/// The address that a base address register holds, of memory.
fn base(config: &[u32], bar: u8) -> Option<u64> {
    let at = usize::from(BARS.start / 4 + bar);
    let low = *config.get(at).filter(|_| bar < 6)?;
    let address = match low & 7 {
        0 => u64::from(low & !0xf),
        4 => u64::from(low & !0xf) | u64::from(*config.get(at + 1)?) << 32,
        _ => return None,
    };
    // It was given one.
    Some(address).filter(|address| *address != 0)
}

/// Selects a word of the configuration space of the device on a root port's bus.
fn select(bus: u32, at: u8) -> Access {
    Out(
        Long,
        CONFIG_ADDRESS,
        1 << 31 | (bus & 0xff) << 16 | u32::from(at & !3),
    )
}

/// The number of the bus on which a device is, from what QEMU says of all.
fn bus_of(devices: &Value, id: &str) -> Option<u32> {
    devices.as_array()?.iter().find_map(|device| {
        if device["qdev_id"] == id {
            let number = device["bus"].as_u64()?;
            return u32::try_from(number).ok().filter(|bus| (1..256).contains(bus));
        }
        bus_of(&device["pci_bridge"]["devices"], id)
    })
}

fn odd(name: &str, why: &str) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the device {name:?} cannot be taken out behind the guest's back, or put in: {why}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a vhost-user-fs-pci of QEMU 7.2 had in its configuration space, with its addresses given by SeaBIOS.
    fn config() -> Vec<u32> {
        let mut config = vec![0; WORDS];
        let known = [
            (0x00, 0x105a_1af4),
            (0x04, 0x0010_0507),
            (0x14, 0xfe00_0000),
            (0x20, 0xfe80_000c),
            (0x34, 0xdc),
            (0x7c, 0x0003_4001),
            // The one of the common registers, which are where the fourth address begins.
            (0x84, 0x0110_7c09),
            (0x88, 0x0000_0004),
            (0xc8, 0x0514_8409),
            (0xdc, 0x8002_c811),
            (0xe0, 0x0000_0001),
            (0xe4, 0x0000_0801),
        ];
        for (at, value) in known {
            config[at / 4] = value;
        }
        config
    }

    #[test]
    fn registers_are_where_the_capabilities_say() {
        let layout = Layout::of(&config()).unwrap();
        let expected = Layout {
            msix: 0xdc,
            table: 0xfe00_0000,
            common: 0xfe80_0000,
            vectors: 3,
        };
        assert_eq!(layout, expected);
        type Spoil = fn(&mut Vec<u32>);
        let spoilt: [(&str, Spoil); 7] = [
            ("nothing", Vec::clear),
            ("no capabilities", |config| config[0x34 / 4] = 0),
            ("a circle", |config| config[0xdc / 4] = 0x8002_dc11),
            ("no MSI-X", |config| config[0xdc / 4] = 0x8002_c812),
            ("an address not given", |config| config[0x20 / 4] = 0x0000_000c),
            ("a port's address", |config| config[0x14 / 4] = 0xc001),
            ("no such address", |config| config[0x88 / 4] = 6),
        ];
        for (what, spoil) in spoilt {
            let mut config = config();
            spoil(&mut config);
            assert_eq!(Layout::of(&config), None, "{what}");
        }
        let mut many = config();
        many[0xdc / 4] = 0x87ff_c811;
        assert_eq!(Layout::of(&many), None);
    }

    #[test]
    fn a_guest_hears_of_another_device_that_came_before() {
        let clears = |has_news| {
            let hush = Hush {
                base: 0x600,
                enabled: 6,
                has_news,
            };
            let accesses = hush.accesses(2);
            assert_eq!(accesses.last(), Some(&Out(Byte, 0x628, 6)));
            accesses.contains(&Out(Byte, 0x620, HOTPLUG_EVENT))
        };
        assert!(clears(false) && !clears(true));
    }

    #[test]
    fn a_bus_is_found_below_bridges() {
        let devices = json!([
            {"qdev_id": "other", "bus": 0},
            {"qdev_id": "port0", "bus": 0, "pci_bridge": {"devices": [{"qdev_id": "fs", "bus": 1}]}},
            {"qdev_id": "on-the-first", "bus": 0},
            {"qdev_id": "odd", "bus": 256},
        ]);
        assert_eq!(bus_of(&devices, "fs"), Some(1));
        for none in ["fs2", "on-the-first", "odd"] {
            assert_eq!(bus_of(&devices, none), None);
        }
        assert_eq!(bus_of(&Value::Null, "fs"), None);
        assert_eq!(select(1, 0x05), Out(Long, 0xcf8, 0x8001_0004));
    }
}

//! vCPUs and memory that are added to a running q35: sockets that QEMU has kept empty, and a virtio-mem device of which more
//! and more is offered.
//!
//! Memory modules (`pc-dimm`) would need no driver in the guest, but each is one more region that virtiofsd and
//! vhost-device-vsock have to map, and after four or five of them QEMU has no more to give. A virtio-mem device is one region,
//! whatever is offered of it, and costs the host nothing before the guest uses it.

use async_trait::async_trait;
use serde_json::{Map, Value, json};

use crate::qmp::Client;
use crate::{Error, ErrorKind, Memory, MemoryBacking, Resize, Size};

/// Id of the virtio-mem device, and of the memory behind it.
const DEVICE: &str = "growth";
const BACKEND: &str = "growth-ram";

/// What a machine that can grow is told of its memory. Pure.
#[derive(Debug, PartialEq)]
pub struct Growth {
    /// The most memory that it can have, MiB.
    pub most_mib: u64,
    /// What stands behind the device.
    pub backend: Value,
    /// The device.
    pub device: Value,
}

/// How a machine with this memory grows; `None` if it does not.
pub fn growth(memory: &Memory) -> Option<Growth> {
    let addable = Some(memory.addable()).filter(|mib| *mib > 0)?;
    let mut backend = backend(BACKEND, addable, memory.backing);
    // It is not the host's to keep before it is offered.
    backend["reserve"] = json!(false);
    Some(Growth {
        most_mib: memory.size_mib + addable,
        backend,
        device: json!({"driver": "virtio-mem-pci", "id": DEVICE, "memdev": BACKEND, "requested-size": 0}),
    })
}

/// A memory backend of QEMU's. Pure.
pub fn backend(id: &str, mib: u64, backing: MemoryBacking) -> Value {
    let bytes = mib << 20;
    match backing {
        MemoryBacking::Private => json!({"qom-type": "memory-backend-ram", "id": id, "size": bytes}),
        MemoryBacking::Shared => {
            json!({"qom-type": "memory-backend-memfd", "id": id, "size": bytes, "share": true})
        }
    }
}

/// The same on a file: what is written to memory that is not shared goes nowhere else. Pure.
pub fn backend_on(id: &str, mib: u64, path: &str, shared: bool) -> Value {
    json!({"qom-type": "memory-backend-file", "id": id, "size": mib << 20, "mem-path": path, "share": shared})
}

/// What was added, and what can be.
#[derive(Debug)]
pub struct Grown {
    client: Client,
    size: Size,
    max_vcpus: u32,
    memory: Memory,
}

impl Grown {
    /// A machine that has started with this, and can reach that.
    pub fn new(client: Client, vcpus: u32, max_vcpus: u32, memory: Memory) -> Self {
        Self {
            client,
            size: Size {
                vcpus,
                memory_mib: memory.size_mib,
            },
            max_vcpus,
            memory,
        }
    }
}

#[async_trait]
impl Resize for Grown {
    fn size(&self) -> Size {
        self.size
    }

    async fn grow_vcpus(&mut self, vcpus: u32) -> Result<(), Error> {
        if vcpus <= self.size.vcpus {
            return Ok(());
        }
        if vcpus > self.max_vcpus {
            return Err(Error::no_room(format!("{vcpus} vCPUs"), self.max_vcpus));
        }
        let sockets = self.client.execute("query-hotpluggable-cpus", json!({})).await?;
        let missing = usize::try_from(vcpus - self.size.vcpus).unwrap_or(usize::MAX);
        let free = free(&sockets);
        if free.len() < missing {
            return Err(Error::new(
                ErrorKind::Internal,
                format!(
                    "QEMU has {} free vCPUs where {missing} are to be added",
                    free.len()
                ),
            ));
        }
        for mut properties in free.into_iter().take(missing) {
            properties.insert("id".into(), json!(format!("vcpu{}", self.size.vcpus)));
            self.client
                .execute("device_add", Value::Object(properties))
                .await?;
            self.size.vcpus += 1;
        }
        Ok(())
    }

    async fn grow_memory(&mut self, mib: u64) -> Result<(), Error> {
        if mib <= self.size.memory_mib {
            return Ok(());
        }
        let Some(grown) = self.memory.grown_to(mib) else {
            return Err(Error::no_room(
                format!("{mib} MiB of memory"),
                self.memory.max_mib,
            ));
        };
        let added = grown - self.memory.size_mib;
        let wanted = json!({
            "path": format!("/machine/peripheral/{DEVICE}"),
            "property": "requested-size",
            "value": added << 20,
        });
        self.client.execute("qom-set", wanted).await?;
        self.size.memory_mib = grown;
        Ok(())
    }
}

/// The empty sockets of QEMU's answer, in the order of their numbers, each as `device_add` wants it. Pure.
fn free(sockets: &Value) -> Vec<Map<String, Value>> {
    let sockets = sockets.as_array().into_iter().flatten();
    let mut free: Vec<_> = sockets
        .filter(|socket| socket.get("qom-path").is_none())
        .filter_map(|socket| {
            let mut properties = socket.get("props")?.as_object()?.clone();
            properties.insert("driver".into(), socket.get("type")?.clone());
            Some(properties)
        })
        .collect();
    // QEMU lists the last one first.
    free.reverse();
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_vcpus_are_those_without_a_path_and_the_lowest_comes_first() {
        let socket = |core: u32, path: Option<&str>| {
            let mut socket = json!({
                "type": "max-x86_64-cpu",
                "vcpus-count": 1,
                "props": {"socket-id": 0, "core-id": core, "thread-id": 0},
            });
            if let Some(path) = path {
                socket["qom-path"] = json!(path);
            }
            socket
        };
        let answer = json!([
            socket(2, None),
            socket(1, None),
            socket(0, Some("/machine/unattached/device[0]"))
        ]);
        let expected =
            |core: u32| json!({"driver": "max-x86_64-cpu", "socket-id": 0, "core-id": core, "thread-id": 0});
        let found: Vec<Value> = free(&answer).into_iter().map(Value::Object).collect();
        assert_eq!(found, [expected(1), expected(2)]);
        assert!(free(&json!({"what": "ever"})).is_empty());
    }

    #[test]
    fn room_is_made_for_whole_blocks() {
        let table = [
            (256, 256, None),
            (256, 257, Some(384)),
            (256, 512, Some(512)),
            (300, 1000, Some(300 + 768)),
            (512, 256, None),
            (64 << 10, (64 << 10) + 1, Some(66 << 10)),
        ];
        for (size_mib, max_mib, expected) in table {
            let memory = Memory {
                size_mib,
                max_mib,
                backing: MemoryBacking::Shared,
            };
            let most = growth(&memory).map(|growth| growth.most_mib);
            assert_eq!(most, expected, "{memory:?}");
        }
    }
}

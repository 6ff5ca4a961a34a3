//! Cloud Hypervisor's state: a machine that is created, boots, is paused, saved and restored, and its devices.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::monitor::{Because, Done, Effect, Guest, Refusal, Request};

/// Where a machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    None,
    Created,
    Running,
    Paused,
}

/// A monitor and its machine.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    version: String,
    stage: Stage,
    config: Value,
    /// Devices by id, and whether they came later.
    devices: BTreeMap<String, bool>,
    /// The vCPUs have never run in this process.
    is_fresh: bool,
}

impl CloudHypervisor {
    pub fn new(version: &str) -> Self {
        Self {
            version: version.into(),
            stage: Stage::None,
            config: Value::Null,
            devices: BTreeMap::new(),
            is_fresh: true,
        }
    }

    pub fn serve(&mut self, template: &str, request: &Request) -> Result<Done, Refusal> {
        let body = &request.body;
        if request.fds > 0 && template != "/vm.add-net" {
            return Err(Refusal::description(format!("{template} takes no descriptors")));
        }
        match template {
            "/vmm.ping" => Ok(Done::answer(json!({
                "build_version": self.version,
                "version": self.version,
                "pid": std::process::id(),
                "features": ["kvm", "io_uring"],
            }))),
            "/vmm.shutdown" => Ok(Done::with(vec![
                Effect::Stop,
                event("vm", "shutdown", json!(null)),
                Effect::End,
            ])),
            "/vm.create" => self.create(body),
            "/vm.boot" => {
                self.must_be(&[Stage::Created])?;
                self.stage = Stage::Running;
                self.is_fresh = false;
                let mut effects = vec![event("vm", "booting", json!(null))];
                effects.extend(self.run());
                effects.push(event("vm", "booted", json!(null)));
                Ok(Done::with(effects))
            }
            "/vm.pause" => {
                self.must_be(&[Stage::Running])?;
                self.stage = Stage::Paused;
                Ok(Done::with(vec![Effect::Stop]))
            }
            "/vm.resume" => {
                self.must_be(&[Stage::Paused])?;
                self.stage = Stage::Running;
                let first = std::mem::take(&mut self.is_fresh);
                Ok(Done::with(match first {
                    true => self.run(),
                    false => vec![Effect::Continue],
                }))
            }
            "/vm.snapshot" => {
                self.must_be(&[Stage::Paused])?;
                self.snapshot(body)
            }
            "/vm.restore" => self.restore(body),
            "/vm.resize" => {
                self.must_be(&[Stage::Running])?;
                match body["desired_vcpus"].as_u64() {
                    Some(count) if Some(count) <= self.config["cpus"]["max_vcpus"].as_u64() => {
                        Ok(Done::silent())
                    }
                    other => Err(Refusal::new(
                        500,
                        Because::Description,
                        format!("{other:?} vCPUs"),
                    )),
                }
            }
            "/vm.resize-zone" => {
                self.must_be(&[Stage::Running])?;
                self.resize_zone(body)
            }
            "/vm.add-disk" | "/vm.add-fs" | "/vm.add-net" => {
                self.must_be(&[Stage::Created, Stage::Running, Stage::Paused])?;
                self.add(template, body, request.fds)
            }
            "/vm.remove-device" => {
                self.must_be(&[Stage::Running])?;
                let id = body["id"].as_str().unwrap_or_default();
                match self.devices.remove(id) {
                    Some(_) => {
                        let properties = json!({"id": id, "bdf": "0000:00:05.0"});
                        Ok(Done::with(vec![
                            Effect::Close(id.into()),
                            event("vm", "device-removed", properties),
                        ]))
                    }
                    None => {
                        // With a status of its own from version 54 on.
                        let major = self
                            .version
                            .split('.')
                            .next()
                            .and_then(|major| major.parse().ok());
                        let status = if major < Some(54_u32) { 500 } else { 404 };
                        Err(Refusal::state(status, format!("there is no device {id:?}")))
                    }
                }
            }
            other => panic!(
                "{other} is in the description, and nothing that this monitor's driver is known to use"
            ),
        }
    }

    fn must_be(&self, stages: &[Stage]) -> Result<(), Refusal> {
        match (stages.contains(&self.stage), self.stage) {
            (true, _) => Ok(()),
            (false, Stage::None) => Err(Refusal::state(404, "the VM is not created")),
            (false, stage) => Err(Refusal::state(405, format!("the VM is {stage:?}"))),
        }
    }

    fn create(&mut self, body: &Value) -> Result<Done, Refusal> {
        if self.stage != Stage::None {
            return Err(Refusal::state(400, "the VM is created already"));
        }
        let wrong = |words: &str| Err(Refusal::description(words));
        if body["cpus"]["max_vcpus"].as_u64() < body["cpus"]["boot_vcpus"].as_u64() {
            return wrong("less vCPUs at most than at the start");
        }
        let memory = &body["memory"];
        let zones = memory["zones"].as_array().map(Vec::as_slice).unwrap_or_default();
        if (memory["size"] == 0) == zones.is_empty() {
            return wrong("memory is either zones or a size");
        }
        if !zones.is_empty() && memory["hotplug_method"] != "VirtioMem" {
            return wrong("zones grow by virtio-mem only");
        }
        let mut effects: Vec<Effect> = ["kernel", "initramfs"]
            .into_iter()
            .filter_map(|name| body["payload"][name].as_str())
            .map(|path| Effect::Open {
                path: path.into(),
                write: false,
                disk: None,
            })
            .collect();
        self.config = body.clone();
        for (list, template) in [
            ("disks", "/vm.add-disk"),
            ("fs", "/vm.add-fs"),
            ("net", "/vm.add-net"),
        ] {
            for device in body[list].as_array().into_iter().flatten() {
                effects.extend(self.add(template, device, 0)?.effects);
            }
        }
        self.stage = Stage::Created;
        Ok(Done::with(effects))
    }

    fn add(&mut self, template: &str, body: &Value, fds: usize) -> Result<Done, Refusal> {
        let mut effects = Vec::new();
        match template {
            "/vm.add-disk" => {
                // It may be left out, and then a guest decides what is looked for in its disk.
                if body["image_type"] != "Raw" {
                    return Err(Refusal::description("the type of the image is not told"));
                }
                effects.push(Effect::Open {
                    path: body["path"].as_str().unwrap_or_default().into(),
                    write: body["readonly"] != true,
                    disk: body["id"].as_str().map(str::to_owned),
                });
            }
            "/vm.add-fs" => {
                if self.config["memory"]["zones"][0]["shared"] != true {
                    return Err(Refusal::description("vhost-user needs shared memory"));
                }
                effects.push(Effect::Connect(
                    body["socket"].as_str().unwrap_or_default().into(),
                ));
            }
            _ if fds == 0 => return Err(Refusal::description("a card without a tap")),
            _ if body["num_queues"].as_u64() != Some(2 * fds as u64) => {
                return Err(Refusal::description(format!(
                    "{} queues, and {fds} descriptors",
                    body["num_queues"]
                )));
            }
            _ => {}
        }
        let Some(id) = body["id"].as_str() else {
            return Err(Refusal::description("a device without id cannot be removed"));
        };
        let is_later = self.stage != Stage::Created && self.stage != Stage::None;
        if self.devices.insert(id.into(), is_later).is_some() {
            return Err(Refusal::state(409, format!("{id:?} is there already")));
        }
        let answer = json!({"id": id, "bdf": "0000:00:05.0"});
        Ok(Done {
            status: if is_later { 200 } else { 204 },
            body: if is_later { answer } else { Value::Null },
            effects,
        })
    }

    fn resize_zone(&self, body: &Value) -> Result<Done, Refusal> {
        let zones = self.config["memory"]["zones"].as_array().into_iter().flatten();
        let zone = zones.into_iter().find(|zone| zone["id"] == body["id"]);
        let zone = zone.ok_or(Refusal::new(500, Because::Description, "there is no such zone"))?;
        let number = |value: &Value| value.as_u64().unwrap_or_default();
        let (least, wanted) = (number(&zone["size"]), number(&body["desired_ram"]));
        match wanted >= least && wanted <= least + number(&zone["hotplug_size"]) {
            true => Ok(Done::silent()),
            false => Err(Refusal::new(
                500,
                Because::Description,
                format!("{wanted} bytes in {zone}"),
            )),
        }
    }

    /// The guest begins to run.
    fn run(&self) -> Vec<Effect> {
        let uds = self.config["vsock"]["socket"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let mut effects = Vec::new();
        if !uds.is_empty() {
            effects.push(Effect::Listen(uds.clone()));
        }
        effects.push(Effect::Run(Guest {
            cmdline: self.config["payload"]["cmdline"]
                .as_str()
                .unwrap_or_default()
                .into(),
            uds,
        }));
        effects
    }

    fn snapshot(&self, body: &Value) -> Result<Done, Refusal> {
        let directory = directory(&body["destination_url"])?;
        let zone = &self.config["memory"]["zones"][0];
        Ok(Done::with(vec![Effect::Save {
            texts: vec![
                (directory.join("config.json"), self.config.to_string()),
                (
                    directory.join("state.json"),
                    json!({"vcpus": "x".repeat(1000)}).to_string(),
                ),
            ],
            memory: directory.join("memory-ranges"),
            bytes: zone["size"].as_u64().unwrap_or_default(),
        }]))
    }

    fn restore(&mut self, body: &Value) -> Result<Done, Refusal> {
        if self.stage != Stage::None {
            return Err(Refusal::state(404, "the VM is created already"));
        }
        let directory = directory(&body["source_url"])?;
        let read = |name: &str| -> Result<Value, Refusal> {
            let text = std::fs::read(directory.join(name)).map_err(|error| error.to_string());
            let value =
                text.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
            value.map_err(|error| Refusal::new(500, Because::Host, format!("{name}: {error}")))
        };
        let (config, state) = (read("config.json")?, read("state.json")?);
        if state["vcpus"].as_str().map(str::len) != Some(1000) {
            return Err(Refusal::new(500, Because::Host, "state.json is damaged"));
        }
        let memory = std::fs::metadata(directory.join("memory-ranges")).map_or(0, |metadata| metadata.len());
        if Some(memory) != config["memory"]["zones"][0]["size"].as_u64() {
            return Err(Refusal::new(500, Because::Host, "memory-ranges has another size"));
        }
        self.config = config;
        self.stage = Stage::Paused;
        Ok(Done::silent())
    }
}

fn directory(url: &Value) -> Result<PathBuf, Refusal> {
    let path = url.as_str().and_then(|url| url.strip_prefix("file://"));
    path.map(|path| Path::new(path).to_owned())
        .ok_or(Refusal::description(format!("{url} is no URL of a directory")))
}

fn event(source: &str, event: &str, properties: Value) -> Effect {
    let timestamp = json!({"secs": 0, "nanos": 0});
    Effect::Tell(json!({"timestamp": timestamp, "source": source, "event": event, "properties": properties}))
}

//! Firecracker's state: what may be configured before the start, what after it, and its machine saved and loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::double::inside;
use super::monitor::{Because, Done, Effect, Guest, Refusal, Request};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    NotStarted,
    Running,
    Paused,
}

/// A monitor and its machine.
#[derive(Debug, Clone)]
pub struct Firecracker {
    version: String,
    root: Option<PathBuf>,
    stage: Stage,
    machine: Value,
    boot_source: Value,
    vsock: Value,
    /// Disks by id: whether they can be written to.
    drives: BTreeMap<String, bool>,
    nets: BTreeSet<String>,
    /// Something was configured, so that no machine can be loaded any more.
    is_touched: bool,
    /// The vCPUs have never run in this process.
    is_fresh: bool,
}

impl Firecracker {
    pub fn new(version: &str, root: Option<&Path>) -> Self {
        Self {
            version: version.into(),
            root: root.map(Path::to_owned),
            stage: Stage::NotStarted,
            machine: json!({"vcpu_count": 1, "mem_size_mib": 128}),
            boot_source: Value::Null,
            vsock: Value::Null,
            drives: BTreeMap::new(),
            nets: BTreeSet::new(),
            is_touched: false,
            is_fresh: true,
        }
    }

    pub fn serve(
        &mut self,
        template: &str,
        parameter: Option<&str>,
        request: &Request,
    ) -> Result<Done, Refusal> {
        if request.fds > 0 {
            return Err(Refusal::description("Firecracker takes no descriptors"));
        }
        let body = &request.body;
        // What the path names is what the body names.
        let named = body
            .get("drive_id")
            .or(body.get("iface_id"))
            .and_then(Value::as_str);
        if parameter != named {
            return Err(Refusal::description(format!(
                "the path says {parameter:?}, and the body {named:?}"
            )));
        }
        if parameter.is_some_and(|id| !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')) {
            return Err(Refusal::description(format!("{parameter:?} is no id")));
        }
        let id = parameter.unwrap_or_default().to_owned();
        match (request.method.as_str(), template) {
            ("GET", "/version") => Ok(Done::answer(json!({"firecracker_version": self.version}))),
            ("PUT", "/machine-config") => {
                self.configure()?;
                self.machine = body.clone();
                Ok(Done::silent())
            }
            ("PUT", "/boot-source") => {
                self.configure()?;
                self.boot_source = body.clone();
                let files = ["kernel_image_path", "initrd_path"].into_iter();
                let files = files.filter_map(|name| body[name].as_str());
                let open = |path: &str| Effect::Open {
                    path: path.into(),
                    write: false,
                    disk: None,
                };
                Ok(Done::with(files.map(open).collect()))
            }
            ("PUT", "/entropy" | "/balloon") => self.configure().map(|()| Done::silent()),
            ("PUT", "/vsock") => {
                self.configure()?;
                self.vsock = body.clone();
                Ok(Done::silent())
            }
            ("PUT", "/drives/{drive_id}") => {
                self.configure()?;
                let (Some(path), Some(readonly)) =
                    (body["path_on_host"].as_str(), body["is_read_only"].as_bool())
                else {
                    return Err(Refusal::description(
                        "virtio-block needs path_on_host and is_read_only",
                    ));
                };
                self.drives.insert(id.clone(), !readonly);
                let path = path.into();
                let (write, disk) = (!readonly, Some(id));
                Ok(Done::with(vec![Effect::Open { path, write, disk }]))
            }
            ("PUT", "/network-interfaces/{iface_id}") => {
                self.configure()?;
                self.nets.insert(id);
                Ok(Done::silent())
            }
            ("PATCH", "/drives/{drive_id}") => {
                self.must_run()?;
                let Some(write) = self.drives.get(&id).copied() else {
                    return Err(Refusal::state(400, format!("there is no drive {id:?}")));
                };
                let path = body["path_on_host"]
                    .as_str()
                    .ok_or(Refusal::description("nothing is changed"))?;
                let path = path.into();
                let disk = Some(id);
                Ok(Done::with(vec![Effect::Open { path, write, disk }]))
            }
            ("PUT", "/actions") => self.act(body),
            ("PATCH", "/vm") => self.go(body),
            ("PUT", "/snapshot/create") => self.save(body),
            ("PUT", "/snapshot/load") => self.load(body),
            (method, other) => {
                panic!(
                    "{method} {other} is in the description, and nothing that this monitor's driver is known to use"
                )
            }
        }
    }

    fn configure(&mut self) -> Result<(), Refusal> {
        if self.stage != Stage::NotStarted {
            return Err(Refusal::state(
                400,
                "the operation is not supported after starting the microVM",
            ));
        }
        self.is_touched = true;
        Ok(())
    }

    fn must_run(&self) -> Result<(), Refusal> {
        match self.stage {
            Stage::NotStarted => Err(Refusal::state(
                400,
                "the operation is not supported before starting the microVM",
            )),
            Stage::Running | Stage::Paused => Ok(()),
        }
    }

    fn act(&mut self, body: &Value) -> Result<Done, Refusal> {
        assert_eq!(
            body["action_type"], "InstanceStart",
            "no other action is known to be used"
        );
        self.configure()?;
        if self.boot_source.is_null() {
            return Err(Refusal::state(400, "there is no kernel to start"));
        }
        self.stage = Stage::Running;
        self.is_fresh = false;
        Ok(Done::with(self.run()))
    }

    fn go(&mut self, body: &Value) -> Result<Done, Refusal> {
        self.must_run()?;
        let wanted = match body["state"].as_str() {
            Some("Paused") => Stage::Paused,
            _ => Stage::Running,
        };
        if wanted == self.stage {
            return Err(Refusal::state(400, format!("the microVM is {wanted:?} already")));
        }
        self.stage = wanted;
        Ok(Done::with(match wanted {
            Stage::Paused | Stage::NotStarted => vec![Effect::Stop],
            Stage::Running if std::mem::take(&mut self.is_fresh) => self.run(),
            Stage::Running => vec![Effect::Continue],
        }))
    }

    fn run(&self) -> Vec<Effect> {
        let uds = self.vsock["uds_path"].as_str().unwrap_or_default().to_owned();
        let mut effects = Vec::new();
        if !uds.is_empty() {
            effects.push(Effect::Listen(uds.clone()));
        }
        effects.push(Effect::Run(Guest {
            cmdline: self.boot_source["boot_args"].as_str().unwrap_or_default().into(),
            uds,
        }));
        effects
    }

    fn save(&self, body: &Value) -> Result<Done, Refusal> {
        if self.stage != Stage::Paused {
            return Err(Refusal::state(400, "the microVM is not paused"));
        }
        let path = |key: &str| Path::new(body[key].as_str().unwrap_or_default()).to_owned();
        let state = json!({
            "machine": self.machine,
            "boot_source": self.boot_source,
            "vsock": self.vsock,
            "drives": self.drives,
        });
        Ok(Done::with(vec![Effect::Save {
            texts: vec![(path("snapshot_path"), state.to_string())],
            memory: path("mem_file_path"),
            bytes: self.machine["mem_size_mib"].as_u64().unwrap_or_default() << 20,
        }]))
    }

    fn load(&mut self, body: &Value) -> Result<Done, Refusal> {
        if self.stage != Stage::NotStarted || self.is_touched {
            return Err(Refusal::state(
                400,
                "a microVM is loaded before anything is configured",
            ));
        }
        if body.get("mem_backend").is_some() == body.get("mem_file_path").is_some() {
            return Err(Refusal::description(
                "either mem_backend or mem_file_path is required",
            ));
        }
        let damaged = |what: String| Refusal::new(400, Because::Host, what);
        let seen = |path: &Value| inside(self.root.as_deref(), path.as_str().unwrap_or_default());
        let text = std::fs::read(seen(&body["snapshot_path"]));
        let text = text.map_err(|error| damaged(error.to_string()))?;
        let state: Value = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        let memory = std::fs::metadata(seen(&body["mem_backend"]["backend_path"]));
        let memory = memory.map_err(|error| damaged(error.to_string()))?.len();
        if Some(memory) != state["machine"]["mem_size_mib"].as_u64().map(|mib| mib << 20) {
            return Err(damaged(format!("{memory} bytes of memory")));
        }
        self.machine = state["machine"].clone();
        self.boot_source = state["boot_source"].clone();
        self.vsock = state["vsock"].clone();
        if let Some(uds) = body["vsock_override"].get("uds_path") {
            self.vsock["uds_path"] = uds.clone();
        }
        self.drives =
            serde_json::from_value(state["drives"].clone()).map_err(|error| damaged(error.to_string()))?;
        self.stage = Stage::Paused;
        Ok(Done::silent())
    }
}

//! A monitor as its published description has it: it refuses what that refuses, and what does not go in its state. It does
//! nothing by itself; what is to be done is told.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde_json::Value;

use super::clh::CloudHypervisor;
use super::description::Description;
use super::firecracker::Firecracker;

/// Which monitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    CloudHypervisor,
    Firecracker,
}

impl Kind {
    /// The file of its description.
    pub fn description(self) -> &'static str {
        match self {
            Self::CloudHypervisor => "cloud-hypervisor.yaml",
            Self::Firecracker => "firecracker.yaml",
        }
    }

    /// What its program is called.
    pub fn program(self) -> &'static str {
        match self {
            Self::CloudHypervisor => "cloud-hypervisor",
            Self::Firecracker => "firecracker",
        }
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Null: none.
    pub body: Value,
    /// How many descriptors came with it.
    pub fds: usize,
}

/// A request that was carried out, as far as it is the monitor's to do so.
#[derive(Debug, Clone, PartialEq)]
pub struct Done {
    pub status: u16,
    pub body: Value,
    pub effects: Vec<Effect>,
}

impl Done {
    /// Without an answer or anything to do.
    pub fn silent() -> Self {
        Self::with(Vec::new())
    }

    /// Without an answer.
    pub fn with(effects: Vec<Effect>) -> Self {
        Self {
            status: 204,
            body: Value::Null,
            effects,
        }
    }

    /// With an answer, and nothing to do.
    pub fn answer(body: Value) -> Self {
        Self {
            status: 200,
            body,
            effects: Vec::new(),
        }
    }
}

/// What is to be done on the host. An error of it is the request's.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Open a file as a guest's kernel is, or as its disk of this id, which stays open until it is closed or is another file.
    Open {
        path: String,
        write: bool,
        disk: Option<String>,
    },
    /// Close the file of a disk.
    Close(String),
    /// Connect to a daemon's socket, and hang up.
    Connect(String),
    /// Make the socket of a vsock device.
    Listen(String),
    /// Let the guest run.
    Run(Guest),
    /// Let it not.
    Stop,
    /// Let it go on.
    Continue,
    /// Write files: their content, and memory of this size that is mostly zero.
    Save {
        texts: Vec<(PathBuf, String)>,
        memory: PathBuf,
        bytes: u64,
    },
    /// Say something by oneself.
    Tell(Value),
    /// End.
    End,
}

/// A guest.
#[derive(Debug, Clone, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Guest {
    /// Its kernel's command line.
    pub cmdline: String,
    /// The base of its vsock's sockets.
    pub uds: String,
}

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Because {
    /// The description has no such thing.
    Description,
    /// Not in this state.
    State,
    /// The host lacks something.
    Host,
}

/// A request that was refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    pub status: u16,
    pub because: Because,
    pub words: String,
}

impl Refusal {
    pub fn new(status: u16, because: Because, words: impl Into<String>) -> Self {
        Self {
            status,
            because,
            words: words.into(),
        }
    }

    pub fn state(status: u16, words: impl Into<String>) -> Self {
        Self::new(status, Because::State, words)
    }

    pub fn description(words: impl Into<String>) -> Self {
        Self::new(400, Because::Description, words)
    }
}

/// A monitor.
#[derive(Clone)]
pub struct Monitor {
    description: Rc<Description>,
    state: State,
}

#[derive(Clone)]
enum State {
    CloudHypervisor(Box<CloudHypervisor>),
    Firecracker(Box<Firecracker>),
}

impl Monitor {
    /// One that has just been started.
    ///
    /// `root` stands for the root directory of its jail.
    pub fn new(kind: Kind, version: &str, descriptions: &Path, root: Option<&Path>) -> Self {
        Self {
            description: Rc::new(Description::read(&descriptions.join(kind.description()))),
            state: match kind {
                Kind::CloudHypervisor => State::CloudHypervisor(Box::new(CloudHypervisor::new(version))),
                Kind::Firecracker => State::Firecracker(Box::new(Firecracker::new(version, root))),
            },
        }
    }

    /// Its description.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Carries out a request, or refuses it; a refusal changes nothing. What it answers is what its description says it may.
    pub fn serve(&mut self, request: &Request) -> Result<Done, Refusal> {
        let description = Rc::clone(&self.description);
        let operation = description
            .operation(&request.method, &request.path)
            .map_err(|words| Refusal::new(404, Because::Description, words))?;
        let schemas = description.schemas();
        match (operation.body(), &request.body) {
            (None, Value::Null) => {}
            (None, _) => return Err(Refusal::description("there is no body in the description")),
            (Some(_), Value::Null) => return Err(Refusal::description("the body is missing")),
            (Some(schema), body) => schemas
                .check(schema, body, "body")
                .map_err(Refusal::description)?,
        }
        let parameter = operation.parameter.as_deref();
        let before = self.state.clone();
        let served = match &mut self.state {
            State::CloudHypervisor(state) => state.serve(operation.template, request),
            State::Firecracker(state) => state.serve(operation.template, parameter, request),
        };
        let (status, body) = match &served {
            Ok(done) => (done.status, done.body.clone()),
            Err(refusal) => {
                self.state = before;
                (refusal.status, Value::Null)
            }
        };
        if served.is_ok() {
            let checked = operation.check_answer(&schemas, status, &body);
            checked.expect("an answer that the description has");
        }
        served
    }

    /// How it says what was wrong.
    pub fn refusal(&self, words: &str) -> Value {
        match self.state {
            State::CloudHypervisor(_) => serde_json::json!(["Error from API", words]),
            State::Firecracker(_) => serde_json::json!({"fault_message": words}),
        }
    }
}

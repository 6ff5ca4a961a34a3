//! The double of a monitor: a program that is called like the real one, serves its API as strictly as the description has it,
//! and runs the real agent as the guest, at the other end of the hybrid vsock. It is the test's own program under another name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::monitor::{Effect, Guest, Kind, Monitor, Refusal, Request};
use super::mutation::Examination;
use super::sys;

/// What a double is told, in a file beside its program: it has no environment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Told {
    /// The agent's program.
    pub agent: PathBuf,
    /// The directory of the descriptions.
    pub descriptions: PathBuf,
    /// The version that it claims to be.
    pub version: String,
    /// A directory for what was found out about the requests that came; none is kept without.
    pub reports: Option<PathBuf>,
}

/// The name of that file.
pub const TOLD: &str = "double.json";

/// Plays a monitor, if this program was called like one; else returns.
pub fn play() {
    let mut args = std::env::args();
    let called = PathBuf::from(args.next().expect("a name"));
    let name = called
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let args: Vec<String> = args.collect();
    let double = match name {
        "cloud-hypervisor" => Double::cloud_hypervisor(&called, &args),
        "firecracker" => Double::firecracker(&called, &args, None),
        "jailer" => Double::jailed(&called, &args),
        _ => return,
    };
    let double = double.map(|mut double| {
        double.examination.called(&args);
        double
    });
    match double.and_then(Double::serve) {
        Ok(()) => exit(0),
        Err(problem) => {
            eprintln!("{name}: {problem}");
            exit(1);
        }
    }
}

struct Double {
    told: Told,
    monitor: Monitor,
    kind: Kind,
    listener: UnixListener,
    events: Option<File>,
    /// Stands for the root directory of a jail.
    root: Option<PathBuf>,
    guest: Option<Pid>,
    /// The guest's end is our doing.
    is_ours: Arc<AtomicBool>,
    examination: Examination,
    /// Files of the guest's disks.
    disks: BTreeMap<String, File>,
    /// Guests that end at once, but not before the answer to what has started them.
    ends: Vec<(Ending, &'static str)>,
}

/// The value of `--name`, each of which must be known, and wanted.
fn options<'a>(args: &'a [String], known: &[&str]) -> Result<Vec<(&'a str, &'a str)>, String> {
    let mut found = Vec::new();
    let mut args = args.iter();
    let mut seen = BTreeSet::new();
    while let Some(name) = args.next() {
        if !known.contains(&name.as_str()) || !seen.insert(name) {
            return Err(format!("unexpected argument {name:?}"));
        }
        let value = match name.as_str() {
            "--no-seccomp" => "",
            _ => args.next().ok_or(format!("{name} has no value"))?,
        };
        found.push((name.as_str(), value));
    }
    Ok(found)
}

fn value<'a>(options: &[(&str, &'a str)], name: &str) -> Result<&'a str, String> {
    let found = options.iter().find(|(other, _)| *other == name);
    found.map(|(_, value)| *value).ok_or(format!("{name} is missing"))
}

impl Double {
    fn new(kind: Kind, called: &Path, listener: UnixListener, root: Option<PathBuf>) -> Result<Self, String> {
        let text = std::fs::read_to_string(called.with_file_name(TOLD)).map_err(|error| error.to_string())?;
        let told: Told = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let monitor = Monitor::new(kind, &told.version, &told.descriptions, root.as_deref());
        Ok(Self {
            examination: Examination::new(monitor.clone(), told.reports.clone()),
            told,
            monitor,
            kind,
            listener,
            events: None,
            root,
            guest: None,
            is_ours: Arc::default(),
            disks: BTreeMap::new(),
            ends: Vec::new(),
        })
    }

    fn cloud_hypervisor(called: &Path, args: &[String]) -> Result<Self, String> {
        let options = options(args, &["--api-socket", "--event-monitor", "--seccomp"])?;
        let fd = |name| -> Result<OwnedFd, String> {
            let number = value(&options, name)?
                .strip_prefix("fd=")
                .ok_or(format!("{name} is no descriptor"))?;
            Ok(sys::inherited(
                number.parse().map_err(|_| format!("{number:?} is no number"))?,
            ))
        };
        if !["true", "false", "log"].contains(&value(&options, "--seccomp")?) {
            return Err("--seccomp takes true, false or log".into());
        }
        let mut double = Self::new(Kind::CloudHypervisor, called, fd("--api-socket")?.into(), None)?;
        double.events = Some(fd("--event-monitor")?.into());
        Ok(double)
    }

    fn firecracker(called: &Path, args: &[String], root: Option<PathBuf>) -> Result<Self, String> {
        let options = options(args, &["--id", "--api-sock", "--level", "--no-seccomp"])?;
        if !["Off", "Error", "Warning", "Info", "Debug"]
            .contains(&value(&options, "--level").unwrap_or("Info"))
        {
            return Err("--level is none".into());
        }
        let socket = inside(root.as_deref(), value(&options, "--api-sock")?);
        let listener =
            UnixListener::bind(&socket).map_err(|error| format!("{}: {error}", socket.display()))?;
        Self::new(Kind::Firecracker, called, listener, root)
    }

    fn jailed(called: &Path, args: &[String]) -> Result<Self, String> {
        let end = args
            .iter()
            .position(|arg| arg == "--")
            .ok_or("nothing for Firecracker")?;
        let known = ["--id", "--exec-file", "--uid", "--gid", "--chroot-base-dir"];
        let options = options(&args[..end], &known)?;
        let values: Vec<&str> = known
            .iter()
            .map(|name| value(&options, name))
            .collect::<Result<_, _>>()?;
        let [id, program, uid, gid, base] = values[..] else {
            return Err("an argument is missing".into());
        };
        if [uid, gid].iter().any(|number| number.parse::<u32>().is_err()) {
            return Err("no user or group".into());
        }
        let program = std::fs::canonicalize(program).map_err(|error| error.to_string())?;
        let root = Path::new(base)
            .join(program.file_name().unwrap_or_default())
            .join(id)
            .join("root");
        if !root.is_dir() {
            return Err(format!("{} is not there", root.display()));
        }
        Self::firecracker(called, &args[end + 1..], Some(root))
    }

    fn serve(mut self) -> Result<(), String> {
        println!("a double of {}", self.kind.program());
        loop {
            let (stream, _) = self.listener.accept().map_err(|error| error.to_string())?;
            while let Some(request) = read(&stream).map_err(|error| error.to_string())? {
                self.examination.examine(&self.monitor, &request);
                let mut monitor = self.monitor.clone();
                let served = monitor.serve(&request).and_then(|done| {
                    let effects = done.effects.iter();
                    effects
                        .filter(|effect| **effect != Effect::End)
                        .try_for_each(|effect| self.carry_out(effect))?;
                    Ok(done)
                });
                let (status, body, ends) = match &served {
                    Ok(done) => {
                        self.monitor = monitor;
                        self.examination.served(&self.monitor, &request);
                        (
                            done.status,
                            done.body.clone(),
                            done.effects.contains(&Effect::End),
                        )
                    }
                    Err(refusal) => (refusal.status, self.monitor.refusal(&refusal.words), false),
                };
                answer(&stream, status, &body).map_err(|error| error.to_string())?;
                for (ending, event) in self.ends.drain(..) {
                    ending.tell(event);
                }
                if ends {
                    return Ok(());
                }
            }
        }
    }

    fn carry_out(&mut self, effect: &Effect) -> Result<(), Refusal> {
        let failed = |what: &str, error: io::Error| {
            Refusal::new(400, super::monitor::Because::Host, format!("{what}: {error}"))
        };
        match effect {
            Effect::Open { path, write, disk } => {
                let path = inside(self.root.as_deref(), path);
                let opened = OpenOptions::new().read(true).write(*write).open(&path);
                let file = opened.map_err(|error| failed(&path.to_string_lossy(), error))?;
                if let Some(disk) = disk {
                    self.disks.insert(disk.clone(), file);
                }
                Ok(())
            }
            Effect::Close(disk) => {
                self.disks.remove(disk);
                Ok(())
            }
            Effect::Connect(path) => UnixStream::connect(path)
                .map(drop)
                .map_err(|error| failed(path, error)),
            Effect::Listen(uds) => {
                let path = inside(self.root.as_deref(), uds);
                let listener =
                    UnixListener::bind(&path).map_err(|error| failed(&path.to_string_lossy(), error))?;
                std::thread::spawn(move || hear_the_host(&listener));
                Ok(())
            }
            Effect::Run(guest) => self.run(guest).map_err(|error| failed("the agent", error)),
            Effect::Stop => self.signal(Signal::STOP).map_err(|error| failed("stop", error)),
            Effect::Continue => self
                .signal(Signal::CONT)
                .map_err(|error| failed("continue", error)),
            Effect::Save { texts, memory, bytes } => {
                let root = self.root.as_deref();
                let save = || -> io::Result<()> {
                    for (path, text) in texts {
                        File::create_new(inside(root, &path.to_string_lossy()))?
                            .write_all(text.as_bytes())?;
                    }
                    let memory = File::create_new(inside(root, &memory.to_string_lossy()))?;
                    memory.set_len(*bytes)?;
                    // A little of it was touched, and a page became zero again.
                    memory.write_all_at(&[7; 64 << 10], 1 << 20)?;
                    memory.write_all_at(&[0; 4096], 9 << 20)
                };
                save().map_err(|error| failed("save", error))
            }
            Effect::Tell(event) => self.tell(event).map_err(|error| failed("tell", error)),
            Effect::End => Ok(()),
        }
    }

    fn tell(&self, event: &Value) -> io::Result<()> {
        match &self.events {
            Some(events) => (&*events).write_all(format!("{event:#}\n\n").as_bytes()),
            None => Ok(()),
        }
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.guest {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    /// Starts the agent as this guest's kernel would: it dials the port that the command line names.
    fn run(&mut self, guest: &Guest) -> io::Result<()> {
        println!("Command line: {}", guest.cmdline);
        let parameter = |name: &str| {
            let parameters = guest.cmdline.split(' ');
            parameters
                .filter_map(|parameter| parameter.strip_prefix(name))
                .next_back()
        };
        let ending = Ending {
            events: self.events.as_ref().map(File::try_clone).transpose()?,
            is_ours: Arc::clone(&self.is_ours),
        };
        if parameter("rdinit=").is_some() {
            println!("[    0.1] Kernel panic - not syncing: No working init found.");
            self.ends.push((ending, "rebooting"));
            return Ok(());
        }
        let Some(port) = parameter("kata.agent=vsock:") else {
            self.ends.push((ending, "shutdown"));
            return Ok(());
        };
        let uds = inside(self.root.as_deref(), &guest.uds);
        let root = uds.with_file_name("guest");
        std::fs::create_dir_all(&root)?;
        let mut command = Command::new(&self.told.agent);
        command
            .arg("--root")
            .arg(&root)
            .arg("--connect")
            .arg(format!("unix:{}_{port}", uds.display()))
            .stdin(Stdio::null());
        sys::die_with_parent(&mut command);
        let mut agent = command.spawn()?;
        self.guest = Pid::from_raw(agent.id().cast_signed());
        std::thread::spawn(move || {
            // A guest whose first program ends powers off.
            let _ = agent.wait();
            ending.tell("shutdown");
        });
        Ok(())
    }
}

/// What follows from the end of a guest.
struct Ending {
    events: Option<File>,
    is_ours: Arc<AtomicBool>,
}

impl Ending {
    fn tell(self, event: &str) {
        if self.is_ours.load(Ordering::Relaxed) {
            return;
        }
        match self.events {
            // A monitor that tells it goes on to boot after a reset.
            Some(mut events) => {
                let event = serde_json::json!({"source": "vm", "event": event, "properties": null});
                let _ = events.write_all(format!("{event:#}\n\n").as_bytes());
                if event["event"] == "shutdown" {
                    exit(0);
                }
            }
            None => exit(0),
        }
    }
}

/// The host's end of hybrid vsock: `CONNECT <port>`. No guest of ours listens.
fn hear_the_host(listener: &UnixListener) {
    for stream in listener.incoming().flatten() {
        let mut line = String::new();
        let heard = BufReader::new(&stream).read_line(&mut line);
        if heard.is_ok() && !line.starts_with("CONNECT ") {
            eprintln!("{line:?} is not how a connection begins");
        }
    }
}

/// A path of the monitor's as we see it.
pub fn inside(root: Option<&Path>, path: &str) -> PathBuf {
    match root {
        Some(root) => root.join(path.trim_start_matches('/')),
        None => path.into(),
    }
}

/// The next request on a connection; none at its end.
fn read(stream: &UnixStream) -> io::Result<Option<Request>> {
    let wrong = |words: &str| io::Error::new(io::ErrorKind::InvalidData, words);
    let (mut bytes, mut fds) = (Vec::new(), 0);
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 16];
        let mut head = httparse::Request::new(&mut fields);
        let parsed = head.parse(&bytes).map_err(io::Error::other)?;
        if let httparse::Status::Complete(begin) = parsed {
            let length = head
                .headers
                .iter()
                .find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let length = length
                .and_then(|field| std::str::from_utf8(field.value).ok()?.parse().ok())
                .unwrap_or(0_usize);
            if let Some(body) = bytes.get(begin..begin + length) {
                if bytes.len() != begin + length {
                    return Err(wrong("a second request before the first was answered"));
                }
                return Ok(Some(Request {
                    method: head.method.unwrap_or_default().into(),
                    path: head.path.unwrap_or_default().into(),
                    body: match body {
                        [] => Value::Null,
                        body => serde_json::from_slice(body)?,
                    },
                    fds,
                }));
            }
        }
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            stream,
            &mut [IoSliceMut::new(&mut chunk)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds += rights.count();
            }
        }
        match (received.bytes, bytes.is_empty()) {
            (0, true) => return Ok(None),
            (0, false) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (count, _) => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

fn answer(mut stream: &UnixStream, status: u16, body: &Value) -> io::Result<()> {
    let reason = match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        _ => "Internal Server Error",
    };
    let mut text = format!("HTTP/1.1 {status} {reason}\r\nServer: double\r\nConnection: keep-alive\r\n");
    match body {
        Value::Null => text += "\r\n",
        body => {
            let body = body.to_string();
            let length = body.len();
            text += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}");
        }
    }
    stream.write_all(text.as_bytes())
}

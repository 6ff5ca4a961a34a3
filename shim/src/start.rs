//! The `start` action: finds the server of a container's sandbox or starts one, and prints its address, plain: the one
//! form that containerd 1.6 to 2.3 and CRI-O all understand.
//!
//! Callers read its output and its error output as one: nothing but the address may appear on either if it succeeds. It
//! must not leave anything if it fails.

use std::env;
use std::fs;
use std::io::{self, PipeWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use runtime::SandboxId;
use rustix::process::{Pid, getppid};
use rustix::thread::{CoreSchedulingScope, create_core_scheduling_cookie};

use crate::arguments::Arguments;
use crate::bootstrap::{self, Said};
use crate::bundle::{self, Note};
use crate::serve::HANDED_OVER;
use crate::{group, input, log, options, socket};

/// What the command line and the standard input ask for together.
struct Request {
    id: SandboxId,
    arguments: Arguments,
    ttrpc_address: Option<String>,
    socket_dir: Option<String>,
    configuration: Option<PathBuf>,
    bundle: PathBuf,
}

impl Request {
    fn new(mut arguments: Arguments, said: Said) -> Result<Self> {
        if arguments.id.is_empty() {
            arguments.id = said.id;
        }
        if arguments.namespace.is_empty() {
            arguments.namespace = said.namespace;
        }
        if let Some(address) = said.grpc_address {
            arguments.address = address;
        }
        if let Some(program) = said.publish_binary {
            arguments.publish_binary = program;
        }
        arguments.debug |= said.debug;
        // Both become parts of paths.
        let id = SandboxId::new(&arguments.id).context("-id")?;
        SandboxId::new(&arguments.namespace).context("-namespace")?;
        // Damaged options are for Create to refuse: it gets them too.
        let configuration = options::config_path(said.options.as_ref()).unwrap_or_default();
        let bundle = match &arguments.bundle {
            Some(bundle) => bundle.clone(),
            None => env::current_dir().context("cannot find the bundle: the working directory is gone")?,
        };
        Ok(Self {
            id,
            arguments,
            ttrpc_address: said.ttrpc_address,
            socket_dir: said.socket_dir,
            configuration,
            bundle,
        })
    }
}

/// Carries out the action.
///
/// # Errors
/// Why there is no server.
pub fn start(arguments: Arguments) -> Result<()> {
    let input = input::read(io::stdin()).context("cannot read the standard input")?;
    let said = bootstrap::understand(&input, &arguments.id, &arguments.namespace);
    let request = Request::new(arguments, said)?;
    let (address, new) = server(&request)?;
    let mut out = io::stdout();
    out.write_all(address.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot print the address")?;
    if let Some(mut server) = new {
        // One that has ended already is missed by whoever connects.
        let _ = server.write_all(HANDED_OVER);
    }
    Ok(())
}

/// The address of the server, which listens when this returns. If it is a new one, it waits to be told over the pipe that
/// whoever started us has its address, and ends when the pipe is closed before: then nobody knows of it.
fn server(request: &Request) -> Result<(String, Option<PipeWriter>)> {
    let Request {
        arguments, bundle, ..
    } = request;
    let sandbox = group::of_bundle(bundle, &request.id)?;
    let path = socket::path(
        request.socket_dir.as_deref(),
        &arguments.address,
        &arguments.namespace,
        sandbox.as_str(),
    )?;
    let address = socket::address(&path);
    let note = Note {
        sandbox: sandbox.to_string(),
        run_dir: None,
        pid: None,
        configuration: request.configuration.clone(),
    };
    bundle::write_note(bundle, &note)?;
    if sandbox != request.id {
        let live = socket::is_live(&path)
            .with_context(|| format!("cannot reach the shim of sandbox {sandbox} at {}", path.display()))?;
        if !live {
            bail!(
                "container {} belongs to sandbox {sandbox}, whose shim is gone (nobody listens at {}): \
                 the pod has to be created anew",
                arguments.id,
                path.display()
            );
        }
        bundle::write_address(bundle, &address)?;
        return Ok((address, None));
    }
    let Some(listener) = socket::listen(&path)? else {
        // Its own server runs already, as after a `start` whose answer was lost.
        bundle::write_address(bundle, &address)?;
        return Ok((address, None));
    };
    match launch(request, listener, &address) {
        Ok(pipe) => Ok((address, Some(pipe))),
        Err(error) => {
            // Nobody else knows it yet.
            let _ = fs::remove_file(&path);
            Err(error)
        }
    }
}

/// Starts a server on this socket and writes down where it is.
fn launch(request: &Request, listener: UnixListener, address: &str) -> Result<PipeWriter> {
    let (mut child, pipe) = spawn(request, listener)?;
    let noted = bundle::write_pid(&request.bundle, child.id())
        .and_then(|()| bundle::write_address(&request.bundle, address));
    if let Err(error) = noted {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    adjust(&child);
    Ok(pipe)
}

/// The server is this program again, with the listening socket as its standard input, the end of a pipe in the place of its
/// standard output, and no other descriptor of ours.
fn spawn(request: &Request, listener: UnixListener) -> Result<(Child, PipeWriter)> {
    let arguments = &request.arguments;
    let program = env::current_exe().context("cannot find this program's file")?;
    let errors = match log::open(&request.bundle).context("cannot open the log")? {
        Some(pipe) => Stdio::from(pipe),
        None => Stdio::null(),
    };
    let (theirs, ours) = io::pipe().context("cannot make a pipe for the server")?;
    let mut command = Command::new(&program);
    command
        .args(["-namespace", &arguments.namespace, "-id", &arguments.id])
        .args(["-address", &arguments.address])
        .args(["-publish-binary", &arguments.publish_binary])
        .current_dir(&request.bundle)
        .stdin(OwnedFd::from(listener))
        .stdout(theirs)
        .stderr(errors);
    if arguments.debug {
        command.arg("-debug");
    }
    if let Some(address) = &request.ttrpc_address {
        command.env("TTRPC_ADDRESS", address);
    }
    hypervisor::process::close_on_exec_from(3).context("cannot keep descriptors from the server")?;
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok((child, ours))
}

/// What other shims do for their servers. A system that refuses it runs containers all the same.
fn adjust(child: &Child) {
    let pid = Pid::from_child(child);
    if env::var("SCHED_CORE")
        .is_ok_and(|value| ["1", "t", "true", "T", "TRUE", "True"].contains(&value.as_str()))
    {
        let _ = create_core_scheduling_cookie(pid, CoreSchedulingScope::ProcessGroup);
    }
    let _ = be_killed_before_caller(child.id());
}

/// When memory runs out, the server goes before the daemon that started it: the others need that.
fn be_killed_before_caller(pid: u32) -> io::Result<()> {
    const MOST: i32 = 1000;
    let Some(caller) = getppid() else {
        return Ok(());
    };
    let path = |pid: u32| PathBuf::from(format!("/proc/{pid}/oom_score_adj"));
    let text = fs::read_to_string(path(caller.as_raw_nonzero().get().unsigned_abs()))?;
    let score: i32 = text.trim().parse().map_err(io::Error::other)?;
    fs::write(path(pid), (score + 1).min(MOST).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments;
    use std::ffi::OsString;
    use std::path::Path;

    fn request(line: &str, said: Said) -> Result<Request> {
        let arguments = arguments::parse(line.split(' ').map(OsString::from)).unwrap();
        Request::new(arguments, said)
    }

    #[test]
    fn what_is_said_counts_more_than_flags() {
        let said = Said {
            id: "c".into(),
            namespace: "n".into(),
            debug: true,
            ttrpc_address: Some("/t".into()),
            grpc_address: Some("/g".into()),
            publish_binary: Some("/p".into()),
            socket_dir: Some("/s".into()),
            options: None,
        };
        for line in [
            "-id c -namespace n -address /old -bundle /b start",
            "-bundle /b start",
        ] {
            let request = request(line, said.clone()).unwrap();
            assert_eq!(request.arguments.id, "c", "{line}");
            assert_eq!(request.arguments.namespace, "n");
            assert_eq!(request.arguments.address, "/g");
            assert_eq!(request.arguments.publish_binary, "/p");
            assert!(request.arguments.debug);
            assert_eq!(request.ttrpc_address.as_deref(), Some("/t"));
            assert_eq!(request.bundle, Path::new("/b"));
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for line in [
            "-namespace n start",
            "-id ../x -namespace n start",
            "-id c start",
            "-id c -namespace a/b start",
        ] {
            assert!(request(line, Said::default()).is_err(), "{line}");
        }
    }
}

//! `console`: a shell in the guest itself.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use runtime::admin::client::{Client, Input, Output};
use runtime::admin::{ConsoleOrder, Frame, Survey};
use rustix::termios::tcgetwinsize;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{Place, block_on, find, told};
use crate::oci::Raw;

/// Bytes of the standard input in one frame.
const CHUNK: usize = 4096;

/// Open a shell in the guest itself, not in a container; or run one command in it, whose exit status is this program's.
///
/// Only where debug_console_enabled is set in [agent.kata]. The guest has no programs but the agent: what runs is the host's
/// debug_console_program, a static busybox, which is brought there for this.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub place: Place,
    /// Give it no terminal, even if this program has one.
    #[arg(short = 'T', long)]
    no_tty: bool,
    /// Sandbox, or a container in it.
    pub id: String,
    /// A command for the shell.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl Args {
    /// A shell in this sandbox.
    pub fn shell(id: &str) -> Self {
        Self {
            place: Place::default(),
            no_tty: false,
            id: id.to_owned(),
            command: Vec::new(),
        }
    }
}

/// Runs it to its end.
///
/// # Errors
/// There is no such sandbox; it has no console; it has ended.
pub fn run(args: &Args, survey: &Survey) -> Result<ExitCode> {
    let terminal = !args.no_tty && std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let order = ConsoleOrder {
        args: match args.command.as_slice() {
            [] => vec!["sh".to_owned()],
            words => ["sh", "-c"]
                .map(str::to_owned)
                .into_iter()
                .chain([words.join(" ")])
                .collect(),
        },
        env: environment(),
        terminal,
        size: terminal.then(size).flatten(),
    };
    block_on(async {
        let found = find::target(survey, &args.id).await?.sandbox;
        let (input, output) = Client::new(&found)
            .map_err(told)?
            .console(&order)
            .await
            .map_err(told)?;
        // Given back on every way out.
        let _raw = terminal.then(|| Raw::set(std::io::stdin())).flatten();
        carry(input, output, terminal).await
    })
}

fn environment() -> Vec<String> {
    let mut all = vec![
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        "HOME=/".to_owned(),
        "PS1=guest# ".to_owned(),
    ];
    all.extend(std::env::var("TERM").ok().map(|term| format!("TERM={term}")));
    all
}

fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    Some((size.ws_row, size.ws_col))
}

async fn carry(mut input: Input, mut output: Output, terminal: bool) -> Result<ExitCode> {
    let (frames, mut queue) = mpsc::channel(1);
    let typed = tokio::spawn(typed(frames.clone()));
    let resized = terminal.then(|| tokio::spawn(resized(frames)));
    let sent = async {
        while let Some(frame) = queue.recv().await {
            // Its last words and its end may be on their way still; who reads them tells how it ended.
            if input.send(&frame).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let code = tokio::select! {
        code = shown(&mut output) => code,
        () = sent => return Ok(ExitCode::FAILURE),
    };
    typed.abort();
    if let Some(resized) = resized {
        resized.abort();
    }
    Ok(ExitCode::from(u8::try_from(code?).unwrap_or(u8::MAX)))
}

/// Shows what comes, until the program has ended so.
async fn shown(output: &mut Output) -> Result<u32> {
    loop {
        let written = match output.receive().await.map_err(told)? {
            Some(Frame::Data(data)) => put(std::io::stdout(), &data),
            Some(Frame::Errors(data)) => put(std::io::stderr(), &data),
            Some(Frame::Exit(code)) => return Ok(code),
            Some(Frame::Size(..) | Frame::End) => Ok(()),
            None => bail!("the sandbox has ended, and its console with it"),
        };
        written.context("cannot write what the console says")?;
    }
}

fn put(mut to: impl std::io::Write, data: &[u8]) -> std::io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

/// Passes on what is typed, and its end.
async fn typed(frames: mpsc::Sender<Frame>) {
    let mut stdin = tokio::io::stdin();
    let mut chunk = [0; CHUNK];
    loop {
        let frame = match stdin.read(&mut chunk).await {
            Ok(0) | Err(_) => Frame::End,
            Ok(length) => Frame::Data(chunk.get(..length).unwrap_or_default().to_vec()),
        };
        let is_end = frame == Frame::End;
        if frames.send(frame).await.is_err() || is_end {
            return;
        }
    }
}

/// Passes on the size of the terminal whenever it changes.
async fn resized(frames: mpsc::Sender<Frame>) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else {
        return;
    };
    while changed.recv().await.is_some() {
        if let Some((rows, columns)) = size()
            && frames.send(Frame::Size(rows, columns)).await.is_err()
        {
            return;
        }
    }
}

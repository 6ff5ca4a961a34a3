//! A process and its stand-in: what is sent to the one reaches the other, and the end of either is the end of both.

use std::io;
use std::os::fd::OwnedFd;

use runtime::{Container, ContainerId, ExecId};
use slog::{Logger, debug, info};
use standin::channel::{LENGTH, Said, Told};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::deadlines;

/// Exit status of a process that was removed before it ran: 128 + SIGKILL.
const KILLED: u8 = 137;

const SIGKILL: u32 = libc::SIGKILL as u32;

/// The connection to a stand-in.
#[derive(Debug)]
pub struct Standin {
    stream: UnixStream,
    /// What it said before anybody could act on it.
    early: Vec<Said>,
}

impl Standin {
    /// Takes the connection.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stream = std::os::unix::net::UnixStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            early: Vec::new(),
        })
    }

    /// Has it join the network of the process with this pid, and whatever else makes it look like its process.
    pub async fn settle(&mut self, pid: u32) -> io::Result<()> {
        self.stream.write_all(&Told::Settle(pid).to_bytes()).await?;
        let joined = async {
            loop {
                match hear(&mut self.stream).await? {
                    Said::Ready => return Ok(()),
                    Said::Failed(reason) => {
                        return Err(io::Error::from_raw_os_error(
                            reason.try_into().unwrap_or_default(),
                        ));
                    }
                    said => self.early.push(said),
                }
            }
        };
        timeout(deadlines::STANDIN, joined)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Attends to a process until it has ended, and tells the stand-in how.
    pub async fn attend(mut self, container: Container, exec: Option<ExecId>, log: Logger) {
        let status = self.until_the_end(&container, exec.as_ref(), &log).await;
        if let Some(exec) = &exec
            && let Err(error) = container.delete_exec(exec).await
        {
            debug!(log, "an ended process is not forgotten"; "exec" => %exec, "error" => error.chain());
        }
        if let Err(error) = self.stream.write_all(&Told::End(status).to_bytes()).await {
            debug!(log, "a stand-in is gone before its process"; "error" => %error);
        }
    }

    async fn until_the_end(&mut self, container: &Container, exec: Option<&ExecId>, log: &Logger) -> u8 {
        for said in std::mem::take(&mut self.early) {
            act(container, exec, said, log);
        }
        let ended = container.wait(exec);
        tokio::pin!(ended);
        let mut listening = true;
        loop {
            tokio::select! {
                ended = &mut ended => return match ended {
                    Ok(exit) => u8::try_from(exit.code).unwrap_or(u8::MAX),
                    Err(_) => KILLED,
                },
                // Never cancelled but by the end.
                said = hear(&mut self.stream), if listening => match said {
                    Ok(said) => act(container, exec, said, log),
                    Err(_) => {
                        listening = false;
                        info!(log, "a stand-in is gone; its process goes too";
                            "container" => %container.id(), "exec" => exec.map(ExecId::as_str));
                        kill(container, exec, SIGKILL, exec.is_none(), log);
                    }
                },
            }
        }
    }
}

async fn hear(stream: &mut UnixStream) -> io::Result<Said> {
    let mut word = [0; LENGTH];
    stream.read_exact(&mut word).await?;
    Said::from_bytes(word).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn act(container: &Container, exec: Option<&ExecId>, said: Said, log: &Logger) {
    match said {
        Said::Signal(signal) => kill(container, exec, signal, false, log),
        Said::Size { rows, columns } => {
            let (container, exec, log) = (container.clone(), exec.cloned(), log.clone());
            tokio::spawn(async move {
                if let Err(error) = container.resize(exec.as_ref(), rows, columns).await {
                    debug!(log, "a terminal keeps its size"; "error" => error.chain());
                }
            });
        }
        Said::Ready | Said::Failed(_) => {}
    }
}

fn kill(container: &Container, exec: Option<&ExecId>, signal: u32, all: bool, log: &Logger) {
    let (container, exec, log) = (container.clone(), exec.cloned(), log.clone());
    tokio::spawn(async move {
        if let Err(error) = container.kill(exec.as_ref(), signal, all).await {
            debug!(log, "a signal does not reach its process";
                "container" => %container.id() as &ContainerId, "signal" => signal, "error" => error.chain());
        }
    });
}

//! Outside of the cells: which cases there are, and the cells that run them.

use std::collections::HashSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ExitCode, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::cell::{self, Cell};
use e2e::parts::{Part, Target, is_skipped};
use e2e::{deadlines, debian, image};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::cases::{self, Entry};

/// Cells that work at the same time. Two virtual machines are what two cores boot in acceptable time.
const CELLS: usize = 2;

/// For one case. Every wait within one has its own deadline; this is for a bug in the tests themselves.
const CASE: Duration = Duration::from_secs(400);

/// Files for the cells, in a directory that ends with the run.
pub const IMAGE: &str = "KATA_E2E_BUSYBOX";

/// Runs the cases that the command line names.
pub fn run() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(CELLS).min(CELLS));
    let pool = Arc::new(Pool {
        interrupted: cell::outlive_interrupt()?,
        idle: Mutex::default(),
        present: Mutex::default(),
        images: Mutex::default(),
    });
    let mut trials = Vec::new();
    for entry in cases::all() {
        let pool = Arc::clone(&pool);
        let name = entry.full_name();
        let skipped = is_skipped(&name) || is_skipped(entry.name()) || entry.needs().any(Part::is_skipped);
        trials.push(
            Trial::test(name, move || {
                pool.run(&entry)
                    .map_err(|error| Failed::from(format!("{error:#}")))
            })
            .with_ignored_flag(skipped),
        );
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    pool.close()?;
    Ok(conclusion.exit_code())
}

/// Cells that wait for work.
struct Pool {
    interrupted: Arc<AtomicBool>,
    idle: Mutex<Vec<Worker>>,
    /// Parts that are known to be there.
    present: Mutex<HashSet<Part>>,
    images: Mutex<Option<Images>>,
}

/// The images that cells import.
#[derive(Clone)]
struct Images {
    busybox: PathBuf,
    /// Ends with the pool.
    _directory: Arc<tempfile::TempDir>,
}

impl Pool {
    /// Runs a case in a cell.
    fn run(&self, entry: &Entry) -> Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        let target = Target::here();
        for part in entry.needs() {
            self.check(part, &target)?;
        }
        let idle = lock(&self.idle).pop();
        let mut worker = match idle {
            Some(worker) => worker,
            None => Worker::start(&target, &self.images(&target)?)?,
        };
        match worker.work(&entry.full_name()) {
            Ok(None) => {
                lock(&self.idle).push(worker);
                Ok(())
            }
            // What a failed case left must not fail the next one: this cell ends here.
            Ok(Some(failure)) => {
                let _ = worker.end()?;
                bail!(failure);
            }
            Err(error) => {
                let _ = worker.end()?;
                Err(error)
            }
        }
    }

    /// Checks that a part is there, once.
    fn check(&self, part: Part, target: &Target) -> Result<()> {
        let mut present = lock(&self.present);
        if !present.contains(&part) {
            part.check(target)?;
            if part == Part::Debootstrap {
                debian::image(target)?;
            }
            present.insert(part);
        }
        Ok(())
    }

    fn images(&self, target: &Target) -> Result<Images> {
        let mut images = lock(&self.images);
        if let Some(images) = &*images {
            return Ok(images.clone());
        }
        fs::create_dir_all(target.cache())?;
        let directory = tempfile::tempdir_in(target.cache()).context("create a directory for images")?;
        let busybox = directory.path().join("busybox.tar");
        image::write_busybox(&busybox)?;
        Ok(images
            .insert(Images {
                busybox,
                _directory: Arc::new(directory),
            })
            .clone())
    }

    /// Ends all cells. A worker has something to say at its end as well: whether machines came from where they should.
    fn close(&self) -> Result<()> {
        let workers = std::mem::take(&mut *lock(&self.idle));
        let ended: Vec<_> = workers.into_iter().map(Worker::end).collect();
        for status in ended {
            ensure!(
                status?.success(),
                "a cell failed at its end; what it said is above"
            );
        }
        Ok(())
    }
}

/// A lock is never held while a case runs, so a panic of one can't leave anything half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A cell and the worker in it: takes the names of cases, a line each, and answers each with a line of JSON.
struct Worker {
    cell: Option<Cell>,
    child: Child,
    names: Option<ChildStdin>,
    answers: Receiver<String>,
}

impl Worker {
    fn start(target: &Target, images: &Images) -> Result<Self> {
        let cell = Cell::new(&target.cache())?;
        let mut command = cell.command()?;
        command
            .env(IMAGE, &images.busybox)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let (started, start) = channel();
        let (sender, answers) = channel();
        // The cell ends with the thread that starts it, so that is the one that reads until its end.
        thread::spawn(move || {
            let mut child = command.spawn();
            let stdout = child.as_mut().ok().and_then(|child| child.stdout.take());
            let _ = started.send(child);
            let lines = stdout.map(|stdout| BufReader::new(stdout).lines().map_while(Result::ok));
            for line in lines.into_iter().flatten() {
                // Fails when nobody waits for an answer any more.
                let _ = sender.send(line);
            }
        });
        let mut child = start.recv()?.context("start a cell: setpriv, unshare")?;
        Ok(Self {
            cell: Some(cell),
            names: child.stdin.take(),
            child,
            answers,
        })
    }

    /// Runs a case. The answer is how it failed, if it did.
    fn work(&mut self, name: &str) -> Result<Option<String>> {
        let names = self.names.as_mut().context("the worker's input is open")?;
        writeln!(names, "{name}").context("the cell has ended")?;
        match self.answers.recv_timeout(CASE) {
            Ok(answer) => serde_json::from_str(&answer).with_context(|| format!("understand {answer:?}")),
            Err(RecvTimeoutError::Timeout) => bail!("no result within {} s", CASE.as_secs()),
            Err(RecvTimeoutError::Disconnected) => {
                bail!("the cell ended during the case; what it said is above")
            }
        }
    }

    /// Ends the cell, and answers how its worker ended. One that is idle ends by itself, and is killed if it does not.
    fn end(mut self) -> Result<ExitStatus> {
        drop(self.names.take());
        let ended = e2e::wait::until("the cell ends", deadlines::RUN, || Ok(self.child.try_wait()?));
        let status = match ended {
            Ok(status) => status,
            Err(_) => {
                self.child.kill().context("kill a cell")?;
                self.child.wait()?
            }
        };
        self.cell.take().map_or(Ok(()), Cell::close)?;
        Ok(status)
    }
}

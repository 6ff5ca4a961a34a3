//! A program on a terminal, and we are the one who sits before it.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use anyhow::{Context as _, Result};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::program::{Output, Running};

/// Of a terminal, in characters.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// A terminal with a program on it. What the program writes, its error output included, is its standard output here.
#[derive(Debug)]
pub struct Terminal {
    running: Running,
    keyboard: File,
}

impl Terminal {
    /// A new terminal: our end and the program's.
    pub(crate) fn open(size: Size) -> Result<(File, File)> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
            .context("open a pseudoterminal")?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let name = ptsname(&ours, Vec::new())?;
        let path = name.to_str().context("a pseudoterminal's name is text")?;
        let theirs = OpenOptions::new()
            .read(true)
            .write(true)
            // Ours it must not become.
            .custom_flags(rustix::fs::OFlags::NOCTTY.bits().cast_signed())
            .open(path)
            .with_context(|| format!("open {path}"))?;
        let ours = File::from(ours);
        set_size(&ours, size)?;
        Ok((ours, theirs))
    }

    pub(crate) fn new(running: Running, keyboard: File) -> Self {
        Self { running, keyboard }
    }

    /// Types `keys`.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn type_in(&mut self, keys: &str) -> Result<()> {
        self.keyboard.write_all(keys.as_bytes()).context("type")
    }

    /// Gives the window another size.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, size: Size) -> Result<()> {
        set_size(&self.keyboard, size)
    }

    /// What was written on it so far. Each terminal on the way may add a carriage return to a line's end; here is none.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.running.stdout()).replace('\r', "")
    }

    /// Waits until `text` was written on it.
    ///
    /// # Errors
    /// The program ended, or its time is over, and the text has not come.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.running.wait_until(&format!("{text:?}"), |bytes| {
            String::from_utf8_lossy(bytes).replace('\r', "").contains(text)
        })
    }

    /// Waits for the end of the program.
    ///
    /// # Errors
    /// It did not end within its time; then it was killed.
    pub fn end(self) -> Result<Output> {
        self.running.end()
    }
}

fn set_size(terminal: &File, Size { rows, columns }: Size) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).context("set a terminal's size")
}

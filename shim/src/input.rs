//! Reads the standard input of `start` and `-info`: what is there at once, and no more of it than makes sense.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::deadlines;

/// Most bytes that are read. Runtime options may carry a whole configuration; a thousandth of this is usual.
const MAX: usize = 4 << 20;

/// Reads until the end of the input, until nothing more has come for long, or until there is more than can be meant.
/// A terminal has nothing to say.
///
/// # Errors
/// The input cannot be read.
pub fn read(input: impl AsFd) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    if rustix::termios::isatty(&input) {
        return Ok(data);
    }
    let end = Instant::now() + deadlines::STDIN;
    let mut chunk = [0; 4096];
    while data.len() < MAX {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: left.as_secs().cast_signed(),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&input, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => break,
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match rustix::io::read(&input, &mut chunk) {
            Ok(0) => break,
            Ok(count) => data.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Closed by whoever started us: there is no input.
            Err(Errno::BADF) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    #[test]
    fn everything_up_to_the_end_is_read() {
        let (reader, mut writer) = io::pipe().unwrap();
        let sent = vec![7; 20_000];
        writer.write_all(&sent).unwrap();
        drop(writer);
        assert_eq!(read(&reader).unwrap(), sent);
        assert!(read(File::open("/dev/null").unwrap()).unwrap().is_empty());
    }

    #[test]
    fn an_input_that_never_ends_is_not_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"some").unwrap();
        let begun = Instant::now();
        assert_eq!(read(&reader).unwrap(), b"some");
        assert!(begun.elapsed() < deadlines::STDIN * 3);

        assert_eq!(read(File::open("/dev/zero").unwrap()).unwrap().len(), MAX);
    }
}

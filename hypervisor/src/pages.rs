//! Guest memory as a file: made, and copied without what nobody has written to. Must not know whose memory it is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SeekFrom, fstat, ftruncate, memfd_create, seek, sendfile};
use rustix::io::Errno;

/// What the host maps at once.
const PAGE: usize = 4096;

/// What is looked at in one go; fits into a processor's cache.
const CHUNK: usize = 64 * PAGE;

const ZEROS: [u8; PAGE] = [0; PAGE];

/// Memory that nobody has written to yet, as large as a VM's.
pub fn new(mib: u64) -> io::Result<OwnedFd> {
    let memory = memfd_create("guest", MemfdFlags::CLOEXEC)?;
    ftruncate(&memory, mib << 20)?;
    Ok(memory)
}

/// Copies what there is in `from`, and not its holes. `to` is as large, and empty. It makes system calls only, so that a child of a
/// process with threads may do it.
pub fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    for_each_extent(from, |mut begin, end| {
        seek(to, SeekFrom::Start(begin))?;
        while begin < end {
            let count = usize::try_from(end - begin).unwrap_or(usize::MAX);
            if sendfile(to, from, Some(&mut begin), count)? == 0 {
                // It has become shorter meanwhile.
                return Err(Errno::NODATA.into());
            }
        }
        Ok(())
    })
}

/// The same without pages that are all zero, and `to` gets the size of `from`. Answers with the bytes written.
pub fn copy_nonzero(from: OwnedFd, to: OwnedFd) -> io::Result<u64> {
    let (mut buffer, mut written) = (vec![0; CHUNK], 0);
    let (from, to) = (File::from(from), File::from(to));
    ftruncate(&to, from.metadata()?.len())?;
    for_each_extent(&from, |mut begin, end| {
        while begin < end {
            let count = usize::try_from(end - begin).map_or(CHUNK, |left| left.min(CHUNK));
            let (chunk, _) = buffer.split_at_mut(count);
            from.read_exact_at(chunk, begin)?;
            for page in chunk.chunks(PAGE) {
                if page != &ZEROS[..page.len()] {
                    to.write_all_at(page, begin)?;
                    written += page.len() as u64;
                }
                begin += page.len() as u64;
            }
        }
        Ok(())
    })?;
    Ok(written)
}

/// Calls `take` for each extent of a file that is no hole.
fn for_each_extent(file: impl AsFd, mut take: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let begin = match seek(&file, SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Nothing but a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = seek(&file, SeekFrom::Hole(begin))?;
        take(begin, end)?;
        at = end;
    }
}

/// The size of a file.
pub fn size(file: &OwnedFd) -> io::Result<u64> {
    Ok(fstat(file)?.st_size.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// Memory of 64 MiB with little in it: some pages, one page of zeros that was written to, and the very last byte.
    fn touched() -> File {
        let memory = File::from(new(64).unwrap());
        memory.write_all_at(&[7; 3 * PAGE], 5 * MIB).unwrap();
        memory.write_all_at(&[0; PAGE], 9 * MIB).unwrap();
        memory.write_all_at(&[9], 64 * MIB - 1).unwrap();
        memory
    }

    fn content(file: &File) -> Vec<u8> {
        let mut bytes = vec![1; 64 << 20];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn pages(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512 / PAGE as u64
    }

    #[test]
    fn a_copy_has_the_content_and_the_holes() {
        let memory = touched();
        let copied = new(64).unwrap();
        copy(&memory.try_clone().unwrap().into(), &copied).unwrap();
        let copied = File::from(copied);
        assert!(content(&copied) == content(&memory));
        assert_eq!(pages(&copied), pages(&memory));
    }

    #[test]
    fn zeros_are_left_out_and_only_they() {
        let memory = touched();
        let file = tempfile::tempfile().unwrap();
        let to = file.try_clone().unwrap().into();
        let written = copy_nonzero(memory.try_clone().unwrap().into(), to).unwrap();
        assert_eq!(written, 4 * PAGE as u64);
        assert_eq!(size(&file.try_clone().unwrap().into()).unwrap(), 64 * MIB);
        assert!(content(&file) == content(&memory));

        let copied = new(64).unwrap();
        copy(&file.into(), &copied).unwrap();
        let copied = File::from(copied);
        assert!(content(&copied) == content(&memory));
        assert!(pages(&copied) < pages(&memory), "the page of zeros is a hole now");
    }

    #[test]
    fn nothing_is_copied_of_memory_that_nobody_has_touched() {
        let copied = new(64).unwrap();
        copy(&new(64).unwrap(), &copied).unwrap();
        assert_eq!(pages(&File::from(copied)), 0);
    }
}

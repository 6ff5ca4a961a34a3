//! The kernel's asynchronous reads: io_setup(2), io_submit(2), io_getevents(2).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io::{Error, Result};
use std::os::fd::AsRawFd as _;
use std::ptr::{self, NonNull};

use libc::{c_long, c_ulong, iocb, syscall};

use crate::places::{COUNT, PAGE};

/// `IOCB_CMD_PREAD` of linux/aio_abi.h.
const PREAD: u16 = 0;

/// `struct io_event` of linux/aio_abi.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    order: u64,
    result: i64,
    result2: i64,
}

/// Reads with a number of reads on their way at a time.
pub struct Reader {
    depth: usize,
    context: c_ulong,
    buffer: NonNull<u8>,
}

impl Reader {
    /// It has so many at a time on their way; the number is one that [`COUNT`] is a multiple of.
    ///
    /// # Errors
    /// It is none, or the kernel's.
    pub fn new(depth: usize) -> Result<Self> {
        if depth == 0 || !COUNT.is_multiple_of(depth) {
            return Err(Error::other(format!("{COUNT} is not a multiple of {depth}")));
        }
        let mut context: c_ulong = 0;
        // SAFETY: the kernel writes one number, to a place that is ours.
        check(unsafe { syscall(libc::SYS_io_setup, depth as c_ulong, &raw mut context) })?;
        let layout = layout(depth)?;
        // SAFETY: the layout has a size.
        let Some(buffer) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout);
        };
        Ok(Self {
            depth,
            context,
            buffer,
        })
    }

    /// Reads a page at each of the places, and waits for the last.
    ///
    /// # Errors
    /// A read fails, or has less than a page.
    pub fn read(&mut self, file: &File, places: &[u64]) -> Result<()> {
        places
            .chunks(self.depth)
            .try_for_each(|places| self.batch(file, places))
    }

    fn batch(&mut self, file: &File, places: &[u64]) -> Result<()> {
        let mut orders: Vec<iocb> = Vec::with_capacity(places.len());
        for (number, place) in places.iter().enumerate() {
            // SAFETY: zeros are an `iocb`: it has numbers only.
            let mut order: iocb = unsafe { std::mem::zeroed() };
            order.aio_lio_opcode = PREAD;
            order.aio_fildes = file.as_raw_fd() as u32;
            order.aio_buf = self.buffer.as_ptr() as u64 + (number * PAGE) as u64;
            order.aio_nbytes = PAGE as u64;
            order.aio_offset = *place as i64;
            orders.push(order);
        }
        let mut list: Vec<*mut iocb> = orders.iter_mut().map(ptr::from_mut).collect();
        // SAFETY: the list and what it names live until the call returns, and what the reads write to until the context is destroyed;
        // no batch has more than the buffer has pages.
        let submitted = check(unsafe {
            syscall(
                libc::SYS_io_submit,
                self.context,
                list.len() as c_long,
                list.as_mut_ptr(),
            )
        })?;
        let mut events = vec![Event::default(); submitted];
        let count = submitted as c_long;
        let no_deadline = ptr::null_mut::<libc::timespec>();
        // SAFETY: the kernel writes to as many events as there are.
        check(unsafe {
            syscall(
                libc::SYS_io_getevents,
                self.context,
                count,
                count,
                events.as_mut_ptr(),
                no_deadline,
            )
        })?;
        if submitted < places.len() {
            return Err(Error::other(format!(
                "the kernel took {submitted} of {} reads",
                places.len()
            )));
        }
        match events.iter().find(|event| event.result != PAGE as i64) {
            Some(event) => Err(Error::other(format!("a read answered {}", event.result))),
            None => Ok(()),
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and the call returns when no read of it is on its way.
        unsafe { syscall(libc::SYS_io_destroy, self.context) };
        if let Ok(layout) = layout(self.depth) {
            // SAFETY: it was allocated with this layout, and nobody writes to it any more.
            unsafe { dealloc(self.buffer.as_ptr(), layout) };
        }
    }
}

fn layout(depth: usize) -> Result<Layout> {
    Layout::from_size_align(PAGE * depth, PAGE).map_err(Error::other)
}

fn check(answer: c_long) -> Result<usize> {
    usize::try_from(answer).map_err(|_| Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_divides_no_round_is_refused() {
        for depth in [0, 3, 2048] {
            assert!(Reader::new(depth).is_err(), "{depth}");
        }
    }

    #[test]
    fn every_page_is_read_and_an_end_that_comes_too_early_is_an_error() {
        let path = std::env::temp_dir().join(format!("random-reads-{}", std::process::id()));
        std::fs::write(&path, vec![7; PAGE * 8]).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut reader = Reader::new(4).unwrap();
        let all: Vec<u64> = (0..8).map(|page| page * PAGE as u64).collect();
        reader.read(&file, &all).unwrap();
        // SAFETY: no read is on its way, and the buffer has four pages.
        let read = unsafe { std::slice::from_raw_parts(reader.buffer.as_ptr(), PAGE * 4) };
        assert!(read.iter().all(|byte| *byte == 7));
        let beyond = reader.read(&file, &[8 * PAGE as u64]).unwrap_err();
        assert!(beyond.to_string().contains("answered 0"), "{beyond}");
    }
}

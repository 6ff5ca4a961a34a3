//! What a guest puts into a queue: chains of descriptors, which name pieces of its memory. The guest is hostile: all that is
//! bounded here is bounded nowhere else. Pure, but for the reading of memory, which is the caller's.

use std::io;

use super::message::{Region, invalid};

/// Bytes of a descriptor.
const DESCRIPTOR: usize = 16;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT: u16 = 4;

/// Descriptors of a table that another one names.
const MOST_INDIRECT: usize = 4096;

/// Bytes of a request, and of the room for its answer. A request of virtio-fs carries 1 MiB at most, and its heads.
pub const MOST: usize = (1 << 20) + (128 << 10);

/// A piece of memory, as the VMM has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    pub address: u64,
    pub length: usize,
}

/// A request: what is to be read, and where the answer is to be written.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chain {
    pub readable: Vec<Piece>,
    pub writable: Vec<Piece>,
    /// Bytes of both.
    lengths: (usize, usize),
}

impl Chain {
    /// Follows the chain that begins with descriptor `head` of the table of `size` descriptors at `table`, which is an address of the
    /// VMM's. `read` reads the VMM's memory.
    pub fn follow(
        regions: &[Region],
        (table, size): (u64, u16),
        head: u16,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let mut chain = Self::default();
        let mut index = head;
        // A chain that is longer than its table goes round in circles.
        for _ in 0..size {
            if index >= size {
                return Err(invalid(format!("descriptor {index} of {size}")));
            }
            let mut bytes = [0; DESCRIPTOR];
            read(offset(table, usize::from(index) * DESCRIPTOR)?, &mut bytes)?;
            let descriptor = Descriptor::of(&bytes);
            if descriptor.flags & INDIRECT != 0 {
                if descriptor.flags & NEXT != 0 {
                    return Err(invalid("a table of descriptors is not the last one".to_owned()));
                }
                chain.follow_table(regions, &descriptor, read)?;
                return Ok(chain);
            }
            chain.add(regions, &descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(chain);
            }
            index = descriptor.next;
        }
        Err(invalid(format!(
            "a chain has more than its queue's {size} descriptors"
        )))
    }

    fn follow_table(
        &mut self,
        regions: &[Region],
        named: &Descriptor,
        mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let length = named.length as usize;
        let count = length / DESCRIPTOR;
        if !length.is_multiple_of(DESCRIPTOR) || count == 0 || count > MOST_INDIRECT {
            return Err(invalid(format!("a table of descriptors has {length} bytes")));
        }
        let mut table = vec![0; length];
        let mut rest = &mut table[..];
        for piece in pieces(regions, named.address, length)? {
            let (part, after) = rest.split_at_mut(piece.length);
            read(piece.address, part)?;
            rest = after;
        }
        let (table, _) = table.as_chunks::<DESCRIPTOR>();
        let mut index = 0;
        for _ in 0..count {
            let Some(bytes) = table.get(index) else {
                return Err(invalid(format!("descriptor {index} of {count}")));
            };
            let descriptor = Descriptor::of(bytes);
            if descriptor.flags & INDIRECT != 0 {
                return Err(invalid("a table of descriptors names another one".to_owned()));
            }
            self.add(regions, &descriptor)?;
            if descriptor.flags & NEXT == 0 {
                return Ok(());
            }
            index = usize::from(descriptor.next);
        }
        Err(invalid(format!(
            "a chain has more than its table's {count} descriptors"
        )))
    }

    fn add(&mut self, regions: &[Region], descriptor: &Descriptor) -> io::Result<()> {
        let (side, sum) = match descriptor.flags & WRITABLE {
            0 if self.writable.is_empty() => (&mut self.readable, &mut self.lengths.0),
            0 => {
                return Err(invalid(
                    "what is to be read comes after what is to be written".to_owned(),
                ));
            }
            _ => (&mut self.writable, &mut self.lengths.1),
        };
        let length = descriptor.length as usize;
        *sum = sum.saturating_add(length);
        if *sum > MOST {
            return Err(invalid(format!("a request of more than {MOST} bytes")));
        }
        side.extend(pieces(regions, descriptor.address, length)?);
        Ok(())
    }

    /// Bytes to be read, and bytes that can be written.
    pub fn lengths(&self) -> (usize, usize) {
        self.lengths
    }
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn of(bytes: &[u8; DESCRIPTOR]) -> Self {
        let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *bytes;
        Self {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }
}

/// Where the VMM has this memory of the guest's, which may lie in several regions.
fn pieces(regions: &[Region], mut guest: u64, mut length: usize) -> io::Result<Vec<Piece>> {
    let mut pieces = Vec::with_capacity(1);
    while length > 0 {
        let inside = |region: &&Region| guest.checked_sub(region.guest).is_some_and(|at| at < region.size);
        let Some(region) = regions.iter().find(inside) else {
            return Err(invalid(format!("{guest:#x} is no memory of the guest's")));
        };
        let at = guest - region.guest;
        let count = usize::try_from(region.size - at).map_or(length, |left| left.min(length));
        pieces.push(Piece {
            address: offset(region.vmm, usize::try_from(at).map_err(io::Error::other)?)?,
            length: count,
        });
        guest = offset(guest, count)?;
        length -= count;
    }
    Ok(pieces)
}

/// An address so many bytes further.
pub fn offset(address: u64, bytes: usize) -> io::Result<u64> {
    let sum = u64::try_from(bytes)
        .ok()
        .and_then(|bytes| address.checked_add(bytes));
    sum.ok_or_else(|| invalid(format!("{address:#x} and {bytes:#x} more is no address")))
}

//! The kernel's program out of what a distribution ships: an uncompressed ELF file that a VMM enters directly (PVH), which
//! spares the guest from decompressing itself. Pure.

use anyhow::{Context as _, Result, bail, ensure};
use object::Endianness;
use object::elf::{FileHeader64, NoteType};
use object::read::elf::{FileHeader as _, ProgramHeader as _, SectionHeader as _};

use super::compression::decompress;

const ELF_MAGIC: &[u8] = b"\x7fELF";

/// The ELF file within `image`, a bzImage or an ELF file already, checked to be one that a VMM can enter.
///
/// # Errors
/// It is neither, its compression is unknown or its data broken, or it has no PVH entry.
pub fn extract(image: Vec<u8>) -> Result<Vec<u8>> {
    let elf = if image.starts_with(ELF_MAGIC) {
        image
    } else {
        decompress(payload(&image)?)?
    };
    ensure!(
        has_pvh_entry(&elf).context("read the kernel's ELF headers")?,
        "this kernel has no PVH entry (ELF note XEN_ELFNOTE_PHYS32_ENTRY): it needs CONFIG_PVH=y"
    );
    Ok(elf)
}

/// The compressed kernel within a bzImage. Offsets: the kernel's Documentation/arch/x86/boot.rst.
fn payload(image: &[u8]) -> Result<&[u8]> {
    const SETUP_SECTORS: usize = 0x1f1;
    const MAGIC: usize = 0x202;
    const VERSION: usize = 0x206;
    const PAYLOAD_OFFSET: usize = 0x248;
    const PAYLOAD_LENGTH: usize = 0x24c;
    if image.get(MAGIC..MAGIC + 4) != Some(b"HdrS") {
        bail!("neither an ELF file nor a bzImage");
    }
    let version = u16::from_le_bytes(field(image, VERSION)?);
    ensure!(
        version >= 0x208,
        "boot protocol {version:#x} is older than 2.08 (Linux 2.6.26)"
    );
    let [sectors] = field(image, SETUP_SECTORS)?;
    // The boot sector, then the setup code; 0 stands for 4 of the latter.
    let code = (1 + if sectors == 0 { 4 } else { usize::from(sectors) }) * 512;
    let offset = u32::from_le_bytes(field(image, PAYLOAD_OFFSET)?) as usize;
    let length = u32::from_le_bytes(field(image, PAYLOAD_LENGTH)?) as usize;
    // After the data comes its unpacked size, which is part of the gzip format only.
    const SIZE: usize = 4;
    let begin = code + offset;
    let whole = image
        .get(begin..begin + length)
        .context("the bzImage ends early")?;
    let is_gzip = whole.starts_with(&[0x1f, 0x8b]);
    let end = if is_gzip {
        length
    } else {
        length.saturating_sub(SIZE)
    };
    Ok(&whole[..end])
}

fn field<const N: usize>(image: &[u8], offset: usize) -> Result<[u8; N]> {
    let bytes = image
        .get(offset..offset + N)
        .context("the bzImage ends within its header")?;
    Ok(bytes.try_into()?)
}

fn has_pvh_entry(elf: &[u8]) -> Result<bool> {
    /// Xen's public/elfnote.h.
    const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);
    let header = FileHeader64::<Endianness>::parse(elf)?;
    let endian = header.endian()?;
    for segment in header.program_headers(endian, elf)? {
        let Some(mut notes) = segment.notes(endian, elf)? else {
            continue;
        };
        while let Some(note) = notes.next()? {
            if note.name() == b"Xen" && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The release that the kernel reports (`uname -r`), from its banner.
///
/// # Errors
/// It has none.
pub fn release(vmlinux: &[u8]) -> Result<String> {
    const BANNER: &[u8] = b"Linux version ";
    let header = FileHeader64::<Endianness>::parse(vmlinux)?;
    let endian = header.endian()?;
    let (_, section) = header
        .sections(endian, vmlinux)?
        .section_by_name(endian, b".rodata")
        .context("the kernel has no .rodata")?;
    let constants = section.data(endian, vmlinux)?;
    // The banner is among the first of them.
    let banner = constants.windows(BANNER.len()).position(|bytes| bytes == BANNER);
    let rest = &constants[banner.context("the kernel has no banner")? + BANNER.len()..];
    let end = rest
        .iter()
        .position(|byte| *byte == b' ')
        .context("the kernel's banner has no end")?;
    Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// An ELF file with one note segment, which has one note.
    fn elf(owner: &[u8; 4], kind: u32) -> Vec<u8> {
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
        elf.extend([0; 8]);
        elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend([0u64, 64, 0].map(u64::to_le_bytes).concat());
        elf.extend([0u16, 0, 64, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
        // PT_NOTE, readable; offset, addresses, sizes, alignment.
        elf.extend([4u32, 4].map(u32::to_le_bytes).concat());
        elf.extend([120u64, 0, 0, 20, 20, 4].map(u64::to_le_bytes).concat());
        elf.extend([4, 4, kind].map(u32::to_le_bytes).concat());
        elf.extend(owner);
        elf.extend([0; 4]);
        elf
    }

    fn kernel() -> Vec<u8> {
        elf(b"Xen\0", 18)
    }

    /// A bzImage with this payload and nothing else that counts.
    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image.extend([0xff; 100]);
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A legacy frame of one block, which the crate reads but does not write.
    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let block = lz4_flex::block::compress(bytes);
        let size = (block.len() as u32).to_le_bytes();
        [&[0x02, 0x21, 0x4c, 0x18][..], &size, &block].concat()
    }

    fn zstandard(bytes: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder =
            lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// What the kernel's build appends where the format has no size of its own.
    fn with_size(mut packed: Vec<u8>) -> Vec<u8> {
        packed.extend((kernel().len() as u32).to_le_bytes());
        packed
    }

    #[test]
    fn the_kernel_is_taken_out_of_every_wrapping() {
        let elf = kernel();
        assert_eq!(extract(elf.clone()).unwrap(), elf);
        for (format, payload) in [
            ("gzip", gzip(&elf)),
            ("LZ4", with_size(lz4(&elf))),
            ("Zstandard", with_size(zstandard(&elf))),
            ("xz", with_size(xz(&elf))),
        ] {
            assert_eq!(extract(bz_image(&payload)).unwrap(), elf, "{format}");
        }
    }

    #[test]
    fn what_is_no_kernel_for_us_is_refused_with_the_reason() {
        let cut = bz_image(&gzip(&kernel()))[..1030].to_vec();
        let mut old = bz_image(&[]);
        old[0x206] = 0x03;
        for (image, reason) in [
            (b"#!/bin/sh".to_vec(), "neither"),
            (vec![], "neither"),
            (cut, "ends early"),
            (old, "older"),
            (bz_image(b"BZh9 bzip2 data"), "[42, 5a, 68"),
            (bz_image(&with_size(lz4(b"no program"))), "ELF"),
            (elf(b"Xen\0", 17), "CONFIG_PVH"),
            (elf(b"GNU\0", 18), "CONFIG_PVH"),
        ] {
            let error = format!("{:#}", extract(image).unwrap_err());
            assert!(error.contains(reason), "{reason}: {error}");
        }
    }
}

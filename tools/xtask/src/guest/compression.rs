//! Decompression of what kernels and modules are packed with, told by the first bytes; and what we pack ourselves. Pure.

use std::io::{Read, Write};

use anyhow::{Context as _, Result, bail};

/// A format: its name, the bytes it begins with, how it is read.
type Format = (&'static str, &'static [u8], fn(&[u8]) -> Result<Vec<u8>>);

/// What the kernel's build system offers, but for LZMA, LZO and bzip2, which no distribution uses.
const FORMATS: &[Format] = &[
    // The kernel's tools write LZ4's legacy frames.
    ("LZ4", &[0x02, 0x21, 0x4c, 0x18], |bytes| {
        all(lz4_flex::frame::FrameDecoder::new(bytes))
    }),
    ("Zstandard", &[0x28, 0xb5, 0x2f, 0xfd], |bytes| {
        all(ruzstd::decoding::StreamingDecoder::new(bytes)?)
    }),
    ("xz", b"\xfd7zXZ\0", |bytes| {
        all(lzma_rust2::XzReader::new(bytes, true))
    }),
    ("gzip", &[0x1f, 0x8b], |bytes| {
        all(flate2::read::GzDecoder::new(bytes))
    }),
];

/// Decompresses `bytes`, whose format must be a known one.
///
/// # Errors
/// An unknown format, or broken data.
pub fn decompress(bytes: &[u8]) -> Result<Vec<u8>> {
    let Some((name, _, read)) = FORMATS.iter().find(|(_, magic, _)| bytes.starts_with(magic)) else {
        let begin = &bytes[..bytes.len().min(6)];
        let known: Vec<_> = FORMATS.iter().map(|(name, ..)| *name).collect();
        bail!(
            "the compression that begins with {begin:02x?} is none of {}",
            known.join(", ")
        );
    };
    read(bytes).with_context(|| format!("decompress {name}"))
}

/// Packs `bytes` with gzip, the same for the same ones.
///
/// # Errors
/// None that is known.
pub fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    writer.write_all(bytes)?;
    Ok(writer.finish()?)
}

fn all(mut reader: impl Read) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes)?;
    Ok(bytes)
}

//! The files of a kit: a cpio archive in the "newc" format, as the kernel takes for its initramfs, of plain files without
//! directories. Pure.

/// Bytes of a header, and of each of its fields behind the magic.
const HEADER: usize = 110;
const MAGIC: &[u8] = b"070701";
const FIELD: usize = 8;

/// Fields, by their place.
const MODE: usize = 1;
const SIZE: usize = 6;
const NAME_SIZE: usize = 11;

/// What a mode says of a regular file.
const REGULAR: u32 = 0o100_000;
const KIND: u32 = 0o170_000;

/// Name of the last entry.
const END: &str = "TRAILER!!!";

/// A file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// A plain name.
    pub(super) name: &'a str,
    pub(super) content: &'a [u8],
}

/// The files, in order.
///
/// # Errors
/// What is wrong with it.
pub(super) fn files(archive: &[u8]) -> Result<Vec<Entry<'_>>, String> {
    let mut files = Vec::new();
    let mut at = 0;
    loop {
        let short = || format!("it ends within the entry at {at}");
        let header = archive.get(at..at + HEADER).ok_or_else(short)?;
        if !header.starts_with(MAGIC) {
            return Err(format!("there is no entry at {at}"));
        }
        let field = |number: usize| {
            let begin = MAGIC.len() + number * FIELD;
            let digits = header.get(begin..begin + FIELD)?;
            u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        let number =
            |of: usize| field(of).ok_or_else(|| format!("the entry at {at} has no number in a field"));
        let (mode, size, name_size) = (number(MODE)?, number(SIZE)?, number(NAME_SIZE)?);
        let (size, name_size) = (size as usize, name_size as usize);
        let name = archive
            .get(at + HEADER..at + HEADER + name_size)
            .ok_or_else(short)?;
        let name = name.strip_suffix(b"\0").unwrap_or_default();
        let name = std::str::from_utf8(name).unwrap_or_default();
        let begin = (at + HEADER + name_size).next_multiple_of(4);
        if name == END {
            return Ok(files);
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
        if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(plain) {
            return Err(format!("the entry at {at} has no plain name"));
        }
        if mode & KIND != REGULAR {
            return Err(format!("{name} is no file"));
        }
        let content = archive.get(begin..begin + size).ok_or_else(short)?;
        files.push(Entry { name, content });
        at = (begin + size).next_multiple_of(4);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An archive, as others make them.
    fn archive(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, mode, content) in entries.iter().chain([&(END, 0, &[][..])]) {
            let fields = [
                1,
                *mode as usize,
                0,
                0,
                1,
                0,
                content.len(),
                0,
                0,
                0,
                0,
                name.len() + 1,
                0,
            ]
            .map(|field| u32::try_from(field).unwrap());
            bytes.extend_from_slice(MAGIC);
            for field in fields {
                bytes.extend_from_slice(format!("{field:08x}").as_bytes());
            }
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend_from_slice(content);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        bytes
    }

    #[test]
    fn files_come_out_as_they_went_in() {
        let bytes = archive(&[
            ("ld.so", 0o100_755, b"one"),
            ("libxt_tcp.so", 0o100_644, b""),
            ("libstdc++.so.6", 0o100_644, b"12345"),
        ]);
        let found = files(&bytes).unwrap();
        let found: Vec<_> = found.iter().map(|file| (file.name, file.content)).collect();
        assert_eq!(
            found,
            [
                ("ld.so", &b"one"[..]),
                ("libxt_tcp.so", b""),
                ("libstdc++.so.6", b"12345")
            ]
        );
    }

    #[test]
    fn names_that_lead_elsewhere_and_what_is_no_file_are_refused() {
        for (name, mode, said) in [
            ("../init", 0o100_755, "no plain name"),
            ("a/b", 0o100_755, "no plain name"),
            (".", 0o100_755, "no plain name"),
            ("", 0o100_755, "no plain name"),
            ("link", 0o120_777, "is no file"),
            ("dir", 0o040_755, "is no file"),
        ] {
            let error = files(&archive(&[(name, mode, b"")])).unwrap_err();
            assert!(error.contains(said), "{name}: {error}");
        }
        let whole = archive(&[("a", 0o100_644, b"content")]);
        for length in 0..whole.len() - 3 {
            assert!(files(&whole[..length]).is_err(), "{length}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), at in 0_usize..110, with: u8) {
            let _ = files(&bytes);
            let mut damaged = archive(&[("a", 0o100_644, b"content")]);
            damaged[at] = with;
            let _ = files(&damaged);
        }
    }
}

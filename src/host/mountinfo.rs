//! The kernel's list of mounts, `/proc/self/mountinfo` (proc(5)). Pure.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// Where something is mounted below `dir` (or on it), in the order of the list: what is over or below another mount comes
/// after it. Lines that cannot be understood are passed over.
pub(super) fn below(mountinfo: &[u8], dir: &Path) -> Vec<PathBuf> {
    mountinfo
        .split(|&byte| byte == b'\n')
        .filter_map(|line| line.split(|&byte| byte == b' ').nth(4))
        .map(unescaped)
        .filter(|path| path.starts_with(dir))
        .collect()
}

/// The numbers of mounts below `dir`, without the one on it, in the order of the list.
pub(super) fn ids_below(mountinfo: &[u8], dir: &Path) -> Vec<u64> {
    let line = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let path = unescaped(fields.nth(3)?);
        (path != dir && path.starts_with(dir)).then_some(id)
    };
    mountinfo.split(|&byte| byte == b'\n').filter_map(line).collect()
}

/// Undoes `\040` and its like.
pub(super) fn unescaped(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let code = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'))
            }
            _ => None,
        };
        bytes.push(code.unwrap_or(first));
        rest = match code {
            Some(_) => after.get(3..).unwrap_or_default(),
            None => after,
        };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &[u8] = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
        30 27 0:30 / /run/kata/a@b/mounts rw shared:1 - tmpfs tmpfs rw\n\
        31 30 8:1 /x /run/kata/a@b/mounts/c/root\\040fs rw master:2 - ext4 /dev/vda rw\n\
        32 27 0:30 / /run/kata/a@bc/mounts rw - tmpfs tmpfs rw\n\
        33 27 0:30 / /run/kata/a@b rw - tmpfs tmpfs rw\n\
        broken\n";

    #[test]
    fn mounts_below_a_directory_and_not_beside_it() {
        let found = below(TEXT, Path::new("/run/kata/a@b"));
        let expected = [
            "/run/kata/a@b/mounts",
            "/run/kata/a@b/mounts/c/root fs",
            "/run/kata/a@b",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert_eq!(ids_below(TEXT, Path::new("/run/kata/a@b")), [30, 31]);
        assert_eq!(
            ids_below(TEXT, Path::new("/run/kata/a@b/mounts/c/root fs")),
            [0_u64; 0]
        );
    }

    proptest! {
        #[test]
        fn any_path_survives_the_kernels_escapes(path in "/[ -~\\t\\n]{0,40}") {
            let escaped: String = path
                .chars()
                .map(|c| match c {
                    ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", c as u32),
                    c => c.to_string(),
                })
                .collect();
            let line = format!("1 2 0:3 / {escaped} rw - tmpfs tmpfs rw\n");
            prop_assert_eq!(below(line.as_bytes(), Path::new("/")), vec![PathBuf::from(path)]);
        }

        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            below(&bytes, Path::new("/x"));
        }
    }
}

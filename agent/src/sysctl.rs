//! Settings of the kernel: what is said of one that it does not take.

use std::io;

/// Why a setting was refused, and what to do.
pub fn refusal(key: &str, value: &str, cause: &io::Error) -> String {
    match cause.raw_os_error() {
        Some(libc::ENOENT) => format!(
            "{key:?} = {value:?}: the guest's kernel has no such setting; correct its name, leave it out, or use a guest kernel \
             that has it"
        ),
        Some(libc::EINVAL | libc::ERANGE) => {
            format!("{key:?} = {value:?}: the guest's kernel does not take this value ({cause}); correct it")
        }
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            format!("{key:?} = {value:?}: it cannot be changed in the guest ({cause}); leave it out")
        }
        _ => format!("{key:?} = {value:?}: {cause}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_key_value_and_remedy() {
        for (errno, remedy) in [
            (libc::ENOENT, "use a guest kernel"),
            (libc::EINVAL, "correct it"),
            (libc::EPERM, "leave it out"),
            (libc::EIO, "os error 5"),
        ] {
            let text = refusal("kernel.x", "7", &io::Error::from_raw_os_error(errno));
            assert!(
                text.starts_with("\"kernel.x\" = \"7\": ") && text.contains(remedy),
                "{text}"
            );
        }
    }
}

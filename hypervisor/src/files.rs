//! The host's files that a virtual machine is made of: whether they are there, and which they are. Must not know a driver.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{Error, ErrorKind};

/// Checks that each file is there and has something in it: what it is for, its path, and what to do where it is not.
///
/// # Errors
/// The first that is not usable.
pub fn usable(needed: &[(&str, &Path, &str)]) -> Result<(), Error> {
    for (what, path, remedy) in needed {
        let problem = match fs::metadata(path) {
            // With an empty one a guest would start, and panic.
            Ok(metadata) if metadata.is_file() && metadata.len() > 0 => continue,
            Ok(metadata) if metadata.is_file() => "the file is empty".to_owned(),
            Ok(_) => "not a regular file".to_owned(),
            Err(error) => error.to_string(),
        };
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("{what} is not usable at {}: {problem}; {remedy}", path.display()),
        ));
    }
    Ok(())
}

/// The guest's kernel as [`usable`] wants it.
pub fn kernel(path: &Path) -> (&str, &Path, &str) {
    (
        "the guest's kernel",
        path,
        "build it with `make guest` or set `kernel`",
    )
}

/// The guest's initramfs as [`usable`] wants it.
pub fn initrd(path: &Path) -> (&str, &Path, &str) {
    (
        "the guest's initramfs",
        path,
        "build it with `make guest` or set `initrd`",
    )
}

/// The device that monitors without a translator of their own run guests by.
const KVM: &str = "/dev/kvm";

/// Checks that `vmm` can open KVM's device.
///
/// # Errors
/// It cannot.
pub fn kvm(vmm: &str) -> Result<(), Error> {
    match fs::OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::caused(
            ErrorKind::FailedPrecondition,
            format!(
                "{vmm} needs {KVM}, which cannot be opened: {source}; load the module kvm_intel or kvm_amd, or use \
                 hypervisor_name = \"qemu\""
            ),
            source,
        )),
    }
}

/// Which file this is, and that nobody has written to it since.
///
/// # Errors
/// It is not there, or may not be examined.
pub fn identity(path: &Path) -> Result<String, Error> {
    let metadata: Metadata = fs::metadata(path).map_err(|cause| {
        Error::caused(
            ErrorKind::NotFound,
            format!("cannot examine {}: {cause}", path.display()),
            cause,
        )
    })?;
    Ok(format!(
        "{} {}:{} {} {}.{:09} {}.{:09}",
        path.display(),
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec()
    ))
}

/// What a guest sees of the host's processor.
///
/// # Errors
/// The kernel does not tell.
pub fn processor() -> Result<String, Error> {
    let text = fs::read_to_string("/proc/cpuinfo").map_err(|cause| {
        Error::caused(
            ErrorKind::Internal,
            format!("cannot read /proc/cpuinfo: {cause}"),
            cause,
        )
    })?;
    let told = [
        "vendor_id",
        "cpu family",
        "model",
        "stepping",
        "microcode",
        "flags",
    ];
    let first = text.lines().take_while(|line| !line.is_empty());
    let lines: Vec<_> = first
        .filter(|line| told.iter().any(|key| line.starts_with(key)))
        .collect();
    Ok(lines.join("\n"))
}

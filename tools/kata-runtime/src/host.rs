//! What is on this host: programs and their versions, devices, control groups. Reads; starts nothing but `--version`.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};

/// The first line that a program prints for `--version`, or why there is none.
///
/// # Errors
/// The program is missing, fails, or prints nothing.
pub fn version(program: &Path) -> Result<String, String> {
    let output = Command::new(program)
        .arg("--version")
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("--version: {}", output.status));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().next() {
        Some(line) if !line.trim().is_empty() => Ok(line.trim().to_owned()),
        _ => Err("--version prints nothing".to_owned()),
    }
}

/// Whether a device can be opened for reading and writing, or why not.
///
/// # Errors
/// The reason.
pub fn device(path: &str) -> Result<(), String> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map(drop)
        .map_err(|error| error.to_string())
}

/// Which control groups the host uses: `v2`, `v1` or `hybrid`.
///
/// # Errors
/// None is mounted where it should be.
pub fn cgroups() -> Result<&'static str, String> {
    const ROOT: &str = "/sys/fs/cgroup";
    let unified = |path: &str| Path::new(path).join("cgroup.controllers").exists();
    if unified(ROOT) {
        Ok("v2")
    } else if Path::new(ROOT).join("memory").is_dir() {
        Ok(if unified("/sys/fs/cgroup/unified") {
            "hybrid"
        } else {
            "v1"
        })
    } else {
        Err(format!("no control groups are mounted at {ROOT}"))
    }
}

/// The kernel's release.
pub fn kernel() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

/// The CPU's name, as the kernel has it.
pub fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_line_and_its_absence_a_reason() {
        let error = version(Path::new("/nowhere/qemu")).unwrap_err();
        assert!(error.contains("No such file"), "{error}");
        let error = version(Path::new("/bin/false")).unwrap_err();
        assert!(error.contains("exit status: 1"), "{error}");
    }

    #[test]
    fn a_device_that_is_not_there_has_a_reason() {
        device("/dev/null").unwrap();
        assert!(
            device("/dev/nothing-of-that-name")
                .unwrap_err()
                .contains("No such file")
        );
    }
}

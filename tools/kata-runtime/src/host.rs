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

/// What the kernel says of the first processor.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// Its name.
    pub model: String,
    /// Who has made it.
    pub vendor: String,
    /// What it can do.
    pub flags: Vec<String>,
}

impl Cpu {
    /// Of this host.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let value = |name: &str| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .find_map(|(key, value)| (key.trim() == name).then(|| value.trim().to_owned()))
                .unwrap_or_default()
        };
        Self {
            model: value("model name"),
            vendor: value("vendor_id"),
            flags: value("flags")
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The flag of its virtualization: `vmx` or `svm`.
    pub fn virtualization(&self) -> Option<&'static str> {
        ["vmx", "svm"]
            .into_iter()
            .find(|flag| self.flags.iter().any(|has| has == flag))
    }
}

/// Whether a kernel module is loaded, or built in.
pub fn has_module(root: &Path, name: &str) -> bool {
    if root.join("sys/module").join(name).is_dir() {
        return true;
    }
    let builtin = root.join("lib/modules").join(kernel()).join("modules.builtin");
    // Names in that list have either of both marks.
    let is_it = |line: &str| {
        Path::new(line)
            .file_stem()
            .is_some_and(|stem| stem.to_string_lossy().replace('-', "_") == name)
    };
    fs::read_to_string(builtin).is_ok_and(|text| text.lines().any(is_it))
}

/// What a line of `/proc/meminfo` says, in MiB.
fn memory_mib(name: &str) -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line
        .trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    Some(kib / 1024)
}

/// Memory that could be given to programs now, in MiB.
pub fn available_mib() -> Option<u64> {
    memory_mib("MemAvailable")
}

/// All memory, in MiB.
pub fn total_mib() -> Option<u64> {
    memory_mib("MemTotal")
}

/// Name and version of the distribution.
pub fn distribution() -> (String, String) {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |name: &str| {
        let line = text.lines().filter_map(|line| line.split_once('='));
        line.into_iter()
            .find_map(|(key, value)| (key == name).then(|| value.trim_matches('"').to_owned()))
            .unwrap_or_default()
    };
    (value("NAME"), value("VERSION_ID"))
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
    fn the_processor_is_read_from_what_the_kernel_says() {
        let text = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: EPYC: the first\nflags\t\t: fpu svm lm\n\n\
                    processor\t: 1\nflags\t\t: fpu\n";
        let cpu = Cpu::parse(text);
        assert_eq!(
            (cpu.model.as_str(), cpu.vendor.as_str()),
            ("EPYC: the first", "AuthenticAMD")
        );
        assert_eq!(cpu.virtualization(), Some("svm"));
        assert_eq!(Cpu::parse("").virtualization(), None);
    }

    #[test]
    fn a_module_is_loaded_or_built_in() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(!has_module(root, "vhost_vsock"));
        fs::create_dir_all(root.join("sys/module/vhost_vsock")).unwrap();
        assert!(has_module(root, "vhost_vsock"));
        let modules = root.join("lib/modules").join(kernel());
        fs::create_dir_all(&modules).unwrap();
        fs::write(
            modules.join("modules.builtin"),
            "kernel/drivers/vhost/vhost-net.ko\n",
        )
        .unwrap();
        assert!(has_module(root, "vhost_net"));
        assert!(!has_module(root, "tun"));
    }

    #[test]
    fn the_host_has_memory_and_a_distribution() {
        assert!(available_mib().unwrap() <= total_mib().unwrap());
        assert!(!distribution().0.is_empty());
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

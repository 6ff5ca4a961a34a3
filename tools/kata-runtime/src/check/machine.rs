//! Lines about the machine and its kernel: CPU, modules, devices, control groups, memory.

use std::path::Path;

use super::line::{Line, Verdict};
use crate::host::{self, Cpu};

/// All of them. `hardware`: guest code is executed by KVM, so that what only helps KVM is not missed.
pub fn lines(hardware: bool, default_memory_mib: Option<u64>) -> Vec<Line> {
    let cpu = Cpu::read();
    let mut lines = vec![user(), processor(&cpu, hardware)];
    lines.extend(modules(&cpu, has_module));
    lines.extend([kvm(hardware), tun(), cgroups()]);
    lines.extend(default_memory_mib.map(memory));
    lines
}

/// Whether there is a module. One that is built in may have no other trace than its device.
fn has_module(name: &str) -> bool {
    let device = match name {
        "kvm" => "/dev/kvm",
        "tun" => "/dev/net/tun",
        "vhost_vsock" => "/dev/vhost-vsock",
        _ => return host::has_module(Path::new("/"), name),
    };
    host::has_module(Path::new("/"), name) || host::device(device).is_ok()
}

fn user() -> Line {
    const PART: &str = "user";
    match rustix::process::geteuid().is_root() {
        true => Line::pass(PART, "root"),
        false => Line::fail(
            PART,
            "not root",
            "run it as root: mounts, cgroups and networks need it",
        ),
    }
}

fn processor(cpu: &Cpu, hardware: bool) -> Line {
    const PART: &str = "cpu";
    let name = match cpu.model.as_str() {
        "" => "unknown",
        model => model,
    };
    match cpu.virtualization() {
        Some(flag) => Line::pass(PART, format!("{name} ({flag})")),
        // A host may hide the flag and yet have a KVM that works.
        None if hardware => Line::pass(PART, name),
        None => Line::warn(
            PART,
            format!("{name}, without vmx and svm"),
            "enable virtualization in the firmware, or nested virtualization on the outer host",
        ),
    }
}

/// Kernel modules: those that are not there matter only to what is chosen later, which has lines of its own.
fn modules(cpu: &Cpu, has: impl Fn(&str) -> bool) -> Vec<Line> {
    let vendor = match cpu.virtualization() {
        Some("svm") => Some(("module kvm_amd", "kvm_amd")),
        Some(_) => Some(("module kvm_intel", "kvm_intel")),
        None => None,
    };
    let all = [("module kvm", "kvm")]
        .into_iter()
        .chain(vendor)
        .chain([("module vhost_vsock", "vhost_vsock"), ("module tun", "tun")]);
    all.map(|(part, name)| match has(name) {
        true => Line::pass(part, "there"),
        false => Line::warn(
            part,
            "not loaded",
            &format!("modprobe {name}, if the kernel has it"),
        ),
    })
    .collect()
}

fn kvm(hardware: bool) -> Line {
    const PART: &str = "device /dev/kvm";
    match host::device("/dev/kvm") {
        Ok(()) => Line::pass(PART, "can be opened; what it is worth is below"),
        Err(problem) => {
            let verdict = if hardware { Verdict::Pass } else { Verdict::Warn };
            Line::new(PART, verdict, problem, "modprobe kvm_intel or kvm_amd")
        }
    }
}

fn tun() -> Line {
    const PART: &str = "device /dev/net/tun";
    match host::device("/dev/net/tun") {
        Ok(()) => Line::pass(PART, "can be opened"),
        Err(problem) => Line::warn(PART, problem, "modprobe tun; without it pods have no network"),
    }
}

fn cgroups() -> Line {
    const PART: &str = "control groups";
    match host::cgroups() {
        Ok(version) => Line::pass(PART, version),
        Err(problem) => Line::warn(PART, problem, "mount cgroup2 at /sys/fs/cgroup"),
    }
}

fn memory(default_mib: u64) -> Line {
    const PART: &str = "memory";
    let Some(available) = host::available_mib() else {
        return Line::warn(PART, "the kernel does not say how much is free", "mount /proc");
    };
    let found = format!("{available} MiB available; a sandbox is given {default_mib} MiB");
    match available >= default_mib {
        true => Line::pass(PART, found),
        false => Line::warn(
            PART,
            found,
            "a guest takes only what it uses, but may use all: lower `default_memory`",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modules_are_those_of_the_processor() {
        let names = |flags: &str| -> Vec<_> {
            let cpu = Cpu {
                model: "x".into(),
                vendor: "y".into(),
                flags: flags.split(' ').map(str::to_owned).collect(),
            };
            let lines = modules(&cpu, |name| name == "kvm");
            assert_eq!(lines[0].verdict, Verdict::Pass);
            assert!(lines[1..].iter().all(|line| line.verdict == Verdict::Warn));
            lines.iter().map(|line| line.part).collect()
        };
        assert_eq!(names("fpu svm")[1], "module kvm_amd");
        assert_eq!(names("fpu vmx")[1], "module kvm_intel");
        assert_eq!(names("fpu")[1], "module vhost_vsock");
    }

    #[test]
    fn a_processor_without_the_flag_is_no_problem_where_kvm_works() {
        let cpu = Cpu {
            model: "c".into(),
            ..Cpu::default()
        };
        assert_eq!(processor(&cpu, true).verdict, Verdict::Pass);
        let line = processor(&cpu, false);
        assert_eq!(line.verdict, Verdict::Warn);
        assert!(line.remedy.contains("firmware"), "{line:?}");
    }
}

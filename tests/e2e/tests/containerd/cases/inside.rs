//! What a process finds in its container.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use e2e::image;
use serde_json::{Value, json};

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("the_process", the_process),
    Listed::both("privileges", privileges),
    Listed::both("kernel_files", kernel_files),
    Listed::both("devices", devices),
    Listed::both("a_specification", a_specification),
];

/// Arguments, environment, directory, limits, other processes.
fn the_process(case: &mut Case<'_>) -> Result<()> {
    let script =
        "echo $$; echo $A; pwd; id -u; id -g; ulimit -n; umask; ps -o pid,args | tail -n +2; env | sort";
    let output = case
        .shell(&["--env", "A=two words", "--cwd", "/home"], script)?
        .success()?;
    let expected = [
        "1",
        "two words",
        "/home",
        "0",
        "0",
        // The default of containerd.
        "1024",
        "0022",
    ];
    let lines: Vec<_> = output.lines().collect();
    assert_eq!(lines.get(..expected.len()), Some(&expected[..]), "{output}");
    // Itself, `ps` and `tail`, and nobody else.
    ensure!(output.contains("1 sh -c"), "{output}");
    let others = lines
        .iter()
        .filter(|line| line.trim().starts_with(|c: char| c.is_ascii_digit()));
    ensure!(
        others.count() <= expected.len() + 3,
        "processes of others are seen: {output}"
    );
    for variable in [
        "A=two words",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PWD=/home",
    ] {
        ensure!(lines.contains(&variable), "{variable} is missing: {output}");
    }
    Ok(())
}

/// Capabilities, no_new_privs, seccomp.
fn privileges(case: &mut Case<'_>) -> Result<()> {
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t'";
    let plain = case.shell(&[], script)?.success()?;
    // containerd's fourteen; `CapInh` has none of them since 1.6.2.
    let expected = "CapInh:0000000000000000\nCapPrm:00000000a80425fb\nCapEff:00000000a80425fb\n\
        CapBnd:00000000a80425fb\nCapAmb:0000000000000000\nNoNewPrivs:1\nSeccomp:0\n";
    assert_eq!(plain, expected);

    let flags = [
        "--cap-add",
        "CAP_SYS_TIME",
        "--cap-drop",
        "CAP_CHOWN",
        "--allow-new-privs",
        "--seccomp",
    ];
    let other = case.shell(&flags, script)?.success()?;
    // SYS_TIME is 25, CHOWN is 0.
    for line in [
        "CapEff:00000000aa0425fa",
        "CapBnd:00000000aa0425fa",
        "NoNewPrivs:0",
        "Seccomp:2",
    ] {
        ensure!(other.contains(line), "{line} is missing: {other}");
    }
    Ok(())
}

/// `/proc` and `/sys` show what they may and keep what they should.
fn kernel_files(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], &["sleep", "1000"])?;
    // Masked: a file without content, or a directory without files.
    assert_eq!(
        container.shell("wc -c < /proc/timer_list; ls /proc/scsi | wc -l")?,
        "0\n0\n"
    );
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/uevent_helper",
    ] {
        let output = container.exec(&[], &["sh", "-c", "echo x > $0", path]).output()?;
        let error = output.failure()?;
        ensure!(
            error.contains("Read-only") || error.contains("nonexistent"),
            "{path} can be written: {error}"
        );
    }
    let types = container.shell("cut -d ' ' -f 2,3 /proc/mounts")?;
    for mount in [
        "/proc proc",
        "/dev tmpfs",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
        "/dev/mqueue mqueue",
        "/sys sysfs",
        "/run tmpfs",
    ] {
        ensure!(
            types.lines().any(|line| line == mount),
            "{mount} is missing: {types}"
        );
    }
    container.remove()
}

/// The devices that every container has, and none of the machine's.
fn devices(case: &mut Case<'_>) -> Result<()> {
    let script = "head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; echo x > /dev/null; echo x > /dev/full; \
        for d in null zero full random urandom tty; do stat -c '%n %t,%T %a' /dev/$d; done; \
        for d in fd stdin stdout stderr ptmx; do readlink /dev/$d; done; find /dev -type b; \
        mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk; mknod /tmp/random c 10 183 && head -c 1 /tmp/random";
    let output = case.shell(&[], script)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.stderr.contains("No space left"),
        "/dev/full takes what is written: {output}"
    );
    // A disk, whether or not there is one with this number, and the random numbers of the (virtual) hardware.
    ensure!(
        output.stderr.matches("Operation not permitted").count() == 2,
        "devices of the machine can be opened: {output}"
    );
    let expected = "3\n3\n\
        /dev/null 1,3 666\n/dev/zero 1,5 666\n/dev/full 1,7 666\n/dev/random 1,8 666\n/dev/urandom 1,9 666\n/dev/tty 5,0 666\n\
        /proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n";
    assert_eq!(text, expected);
    Ok(())
}

/// A specification of one's own: what `ctr` has no flags for. Its root file system is a directory, not an image.
fn a_specification(case: &mut Case<'_>) -> Result<()> {
    let root = case.path("root");
    for directory in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy(image::BUSYBOX_PROGRAM, root.join("bin/busybox"))?;
    let script = "hostname; id -u; id -g; id -G; cat /proc/sys/net/ipv4/ping_group_range; ulimit -n; ulimit -Hn; \
        cat /proc/self/oom_score_adj; umask; touch /file 2>&1; df -m /tmp | tail -n 1 | tr -s ' ' | cut -d ' ' -f 2; \
        echo $HOME";
    let spec = case.path("config.json");
    fs::write(&spec, specification(&root, script).to_string())?;
    let spec = spec.display().to_string();
    let output = case
        .run_specification(&["--rm", "--config", &spec], &case.id())
        .read()?;
    let expected = "box\n1000\n1001\n1001 3000 3001\n0\t2000\n512\n1024\n100\n0027\n\
        touch: /file: Read-only file system\n3\n/nowhere\n";
    assert_eq!(output, expected);
    fs::remove_dir_all(&root)?;
    Ok(())
}

fn specification(root: &Path, script: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": true },
        "hostname": "box",
        "process": {
            "args": ["/bin/busybox", "sh", "-c", format!("for i in hostname id cat touch df tail tr cut; do alias $i=\"busybox $i\"; done\n{script}")],
            "env": ["PATH=/bin", "HOME=/nowhere"],
            "cwd": "/",
            "user": { "uid": 1000, "gid": 1001, "additionalGids": [3000, 3001], "umask": 0o27 },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 }],
            "oomScoreAdj": 100,
            "noNewPrivileges": true,
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"] },
            { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "size=3m"] },
        ],
        "linux": {
            "sysctl": { "net.ipv4.ping_group_range": "0 2000" },
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }, { "type": "network" },
            ],
        },
    })
}

//! The virtual machine around a container: that it is one, which one, how it is talked to, how large it is.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::census;
use e2e::configuration::Configuration;
use e2e::parts::Part;

use super::Listed;
use crate::bed::Case;

const DAEMON: &[Part] = &[Part::VhostDeviceVsock];

pub const CASES: &[Listed] = &[
    Listed::ours("a_kernel_of_its_own", a_kernel_of_its_own),
    Listed::ours("q35_vhost_user_vsock", |case| {
        forced(case, "q35", "vhost-user-vsock")
    })
    .needing(DAEMON),
    Listed::ours("q35_virtio_serial", |case| forced(case, "q35", "virtio-serial")),
    Listed::ours("q35_vsock", |case| kernel_vsock(case, "q35")),
    Listed::ours("microvm_vhost_user_vsock", |case| {
        forced(case, "microvm", "vhost-user-vsock")
    })
    .needing(DAEMON),
    Listed::ours("microvm_virtio_serial", |case| {
        forced(case, "microvm", "virtio-serial")
    }),
    Listed::ours("microvm_vsock", |case| kernel_vsock(case, "microvm")),
    Listed::ours("sized_by_its_limits", sized_by_its_limits),
    Listed::ours("threads_do_not_grow", threads_do_not_grow),
    Listed::ours("its_share_is_read_ahead", its_share_is_read_ahead),
];

/// The kernel in the container was booted for it: it is another boot than the host's, whatever its version.
fn a_kernel_of_its_own(case: &mut Case<'_>) -> Result<()> {
    let boot_id = "/proc/sys/kernel/random/boot_id";
    let inside = case.run(&["--rm"], &case.id(), &["cat", boot_id]).read()?;
    let again = case.run(&["--rm"], &case.id(), &["cat", boot_id]).read()?;
    let outside = fs::read_to_string(boot_id)?;
    ensure!(inside != outside, "the container runs on the host's kernel");
    ensure!(inside != again, "two containers run on one kernel");
    Ok(())
}

/// A machine and a channel that the configuration asks for are what is used, and they work.
fn forced(case: &mut Case<'_>, machine: &str, channel: &str) -> Result<()> {
    let path = configured(case, machine, channel)?;
    let id = case.id();
    // A microvm takes no disks while it runs.
    let flags = [&case.on("overlayfs")?[..], &["--detach", "--null-io"]].concat();
    let run = case.run_configured(&path, &flags, &id, &["sleep", "1000"]);
    run.read()?;
    let container = case.container(&id);
    let vmm = case.process(&["qemu-system", &id])?.command.join(" ");
    ensure!(vmm.contains(machine), "the machine is not {machine}: {vmm}");
    let device = match channel {
        "vhost-user-vsock" => "vhost-user-vsock-",
        "virtio-serial" => "virtserialport",
        _ => "vhost-vsock-",
    };
    ensure!(vmm.contains(device), "there is no {device}: {vmm}");
    let input = "x".repeat(300_000);
    let output = container.exec(&[], &["cat"]).stdin(input.as_bytes()).output()?;
    ensure!(
        output.stdout == input.as_bytes(),
        "not what was sent: {} bytes",
        output.stdout.len()
    );
    container.remove()
}

/// The kernel's vsock works where the host has it; elsewhere asking for it is an error that says what is missing.
fn kernel_vsock(case: &mut Case<'_>, machine: &str) -> Result<()> {
    let device = "/dev/vhost-vsock";
    if Path::new(device).exists() {
        return forced(case, machine, "vsock");
    }
    let path = configured(case, machine, "vsock")?;
    let error = case
        .run_configured(&path, &["--rm"], &case.id(), &["true"])
        .output()?
        .failure()?;
    ensure!(error.contains(device), "{device} is not named: {error}");
    Ok(())
}

fn configured(case: &Case<'_>, machine: &str, channel: &str) -> Result<std::path::PathBuf> {
    let path = case.path("configuration.toml");
    Configuration::new(case.target())
        .hypervisor("machine_type", machine)
        .agent("channel", channel)
        .write(&path)?;
    Ok(path)
}

/// Limits of the container are the machine's size, and nothing of them is lost to it.
fn sized_by_its_limits(case: &mut Case<'_>) -> Result<()> {
    let limit = 512 << 20;
    let flags = ["--memory-limit", &limit.to_string(), "--cpus", "2"];
    let script = "nproc; grep MemTotal /proc/meminfo | tr -dc 0-9";
    let output = case.shell(&flags, script)?.success()?;
    let mut lines = output.lines();
    let cpus: usize = lines.next().context("nproc says something")?.parse()?;
    let memory: u64 = lines.next().context("MemTotal is there")?.parse()?;
    ensure!(cpus == 2, "two CPUs are {cpus}");
    ensure!(
        memory * 1024 >= limit,
        "a limit of {limit} bytes, and a machine with {memory} KiB"
    );
    Ok(())
}

/// The shim has as many threads for twenty processes as for none.
fn threads_do_not_grow(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], &["sleep", "1000"])?;
    let shim = case.shim(&container)?;
    let threads = || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{}/task", shim.pid))?.count());
    let before = threads()?;
    let running = (0..20)
        .map(|_| {
            container
                .exec(&[], &["sh", "-c", "echo ready; sleep 1000"])
                .start()
        })
        .collect::<Result<Vec<_>>>()?;
    for exec in &running {
        exec.wait_for("ready\n")?;
    }
    let during = threads()?;
    ensure!(
        during <= before,
        "{before} threads for one process, {during} for twenty-one"
    );
    ensure!(
        census::process(shim.pid.cast_unsigned()).is_some(),
        "the shim has ended"
    );
    case.ctr(&["task", "kill", "--all", "--signal", "KILL", &container.id])
        .read()?;
    for exec in running {
        exec.end()?.exits(137)?;
    }
    container.wait_for_status("STOPPED")?;
    container.delete_task()?;
    container.delete()
}

/// The guest reads more of its share at once than its kernel does of anything by itself, which is 128 KiB.
fn its_share_is_read_ahead(case: &mut Case<'_>) -> Result<()> {
    let flags = [&case.on("overlayfs")?[..], &["--rm"]].concat();
    let look = ["sh", "-c", "cat /sys/class/bdi/*/read_ahead_kb"];
    let sizes = case.run(&flags, &case.id(), &look).read()?;
    ensure!(sizes.lines().any(|size| size == "256"), "{sizes:?}");
    Ok(())
}

//! The security context.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_cri::v1::security_profile::ProfileType;
use k8s_cri::v1::{Capability, Int64Value, SecurityProfile};
use serde_json::json;

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::cri::refusal;
use crate::pod::{Pod, PodSpec};

chapter!("security":
    capabilities_by_default,
    capabilities_added,
    capabilities_dropped,
    capabilities_all,
    capabilities_of_a_user,
    no_new_privileges,
    a_read_only_root,
    masked_paths,
    read_only_paths,
    seccomp_by_default,
    seccomp_unconfined,
    seccomp_of_a_file,
    seccomp_of_a_missing_file,
    privileged,
    privileged_needs_a_privileged_pod,
);

/// What the CRI gives to a container of which nothing is said: a set of bits.
const BY_DEFAULT: u64 = 0xa804_25fb;

const CHOWN: u64 = 1 << 0;
const NET_ADMIN: u64 = 1 << 12;
const SYS_TIME: u64 = 1 << 25;

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("security", |spec| spec)
}

fn capabilities(add: &[&str], drop: &[&str]) -> ContainerSpec {
    let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    ContainerSpec::script("cat /proc/self/status").security(|security| {
        security.capabilities = Some(Capability {
            add_capabilities: owned(add),
            drop_capabilities: owned(drop),
            ..Default::default()
        });
    })
}

/// A set of the status of a process.
fn set(status: &str, name: &str) -> Result<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:\t")));
    Ok(u64::from_str_radix(
        line.with_context(|| format!("no {name} in {status}"))?,
        16,
    )?)
}

/// Checks the sets that decide what the first process of a container may do.
fn may(pod: &Pod, spec: ContainerSpec, wanted: u64) -> Result<()> {
    let status = pod.output(spec)?;
    for name in ["CapPrm", "CapEff", "CapBnd"] {
        let got = set(&status, name)?;
        ensure!(got == wanted, "{name} is {got:#x} instead of {wanted:#x}");
    }
    Ok(())
}

fn capabilities_by_default(bed: &mut Bed) -> Result<()> {
    may(&*pod(bed)?, capabilities(&[], &[]), BY_DEFAULT)
}

fn capabilities_added(bed: &mut Bed) -> Result<()> {
    let spec = capabilities(&["NET_ADMIN", "SYS_TIME"], &[]);
    may(&*pod(bed)?, spec, BY_DEFAULT | NET_ADMIN | SYS_TIME)?;
    let script = "ip link set lo down 2>/dev/null || echo refused";
    same(&pod(bed)?.output(ContainerSpec::script(script))?, "refused")?;
    let script = "ip link set lo down && ip link set lo up && echo done";
    let with = ContainerSpec::script(script).security(|security| {
        security.capabilities.get_or_insert_default().add_capabilities = vec!["NET_ADMIN".into()];
    });
    same(&pod(bed)?.output(with)?, "done")
}

fn capabilities_dropped(bed: &mut Bed) -> Result<()> {
    may(&*pod(bed)?, capabilities(&[], &["CHOWN"]), BY_DEFAULT & !CHOWN)?;
    may(&*pod(bed)?, capabilities(&[], &["ALL"]), 0)?;
    may(&*pod(bed)?, capabilities(&["CHOWN"], &["ALL"]), CHOWN)?;
    let spec = ContainerSpec::script("touch /tmp/x; chown 1:1 /tmp/x 2>/dev/null || echo refused");
    let spec = spec.security(|security| {
        security.capabilities.get_or_insert_default().drop_capabilities = vec!["CHOWN".into()];
    });
    same(&pod(bed)?.output(spec)?, "refused")
}

fn capabilities_all(bed: &mut Bed) -> Result<()> {
    let status = pod(bed)?.output(capabilities(&["ALL"], &[]))?;
    let got = set(&status, "CapEff")?;
    ensure!(
        got & !BY_DEFAULT != 0 && got & BY_DEFAULT == BY_DEFAULT,
        "{got:#x}"
    );
    Ok(())
}

fn capabilities_of_a_user(bed: &mut Bed) -> Result<()> {
    let spec = capabilities(&["NET_ADMIN"], &[]);
    let spec = spec.security(|security| security.run_as_user = Some(Int64Value { value: 1000 }));
    let status = pod(bed)?.output(spec)?;
    ensure!(
        set(&status, "CapEff")? == 0 && set(&status, "CapAmb")? == 0,
        "{status}"
    );
    ensure!(set(&status, "CapBnd")? == BY_DEFAULT | NET_ADMIN, "{status}");
    Ok(())
}

fn no_new_privileges(bed: &mut Bed) -> Result<()> {
    for (wanted, shown) in [(true, "1"), (false, "0")] {
        let spec = ContainerSpec::script("sed -n 's/^NoNewPrivs:\\t//p' /proc/self/status");
        let spec = spec.security(|security| security.no_new_privs = wanted);
        same(&pod(bed)?.output(spec)?, shown)?;
    }
    Ok(())
}

fn a_read_only_root(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let volume = pod.empty_dir("writable")?;
    let script = "for path in /x /etc/x /tmp/x /data/x /dev/shm/x; do touch $path 2>/dev/null && echo $path; done; true";
    let spec = ContainerSpec::script(script).mount(&volume, "/data");
    same(
        &pod.output(spec.clone())?,
        "/x\n/etc/x\n/tmp/x\n/data/x\n/dev/shm/x",
    )?;
    let spec = spec.security(|security| security.readonly_rootfs = true);
    same(&pod.output(spec)?, "/data/x\n/dev/shm/x")
}

fn masked_paths(bed: &mut Bed) -> Result<()> {
    let script = "wc -c </etc/passwd; ls /usr | wc -l; wc -c </etc/group";
    let spec = ContainerSpec::script(script).security(|security| {
        // A file, a directory, and what is not there.
        security.masked_paths = ["/etc/passwd", "/usr", "/not/there"].map(str::to_owned).into();
    });
    let output = pod(bed)?.output(spec)?;
    let lines: Vec<_> = output.lines().collect();
    ensure!(
        matches!(&lines[..], ["0", "0", size] if *size != "0"),
        "{lines:?}"
    );
    Ok(())
}

fn read_only_paths(bed: &mut Bed) -> Result<()> {
    let script = "touch /home/x 2>/dev/null && echo home; touch /tmp/x && echo tmp; echo 1 >/proc/sys/vm/swappiness && echo sys";
    let spec = ContainerSpec::script(&format!("{{ {script}; }} 2>/dev/null; true")).security(|security| {
        security.readonly_paths = ["/home", "/proc/sys"].map(str::to_owned).into();
    });
    same(&pod(bed)?.output(spec)?, "tmp")
}

/// Says which filter the first process has, and whether it may make a user namespace.
const FILTER: &str = "sed -n 's/^Seccomp:\\t//p' /proc/self/status; \
     unshare -U true 2>/dev/null && echo unshared; true";

fn with_profile(spec: ContainerSpec, kind: ProfileType, path: &str) -> ContainerSpec {
    spec.security(|security| {
        security.seccomp = Some(SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: path.into(),
        });
    })
}

fn seccomp_by_default(bed: &mut Bed) -> Result<()> {
    let spec = with_profile(ContainerSpec::script(FILTER), ProfileType::RuntimeDefault, "");
    same(&pod(bed)?.output(spec)?, "2")
}

fn seccomp_unconfined(bed: &mut Bed) -> Result<()> {
    let spec = with_profile(ContainerSpec::script(FILTER), ProfileType::Unconfined, "");
    same(&pod(bed)?.output(spec)?, "0\nunshared")
}

fn seccomp_of_a_file(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let profile = pod.empty_dir("profile")?.join("profile.json");
    let text = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [
            { "names": ["chmod", "fchmod", "fchmodat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["symlink", "symlinkat"], "action": "SCMP_ACT_ERRNO" },
        ],
    });
    fs::write(&profile, text.to_string())?;
    let spec = with_profile(
        ContainerSpec::idle(),
        ProfileType::Localhost,
        &profile.display().to_string(),
    );
    let container = pod.start(spec.clone())?;
    // A program that is run later is under the same filter.
    same(
        &container.sh("sed -n 's/^Seccomp:\\t//p' /proc/1/status /proc/self/status")?,
        "2\n2",
    )?;
    let script = "chmod 600 /etc/passwd 2>&1; ln -s a /tmp/b 2>&1; mkdir /tmp/d && echo made";
    let said = container.sh(script)?;
    let lines: Vec<_> = said.lines().collect();
    ensure!(
        matches!(&lines[..], [first, second, "made"]
            if first.contains("Function not implemented") && second.contains("Operation not permitted")),
        "{lines:?}"
    );
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn seccomp_of_a_missing_file(bed: &mut Bed) -> Result<()> {
    let spec = with_profile(ContainerSpec::idle(), ProfileType::Localhost, "/no/profile.json");
    refusal(pod(bed)?.create(spec))?.says("/no/profile.json")
}

fn privileged_pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("privileged", |spec| {
        spec.linux(|linux| linux.security_context.get_or_insert_default().privileged = true)
    })
}

fn privileged(bed: &mut Bed) -> Result<()> {
    let script = "cat /proc/self/status; mkdir /mnt; mount -t tmpfs none /mnt && echo mounted; \
        grep ' /proc/sys ' /proc/mounts; true";
    let spec = ContainerSpec::script(script).security(|security| security.privileged = true);
    let output = privileged_pod(bed)?.output(spec)?;
    let all = set(&output, "CapBnd")?;
    ensure!(all & NET_ADMIN != 0 && set(&output, "CapEff")? == all, "{output}");
    ensure!(output.contains("Seccomp:\t0"), "{output}");
    ensure!(
        output.ends_with("mounted"),
        "/proc/sys is read-only, or nothing may be mounted: {output}"
    );
    Ok(())
}

fn privileged_needs_a_privileged_pod(bed: &mut Bed) -> Result<()> {
    let pod = bed.fresh(PodSpec::new("modest"))?;
    let spec = ContainerSpec::idle().security(|security| security.privileged = true);
    refusal(pod.create(spec))?.says("privileged")?;
    pod.remove()
}

//! What a container's program is started with.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_cri::v1::{Device, Int64Value, KeyValue};

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::ContainerSpec;
use crate::cri::refusal;
use crate::pod::Pod;
use crate::stream::Session;

chapter!("process":
    arguments_as_they_are,
    command_and_args,
    environment,
    working_directory,
    a_working_directory_is_made,
    user_and_group,
    a_user_by_name,
    an_unknown_user_is_refused,
    groups_of_image_and_pod,
    a_volume_of_a_group,
    standard_input_once,
    devices,
    oom_score,
    the_first_process,
    a_root_of_its_own,
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("process", |spec| spec)
}

fn id(value: i64) -> Option<Int64Value> {
    Some(Int64Value { value })
}

fn arguments_as_they_are(bed: &mut Bed) -> Result<()> {
    let words = [
        "",
        " ",
        "a b",
        "\"",
        "'",
        "$HOME",
        "*",
        "\\",
        "ü",
        "new\nline",
        "-n",
    ];
    let script = "for word in \"$@\"; do printf '<%s>' \"$word\"; done";
    let spec = ContainerSpec::new(&["sh", "-c", script, "zero"])
        .with(|config| config.args = words.map(str::to_owned).into());
    let expected: String = words.iter().map(|word| format!("<{word}>")).collect();
    same(&pod(bed)?.output(spec)?, &expected)
}

fn command_and_args(bed: &mut Bed) -> Result<()> {
    // Without a command, the image's is run.
    let spec =
        ContainerSpec::new(&[]).with(|config| config.args = ["echo", "args"].map(str::to_owned).into());
    same(&pod(bed)?.output(spec)?, "args")
}

fn environment(bed: &mut Bed) -> Result<()> {
    let long = "x".repeat(20_000);
    let variables = [
        ("WORD", "a b"),
        ("EMPTY", ""),
        ("EQUALS", "a=b=c"),
        ("LONG", &long),
    ];
    let spec = ContainerSpec::script("env; echo end").with(|config| {
        config.envs = variables
            .map(|(key, value)| KeyValue {
                key: key.into(),
                value: value.into(),
            })
            .into();
    });
    let output = pod(bed)?.output(spec)?;
    let path = (
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    for (key, value) in variables.into_iter().chain([path, ("HOSTNAME", "process")]) {
        ensure!(
            output.lines().any(|line| line == format!("{key}={value}")),
            "no {key}: {output}"
        );
    }
    Ok(())
}

fn working_directory(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::new(&["pwd"]);
    same(&pod(bed)?.output(spec.clone())?, "/")?;
    same(
        &pod(bed)?.output(spec.with(|config| config.working_dir = "/usr".into()))?,
        "/usr",
    )
}

fn a_working_directory_is_made(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::new(&["pwd"]).with(|config| config.working_dir = "/not/there/yet".into());
    same(&pod(bed)?.output(spec)?, "/not/there/yet")
}

fn user_and_group(bed: &mut Bed) -> Result<()> {
    let script = "echo $(id -u) $(id -g); touch /etc/x 2>/dev/null && echo written; touch /tmp/x && stat -c %u:%g /tmp/x";
    let spec = ContainerSpec::script(script).security(|security| {
        security.run_as_user = id(4321);
        security.run_as_group = id(8765);
    });
    same(&pod(bed)?.output(spec)?, "4321 8765\n4321:8765")
}

fn a_user_by_name(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::script("id").security(|security| security.run_as_username = "guest".into());
    let output = pod(bed)?.output(spec)?;
    ensure!(output.starts_with("uid=1000(guest) gid=1000(guest)"), "{output}");
    Ok(())
}

fn an_unknown_user_is_refused(bed: &mut Bed) -> Result<()> {
    let spec =
        ContainerSpec::script("id").security(|security| security.run_as_username = "nobody-like-it".into());
    refusal(pod(bed)?.create(spec))?
        .says("no users found")
        .or_else(|_| Ok(()))
}

fn groups_of_image_and_pod(bed: &mut Bed) -> Result<()> {
    // The user's group of the image (2000), and what the pod adds.
    let spec = ContainerSpec::script("id -G").security(|security| {
        security.run_as_user = id(1000);
        security.supplemental_groups = vec![3000, 3001];
    });
    let output = pod(bed)?.output(spec)?;
    let mut groups: Vec<_> = output.split(' ').collect();
    groups.sort_unstable();
    ensure!(groups == ["1000", "2000", "3000", "3001"], "{groups:?}");
    Ok(())
}

fn a_volume_of_a_group(bed: &mut Bed) -> Result<()> {
    // What the kubelet does for `fsGroup`: the group owns the volume, and its files are the group's.
    let pod = pod(bed)?;
    let volume = pod.empty_dir("group")?;
    std::os::unix::fs::chown(&volume, None, Some(5000))?;
    fs::set_permissions(&volume, std::os::unix::fs::PermissionsExt::from_mode(0o2775))?;
    let script = "touch /data/file && stat -c '%u:%g' /data/file; stat -c '%a %g' /data";
    let spec = ContainerSpec::script(script)
        .mount(&volume, "/data")
        .security(|security| {
            security.run_as_user = id(1000);
            security.supplemental_groups = vec![5000];
        });
    same(&pod.output(spec)?, "1000:5000\n2775 5000")?;
    let metadata = fs::metadata(volume.join("file"))?;
    let owner = (
        std::os::unix::fs::MetadataExt::uid(&metadata),
        std::os::unix::fs::MetadataExt::gid(&metadata),
    );
    ensure!(owner == (1000, 5000), "{owner:?} on the host");
    Ok(())
}

fn standard_input_once(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    // The end of the first session is the end of the input.
    let spec = ContainerSpec::script("cat; echo end").with(|config| {
        config.stdin = true;
        config.stdin_once = true;
    });
    let container = pod.start(spec)?;
    let mut session = Session::attach(&pod, &container, false)?;
    session.write(b"hello\n")?;
    session.wait_for("hello\n")?;
    drop(session);
    same(&container.wait()?.success()?, "hello\nend")?;
    container.remove()?;
    // Without any input there is nothing to wait for.
    same(&pod.output(ContainerSpec::script("cat; echo end"))?, "end")
}

fn devices(bed: &mut Bed) -> Result<()> {
    let script = "stat -c '%F %t:%T' /dev/second-zero; head -c 4 /dev/second-zero | od -An -tx1; ls /dev";
    let spec = ContainerSpec::script(script).with(|config| {
        config.devices.push(Device {
            container_path: "/dev/second-zero".into(),
            host_path: "/dev/zero".into(),
            permissions: "rw".into(),
        });
    });
    let output = pod(bed)?.output(spec)?;
    ensure!(
        output.contains("character special file 1:5\n 00 00 00 00\n"),
        "{output}"
    );
    for name in [
        "full", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero", "fd", "stdin", "mqueue",
    ] {
        ensure!(
            output.lines().any(|line| line == name),
            "no /dev/{name}: {output}"
        );
    }
    ensure!(!output.contains("kmsg") && !output.contains("loop"), "{output}");
    Ok(())
}

fn oom_score(bed: &mut Bed) -> Result<()> {
    let spec = ContainerSpec::script("cat /proc/self/oom_score_adj");
    same(
        &pod(bed)?.output(spec.resources(|resources| resources.oom_score_adj = 777))?,
        "777",
    )
}

fn the_first_process(bed: &mut Bed) -> Result<()> {
    let script = "echo $$; set -- /proc/[0-9]*; echo $#; ls /proc/self/fd | wc -l";
    // It is alone; of descriptors there are the three, and the one that ls reads the directory with.
    same(&pod(bed)?.output(ContainerSpec::script(script))?, "1\n1\n4")
}

fn a_root_of_its_own(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let first = pod.start(ContainerSpec::idle())?;
    first.sh("rm /bin/yes; echo changed >/etc/hosts-of-mine")?;
    let second = pod.start(ContainerSpec::idle())?;
    same(
        &second.sh("test -e /etc/hosts-of-mine || test -e /bin/yes && echo as the image")?,
        "as the image",
    )?;
    for container in [first, second] {
        container.stop(Duration::ZERO)?;
        container.remove()?;
    }
    Ok(())
}

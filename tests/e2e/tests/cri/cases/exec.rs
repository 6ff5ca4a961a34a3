//! Programs run in containers, and streams to them.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tonic::Code;

use super::{chapter, same};
use crate::bed::Bed;
use crate::container::{Container, ContainerSpec, Exec};
use crate::cri::refusal;
use crate::pod::Pod;
use crate::stream::Session;

chapter!("exec":
    output_and_code,
    as_the_container_is,
    four_mebibytes_of_output,
    twenty_at_once,
    a_time_limit,
    an_unknown_program,
    only_where_something_runs,
    a_stream_with_input,
    a_stream_that_fails,
    a_terminal,
    attached,
    attached_to_a_terminal,
);

fn pod(bed: &mut Bed) -> Result<Arc<Pod>> {
    bed.shared("exec", |spec| spec)
}

fn shell(bed: &mut Bed) -> Result<Arc<Container>> {
    pod(bed)?.shell()
}

fn output_and_code(bed: &mut Bed) -> Result<()> {
    let Exec { code, stdout, stderr } = shell(bed)?.exec(&["sh", "-c", "echo out; echo err >&2; exit 5"])?;
    ensure!(
        (code, &*stdout, &*stderr) == (5, "out\n", "err\n"),
        "{code} {stdout} {stderr}"
    );
    let killed = shell(bed)?.exec(&["sh", "-c", "kill -9 $$"])?;
    ensure!(killed.code == 137, "{killed:?}");
    Ok(())
}

fn as_the_container_is(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.start(
        ContainerSpec::idle()
            .with(|config| {
                config.working_dir = "/home".into();
                config.envs.push(k8s_cri::v1::KeyValue {
                    key: "WORD".into(),
                    value: "a b".into(),
                });
            })
            .security(|security| {
                security.run_as_user = Some(k8s_cri::v1::Int64Value { value: 1000 });
                security.no_new_privs = true;
            }),
    )?;
    same(&container.sh("echo $(id -u) $(pwd) \"$WORD\"")?, "1000 /home a b")?;
    same(
        &container.sh("grep NoNewPrivs /proc/self/status")?,
        "NoNewPrivs:\t1",
    )?;
    container.stop(Duration::ZERO)?;
    container.remove()
}

fn four_mebibytes_of_output(bed: &mut Bed) -> Result<()> {
    let Exec { code, stdout, .. } = shell(bed)?.exec(&["sh", "-c", "yes 0123456 | head -c 4194304"])?;
    ensure!(
        code == 0 && stdout.len() == 4 << 20,
        "{code}, {} bytes",
        stdout.len()
    );
    ensure!(
        stdout.lines().all(|line| line == "0123456"),
        "the output has changed on its way"
    );
    Ok(())
}

fn twenty_at_once(bed: &mut Bed) -> Result<()> {
    let container = shell(bed)?;
    thread::scope(|scope| {
        let runs: Vec<_> = (0..20)
            .map(|number| {
                let container = &container;
                scope.spawn(move || container.sh(&format!("sleep 0.2; echo {number}")))
            })
            .collect();
        for (number, run) in runs.into_iter().enumerate() {
            let said = run
                .join()
                .map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
            same(&said, &number.to_string())?;
        }
        Ok(())
    })
}

fn a_time_limit(bed: &mut Bed) -> Result<()> {
    let container = shell(bed)?;
    let begin = Instant::now();
    let refused = refusal(container.exec_within(&["sleep", "4242"], Duration::from_secs(1)))?;
    ensure!(refused.code == Code::DeadlineExceeded, "{refused:?}");
    ensure!(
        begin.elapsed() < Duration::from_secs(10),
        "only after {:?}",
        begin.elapsed()
    );
    // The brackets keep grep from finding itself.
    same(&container.sh("ps | grep -c '[s]leep 4242' || true")?, "0")
}

fn an_unknown_program(bed: &mut Bed) -> Result<()> {
    let container = shell(bed)?;
    let refused = refusal(container.exec(&["/bin/nothing-like-it"]))?;
    refused.says("nothing-like-it")?;
    same(&container.sh("echo fine")?, "fine")
}

fn only_where_something_runs(bed: &mut Bed) -> Result<()> {
    let container = pod(bed)?.create(ContainerSpec::idle())?;
    refusal(container.exec(&["true"]))?.says("CONTAINER_CREATED")?;
    container.start()?;
    container.stop(Duration::ZERO)?;
    refusal(container.exec(&["true"]))?.says("CONTAINER_EXITED")?;
    container.remove()
}

fn a_stream_with_input(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let shell = pod.shell()?;
    let script = "read one; echo \"got $one\"; read two; echo \"err $two\" >&2; exit 6";
    let mut session = Session::exec(&pod, &shell, &["sh", "-c", script], false)?;
    session.write(b"first\n")?;
    session.wait_for("got first\n")?;
    session.write(b"second\n")?;
    let finished = session.end()?;
    ensure!(finished.code()? == 6, "{finished:?}");
    same(&finished.stdout, "got first\n")?;
    same(&finished.stderr, "err second\n")?;
    let finished = Session::exec(&pod, &shell, &["true"], false)?.end()?;
    ensure!(finished.code()? == 0, "{finished:?}");
    Ok(())
}

fn a_stream_that_fails(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let finished = Session::exec(&pod, &*pod.shell()?, &["/bin/nothing-like-it"], false)?.end()?;
    ensure!(finished.status.contains("nothing-like-it"), "{finished:?}");
    Ok(())
}

fn a_terminal(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let mut session = Session::exec(&pod, &*pod.shell()?, &["sh"], true)?;
    // A size that comes before the program's start is lost, with containerd 1.6.
    session.wait_for("# ")?;
    session.resize(33, 101)?;
    // What is waited for is not in the command, which the terminal echoes.
    session.write(b"tty; while test \"$(stty size)\" != '33 101'; do sleep 0.05; done; echo resi''zed\n")?;
    session.wait_for("/dev/pts/")?;
    session.wait_for("resized")?;
    session.resize(44, 102)?;
    session.write(b"while test \"$(stty size)\" != '44 102'; do sleep 0.05; done; echo oth''er\n")?;
    session.wait_for("other")?;
    session.write(b"exit 9\n")?;
    let finished = session.end()?;
    ensure!(finished.code()? == 9, "{finished:?}");
    Ok(())
}

fn attached(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let script = "while read line; do echo \"got $line\"; test \"$line\" = end && exit 2; done; exit 3";
    let container = pod.start(ContainerSpec::script(script).with(|config| config.stdin = true))?;
    let mut session = Session::attach(&pod, &container, false)?;
    session.write(b"hello\n")?;
    session.wait_for("got hello\n")?;
    drop(session);
    // Who leaves does not end it, and another one may come.
    let mut session = Session::attach(&pod, &container, false)?;
    session.write(b"again\n")?;
    session.wait_for("got again\n")?;
    session.write(b"end\n")?;
    session.end()?;
    let ended = container.wait()?;
    ensure!(ended.code() == 2, "{ended:?}");
    same(&ended.stdout, "got hello\ngot again\ngot end\n")?;
    container.remove()
}

fn attached_to_a_terminal(bed: &mut Bed) -> Result<()> {
    let pod = pod(bed)?;
    let container = pod.start(ContainerSpec::new(&["sh"]).with(|config| {
        config.tty = true;
        config.stdin = true;
    }))?;
    let mut session = Session::attach(&pod, &container, true)?;
    session.resize(20, 70)?;
    session.write(b"while test \"$(stty size)\" != '20 70'; do sleep 0.05; done; echo si''ze; tty\n")?;
    // Not what is echoed.
    session.wait_for("\nsize\r")?;
    session.wait_for("/dev/pts/0")?;
    session.write(b"echo $TERM; exit 8\n")?;
    session.wait_for("xterm")?;
    session.end()?;
    let ended = container.wait()?;
    ensure!(ended.code() == 8, "{ended:?}");
    container.remove()
}

//! Standard streams: all of them arrives, in order, whoever reads slowly or not at all; and it costs no memory.

use std::fs;
use std::io::pipe;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::{deadlines, wait};

use super::Listed;
use crate::bed::{Case, Runtime, resident};

pub const CASES: &[Listed] = &[
    Listed::both("input_and_its_end", input_and_its_end),
    Listed::both("64_mib_unchanged", sixty_four_mib_unchanged),
    Listed::both("nobody_reads", nobody_reads),
    Listed::both("the_reader_is_killed", the_reader_is_killed),
    Listed::both("log_to_a_file", log_to_a_file),
    Listed::both("log_to_a_program", log_to_a_program),
];

/// By how much a shim may grow for whatever passes through it, bytes.
const GROWTH: u64 = 2 << 20;

/// Bytes without a pattern that a lost or doubled block would keep.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count);
    while bytes.len() < count {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// Input arrives, and so does its end, for the container and for further processes.
fn input_and_its_end(case: &mut Case<'_>) -> Result<()> {
    let input = bytes(200_000);
    let output = case
        .run(&["--rm"], &case.id(), &["cat"])
        .stdin(input.clone())
        .output()?;
    ensure!(
        output.stdout == input,
        "{} bytes came back: {output}",
        output.stdout.len()
    );
    let container = case.start(&[], &["sleep", "1000"])?;
    let output = container.exec(&[], &["cat"]).stdin(input.clone()).output()?;
    ensure!(
        output.stdout == input,
        "{} bytes came back: {output}",
        output.stdout.len()
    );
    container.remove()
}

/// 64 MiB each way arrive unchanged, and the shim is as large as before.
fn sixty_four_mib_unchanged(case: &mut Case<'_>) -> Result<()> {
    let data = bytes(64 << 20);
    let path = case.path("data");
    fs::write(&path, &data)?;
    let mount = format!("type=bind,src={},dst=/data,options=rbind:ro", path.display());
    let id = case.id();
    let run = case
        .run(
            &["--mount", &mount],
            &id,
            &["sh", "-c", "read go; cat /data; exec sleep 1000"],
        )
        .open_stdin()
        .within(deadlines::RUN * 2);
    let mut run = run.start()?;
    let container = case.container(&id);
    container.wait_for_status("RUNNING")?;
    let shim = case.shim(&container)?;
    let before = resident(&shim)?;

    drop(
        run.stdin()
            .map(|mut stdin| std::io::Write::write_all(&mut stdin, b"go\n")),
    );
    run.wait_for_bytes(data.len())?;
    ensure!(run.stdout() == data, "the output is not what was written");

    let sum = container
        .exec(&[], &["sha256sum"])
        .stdin(data)
        .within(deadlines::RUN * 2)
        .read()?;
    let own = container
        .exec(&[], &["sha256sum", "/data"])
        .within(deadlines::RUN)
        .read()?;
    assert_eq!(sum.split_whitespace().next(), own.split_whitespace().next());

    let after = resident(&shim)?;
    ensure!(
        after <= before + GROWTH,
        "the shim grew from {} to {} KiB",
        before / 1024,
        after / 1024
    );
    container.kill("KILL")?;
    run.end()?.exits(137)?;
    container.delete()?;
    fs::remove_file(&path)?;
    Ok(())
}

/// A client that does not read holds up the container, and nothing else.
fn nobody_reads(case: &mut Case<'_>) -> Result<()> {
    let id = case.id();
    let (reader, writer) = pipe()?;
    let client = case
        .run(&[], &id, &["yes", "nobody reads this"])
        .start_writing_to(writer)?;
    let container = case.container(&id);
    container.wait_for_status("RUNNING")?;
    let shim = case.shim(&container)?;
    // Every buffer on the way is full when the container's writer waits for room.
    wait_until_blocked(case, &id)?;
    let before = resident(&shim)?;
    assert_eq!(container.shell("echo others go on")?, "others go on\n");
    let after = resident(&shim)?;
    ensure!(
        after <= before + GROWTH,
        "the shim grew from {before} to {after} bytes"
    );

    container.kill("KILL")?;
    container.wait_for_status("STOPPED")?;
    // The client waits for its output to be read, so it does not end by itself.
    drop((client, reader));
    assert_eq!(container.delete_task()?, 137);
    container.delete()
}

/// Waits until nothing that the container writes moves any more: it uses no processor time.
fn wait_until_blocked(case: &Case<'_>, id: &str) -> Result<()> {
    let used = || -> Result<u64> {
        // The first process's user and system time, in its own view.
        let script = "cut -d ' ' -f 14,15 /proc/1/stat";
        let text = case.container(id).shell(script)?;
        text.split_whitespace()
            .map(|field| Ok(field.parse::<u64>()?))
            .sum()
    };
    let mut before = used()?;
    wait::until("the container waits for its reader", deadlines::RUN, || {
        let now = used()?;
        let is_blocked = now == before;
        before = now;
        Ok(is_blocked.then_some(()))
    })
}

/// A client that dies takes neither the container nor the shim with it.
fn the_reader_is_killed(case: &mut Case<'_>) -> Result<()> {
    let id = case.id();
    let script = "while :; do echo tick; sleep 0.05; done";
    let client = case.run(&[], &id, &["sh", "-c", script]).start()?;
    client.wait_for("tick\n")?;
    drop(client);
    let container = case.container(&id);
    assert_eq!(container.shell("echo here")?, "here\n");
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    container.remove()
}

/// `file://`: both outputs, whole, in a directory that is made.
fn log_to_a_file(case: &mut Case<'_>) -> Result<()> {
    let path = case.path("logs").join("of/container.log");
    let uri = format!("file://{}", path.display());
    let script = "echo first; echo second >&2; for i in $(seq 1000); do echo line $i; done; echo last";
    let mut wanted = vec!["first\n", "line 1000\n", "last\n"];
    if case.runtime() == Runtime::Kata {
        // On a busy machine the error output of a container of runc's may be missing.
        wanted.push("second\n");
    }
    logged(case, &uri, script, &path, &wanted).map(drop)
}

/// `binary://`: a program that is given both outputs and told whose they are.
fn log_to_a_program(case: &mut Case<'_>) -> Result<()> {
    let (logger, path) = (case.path("logger"), case.path("log"));
    let program = "#!/bin/sh\n\
        { echo \"$CONTAINER_NAMESPACE/$CONTAINER_ID $*\"; exec 5>&-; cat <&3 & cat <&4; wait; } >\"$2\"\n";
    fs::write(&logger, program)?;
    fs::set_permissions(&logger, fs::Permissions::from_mode(0o755))?;
    let uri = format!("binary://{}?path={}", logger.display(), path.display());
    let wanted = ["path ", "out\n", "err\n"];
    let text = logged(case, &uri, "echo out; echo err >&2", &path, &wanted)?;
    let owner = case.containerd().namespace().to_owned();
    ensure!(
        text.starts_with(&format!("{owner}/")),
        "not told whose output it is: {text}"
    );
    Ok(())
}

/// Runs a script detached, with its output going to `uri`, until its end and until all that is `wanted` is at `path`.
fn logged(case: &Case<'_>, uri: &str, script: &str, path: &Path, wanted: &[&str]) -> Result<String> {
    let id = case.id();
    let flags = ["--detach", "--log-uri", uri];
    case.run(&flags, &id, &["sh", "-c", script]).read()?;
    let container = case.container(&id);
    container.wait_for_status("STOPPED")?;
    container.delete_task()?;
    container.delete()?;
    // A program that logs may outlive its container by what it takes to write.
    let mut text = String::new();
    let complete = wait::until("the log is complete", deadlines::PROGRESS, || {
        text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(wanted.iter().all(|wanted| text.contains(wanted)).then_some(()))
    });
    complete.with_context(|| format!("{wanted:?} are not all in {} bytes: {:.200}…", text.len(), text))?;
    Ok(text)
}

//! `podman exec`.

use anyhow::Result;
use e2e::terminal::Size;

use super::{cases, has, same};
use crate::bed::Bed;

cases! {
    a_process_more_has_streams_and_an_exit_code,
    a_process_more_that_is_missing_is_127,
    a_process_more_reads_input,
    a_process_more_has_a_terminal,
    a_process_more_in_the_background,
    a_process_more_ends_with_its_container,
    no_process_more_in_a_stopped_container,
}

fn a_process_more_has_streams_and_an_exit_code(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let output = bed.output(&[
        "exec",
        "--env=A=b",
        "--user=1000",
        &name,
        "sh",
        "-c",
        "echo $A; id -u; echo e >&2; exit 3",
    ])?;
    same(&output.stderr, "e\n")?;
    same(&output.exits(3)?, "b\n1000\n")?;
    bed.remove(&name)
}

fn a_process_more_that_is_missing_is_127(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let output = bed.output(&["exec", &name, "no-such-program"])?;
    has(&output.stderr, "executable file not found in $PATH")?;
    output.exits(127)?;
    // It has done the container no harm.
    same(&bed.sh(&name, "echo well")?, "well")?;
    bed.remove(&name)
}

fn a_process_more_reads_input(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let output = bed
        .podman(["exec", "--interactive", &name, "wc", "-c"], [] as [&str; 0])
        .stdin("12345")
        .output()?;
    same(output.success()?.trim(), "5")?;
    bed.remove(&name)
}

fn a_process_more_has_a_terminal(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let size = Size {
        rows: 33,
        columns: 77,
    };
    let mut terminal = bed
        .podman(["exec", "--interactive", "--tty", &name, "sh"], [] as [&str; 0])
        .start_on_terminal(size)?;
    terminal.type_in("until [ \"$(stty size)\" = '33 77' ]; do sleep 0.1; done; tty; exit 6\n")?;
    terminal.wait_for("/dev/pts/")?;
    terminal.end()?.exits(6)?;
    bed.remove(&name)
}

fn a_process_more_in_the_background(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    bed.call(&[
        "exec",
        "--detach",
        &name,
        "sh",
        "-c",
        "echo here >/tmp/mark; mkfifo /tmp/pipe; echo x >/tmp/pipe",
    ])?;
    same(
        &bed.sh(
            &name,
            "until [ -p /tmp/pipe ]; do sleep 0.1; done; cat /tmp/pipe /tmp/mark",
        )?,
        "x\nhere",
    )?;
    bed.remove(&name)
}

fn a_process_more_ends_with_its_container(bed: &Bed) -> Result<()> {
    let name = bed.sleeper(&[])?;
    let running = bed
        .podman(
            ["exec", &name, "sh", "-c", "echo up; sleep 1000"],
            [] as [&str; 0],
        )
        .start()?;
    running.wait_for("up")?;
    bed.call(&["kill", &name])?;
    running.end()?.exits(137)?;
    bed.remove(&name)
}

fn no_process_more_in_a_stopped_container(bed: &Bed) -> Result<()> {
    let name = bed.background(&[], &["true"])?;
    bed.wait_for(&name, ".State.Status", "exited")?;
    bed.output(&["exec", &name, "true"])?.failure()?;
    bed.remove(&name)
}

//! `podman run`: what a user sees of a container that runs before him.

use std::fs;

use anyhow::{Result, ensure};
use e2e::terminal::Size;

use super::{cases, has, same};
use crate::bed::Bed;

cases! {
    output_and_error_output_are_kept_apart,
    the_exit_code_is_the_processs,
    a_signal_is_128_and_its_number,
    a_program_that_is_missing_is_127,
    a_program_that_is_no_program_is_126,
    input_arrives_and_ends,
    a_megabyte_comes_back,
    descriptors_more_are_the_containers,
    a_terminal_has_a_size_and_changes_it,
    a_terminal_ends_with_its_process,
    the_environment_user_and_directory_are_those_asked_for,
    a_container_has_its_own_host_name,
    a_container_of_its_own_machine (Kata: "a container of runc has the host's kernel"),
}

fn output_and_error_output_are_kept_apart(bed: &Bed) -> Result<()> {
    let output = bed.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2"])?;
    same(&output.stderr, "err\n")?;
    same(&output.success()?, "out\n")
}

fn the_exit_code_is_the_processs(bed: &Bed) -> Result<()> {
    bed.run(&["--rm"], &["sh", "-c", "exit 42"])?.exits(42).map(drop)
}

fn a_signal_is_128_and_its_number(bed: &Bed) -> Result<()> {
    bed.run(&["--rm"], &["sh", "-c", "sh -c 'kill -USR1 $$'; exit $?"])?
        .exits(138)
        .map(drop)
}

fn a_program_that_is_missing_is_127(bed: &Bed) -> Result<()> {
    let output = bed.run(&["--rm"], &["no-such-program"])?;
    has(&output.stderr, "executable file not found in $PATH")?;
    output.exits(127).map(drop)
}

fn a_program_that_is_no_program_is_126(bed: &Bed) -> Result<()> {
    let output = bed.run(&["--rm"], &["/etc/passwd"])?;
    has(&output.stderr, "permission denied")?;
    output.exits(126).map(drop)
}

fn input_arrives_and_ends(bed: &Bed) -> Result<()> {
    let words = ["run", "--rm", "--interactive", "--network=none"];
    let output = bed.run_program(&words, &["cat"]).stdin("one\ntwo\n").output()?;
    same(&output.success()?, "one\ntwo\n")
}

fn a_megabyte_comes_back(bed: &Bed) -> Result<()> {
    let words = ["run", "--rm", "--interactive", "--network=none"];
    let data: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let output = bed.run_program(&words, &["cat"]).stdin(data.clone()).output()?;
    ensure!(output.stdout == data, "{} bytes came back", output.stdout.len());
    output.success().map(drop)
}

fn descriptors_more_are_the_containers(bed: &Bed) -> Result<()> {
    let written = bed.directory().join(bed.name());
    let words = ["run", "--rm", "--preserve-fds=2", "--network=none"];
    let script = "read line <&3; echo got $line; cat <&3; echo written >&4";
    let output = bed
        .run_program(&words, &["sh", "-c", script])
        .redirected(&format!("3<&0 4>>{} </dev/null", written.display()))
        .stdin("one\ntwo\n")
        .output()?;
    same(&output.success()?, "got one\ntwo\n")?;
    same(&fs::read_to_string(written)?, "written\n")
}

fn a_terminal_has_a_size_and_changes_it(bed: &Bed) -> Result<()> {
    let words = ["run", "--rm", "--interactive", "--tty", "--network=none"];
    let size = |rows, columns| Size { rows, columns };
    let mut terminal = bed.run_program(&words, &["sh"]).start_on_terminal(size(31, 97))?;
    // Podman sets it when it attaches, which a shell may be faster than.
    terminal.type_in("until [ \"$(stty size)\" = '31 97' ]; do sleep 0.1; done; echo fir''st\n")?;
    terminal.wait_for("first\n")?;
    terminal.resize(size(13, 57))?;
    terminal.type_in("until [ \"$(stty size)\" = '13 57' ]; do sleep 0.1; done; echo seco''nd\n")?;
    terminal.wait_for("second\n")?;
    terminal.type_in("exit 5\n")?;
    terminal.end()?.exits(5).map(drop)
}

fn a_terminal_ends_with_its_process(bed: &Bed) -> Result<()> {
    let size = Size {
        rows: 24,
        columns: 80,
    };
    let words = ["run", "--rm", "--interactive", "--tty", "--network=none"];
    let mut terminal = bed
        .run_program(
            &words,
            &[
                "sh",
                "-c",
                "trap 'exit 6' INT; echo ready; while :; do read line; done",
            ],
        )
        .start_on_terminal(size)?;
    // What is typed before somebody heeds it is lost.
    terminal.wait_for("ready\n")?;
    terminal.type_in("\x03")?;
    // A signal that comes when the shell is about to read is heeded after the line.
    terminal.type_in("\n")?;
    terminal.end()?.exits(6).map(drop)
}

fn the_environment_user_and_directory_are_those_asked_for(bed: &Bed) -> Result<()> {
    let options = ["--rm", "--env=A=b c", "--user=1000:2000", "--workdir=/tmp"];
    let script = "echo \"$A\"; id -u; id -g; pwd";
    let said = bed.run(&options, &["sh", "-c", script])?.success()?;
    same(&said, "b c\n1000\n2000\n/tmp\n")
}

fn a_container_has_its_own_host_name(bed: &Bed) -> Result<()> {
    let said = bed
        .run(&["--rm", "--hostname=somewhere"], &["hostname"])?
        .success()?;
    same(&said, "somewhere\n")
}

fn a_container_of_its_own_machine(bed: &Bed) -> Result<()> {
    let guest = bed.run(&["--rm"], &["uname", "-r"])?.success()?;
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    ensure!(guest != host, "the container has the host's kernel {host}");
    Ok(())
}

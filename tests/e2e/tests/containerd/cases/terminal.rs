//! Containers and further processes on a terminal.

use anyhow::{Context as _, Result};
use e2e::program::Program;
use e2e::terminal::{Size, Terminal};
use e2e::{deadlines, wait};

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("run_on_a_terminal", run_on_a_terminal),
    Listed::both("exec_on_a_terminal", exec_on_a_terminal),
    Listed::both("attach_to_a_terminal", attach_to_a_terminal),
];

const SMALL: Size = Size {
    rows: 30,
    columns: 90,
};

const LARGE: Size = Size {
    rows: 50,
    columns: 132,
};

/// A shell that says what its terminal is like each time it is asked.
const SCRIPT: &str = "trap 'echo interrupted' INT; test -t 0 -a -t 1 -a -t 2 && echo ready; \
    while :; do read word || continue; echo \"<$word>\" >&2; stty size; test \"$word\" = end && exit 5; done";

fn run_on_a_terminal(case: &mut Case<'_>) -> Result<()> {
    let program = case.run(&["--rm", "--tty"], &case.id(), &["sh", "-c", SCRIPT]);
    converse(program)
}

fn exec_on_a_terminal(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], &["sleep", "1000"])?;
    converse(
        container
            .exec(&["--tty"], &["sh", "-c", SCRIPT])
            .within(deadlines::RUN),
    )?;
    container.remove()
}

/// Keys, size, interrupt and end of the program go where they belong.
fn converse(program: Program) -> Result<()> {
    let mut terminal = program.start_on_terminal(SMALL)?;
    terminal.wait_for("ready\n")?;
    terminal.type_in("hello\n")?;
    // The terminal's echo, then what the shell answers.
    terminal.wait_for("hello\n<hello>\n")?;
    wait_for_size(&mut terminal, SMALL)?;
    wait_for_size(&mut terminal, LARGE)?;
    // Ctrl-C is a key of the container's terminal. It must end neither the shell, which traps it, nor `ctr`. The shell looks for
    // signals before it reads, not while: one that comes between the two is heeded after the next line.
    terminal.type_in("\x03")?;
    terminal.type_in("again\n")?;
    terminal.wait_for("interrupted\n")?;
    terminal.type_in("end\n")?;
    terminal.end()?.exits(5)?;
    Ok(())
}

/// Asks until the size is told.
fn wait_for_size(terminal: &mut Terminal, size: Size) -> Result<()> {
    let told = format!("{} {}\n", size.rows, size.columns);
    let answers = |terminal: &Terminal| terminal.text().matches("<size>\n").count();
    let mut asked = answers(terminal);
    let waited = wait::until(
        &format!("the terminal's size is {told:?}"),
        deadlines::PROGRESS,
        || {
            // One question at a time: a shell that is slow would have to answer all of them before it heeds what comes next.
            let answered = answers(terminal);
            if answered >= asked {
                // `ctr` reads the size, and then begins to heed its changes: one in between is lost, so it is changed again.
                terminal.resize(Size {
                    rows: size.rows + 1,
                    ..size
                })?;
                terminal.resize(size)?;
                terminal.type_in("size\n")?;
                asked = answered + 1;
            }
            Ok(terminal.text().contains(&told).then_some(()))
        },
    );
    waited.with_context(|| format!("it says {:?}", terminal.text()))
}

/// A container that was started without a client gets one later.
fn attach_to_a_terminal(case: &mut Case<'_>) -> Result<()> {
    let id = case.id();
    let start = case.run(&["--detach", "--tty"], &id, &["sh", "-c", SCRIPT]);
    start.start_on_terminal(SMALL)?.end()?.success()?;
    let attach = case.ctr(&["task", "attach", &id]).within(deadlines::RUN);
    let mut terminal = attach.start_on_terminal(SMALL)?;
    wait_for_size(&mut terminal, SMALL)?;
    terminal.type_in("end\n")?;
    terminal.end()?.exits(5)?;
    // The client that attached has deleted the task.
    case.container(&id).delete()
}

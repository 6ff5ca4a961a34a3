//! Containers from their start to their end, as `ctr run` sees them.

use anyhow::{Result, ensure};

use super::Listed;
use crate::bed::Case;

pub const CASES: &[Listed] = &[
    Listed::both("foreground", foreground),
    Listed::both("exit_codes", exit_codes),
    Listed::both("missing_program", missing_program),
    Listed::both("detached", detached),
    Listed::both("ids_are_reused_at_once", ids_are_reused_at_once),
    Listed::both("ten_at_once", ten_at_once),
];

/// Arguments arrive as they are, and each output where it belongs.
fn foreground(case: &mut Case<'_>) -> Result<()> {
    let script = r#"printf '<%s>' "$@"; echo complaint >&2"#;
    let command = ["sh", "-c", script, "sh", "two words", "", "ä\n", "--rm"];
    let output = case.run(&["--rm"], &case.id(), &command).output()?;
    let complaint = output.stderr.clone();
    assert_eq!(output.success()?, "<two words><><ä\n><--rm>");
    assert_eq!(complaint, "complaint\n");
    Ok(())
}

/// `ctr run` ends as the container does.
fn exit_codes(case: &mut Case<'_>) -> Result<()> {
    for code in [0, 1, 42, 255] {
        case.shell(&[], &format!("exit {code}"))?.exits(code)?;
    }
    // As a shell has it: a signal is 128 and its number. The first process of a container can't send itself one.
    let id = case.id();
    let run = case.run(&["--rm"], &id, &["sleep", "1000"]).start()?;
    case.container(&id).wait_for_status("RUNNING")?;
    case.container(&id).kill("KILL")?;
    run.end()?.exits(137)?;
    Ok(())
}

/// A program that is not there: the error names it, and nothing is left.
fn missing_program(case: &mut Case<'_>) -> Result<()> {
    let error = case
        .run(&["--rm"], &case.id(), &["no-such-program"])
        .output()?
        .failure()?;
    ensure!(
        error.contains("no-such-program"),
        "the program is not named: {error}"
    );
    ensure!(
        error.contains("not found") || error.contains("no such file"),
        "the cause is not told: {error}"
    );
    Ok(())
}

/// A container goes on without its client, until somebody ends it.
fn detached(case: &mut Case<'_>) -> Result<()> {
    let container = case.start(&[], &["sleep", "1000"])?;
    assert_eq!(container.status()?.as_deref(), Some("RUNNING"));
    let pid = container.pid()?;
    ensure!(
        e2e::census::process(pid).is_some(),
        "the task's process {pid} does not exist on the host"
    );
    assert_eq!(container.shell("echo here")?, "here\n");
    container.remove()
}

/// No rest of a container is in the way of the next one with its id.
fn ids_are_reused_at_once(case: &mut Case<'_>) -> Result<()> {
    let id = case.id();
    for count in 0..3 {
        let output = case.run(&["--rm"], &id, &["echo", &count.to_string()]).read()?;
        assert_eq!(output, format!("{count}\n"));
    }
    Ok(())
}

/// Ten containers live at the same time, started at the same time, and each is itself.
fn ten_at_once(case: &mut Case<'_>) -> Result<()> {
    let runs: Vec<_> = (0..10).map(|count| (count, case.id())).collect();
    let started = runs
        .iter()
        .map(|(count, id)| {
            let environment = format!("COUNT={count}");
            let flags = ["--detach", "--null-io", "--env", &environment];
            case.run(&flags, id, &["sleep", "1000"])
                .within(e2e::deadlines::RUN * 2)
                .start()
        })
        .collect::<Result<Vec<_>>>()?;
    for run in started {
        run.end()?.success()?;
    }
    for (count, id) in &runs {
        assert_eq!(case.container(id).shell("echo $COUNT")?, format!("{count}\n"));
    }
    runs.iter().try_for_each(|(_, id)| case.container(id).remove())
}

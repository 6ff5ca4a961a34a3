//! Descriptors beyond the standard streams: pipes and connected sockets, with the numbers that they were asked for.

use agent_client::{Agent as _, Error, ErrorKind};
use agent_protocol as p;

use crate::support::{SOON, Sandbox};

impl Sandbox {
    /// Everything until the end of a descriptor, or until nobody reads it.
    async fn all_of(&self, exec: &str, descriptor: u32) -> Result<String, Error> {
        let mut all = Vec::new();
        loop {
            let answer = self.agent.read_output(reading(exec, descriptor), SOON).await?;
            if answer.eof {
                return Ok(String::from_utf8(all).unwrap());
            }
            all.extend(answer.data);
        }
    }

    async fn write_to(&self, exec: &str, descriptor: u32, data: &[u8]) -> Result<bool, Error> {
        let request = p::WriteStdinRequest {
            container_id: "c".into(),
            exec_id: exec.into(),
            data: data.to_vec(),
            descriptor,
            ..Default::default()
        };
        Ok(self.agent.write_stdin(request, SOON).await?.open)
    }

    async fn end(&self, exec: &str, descriptor: u32) {
        let request = p::CloseStdinRequest {
            container_id: "c".into(),
            exec_id: exec.into(),
            descriptor,
            ..Default::default()
        };
        self.agent.close_stdin(request, SOON).await.unwrap();
    }
}

fn reading(exec: &str, descriptor: u32) -> p::ReadOutputRequest {
    p::ReadOutputRequest {
        container_id: "c".into(),
        exec_id: exec.into(),
        max: 65_536,
        descriptor,
        ..Default::default()
    }
}

#[tokio::test]
async fn a_process_has_them_by_number_and_each_direction_ends_by_itself() {
    let sandbox = Sandbox::ready().await;
    // The last number is the shell's own, which looks at the directory.
    let script = "echo /proc/self/fd/*; read line <&3; echo got $line >&4; exec 4>&-; cat <&5 >&5; exec 5>&-; cat <&3; echo done";
    sandbox.run("c", script, "o<>=").await;
    let numbers = [0, 1, 2, 3, 4, 5, 6].map(|number| format!("/proc/self/fd/{number}"));
    sandbox.expect("c", "", &format!("{}\n", numbers.join(" "))).await;

    assert!(sandbox.write_to("", 3, b"hello\nand more").await.unwrap());
    assert_eq!(sandbox.all_of("", 4).await.unwrap(), "got hello\n");
    assert!(sandbox.write_to("", 5, b"there ").await.unwrap());
    assert!(sandbox.write_to("", 5, b"and back").await.unwrap());
    sandbox.end("", 5).await;
    assert_eq!(sandbox.all_of("", 5).await.unwrap(), "there and back");
    sandbox.end("", 3).await;
    assert_eq!(sandbox.output("c", "").await, "and moredone\n");
    assert_eq!(sandbox.wait("c", "").await.unwrap(), 0);

    // Of one that has ended, or was never there.
    let error = sandbox.write_to("", 3, b"x").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    let error = sandbox.all_of("", 6).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    sandbox.destroy().await;
}

#[tokio::test]
async fn who_writes_to_what_nobody_reads_finds_it_broken() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    for (exec, streams) in [("pipe", "o>"), ("socket", "o=")] {
        // A shell says 128 + SIGPIPE.
        sandbox
            .exec("c", exec, "yes >&3; echo $?", streams)
            .await
            .unwrap();
        let first = sandbox.agent.read_output(reading(exec, 3), SOON).await.unwrap();
        assert!(first.data.starts_with(b"y\n"));
        let close = p::ReadOutputRequest {
            close: true,
            ..reading(exec, 3)
        };
        assert!(sandbox.agent.read_output(close, SOON).await.unwrap().eof);
        assert_eq!(sandbox.output("c", exec).await, "141\n");
    }
    // A read that waits is answered, and what the process does not read is told.
    sandbox
        .exec("c", "quiet", "exec 4<&-; echo up; sleep 1000", "o><=")
        .await
        .unwrap();
    sandbox.expect("c", "quiet", "up").await;
    assert!(!sandbox.write_to("quiet", 4, b"x").await.unwrap());
    let close = p::ReadOutputRequest {
        close: true,
        ..reading("quiet", 5)
    };
    let (ended, closed) = tokio::join!(sandbox.all_of("quiet", 5), sandbox.agent.read_output(close, SOON));
    closed.unwrap();
    // It was there before the close, or came after it.
    assert!(ended.is_ok_and(|all| all.is_empty()) || sandbox.all_of("quiet", 5).await.is_err());
    sandbox.signal("c", "quiet", 9).await.unwrap();
    // The process is gone, and with it whoever had written.
    assert_eq!(sandbox.all_of("quiet", 3).await.unwrap(), "");
    sandbox.destroy().await;
}

#[tokio::test]
async fn as_many_as_may_be_are_all_in_their_places_also_beside_a_terminal() {
    let sandbox = Sandbox::ready().await;
    sandbox.run("c", "sleep 1000", "").await;
    let most = ">".repeat(p::MAX_DESCRIPTORS);
    let script = "i=3; while [ $i -lt 67 ]; do echo $i >/proc/self/fd/$i; i=$((i+1)); done";
    for (exec, streams) in [("plain", most.clone()), ("terminal", format!("iot{most}"))] {
        sandbox.exec("c", exec, script, &streams).await.unwrap();
        for number in [3, 4, 5, 6, 7, 30, 66] {
            assert_eq!(sandbox.all_of(exec, number).await.unwrap(), format!("{number}\n"));
        }
        assert_eq!(sandbox.wait("c", exec).await.unwrap(), 0);
    }
    for (streams, told) in [(format!("{most}<"), "64"), ("!".to_owned(), "neither")] {
        let error = sandbox.exec("c", "more", "true", &streams).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(told), "{error}");
    }
    let close = p::ReadOutputRequest {
        close: true,
        ..reading("plain", 1)
    };
    let error = sandbox.agent.read_output(close, SOON).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument, "{error}");
    sandbox.destroy().await;
}

//! Connections to the pod's localhost, opened through the agent.

use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::thread;
use std::time::Duration;

use agent_client::{Agent as _, Error, ErrorKind};
use agent_protocol as p;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::network::Cables;
use crate::support::{SOON, Sandbox};

/// An agent in a network namespace of its own, with a listener on each of these addresses' loopback, in the order given.
async fn pod(families: &str) -> (Sandbox, Cables, Vec<tokio::net::TcpListener>, u16) {
    let cables = Cables::lay();
    let sandbox = Sandbox::in_network(&cables.inside).await;
    let request = p::CreateSandboxRequest {
        sandbox_id: "s".into(),
        ..Default::default()
    };
    sandbox.agent.create_sandbox(request, SOON).await.unwrap();
    // A socket belongs to the namespace of the thread that makes it.
    let namespace = std::fs::File::open(format!("/run/netns/{}", cables.inside)).unwrap();
    let families = families.to_owned();
    let listen = move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut port = 0;
        let mut listeners = Vec::new();
        for family in families.chars() {
            let listener = match family {
                '4' => TcpListener::bind((Ipv4Addr::LOCALHOST, port)),
                _ => TcpListener::bind((Ipv6Addr::LOCALHOST, port)),
            }
            .unwrap();
            port = listener.local_addr().unwrap().port();
            listener.set_nonblocking(true).unwrap();
            listeners.push(listener);
        }
        (listeners, port)
    };
    let (listeners, port) = thread::spawn(listen).join().unwrap();
    let listeners = listeners
        .into_iter()
        .map(|listener| tokio::net::TcpListener::from_std(listener).unwrap());
    (sandbox, cables, listeners.collect(), port)
}

impl Sandbox {
    async fn open(&self, port: u16, ipv6_first: bool) -> Result<u64, Error> {
        let request = p::OpenConnectionRequest {
            port: port.into(),
            ipv6_first,
            ..Default::default()
        };
        Ok(self.agent.open_connection(request, SOON).await?.connection)
    }

    async fn pull(&self, connection: u64) -> Result<Vec<u8>, Error> {
        let request = p::ReadConnectionRequest {
            connection,
            max: 65_536,
            ..Default::default()
        };
        let answer = self.agent.read_connection(request, SOON).await?;
        assert_eq!(answer.eof, answer.data.is_empty());
        Ok(answer.data)
    }

    async fn push(&self, connection: u64, data: &[u8]) -> Result<bool, Error> {
        let request = p::WriteConnectionRequest {
            connection,
            data: data.into(),
            ..Default::default()
        };
        Ok(self.agent.write_connection(request, SOON).await?.open)
    }
}

fn numbered(connection: u64) -> p::ConnectionRequest {
    p::ConnectionRequest {
        connection,
        ..Default::default()
    }
}

async fn accepted(listener: &tokio::net::TcpListener) -> TcpStream {
    timeout(SOON.unwrap(), listener.accept())
        .await
        .unwrap()
        .unwrap()
        .0
}

#[tokio::test]
async fn data_goes_both_ways_until_each_end_has_said_all() {
    let (sandbox, _cables, listeners, port) = pod("4").await;
    let connection = sandbox.open(port, false).await.unwrap();
    let mut program = accepted(&listeners[0]).await;
    assert!(sandbox.push(connection, b"question").await.unwrap());
    let mut question = [0; 8];
    program.read_exact(&mut question).await.unwrap();
    assert_eq!(&question, b"question");
    sandbox
        .agent
        .finish_connection(numbered(connection), SOON)
        .await
        .unwrap();
    assert_eq!(
        program.read(&mut question).await.unwrap(),
        0,
        "the question is asked"
    );
    program.write_all(b"answer").await.unwrap();
    assert_eq!(sandbox.pull(connection).await.unwrap(), b"answer");
    drop(program);
    assert_eq!(sandbox.pull(connection).await.unwrap(), b"");
    sandbox
        .agent
        .close_connection(numbered(connection), SOON)
        .await
        .unwrap();
    for error in [
        sandbox.pull(connection).await.unwrap_err(),
        sandbox.push(connection, b"x").await.unwrap_err(),
        sandbox
            .agent
            .close_connection(numbered(connection), SOON)
            .await
            .unwrap_err(),
    ] {
        assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    }
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_program_is_found_whichever_localhost_it_listens_on() {
    for (families, ipv6_first, expected) in
        [("4", true, 0), ("6", false, 0), ("46", false, 0), ("46", true, 1)]
    {
        let (sandbox, _cables, listeners, port) = pod(families).await;
        let connection = sandbox.open(port, ipv6_first).await.unwrap();
        accepted(&listeners[expected]).await;
        sandbox
            .agent
            .close_connection(numbered(connection), SOON)
            .await
            .unwrap();
        sandbox.destroy().await;
    }
}

#[tokio::test]
async fn nobody_there_is_told_and_so_is_a_wrong_port() {
    let (sandbox, _cables, listeners, port) = pod("4").await;
    drop(listeners);
    let error = sandbox.open(port, false).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains(&format!("port {port}")), "{error}");
    let zero = sandbox.open(0, false).await.unwrap_err();
    assert_eq!(zero.kind, ErrorKind::InvalidArgument);
    sandbox.destroy().await;

    let sandbox = Sandbox::ready().await;
    let error = sandbox.open(22, false).await.unwrap_err();
    assert_eq!(
        error.kind,
        ErrorKind::Unsupported,
        "the host's localhost is none of a guest's"
    );
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_program_that_is_gone_ends_writing_and_a_close_ends_reading() {
    let (sandbox, _cables, listeners, port) = pod("4").await;
    let connection = sandbox.open(port, false).await.unwrap();
    drop(accepted(&listeners[0]).await);
    let mut pushes = 0;
    while sandbox.push(connection, b"anybody there?").await.unwrap() {
        pushes += 1;
        assert!(pushes < 100);
    }

    let quiet = sandbox.open(port, false).await.unwrap();
    let _program = accepted(&listeners[0]).await;
    let (read, ()) = tokio::join!(sandbox.pull(quiet), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        sandbox
            .agent
            .close_connection(numbered(quiet), SOON)
            .await
            .unwrap();
    });
    assert_eq!(read.unwrap(), b"");
    sandbox.destroy().await;
}

#[tokio::test]
async fn a_program_that_does_not_read_holds_up_only_its_writer() {
    let (sandbox, _cables, listeners, port) = pod("4").await;
    let connection = sandbox.open(port, false).await.unwrap();
    let program = accepted(&listeners[0]).await;
    let much = vec![7; p::MAX_CHUNK];
    let full = async {
        loop {
            assert!(sandbox.push(connection, &much).await.unwrap());
        }
    };
    assert!(
        timeout(Duration::from_millis(500), full).await.is_err(),
        "it never filled up"
    );
    let other = sandbox.open(port, false).await.unwrap();
    sandbox
        .agent
        .close_connection(numbered(other), SOON)
        .await
        .unwrap();
    drop(program);
    sandbox.destroy().await;
}

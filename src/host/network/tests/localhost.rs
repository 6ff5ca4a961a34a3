//! Connections to localhost inside a namespace, all of which come to us.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, TcpStream};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::timeout;

use super::super::{Attached, Model};
use super::pod::{ADDRESS, Pod, SOON, attach};

const FOUR: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SIX: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Dials inside the namespace and answers with what it was sent, or why that failed.
async fn dial(pod: &Pod, to: SocketAddr) -> std::io::Result<String> {
    pod.in_inside(move || {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(SOON))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
    .await
}

/// Tells every caller which address it has dialled.
async fn echo(listener: TcpListener) {
    while let Ok((mut stream, _)) = listener.accept().await {
        let dialled = stream.local_addr().unwrap();
        stream.write_all(dialled.to_string().as_bytes()).await.unwrap();
    }
}

async fn listening(pod: &Pod) -> Attached {
    let mut attached = attach(&pod.path(), Some(Model::TcFilter), 1).await.unwrap();
    for listener in attached.listen().await.unwrap() {
        tokio::spawn(echo(listener));
    }
    attached
}

#[tokio::test]
async fn every_port_of_both_localhosts_is_ours() {
    let pod = Pod::new();
    let mut attached = listening(&pod).await;
    let other: IpAddr = "127.8.9.10".parse().unwrap();
    for (ip, port) in [
        (FOUR, 1),
        (FOUR, 80),
        (FOUR, 65_535),
        (other, 8080),
        (SIX, 1),
        (SIX, 80),
        (SIX, 65_535),
    ] {
        let to = SocketAddr::from((ip, port));
        assert_eq!(dial(&pod, to).await.unwrap(), to.to_string());
    }
    // What is not localhost stays as it was: nobody listens there.
    let refused = dial(&pod, (ADDRESS, 80).into()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    attached.release().await.unwrap();
    for ip in [FOUR, SIX] {
        let refused = dial(&pod, (ip, 80).into()).await.unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{ip}");
    }
}

#[tokio::test]
async fn a_program_of_the_namespace_is_not_meant() {
    let pod = Pod::new();
    let mut attached = listening(&pod).await;
    // It listens on every address; localhost is the guest's all the same, and the rest its own.
    let listener = pod
        .in_inside(|| StdListener::bind((Ipv4Addr::UNSPECIFIED, 7070)).unwrap())
        .await;
    assert_eq!(dial(&pod, (FOUR, 7070).into()).await.unwrap(), "127.0.0.1:7070");
    let served = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"mine").unwrap();
    });
    assert_eq!(dial(&pod, (ADDRESS, 7070).into()).await.unwrap(), "mine");
    served.join().unwrap();
    attached.release().await.unwrap();
}

#[tokio::test]
async fn the_loopback_device_may_come_up_later_and_nobody_outside_gets_in() {
    let pod = Pod::new();
    pod.inside("link set lo down");
    // With a macvtap the namespace still sees what is sent to everybody, so this one has no machine.
    let mut attached = attach(&pod.path(), None, 1).await.unwrap();
    let listeners = attached.listen().await.unwrap();
    let ports: Vec<u16> = listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect();
    for listener in listeners {
        tokio::spawn(echo(listener));
    }
    pod.inside("link set lo up");
    assert_eq!(dial(&pod, (FOUR, 80).into()).await.unwrap(), "127.0.0.1:80");

    let knock = |port: u16| {
        let address = SocketAddr::from((ADDRESS, port));
        pod.in_outside(move || TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop))
    };
    for port in ports {
        let refused = knock(port).await.unwrap_err();
        assert_eq!(
            refused.kind(),
            std::io::ErrorKind::ConnectionRefused,
            "port {port}"
        );
    }
    timeout(SOON, attached.release()).await.unwrap().unwrap();
}

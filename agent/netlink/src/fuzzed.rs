//! What the kernel says: of a namespace whose owner may have put anything into it.

use std::net::IpAddr;

use crate::message::{Message, attributes};
use crate::{Address, Link, Mac, Neighbour, RT_TABLE_MAIN, Route, RouteKind, Rule};

#[test]
fn messages_of_the_kernel() {
    let link = {
        let mut body = vec![0; 16];
        body[2] = 1;
        body[4] = 2;
        body.extend([9, 0, 3, 0, b'e', b't', b'h', b'0', 0, 0, 0, 0]);
        body.extend([10, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 0]);
        body.extend([
            20, 0, 18, 0x80, 8, 0, 1, 0, b't', b'u', b'n', 0, 8, 0, 2, 0x80, 4, 0, 1, 0,
        ]);
        body
    };
    let route = Route {
        destination: IpAddr::from([10, 0, 0, 0]),
        prefix: 8,
        table: RT_TABLE_MAIN,
        kind: RouteKind::Unicast,
        protocol: 3,
        gateway: Some(IpAddr::from([10, 0, 0, 1])),
        index: 2,
        hops: Vec::new(),
        source: None,
        metric: 1,
        mtu: 1400,
        scope: 0,
        on_link: false,
    };
    let seeds = [
        [&[0][..], &link].concat(),
        [&[1][..], &route.request().finish(1)].concat(),
        vec![
            1, 20, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 243, 255, 255, 255,
        ],
    ];
    fuzz::target("messages-of-the-kernel", seeds, |input| {
        let Some((which, input)) = input.split_first() else {
            return;
        };
        let read = |body: &[u8]| {
            let _ = (
                Link::parse(body),
                Address::parse(body),
                Neighbour::parse(body),
                Rule::parse(body),
            );
            if let Some(route) = Route::parse(body).filter(|route| route.kind == RouteKind::Unicast) {
                // What is asked for is what was read.
                let asked = route.request().finish(1);
                assert_eq!(Route::parse(&asked[16..]), Some(route));
            }
            attributes(body).for_each(drop);
        };
        match which % 2 {
            0 => read(input),
            _ => {
                let mut rest = input;
                while let Ok(Some(message)) = Message::take(&mut rest) {
                    let _ = message.refusal();
                    read(message.body);
                }
            }
        }
        let _ = String::from_utf8_lossy(input).parse::<Mac>();
    });
}

//! What monitors answer, and what a guest prints.

use crate::console;
use crate::qmp::message::{self, Lines};
use crate::rest::message::answer;

#[test]
fn lines_of_qmp() {
    let seeds = [
        &br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": "Debian"}, "capabilities": []}}
"#[..],
        b"\r\n{\"return\": {}, \"id\": 3}\r\n{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 4}\n",
        b"{\"timestamp\": {\"seconds\": 1}, \"event\": \"DEVICE_DELETED\", \"data\": {\"device\": \"a\", \"path\": \"/x\"}}\n",
    ];
    fuzz::target("lines-of-qmp", seeds, |input| {
        let cut = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut lines, mut read) = (Lines::default(), Vec::new());
            for piece in pieces {
                lines.push(piece);
                while let Some(line) = lines.next() {
                    read.push(line);
                }
            }
            read
        };
        let whole = cut(&mut [input].into_iter());
        // However it comes, it is the same.
        assert_eq!(cut(&mut input.chunks(1)), whole);
        assert_eq!(cut(&mut input.chunks(7)), whole);
        let _ = message::parse(input);
    });
}

#[test]
fn answers_of_rest() {
    let seeds = [
        &b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"[..],
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 23\r\n\r\n{\"fault_message\":\"no!\"}HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 500 \r\ncontent-length: 12 \r\n\r\n[\"a\",\"b\",1]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n",
    ];
    fuzz::target("answers-of-rest", seeds, |input| {
        let Ok(Some((first, length))) = answer(input) else {
            return;
        };
        assert!(length <= input.len() && first.body.len() <= length);
        let words = first.words();
        assert!(
            words.chars().count() <= 1000 && !words.contains(char::is_control),
            "{words:?}"
        );
        let _ = first.value();
        // What comes behind it is another's.
        assert_eq!(answer(&input[..length]), Ok(Some((first, length))));
    });
}

#[test]
fn a_guests_console() {
    let seeds = [
        &b"[    0.000000] Linux version 6.1\r\n\x1b[1;31mred\x1b[0m\x1b]0;title\x07 plain\n"[..],
        b"Kernel panic - not syncing: \xff\xfe\n\n\x00\x9b31mhello\t\xe2\x80\xae\n",
    ];
    fuzz::target("a-guests-console", seeds, |input| {
        let cut = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut lines, mut read) = (console::Lines::default(), Vec::new());
            for piece in pieces {
                lines.push(piece, |line| read.push(line));
            }
            lines.finish(|line| read.push(line));
            read
        };
        let whole = cut(&mut [input].into_iter());
        assert_eq!(cut(&mut input.chunks(3)), whole);
        for line in &whole {
            assert!(
                !line.is_empty() && line.len() <= console::MAX_LINE,
                "{} bytes",
                line.len()
            );
            assert!(!line.contains(char::is_control), "{line:?}");
            console::is_alarming(line);
        }
    });
}

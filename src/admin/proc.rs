//! Files of `/proc`, the host's and the guest's, as names and numbers. What a guest says of itself may be anything. Pure.

use std::collections::BTreeSet;

/// A name and its number.
pub(super) type Item = (String, f64);

/// Items of one file at most.
const MOST_ITEMS: usize = 1024;

/// Names in this form go into labels.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.:@".contains(&byte))
}

/// The first of each name, up to a number of them: a scraper refuses all figures if one is there twice.
fn once<T>(named: impl Iterator<Item = (String, T)>) -> Vec<(String, T)> {
    let mut seen = BTreeSet::new();
    named
        .filter(|(name, _)| seen.insert(name.clone()))
        .take(MOST_ITEMS)
        .collect()
}

fn number(text: &str) -> Option<f64> {
    text.parse::<u64>().ok().map(|number| number as f64)
}

/// Lines as `MemTotal:  16 kB` or `nr_free_pages 7`, names in small letters, kilobytes as bytes: `/proc/meminfo`, `/proc/vmstat`,
/// and the numbers of `/proc/<pid>/status`.
pub(super) fn lines(text: &str) -> Vec<Item> {
    let item = |line: &str| {
        let (name, rest) = line.split_once([':', ' ', '\t'])?;
        let mut words = rest.split_ascii_whitespace().filter(|word| *word != ":");
        let value = number(words.next()?)?;
        let factor = match words.next() {
            Some("kB") => 1024.0,
            None => 1.0,
            Some(_) => return None,
        };
        let name = name.trim().to_ascii_lowercase().replace(['(', ')'], "_");
        let name = name.trim_end_matches('_').to_owned();
        is_name(&name).then_some((name, value * factor))
    };
    once(text.lines().filter_map(item))
}

/// Names of the numbers in a line of `/proc/net/dev`.
const NETWORK: [&str; 16] = [
    "recv_bytes",
    "recv_packets",
    "recv_errs",
    "recv_drop",
    "recv_fifo",
    "recv_frame",
    "recv_compressed",
    "recv_multicast",
    "sent_bytes",
    "sent_packets",
    "sent_errs",
    "sent_drop",
    "sent_fifo",
    "sent_colls",
    "sent_carrier",
    "sent_compressed",
];

/// `/proc/net/dev`: interfaces and their numbers.
pub(super) fn network(text: &str) -> Vec<(String, Vec<(&'static str, f64)>)> {
    let interface = |line: &str| {
        let (name, rest) = line.split_once(':')?;
        let name = name.trim();
        is_name(name).then(|| (name.to_owned(), named(&NETWORK, rest)))
    };
    once(text.lines().skip(2).filter_map(interface))
}

/// Bytes that were received and sent, of all interfaces but the loopback.
pub(super) fn traffic(text: &str) -> (u64, u64) {
    let mut sums = (0.0, 0.0);
    for (name, items) in network(text) {
        let of = |key: &str| {
            items
                .iter()
                .find(|(item, _)| *item == key)
                .map_or(0.0, |(_, n)| *n)
        };
        if name != "lo" {
            sums.0 += of("recv_bytes");
            sums.1 += of("sent_bytes");
        }
    }
    (sums.0 as u64, sums.1 as u64)
}

/// Names of the numbers in a line of `/proc/diskstats`.
const DISK: [&str; 17] = [
    "reads",
    "reads_merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];

/// `/proc/diskstats`: disks and their numbers.
pub(super) fn disks(text: &str) -> Vec<(String, Vec<(&'static str, f64)>)> {
    let disk = |line: &str| {
        let mut words = line.split_ascii_whitespace().skip(2);
        let name = words.next()?;
        let rest: Vec<_> = words.collect();
        is_name(name).then(|| (name.to_owned(), named(&DISK, &rest.join(" "))))
    };
    once(text.lines().filter_map(disk))
}

/// Names of the numbers in a line of a processor in `/proc/stat`.
const CPU: [&str; 10] = [
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guest_nice",
];

/// `/proc/stat`: processors (`total` for all) and their times, in ticks.
pub(super) fn processors(text: &str) -> Vec<(String, Vec<(&'static str, f64)>)> {
    let processor = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        let index = name.strip_prefix("cpu")?;
        let name = if index.is_empty() { "total" } else { index };
        is_name(name).then(|| (name.to_owned(), named(&CPU, rest)))
    };
    once(text.lines().filter_map(processor))
}

/// `/proc/loadavg`: load, and processes now and at most.
pub(super) fn load(text: &str) -> (Vec<Item>, Vec<Item>) {
    let words: Vec<_> = text.split_ascii_whitespace().collect();
    let load = ["load1", "load5", "load15"].iter().zip(&words);
    let load = load.filter_map(|(name, word)| {
        let value: f64 = word.parse().ok()?;
        value.is_finite().then(|| ((*name).to_owned(), value))
    });
    let tasks = words.get(3).and_then(|word| word.split_once('/'));
    let tasks = tasks.and_then(|(now, most)| {
        Some(vec![
            ("cur".to_owned(), number(now)?),
            ("max".to_owned(), number(most)?),
        ])
    });
    (load.collect(), tasks.unwrap_or_default())
}

/// What is used of `/proc/<pid>/stat`, as names and numbers: times in ticks, threads, memory in bytes.
pub(super) fn stat(text: &str, page: f64) -> Vec<Item> {
    // The name is in parentheses, and may contain some.
    let Some((_, rest)) = text.rsplit_once(')') else {
        return Vec::new();
    };
    let fields: Vec<_> = rest.split_ascii_whitespace().collect();
    // As proc(5) counts them; the first one after the name is the third.
    let wanted = [
        ("minflt", 10, 1.0),
        ("majflt", 12, 1.0),
        ("utime", 14, 1.0),
        ("stime", 15, 1.0),
        ("cutime", 16, 1.0),
        ("cstime", 17, 1.0),
        ("num_threads", 20, 1.0),
        ("starttime", 22, 1.0),
        ("vsize", 23, 1.0),
        ("rss", 24, page),
    ];
    let item = |(name, at, factor): (&str, usize, f64)| {
        let value = number(fields.get(at - 3)?)?;
        Some((name.to_owned(), value * factor))
    };
    wanted.into_iter().filter_map(item).collect()
}

fn named<const N: usize>(names: &'static [&'static str; N], numbers: &str) -> Vec<(&'static str, f64)> {
    let numbers = numbers.split_ascii_whitespace().map(number);
    let named = names.iter().zip(numbers);
    named
        .filter_map(|(name, number)| Some((*name, number?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_every_file_are_read() {
        assert_eq!(
            lines(
                "MemTotal:       16 kB\nnr_free 7\nActive(anon):  1 kB\nName:\tqemu\nUid:\t0\t0\nThreads:\t3\n"
            ),
            [
                ("memtotal".to_owned(), 16384.0),
                ("nr_free".to_owned(), 7.0),
                ("active_anon".to_owned(), 1024.0),
                ("threads".to_owned(), 3.0),
            ]
        );
    }

    #[test]
    fn interfaces_disks_and_processors_have_named_numbers() {
        let text = "Inter-|   Receive\n face |bytes\n    lo: 5 1 0 0 0 0 0 0 5 1 0 0 0 0 0 0\n  eth0:10 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n";
        let read = network(text);
        assert_eq!(read[1].0, "eth0");
        assert_eq!(read[1].1[8], ("sent_bytes", 20.0));
        assert_eq!(traffic(text), (10, 20));
        let read = disks("   8       0 sda 11 2 33 4 5 6 7 8 0 9 10\n");
        assert_eq!(read[0].0, "sda");
        assert_eq!(read[0].1[2], ("sectors_read", 33.0));
        assert_eq!(read[0].1.len(), 11, "an old kernel's");
        let read = processors("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3 4\nintr 5\n");
        assert_eq!(read.len(), 2);
        assert_eq!(
            read[0],
            (
                "total".to_owned(),
                CPU.into_iter().zip((1..).map(f64::from)).collect()
            )
        );
        assert_eq!(read[1].0, "0");
        let (load, tasks) = load("0.25 0.50 NaN 1/50 7\n");
        assert_eq!(load, [("load1".to_owned(), 0.25), ("load5".to_owned(), 0.5)]);
        assert_eq!(tasks[1], ("max".to_owned(), 50.0));
    }

    #[test]
    fn what_a_guest_says_twice_is_told_once() {
        assert_eq!(lines("a 1\nA 2\n"), [("a".to_owned(), 1.0)]);
        assert_eq!(network("\n\n eth0: 1\neth0: 2\n").len(), 1);
        assert_eq!(disks("1 0 vda 1\n2 0 vda 2\n").len(), 1);
        assert_eq!(processors("cpu 1\ncputotal 2\ncpu0 1\ncpu0 2\n").len(), 2);
    }

    #[test]
    fn a_processs_numbers_are_found_behind_its_name() {
        let text = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 100 5000 42 1844";
        let read = stat(text, 4096.0);
        let of = |name: &str| read.iter().find(|(item, _)| item == name).unwrap().1;
        assert_eq!((of("utime"), of("stime"), of("num_threads")), (150.0, 50.0, 9.0));
        assert_eq!((of("vsize"), of("rss")), (5000.0, 42.0 * 4096.0));
        assert!(stat("", 1.0).is_empty());
    }

    proptest! {
        #[test]
        fn whatever_a_guest_says_names_are_harmless(text in "[ -~\\n]{0,400}") {
            let of_lines = lines(&text).into_iter().map(|(name, _)| name);
            let others = [network(&text), disks(&text), processors(&text)].concat();
            let names = of_lines.chain(others.into_iter().map(|(name, _)| name));
            prop_assert!(names.into_iter().all(|name| is_name(&name)));
            let _ = (load(&text), stat(&text, 4096.0), traffic(&text));
        }
    }
}

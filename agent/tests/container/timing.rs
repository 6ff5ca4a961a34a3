//! How long creation and start take here. A figure for people, with a bound that only a blunder would break.

use std::time::{Duration, Instant};

use agent::container::ProcessStdio;

use crate::fixture::{Fixture, exit_code};

const ROUNDS: usize = 20;

pub async fn create_and_start() {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let fixture = Fixture::script("true");
        let begin = Instant::now();
        let (mut container, started) = fixture.create(ProcessStdio::default()).await.unwrap();
        let created = begin.elapsed();
        container.start().await.unwrap();
        times.push((begin.elapsed(), created));
        exit_code(started.pid).await;
        container.delete().await.unwrap();
    }
    times.sort_unstable();
    let (median, created) = times[ROUNDS / 2];
    println!(
        "create and start: median {median:?} (create {created:?}), worst {:?}",
        times[ROUNDS - 1].0
    );
    assert!(median < Duration::from_millis(250), "{median:?}");
}

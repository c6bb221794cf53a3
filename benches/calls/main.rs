//! What a call costs, part by part: its bytes, the decision on it, and the whole of it over real UDP beside raw quinn doing the
//! same. Everything here is in one process and on one thread; the yardstick, with a process for each side, is `volt bench`.
//!
//! `cargo bench --bench calls` measures; `cargo bench --bench calls -- --test` runs each once.

mod bytes_of_calls;
mod decisions;
mod network;
mod raw;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Short, so that all of it takes two minutes: what differs by a few percent is `volt bench`'s business.
fn quick() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(20)
}

criterion_group! {
    name = parts;
    config = quick();
    targets = bytes_of_calls::header, bytes_of_calls::bodies, bytes_of_calls::frames, decisions::policy, decisions::ids
}
criterion_group! {
    name = whole;
    config = quick();
    targets = network::one_at_a_time, network::in_flight, network::bulk
}
criterion_main!(parts, whole);

//! The loops that both sides are measured with: the same clock, the same warm-up, the same arithmetic. They know nothing of
//! what they call.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::{Figures, Metric};

/// Calls one after the other for `time`, after a warm-up, and tells how long each took.
pub async fn latencies<C, F, E>(time: Duration, call: C) -> Result<Figures, E>
where
    C: Fn() -> F,
    F: Future<Output = Result<(), E>>,
{
    let start = Instant::now() + time / 5;
    let end = start + time;
    let mut nanos = Vec::with_capacity(1 << 18);
    loop {
        let before = Instant::now();
        if before >= end && !nanos.is_empty() {
            break;
        }
        call().await?;
        if before >= start {
            nanos.push(before.elapsed().as_nanos() as u64);
        }
    }
    nanos.sort_unstable();
    Ok(vec![(Metric::P50Us, percentile_us(&nanos, 50)), (Metric::P99Us, percentile_us(&nanos, 99))])
}

/// Keeps `concurrency` of them going for `time`, after a warm-up, and counts those that end in that time, per second.
pub async fn rate<C, F, E>(concurrency: usize, time: Duration, call: C) -> Result<f64, E>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    let start = Instant::now() + time / 5;
    let end = start + time;
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        tasks.spawn(repeat(start, end, call.clone()));
    }
    let mut count = 0;
    while let Some(ended) = tasks.join_next().await {
        count += ended.expect("measured calls do not panic and nobody aborts them")?;
    }
    Ok(count as f64 / time.as_secs_f64())
}

/// By how much this grows per second, for `time`, after a warm-up.
pub async fn growth(time: Duration, value: impl Fn() -> u64) -> f64 {
    tokio::time::sleep(time / 5).await;
    let (start, before) = (Instant::now(), value());
    tokio::time::sleep(time).await;
    (value() - before) as f64 / start.elapsed().as_secs_f64()
}

/// Keeps `concurrency` of them going for `time`, and counts all of them, also those under way at its end.
pub async fn count<C, F, E>(concurrency: usize, time: Duration, call: C) -> Result<u64, E>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: Send + 'static,
{
    let end = Instant::now() + time;
    let mut tasks = JoinSet::new();
    for _ in 0..concurrency {
        let call = call.clone();
        tasks.spawn(async move {
            let mut count = 0;
            while count == 0 || Instant::now() < end {
                call().await?;
                count += 1;
            }
            Ok(count)
        });
    }
    let mut all = 0;
    while let Some(ended) = tasks.join_next().await {
        all += ended.expect("measured calls do not panic and nobody aborts them")?;
    }
    Ok(all)
}

async fn repeat<C, F, E>(start: Instant, end: Instant, call: C) -> Result<u64, E>
where
    C: Fn() -> F,
    F: Future<Output = Result<(), E>>,
{
    let mut count = 0;
    loop {
        call().await?;
        let now = Instant::now();
        if now >= end {
            return Ok(count);
        }
        count += u64::from(now >= start);
    }
}

fn percentile_us(sorted_nanos: &[u64], percent: usize) -> f64 {
    let last = sorted_nanos.len() - 1;
    sorted_nanos[last * percent / 100] as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_values() {
        let nanos: Vec<u64> = (0..=100).map(|n| n * 1_000).collect();
        assert_eq!(percentile_us(&nanos, 50), 50.0);
        assert_eq!(percentile_us(&nanos, 99), 99.0);
        assert_eq!(percentile_us(&[7_000], 99), 7.0);
    }

    #[tokio::test]
    async fn latencies_have_a_value_however_slow_the_call() {
        let slow = || async {
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(())
        };
        let figures = latencies(Duration::from_nanos(1), slow).await.unwrap();
        assert_eq!(figures.len(), 2);
        assert!(figures.iter().all(|(_, value)| *value > 0.0));
    }

    #[tokio::test]
    async fn every_call_is_counted_and_each_task_makes_at_least_one() {
        let calls = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let made = calls.clone();
        let call = move || {
            made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            std::future::ready(Ok::<_, Infallible>(()))
        };
        assert_eq!(count(4, Duration::ZERO, call.clone()).await, Ok(4));
        let more = count(4, Duration::from_millis(2), call).await.unwrap();
        assert_eq!(calls.load(std::sync::atomic::Ordering::Relaxed), 4 + more);
    }

    #[tokio::test]
    async fn a_failing_call_ends_the_measurement() {
        let failing = || async { Err("gone") };
        assert_eq!(rate(4, Duration::from_secs(3600), failing).await, Err("gone"));
    }
}

//! The spacing of reports, and the watch itself on this machine. Changes of a real network are made in a network namespace, by the
//! test that is ignored here: see its own words.

use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn the_first_change_is_reported_at_once_and_those_that_follow_together() {
    let (mut spacing, start) = (Spacing::default(), Instant::now());
    assert_eq!(spacing.due(), None);
    spacing.note(start);
    assert_eq!(spacing.due(), Some(start));
    spacing.report(start);
    for after in [1, 20, 249] {
        spacing.note(start + after * MS);
        assert_eq!(spacing.due(), Some(start + SPACING));
    }
    spacing.report(start + SPACING);
    assert_eq!(spacing.due(), None);
    let later = start + 60_000 * MS;
    spacing.note(later);
    assert_eq!(spacing.due(), Some(later));
}

#[test]
fn changes_without_end_are_reported_ever_more_rarely_until_there_is_quiet() {
    let (mut spacing, start) = (Spacing::default(), Instant::now());
    let mut reports = Vec::new();
    for after in 0..60_000 {
        let now = start + after * MS;
        spacing.note(now);
        if spacing.due().is_some_and(|due| due <= now) {
            spacing.report(now);
            reports.push(after);
        }
    }
    assert_eq!(reports[..5], [0, 250, 750, 1_750, 3_750]);
    assert!(reports.len() < 15, "{reports:?}");
    let later = start + 100_000 * MS;
    spacing.note(later);
    spacing.report(later);
    spacing.note(later + MS);
    assert_eq!(spacing.due(), Some(later + SPACING));
}

#[tokio::test]
async fn a_watch_starts_and_stops_and_leaves_no_file_open() {
    let open = || std::fs::read_dir("/proc/self/fd").map(|files| files.count()).unwrap_or(0);
    let before = open();
    for _ in 0..200 {
        let mut watch = Watch::start();
        assert!(watch.source.is_some(), "this machine can be watched");
        // Polled once, dropped half-way, and again: nothing is lost or left behind.
        let _ = futures_util::poll!(std::pin::pin!(watch.changed()));
        let _ = futures_util::poll!(std::pin::pin!(watch.changed()));
    }
    // Other tests of this process open and close files of their own meanwhile.
    assert!(open() < before + 150);
}

#[tokio::test(start_paused = true)]
async fn where_nothing_can_be_watched_nothing_is_reported() {
    let mut watch = Watch { source: None, spacing: Spacing::default() };
    assert!(tokio::time::timeout(Duration::from_secs(3_600), watch.changed()).await.is_err());
}

/// Prints what is seen until it is stopped, for use inside a network namespace that somebody changes meanwhile:
/// `ip netns exec NAME cargo test --lib shows_what_changes -- --ignored --nocapture`.
#[tokio::test]
#[ignore = "never ends: shows what a person changes"]
async fn shows_what_changes() {
    let (mut watch, start) = (Watch::start(), Instant::now());
    loop {
        println!("{:?} after {} ms", watch.changed().await, start.elapsed().as_millis());
    }
}

//! What `volt bench` tells: JSON Lines for programs, a table for people. Medians per side, and the ratio of the two.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde_json::{Map, Value, json};

use super::{Figures, Group, Metric, Workload};

/// What each side gave, round by round.
#[derive(Debug, Default)]
pub struct Rounds {
    /// Empty while volt does not take part.
    pub volt: Vec<Figures>,
    /// One entry per round.
    pub baseline: Vec<Figures>,
}

/// One metric of one workload over all rounds.
struct Summary {
    metric: Metric,
    volt: Option<f64>,
    baseline: f64,
    /// The median of the rounds' own ratios: neighbours in time share the machine's moods, medians of far rounds do not.
    ratio: Option<f64>,
    baseline_range: (f64, f64),
}

/// One line for people about a workload.
pub fn title(workload: &Workload) -> String {
    match *workload {
        Workload::Calls { body, in_flight: 1 } => format!("calls of {}, one at a time", size(body as u64)),
        Workload::Calls { body, in_flight } => format!("calls of {}, {in_flight} in flight", size(body as u64)),
        Workload::Bulk { bytes } => format!("{} on one stream", size(bytes)),
        Workload::RelayedCalls { relays, body, in_flight } => {
            format!("{}, over {}", title(&Workload::Calls { body, in_flight }), in_a_row(relays))
        }
        Workload::RelayedBulk { relays, bytes } => format!("{}, over {}", title(&Workload::Bulk { bytes }), in_a_row(relays)),
        Workload::CallCost { body, in_flight } => format!("cost of calls of {}, {in_flight} in flight", size(body as u64)),
        Workload::BulkCost { bytes } => format!("cost of {} on one stream", size(bytes)),
        Workload::Dials { concurrency } => format!("new sessions, {concurrency} at a time"),
        Workload::Idle { sessions } => format!("{} idle sessions", thousands(sessions as u64)),
        Workload::Feed { body, subscribers } => format!("chunks of {} to {subscribers}", size(body as u64)),
        Workload::FeedOne { body, subscribers } => format!("one chunk of {} to {subscribers}", size(body as u64)),
        Workload::Durable { body, in_flight: 1 } => format!("chunks of {} on disk, one at a time", size(body as u64)),
        Workload::Durable { body, in_flight } => format!("chunks of {} on disk, {in_flight} in flight", size(body as u64)),
    }
}

fn in_a_row(relays: usize) -> String {
    if relays == 1 { "one relay".to_owned() } else { format!("{relays} relays in a row") }
}

/// The figures of a feed that delivers so many chunks of this size per second.
pub fn deliveries(per_s: f64, body: usize) -> Figures {
    vec![(Metric::DeliveriesPerS, per_s), (Metric::MbPerS, per_s * body as f64 / 1e6)]
}

/// A line `{"bench","params","metric","volt","baseline","ratio"}` for each metric. `volt` and `ratio` are null while volt does
/// not take part. The ratio is volt's value by the baseline's, whether more or less is better.
pub fn json_lines(workload: &Workload, rounds: &Rounds, out: &mut dyn Write) -> io::Result<()> {
    let mut params: Map<String, Value> =
        workload.params().into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    params.insert("rounds".to_owned(), rounds.baseline.len().into());
    for summary in summaries(rounds) {
        let line = json!({
            "bench": workload.group().name(),
            "params": params,
            "metric": summary.metric.name(),
            "volt": summary.volt.map(rounded),
            "baseline": rounded(summary.baseline),
            "ratio": summary.ratio.map(rounded),
        });
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// One table of everything.
pub fn table(done: &[(Workload, Rounds)], rounds: usize, out: &mut dyn Write) -> io::Result<()> {
    let with_volt = done.iter().any(|(_, rounds)| !rounds.volt.is_empty());
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    let mut header = vec!["what", "metric", "baseline", "from .. to"];
    if with_volt {
        header.splice(2..2, ["volt"]);
        header.push("ratio");
    }
    table.set_header(header);
    for (workload, rounds) in done {
        let mut what = title(workload);
        for summary in summaries(rounds) {
            table.add_row(row(std::mem::take(&mut what), &summary, with_volt));
        }
    }
    writeln!(out, "{table}")?;
    let any = |group| done.iter().any(|(workload, _)| workload.group() == group);
    writeln!(out, "{}", legend(rounds, with_volt))?;
    writeln!(out, "baseline: {}", if any(Group::Resume) { OF_ITSELF } else { RAW })?;
    if any(Group::Relay) { writeln!(out, "{RELAYED}") } else { Ok(()) }
}

fn row(what: String, summary: &Summary, with_volt: bool) -> Vec<Cell> {
    let number = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
    let better = if summary.metric.higher_is_better() { "↑" } else { "↓" };
    let (least, most) = summary.baseline_range;
    let mut row = vec![
        Cell::new(what),
        Cell::new(format!("{} {better}", summary.metric.name())),
        number(readable(summary.baseline)),
        number(format!("{} .. {}", readable(least), readable(most))),
    ];
    if with_volt {
        row.insert(2, number(summary.volt.map_or_else(String::new, readable)));
        row.push(number(summary.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"))));
    }
    row
}

const OF_ITSELF: &str = "the same nodes with resume_window = 0 at both ends; the cost is processor time of both processes.";
const RAW: &str = "raw quinn, one stream per call or subscriber, one-thread runtimes in two processes, no busy-polling.";
const RELAYED: &str =
    "Each relay is one process more. The baseline's copies bytes from stream to stream, and sees them: nothing is sealed inside.";

fn legend(rounds: usize, with_volt: bool) -> String {
    let plural = if rounds == 1 { "round" } else { "rounds" };
    let ratio = if with_volt { "; ratio = volt / baseline, the median of each round's own" } else { "" };
    format!("Medians of {rounds} {plural}, the range is the baseline's{ratio}. ↓ less is better, ↑ more is better.")
}

fn summaries(rounds: &Rounds) -> Vec<Summary> {
    let metrics = rounds.baseline.first().into_iter().flatten();
    metrics.map(|(metric, _)| summary(*metric, rounds)).collect()
}

fn summary(metric: Metric, rounds: &Rounds) -> Summary {
    let value = |figures: &Figures| figures.iter().find(|(found, _)| *found == metric).map(|(_, value)| *value);
    let values = |side: &[Figures]| side.iter().filter_map(value).collect::<Vec<_>>();
    let (volt, baseline) = (values(&rounds.volt), values(&rounds.baseline));
    let ratios = volt.iter().zip(&baseline).filter(|(_, baseline)| **baseline > 0.0).map(|(volt, baseline)| volt / baseline);
    let least = baseline.iter().copied().fold(f64::INFINITY, f64::min);
    let most = baseline.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    Summary {
        metric,
        ratio: median(ratios.collect()),
        volt: median(volt),
        baseline: median(baseline).unwrap_or_default(),
        baseline_range: (least, most),
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Three digits after the point are more than any of this is good for.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

fn readable(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { thousands(value.round() as u64) }
}

fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        _ if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        _ => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALLS: Workload = Workload::Calls { body: 64, in_flight: 64 };

    fn rounds(volt: &[f64], baseline: &[f64]) -> Rounds {
        let figures = |values: &[f64]| values.iter().map(|value| vec![(Metric::CallsPerS, *value)]).collect();
        Rounds { volt: figures(volt), baseline: figures(baseline) }
    }

    fn line(rounds: &Rounds) -> Value {
        let mut out = Vec::new();
        json_lines(&CALLS, rounds, &mut out).unwrap();
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_json_line_has_the_fields_of_the_contract() {
        let expected = json!({
            "bench": "unary",
            "params": { "body": 64, "in_flight": 64, "rounds": 3 },
            "metric": "calls_per_s",
            "volt": 80.0,
            "baseline": 100.0,
            "ratio": 0.8,
        });
        assert_eq!(line(&rounds(&[80.0, 8.0, 160.0], &[100.0, 10.0, 200.0])), expected);
    }

    #[test]
    fn without_volt_its_fields_are_null() {
        let line = line(&rounds(&[], &[100.0]));
        assert_eq!((&line["volt"], &line["ratio"]), (&Value::Null, &Value::Null));
        assert_eq!(line["baseline"], 100.0);
    }

    #[test]
    fn the_ratio_compares_neighbours_in_time() {
        // The machine was three times slower in the last two rounds. Volt was at 0.5 all along.
        let summary = summary(Metric::CallsPerS, &rounds(&[150.0, 50.0, 50.0], &[300.0, 100.0, 100.0]));
        assert_eq!(summary.ratio, Some(0.5));
        assert_eq!(summary.baseline_range, (100.0, 300.0));
    }

    #[test]
    fn medians_of_none_one_and_two() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0]), Some(3.0));
        assert_eq!(median(vec![3.0, 1.0]), Some(2.0));
    }

    #[test]
    fn a_table_names_volt_only_if_it_took_part() {
        let written = |rounds: Rounds| {
            let mut out = Vec::new();
            table(&[(CALLS, rounds)], 1, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert!(!written(rounds(&[], &[100.0])).contains("ratio"));
        let both = written(rounds(&[500_000.0], &[1_000_000.0]));
        assert!(both.contains("1,000,000") && both.contains("0.50"), "{both}");
    }

    #[test]
    fn what_is_relayed_is_named_after_what_it_is_without() {
        let calls = Workload::RelayedCalls { relays: 1, body: 64, in_flight: 1 };
        assert_eq!(title(&calls), "calls of 64 B, one at a time, over one relay");
        let bulk = Workload::RelayedBulk { relays: 2, bytes: 256 << 20 };
        assert_eq!(title(&bulk), "256 MiB on one stream, over 2 relays in a row");
        let mut out = Vec::new();
        table(&[(calls, rounds(&[], &[100.0]))], 1, &mut out).unwrap();
        assert!(String::from_utf8(out).unwrap().contains(RELAYED));
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_fits() {
        assert_eq!((size(64), size(16 << 10), size(256 << 20)), ("64 B".into(), "16 KiB".into(), "256 MiB".into()));
        assert_eq!(size(1025), "1025 B");
    }
}

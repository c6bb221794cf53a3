//! `volt demo`: three nodes on this machine, and everything a session does, step by step, with the time each step took. It
//! keeps nothing, needs no network beyond loopback, and uses only what the library offers to everybody. Every step checks
//! what it claims; the first that finds otherwise ends the demo.

mod forwarder;
mod hard;
mod outage;
mod shapes;
mod stage;
mod steps;
mod tell;

use std::io::{self, Write};
use std::time::{Duration, Instant};

use stage::Stage;
use tell::Teller;

/// A step that takes longer has failed. All of them together take about fifteen seconds, most of which the network is away.
const STEP_LIMIT: Duration = Duration::from_secs(15);

/// Why the demo ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// Something was not as it should be.
    #[error("the demo failed at {step:?}: {why}")]
    Step {
        /// The step, as `--json` names it.
        step: &'static str,
        /// What was found instead.
        why: String,
    },
    /// The story could not be told.
    #[error("cannot write what happens: {0}")]
    Output(#[from] io::Error),
}

/// Why a step failed: anything, said in words.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a step has to say once it is done.
type Told = Result<String, Failure>;

/// Runs the demo and tells it on `out`: a line per step as soon as it is done, with colours, which `out` strips where they are
/// not wanted (as `anstream::stdout()` does); or JSON Lines, `{"step","ok","ms","detail"}`.
///
/// Meant for a current-thread runtime, where it shows the times a program has there; any other works too. Not cancel-safe in
/// that a dropped demo says no goodbyes; it leaves nothing behind.
///
/// # Errors
/// [`DemoError`], which names the step that failed. No later step is run.
pub async fn run(json: bool, out: &mut dyn Write) -> Result<(), DemoError> {
    let mut teller = Teller::new(json, out);
    teller.begin()?;
    let mut stage = Stage::default();
    let began = Instant::now();
    for step in steps::ALL {
        let start = Instant::now();
        let told = tokio::time::timeout(STEP_LIMIT, (step.run)(&mut stage)).await;
        let told = told.unwrap_or_else(|_| Err(format!("not done within {} s", STEP_LIMIT.as_secs()).into()));
        let outcome = told.map_err(|why| why.to_string());
        teller.step(step.name, step.title, start.elapsed(), &outcome)?;
        if let Err(why) = outcome {
            return Err(DemoError::Step { step: step.name, why });
        }
    }
    teller.end(steps::ALL.len(), began.elapsed())?;
    Ok(())
}

/// Fails a step unless what it claims holds.
fn ensure(holds: bool, otherwise: impl FnOnce() -> String) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(otherwise().into()) }
}

/// A time, to three digits, in milliseconds.
fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        100.0.. => format!("{ms:.0} ms"),
        10.0.. => format!("{ms:.1} ms"),
        _ => format!("{ms:.2} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_demo_succeeds_and_says_so_for_each_step() {
        let mut out = Vec::new();
        run(true, &mut out).await.unwrap();
        let lines: Vec<serde_json::Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), steps::ALL.len());
        for (line, step) in lines.iter().zip(steps::ALL) {
            assert_eq!(line["step"], step.name);
            assert_eq!(line["ok"], true);
            assert!(line["ms"].is_f64() && line["detail"].is_string());
        }
    }

    #[test]
    fn times_keep_three_digits() {
        let said = |micros| ms(Duration::from_micros(micros));
        assert_eq!([said(123), said(12_345), said(3_012_345)], ["0.12 ms", "12.3 ms", "3012 ms"]);
    }
}

//! A hostile carrier between two honest ends, over real UDP: whatever it does to what it carries, no end takes anything for the other's that
//! the other has not said there, and a circuit that was meddled with ends with a reason.
//!
//! A carrier sees streams: how they begin on a leg, and bytes. Here it has all it can have: it is the peer of both ends' links, ends streams
//! and delays them as it likes, has recordings of older circuits between the same two, and a key of its own. One deed a circuit, drawn from a
//! seed that is printed; all circuits go over the same links. `VOLT_SEED=n` draws the same deeds; `VOLT_LONG=1` does 100,000.

mod app;
mod bench;
mod carrier;
mod case;
mod edit;
mod plan;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::timeout;

use self::bench::Bench;
use self::plan::{Deed, Plan};
use self::table::{Outcome, Table};

/// Circuits at once, of each of the carriers.
const AT_ONCE: usize = 32;
const CARRIERS: usize = 2;

/// What the carriers of a run share.
struct Run {
    seed: u64,
    wanted: u64,
    next: AtomicU64,
    changed: AtomicU64,
}

#[test]
fn nothing_that_a_carrier_does_is_taken_for_what_the_other_end_has_said() {
    let wanted = if std::env::var_os("VOLT_LONG").is_some() { 100_000 } else { 400 };
    let seed = std::env::var("VOLT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("VOLT_SEED={seed}");
    let (run, begun) = (Arc::new(Run { seed, wanted, next: AtomicU64::new(0), changed: AtomicU64::new(0) }), Instant::now());
    let carriers = [(); CARRIERS].map(|()| {
        let run = run.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(meddle(&run))
        })
    });
    let mut table = Table::default();
    carriers.into_iter().for_each(|carrier| table.join(carrier.join().unwrap()));
    table.print();
    println!("in {:?}", begun.elapsed());
    assert!(table.accepted.is_empty(), "{:#?}", table.accepted);
    assert!(table.unseen.len() as u64 <= 5 + table.all_changed() / 100, "{:#?}", table.unseen);
    let missing: Vec<Deed> = Deed::all().filter(|deed| table.changed(*deed) == 0).collect();
    assert!(missing.is_empty() || wanted < 10_000, "none of {missing:?}");
}

/// One carrier and its nodes, until there were as many changes as wanted.
async fn meddle(run: &Arc<Run>) -> Table {
    let (bench, _tasks) = Bench::new().await;
    let control = calibrate(&bench).await;
    let (mut table, mut cases) = (Table::default(), JoinSet::new());
    loop {
        while cases.len() < AT_ONCE && run.changed.load(Relaxed) + (cases.len() as u64) < run.wanted {
            let number = run.next.fetch_add(1, Relaxed);
            let plan = Plan::draw(run.seed.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)), control);
            let bench = bench.clone();
            cases.spawn(async move { (plan.clone(), one(&bench, plan).await) });
        }
        let Some(ended) = cases.join_next().await else { return table };
        let (plan, outcome) = ended.unwrap();
        if let Some(outcome) = outcome {
            run.changed.fetch_add(u64::from(outcome.changed), Relaxed);
            table.add(&plan, outcome);
        }
    }
}

async fn one(bench: &Arc<Bench>, plan: Plan) -> Option<Outcome> {
    let what = plan.clone();
    let going = async {
        match plan.deed.is_of_handshakes() && plan.deed != Deed::OtherId {
            true => case::misled(bench, plan).await,
            false => case::carried(bench, plan).await,
        }
    };
    timeout(Duration::from_secs(120), going).await.unwrap_or_else(|_| panic!("an end waits for ever: {what:?}"))
}

/// Honest circuits: how long their control streams are, and something to replay.
async fn calibrate(bench: &Arc<Bench>) -> [usize; 2] {
    let mut lengths = [0; 2];
    for _ in 0..4 {
        // A place that no stream has.
        let plan = Plan { deed: Deed::Flip, way: (99, false), body: 300, ..Plan::draw(0, [1, 1]) };
        let outcome = one(bench, plan).await.unwrap();
        assert!(outcome.whole && !outcome.changed && outcome.accepted.is_empty(), "{outcome:?}");
        lengths = bench.control_lengths();
    }
    lengths
}

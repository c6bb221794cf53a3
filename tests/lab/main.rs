//! The lab: the real binary on networks of its own, with links that lose, delay and cut what they carry. Where the machine lacks
//! the rights its trials are ignored, and say why; with `VOLT_LAB=required` that is a failure.
//!
//! `VOLT_LONG=1` is the long form, `VOLT_SEED` repeats what was left to chance. Names and threads as with any test:
//! `cargo test --test lab -- uplink --test-threads 1`.

#[cfg(target_os = "linux")]
mod caller;
#[cfg(target_os = "linux")]
mod emulator;
mod link;
mod link_tests;
#[cfg(target_os = "linux")]
mod net;
#[cfg(target_os = "linux")]
mod node;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod scenarios;
#[cfg(target_os = "linux")]
mod search;
#[cfg(target_os = "linux")]
mod sites;
#[cfg(target_os = "linux")]
mod stage;
#[cfg(target_os = "linux")]
#[path = "../support/mod.rs"]
mod support;
#[cfg(target_os = "linux")]
mod tunnels;

use std::sync::RwLock;

use libtest_mimic::{Arguments, Completion, Trial};

/// Trials at once if nobody says: they wait more than they work.
const TRIALS_AT_ONCE: usize = 4;

/// Those that measure speed run alone.
static ALONE: RwLock<()> = RwLock::new(());

fn main() {
    #[cfg(target_os = "linux")]
    if is_a_part_of_the_lab() {
        return;
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(TRIALS_AT_ONCE);
    let mut trials = without_rights();
    trials.extend(with_rights(arguments.list));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Whether this process was one of those that trials start, which has now ended.
#[cfg(target_os = "linux")]
fn is_a_part_of_the_lab() -> bool {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first() {
        Some((first, rest)) if first == emulator::ARGUMENT => emulator::run(rest),
        Some((first, rest)) if first == probe::ECHO => probe::be_the_echo(rest),
        Some((first, rest)) if first == probe::PROBE => probe::be_the_probe(rest),
        _ => return false,
    }
    true
}

/// The link's decisions.
fn without_rights() -> Vec<Trial> {
    macro_rules! trials {
        ($($name:ident),* $(,)?) => { vec![$(Trial::test(stringify!($name), || { link_tests::$name(); Ok(()) })),*] };
    }
    trials![
        an_untouched_link_passes_everything_on_at_once,
        jitter_spreads_arrivals_and_keeps_their_order,
        loss_comes_in_bursts_of_the_length_and_share_asked_for,
        packets_held_back_are_overtaken_and_some_come_twice,
        a_rate_queues_and_a_full_queue_drops,
        a_seed_decides_everything,
    ]
}

#[cfg(not(target_os = "linux"))]
fn with_rights(_: bool) -> Vec<Trial> {
    eprintln!("the lab needs Linux: its scenarios are left out");
    Vec::new()
}

#[cfg(target_os = "linux")]
fn with_rights(only_list: bool) -> Vec<Trial> {
    let missing = if only_list { None } else { net::missing() };
    let required = std::env::var("VOLT_LAB").is_ok_and(|value| value == "required");
    match &missing {
        Some(why) => eprintln!("the lab's scenarios are {}: {why}", if required { "required" } else { "ignored" }),
        None if only_list => {}
        None => {
            net::remove_stale();
            println!("seed {}; VOLT_SEED repeats it", stage::seed());
        }
    }
    let trial = |name: &'static str, alone: bool, scenario: fn()| {
        let missing = missing.clone();
        Trial::ignorable_test(name, move || {
            match missing {
                Some(why) if required => return Err(why.into()),
                Some(why) => return Ok(Completion::ignored_with(why)),
                None => {}
            }
            // Poisoned by a trial that failed: that is its own matter.
            if alone {
                let _alone = ALONE.write().unwrap_or_else(|poisoned| poisoned.into_inner());
                scenario();
            } else {
                let _beside_others = ALONE.read().unwrap_or_else(|poisoned| poisoned.into_inner());
                scenario();
            }
            Ok(Completion::Completed)
        })
    };
    scenarios::all().into_iter().map(|(name, alone, scenario)| trial(name, alone, scenario)).collect()
}

//! Calls of every shape in every state, and partitions at any moment: each has the outcome it would have had without them, unless
//! its caller gives up or its time runs out.

use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinSet;
use tokio::time::timeout;
use voltmesh::CallError;
use voltmesh::proto::call::Shape;
use voltmesh::proto::status::Code;

use super::flow::{self, Book, Ends, Got, Manner, Plan, SHAPES};
use super::*;

const HOUR: Duration = Duration::from_secs(3_600);

/// What is to become of a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Case {
    /// It is answered in full.
    Whole,
    /// The callee fails it, before or after it has read all.
    Fails,
    /// Its caller drops it after this time.
    Dropped(Duration),
    /// Its deadline passes after this time.
    Overdue(Duration),
    /// Its caller drops the sender half-way and reads on.
    BrokenOff,
}

/// One call, drawn from the seed.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    shape: Shape,
    case: Case,
    plan: Plan,
    manner: Manner,
    begins: Duration,
}

impl Drawn {
    fn new(number: u64, random: &mut StdRng) -> Self {
        let shape = SHAPES[random.random_range(0..SHAPES.len())];
        // Nothing at all in one direction, one time in five: a half that ends at once, while the other goes on for long.
        let sized = |many: bool, random: &mut StdRng| match random.random_range(0..5) {
            0 => 0,
            _ => random.random_range(1..if many { 200_000 } else { 20_000 }),
        };
        let there = sized(matches!(shape, Shape::ClientStream | Shape::Bidi), random);
        let back = sized(matches!(shape, Shape::ServerStream | Shape::Bidi), random);
        let mut plan = Plan { chunk: 10_000, ..Plan::new(number, there, back) };
        plan.wait_ms = if random.random() { 0 } else { random.random_range(0..8_000) };
        plan.pace_ms = if random.random() { 0 } else { random.random_range(0..400) };
        plan.unread_ms = if random.random() { 0 } else { random.random_range(0..8_000) };
        let mut manner = Manner::default();
        let streams = matches!(shape, Shape::ClientStream | Shape::Bidi);
        let case = match random.random_range(0..10) {
            0 => Case::Dropped(ms(random, 0, 10_000)),
            1 => Case::Overdue(ms(random, 0, 10_000)),
            2 if streams => Case::BrokenOff,
            3 | 4 => Case::Fails,
            _ => Case::Whole,
        };
        match case {
            Case::Whole => {}
            Case::Fails => plan.ends = Ends::Fails(random.random_range(0..=2 * there.max(1))),
            Case::Dropped(_) => plan.ends = Ends::Never,
            Case::Overdue(after) => (plan.ends, plan.unread_ms, manner.timeout) = (Ends::Never, 0, Some(after)),
            Case::BrokenOff => manner.break_off = Some(random.random_range(0..=there)),
        }
        Self { shape, case, plan, manner, begins: ms(random, 0, 8_000) }
    }
}

/// A call that was made. `None`: its caller has dropped it.
type Made = (Drawn, Instant, Option<Got>);

async fn make(session: Session, book: Book, drawn: Drawn) -> Made {
    sleep(drawn.begins).await;
    let (begun, call) = (Instant::now(), flow::call(&session, &book, drawn.shape, drawn.plan, drawn.manner));
    let got = match drawn.case {
        Case::Dropped(after) => timeout(after, call).await.ok(),
        _ => Some(call.await),
    };
    (drawn, begun, got)
}

/// Whether what became of it is what was to become of it.
fn assert_right(book: &Book, (drawn, begun, got): &Made) {
    let times = book.entry(drawn.plan.number).times;
    match (drawn.case, got) {
        (Case::Whole, Some(got)) => got.assert_whole(book),
        (Case::Fails, Some(got)) => {
            let Err(CallError::Status(status)) = &got.outcome else { panic!("{drawn:?}: {:?}", got.outcome) };
            assert_eq!((status.code, &status.message, times), (Code::Aborted, &drawn.plan.number.to_string(), 1), "{drawn:?}");
        }
        (Case::Dropped(_), None) => assert!(times <= 1, "{drawn:?}"),
        (Case::Overdue(after), Some(got)) => {
            let took = got.at - *begun;
            // One that waited for a path all the while was never sent, and says so.
            match &got.outcome {
                Err(CallError::NotSent(_)) => assert_eq!(times, 0, "{drawn:?}"),
                other => assert_eq!(other.as_ref().map_err(CallError::code), Err(Code::DeadlineExceeded), "{drawn:?}"),
            }
            assert!(times <= 1 && took <= after + Duration::from_millis(5), "{drawn:?} took {took:?}");
        }
        // The callee's status says so, unless the reset overtakes it: whoever breaks off may learn nothing more.
        (Case::BrokenOff, Some(got)) => {
            let code = got.outcome.as_ref().map_err(CallError::code);
            assert!(matches!(code, Err(Code::Cancelled | Code::Unavailable)) && times <= 1, "{drawn:?}: {:?}", got.outcome);
        }
        (case, got) => panic!("{case:?} gave {got:?}"),
    }
}

/// The streams of each end, and the calls it handles; nothing where it has no path.
async fn open_now(duo: &Duo) -> Vec<Option<(usize, usize)>> {
    let mut open = Vec::new();
    for node in &duo.nodes {
        let peers = node.peers().await.unwrap();
        open.push(peers.iter().find_map(|peer| peer.session.as_ref()).map(|info| (info.streams, info.handling)));
    }
    open
}

/// Nothing is left at either end but its stream 0. On the worst of these links it may take a few seconds to say that the last is over, and
/// the path may be lost over it.
async fn assert_idle(duo: &Duo) {
    let since = Instant::now();
    loop {
        let open = open_now(duo).await;
        if open == [Some((1, 0)); 2] {
            return;
        }
        assert!(since.elapsed() < Duration::from_secs(60), "streams that are left: {open:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Runs some calls both ways, with so many partitions at random moments. How many calls were in flight as each came.
async fn scenario(seed: u64, cuts: usize) -> Vec<usize> {
    let (network, mut random) = network(seed);
    let link = if cuts == 0 || random.random() { clean(&mut random) } else { rough(&mut random) };
    let duo = Duo::new(&network, seed, link).await;
    assert_idle(&duo).await;
    let mut calls = JoinSet::new();
    for number in 0..60 {
        let (session, book) = duo.by(number as usize % 2);
        calls.spawn(make(session, book, Drawn::new(number, &mut random)));
    }
    let mut in_flight = Vec::new();
    for _ in 0..cuts {
        sleep(ms(&mut random, 0, 6_000)).await;
        in_flight.push(duo.books.iter().map(Book::running).sum());
        let length = ms(&mut random, 300, 10_000);
        cut(&network, &mut random, length).await;
    }
    let made = timeout(HOUR, calls.join_all()).await.expect("all end");
    made.iter().for_each(|made| assert_right(&duo.books[made.0.plan.number as usize % 2], made));
    duo.joined_within(Duration::from_secs(30)).await;
    until(Duration::from_secs(10), || duo.books.iter().all(|book| book.running() == 0)).await;
    assert_idle(&duo).await;
    duo.assert_survived().await;
    in_flight
}

#[test]
fn on_a_good_link_every_call_has_the_outcome_it_was_made_for() {
    rounds_of(10, SEEDS, |seed| scenario(seed, 0));
}

#[test]
fn partitions_at_any_moment_change_no_outcome() {
    let in_flight: Vec<_> = rounds_of(10, SEEDS, |seed| scenario(seed, 1 + seed as usize % 3)).concat();
    println!("in flight as partitions came: {in_flight:?}");
    assert!(in_flight.iter().any(|calls| *calls > 0));
}

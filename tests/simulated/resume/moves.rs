//! Addresses that change under calls in flight: QUIC follows the one who dialled, resumption the other.

use std::time::Duration;

use rand::RngExt;
use tokio::task::JoinHandle;
use voltmesh::proto::call::Shape;

use super::flow::{self, Got, Manner, Plan};
use super::*;

/// A call in both directions that takes about a minute, by either node; and the book of it.
fn long_call(duo: &Duo, seed: u64, random: &mut StdRng) -> (JoinHandle<Got>, Book) {
    let (session, book) = duo.by(random.random_range(0..2));
    let plan = Plan { chunk: 4_000, pace_ms: 200, ..Plan::new(seed, 1_200_000, 1_200_000) };
    let call = tokio::spawn({
        let book = book.clone();
        async move { flow::call(&session, &book, Shape::Bidi, plan, Manner::default()).await }
    });
    (call, book)
}

/// The call has gone on since this moment.
async fn goes_on(book: &Book, moved: u64, within: Duration) -> Duration {
    until(within, || book.moved() > moved + 8_000).await
}

#[test]
fn a_call_goes_on_when_the_one_who_dialled_moves() {
    let took = rounds_of(6, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let link = clean(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        let (call, book) = long_call(&duo, seed, &mut random);
        let (host, mut longest) = (network.host(ip(1)), Duration::ZERO);
        for place in 0..3 {
            sleep(ms(&mut random, 1_000, 10_000)).await;
            assert!(!call.is_finished(), "it moves within the call");
            host.move_to([10, 8, 8, place]);
            // Half of the time it is told by its system.
            if random.random() {
                duo.nodes[0].network_changed();
            }
            longest = longest.max(goes_on(&book, book.moved(), Duration::from_secs(8)).await);
        }
        call.await.unwrap().assert_whole(&book);
        duo.assert_survived().await;
        longest
    });
    spread("to the next bytes", took);
}

#[test]
fn a_call_goes_on_when_the_one_who_was_dialled_moves() {
    let took = rounds_of(6, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let link = clean(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        // Where it went nobody knows: it has to dial.
        duo.nodes[1].hold(duo.nodes[0].id(), &[(ip(1), PORT).into()]);
        let (call, book) = long_call(&duo, seed, &mut random);
        let (host, mut longest) = (network.host(ip(2)), Duration::ZERO);
        for place in 0..2 {
            sleep(ms(&mut random, 1_000, 10_000)).await;
            assert!(!call.is_finished(), "it moves within the call");
            host.move_to([10, 8, 8, place]);
            duo.nodes[1].network_changed();
            longest = longest.max(goes_on(&book, book.moved(), Duration::from_secs(12)).await);
        }
        call.await.unwrap().assert_whole(&book);
        duo.assert_survived().await;
        longest
    });
    spread("to the next bytes", took);
}

#[test]
fn a_nat_that_forgets_its_mapping_is_noticed_by_nobody() {
    rounds_of(6, SEEDS, |seed| async move {
        let (network, mut random) = network(seed);
        let link = clean(&mut random);
        let duo = Duo::new(&network, seed, link).await;
        let (call, book) = long_call(&duo, seed, &mut random);
        let host = network.host(ip(1));
        for port in [PORT, 20_001, 20_002] {
            sleep(ms(&mut random, 1_000, 6_000)).await;
            assert!(!call.is_finished(), "it is forgotten within the call");
            host.remap(port, if port == PORT { 20_001 } else { port + 1 });
            goes_on(&book, book.moved(), Duration::from_secs(2)).await;
        }
        call.await.unwrap().assert_whole(&book);
        duo.assert_survived().await;
        duo.told.iter().for_each(|told| assert_eq!(told.all().len(), 1, "{:#?}", told.all()));
    });
}

//! What lanes do for the streams of a circuit, seen from above: nothing but that small ones are fast.

use std::time::Instant;

use futures_util::future::join_all;
use proptest::prelude::*;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::*;
use crate::net::link::lane::Head;
use crate::proto::limits::{LANE_FIRST_BYTES, LANE_STREAM_BYTES, LANE_STREAMS, LANES, STREAMS};
use crate::seal::RECORDS;

/// Answers every stream with what came on it.
fn echo(link: Link) {
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = link.accept().await {
            tokio::spawn(async move {
                while let Ok(Some(bytes)) = recv.read().await {
                    if send.write(bytes).await.is_err() {
                        return;
                    }
                }
                let _ = send.finish();
            });
        }
    });
}

/// A call: its body there and back.
async fn call(link: &Link, body: Bytes, alone: bool) -> Vec<u8> {
    let (mut send, mut recv) = link.open().await.unwrap();
    if alone {
        send.urgent();
    }
    let writing = async {
        send.write(body).await.unwrap();
        send.finish().unwrap();
    };
    let ((), read) = tokio::join!(writing, read_all(&mut recv));
    read.unwrap()
}

/// A body that no other length has.
fn body(length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + length) as u8).collect::<Vec<u8>>().into()
}

/// Holds the streams of one side that it names until the sender says so.
fn held(side: bool, numbers: std::ops::Range<usize>) -> (watch::Sender<bool>, Hold) {
    let (release, released) = watch::channel(false);
    let hold = move |began, number: usize| {
        let mut released = released.clone();
        let wait = began == side && numbers.contains(&number);
        async move {
            if wait {
                let _ = released.wait_for(|released| *released).await;
            }
        }
        .boxed()
    };
    (release, Arc::new(hold))
}

fn inside(link: &Link) -> &Arc<Circuit> {
    match &link.0 {
        Carrier::Circuit(circuit) => circuit,
        Carrier::Direct(_) => panic!("it is a circuit"),
    }
}

/// Until its lanes have handed over all they have: so they were opened before what comes now.
async fn left(link: &Link) {
    while inside(link).lanes().waits() {
        tokio::task::yield_now().await;
    }
}

const LENGTHS: [usize; 12] = [
    0,
    1,
    LANE_FIRST_BYTES - 1,
    LANE_FIRST_BYTES,
    LANE_FIRST_BYTES + 1,
    LANE_STREAM_BYTES - 1,
    LANE_STREAM_BYTES,
    LANE_STREAM_BYTES + 1,
    65_000,
    66_000,
    200_000,
    1 << 20,
];

#[tokio::test]
async fn bodies_of_all_lengths_go_there_and_back_from_both_sides_at_once() {
    let ends = soon(circuit(faithful)).await.unwrap();
    echo(ends.a.clone());
    echo(ends.b.clone());
    let calls = LENGTHS.iter().flat_map(|length| [(&ends.a, *length), (&ends.b, *length)]);
    let calls = calls.map(|(link, length)| async move { assert_eq!(call(link, body(length), false).await, body(length)) });
    soon(join_all(calls)).await;
}

#[tokio::test]
async fn pieces_of_all_lengths_arrive_in_order_while_their_stream_moves() {
    let ends = soon(circuit(faithful)).await.unwrap();
    echo(ends.b.clone());
    let calls = [100, 1_000, LANE_FIRST_BYTES, 9_000].map(|length| {
        let ends = &ends;
        async move {
            let whole = body(60_000);
            let (mut send, mut recv) = ends.a.open().await.unwrap();
            for (at, piece) in whole.chunks(length).enumerate() {
                send.write(Bytes::copy_from_slice(piece)).await.unwrap();
                if at % 3 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            send.finish().unwrap();
            assert_eq!(read_all(&mut recv).await.unwrap(), whole);
        }
    });
    soon(join_all(calls)).await;
}

#[tokio::test]
async fn thousands_of_small_streams_go_at_once_and_those_beyond_the_bound_wait() {
    let ends = soon(circuit(faithful)).await.unwrap();
    // Nobody answers until as many as may be are open.
    let mut open = Vec::new();
    for _ in 0..STREAMS {
        let (mut send, recv) = soon(ends.a.open()).await.unwrap();
        send.write(Bytes::from_static(b"x")).await.unwrap();
        open.push((send, recv));
    }
    assert!(ends.a.open().now_or_never().is_none(), "one more waits");
    echo(ends.b.clone());
    open.iter_mut().for_each(|(send, _)| send.finish().unwrap());
    for (_, recv) in &mut open {
        assert_eq!(soon(read_all(recv)).await.unwrap(), b"x");
    }
    let calls = (0..4_000).map(|at| {
        let ends = &ends;
        async move { assert_eq!(call(&ends.a, body(at % 300), false).await, body(at % 300)) }
    });
    soon(join_all(calls)).await;
    assert!(inside(&ends.a).lanes().of_this_end() <= LANES);
}

#[tokio::test]
async fn a_half_ends_by_itself_and_says_how() {
    let ends = soon(circuit(faithful)).await.unwrap();
    // Before anything was sent, on a lane, and after it has moved.
    for length in [0, 10, 3 * LANE_FIRST_BYTES] {
        let (mut send, mut recv) = ends.a.open().await.unwrap();
        send.write(body(length)).await.unwrap();
        send.reset(StreamCode::Limit);
        let (mut b_send, mut b_recv) = soon(ends.b.accept()).await.unwrap();
        let ended = loop {
            match soon(b_recv.read()).await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert_eq!(ended, Err(PathError::Reset(StreamCode::Limit as u64)), "{length}");
        // The other direction lives.
        b_send.write(body(length)).await.unwrap();
        b_send.finish().unwrap();
        assert_eq!(soon(read_all(&mut recv)).await.unwrap(), body(length));
        soon(b_send.stopped()).await.unwrap();
        assert_eq!(b_send.write(body(1)).await, Err(PathError::Closed));

        let (mut send, mut recv) = ends.a.open().await.unwrap();
        send.write(body(length + 1)).await.unwrap();
        let stopped = send.stopped();
        let (mut b_send, mut b_recv) = soon(ends.b.accept()).await.unwrap();
        soon(b_recv.read()).await.unwrap().unwrap();
        b_recv.stop(StreamCode::Kind);
        let kind = Err(PathError::Stopped(StreamCode::Kind as u64));
        assert_eq!(soon(stopped).await, kind, "{length}");
        assert_eq!(soon(send.stopped()).await, kind);
        assert_eq!(soon(send.write(body(1))).await, kind);
        assert_eq!(b_recv.read().await, Err(PathError::Closed));
        b_send.write(body(length)).await.unwrap();
        drop(b_send);
        let ended = loop {
            match soon(recv.read()).await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        };
        assert_eq!(ended, Err(PathError::Reset(StreamCode::Cancelled as u64)));
    }
    assert_eq!((ends.a.lost(), ends.b.lost()), (None, None));
}

#[tokio::test]
async fn what_moved_may_come_long_after_the_lane_or_long_before_it() {
    // The control stream is 0, the first lane 1, what moves first 2.
    for (numbers, early) in [(2..3, false), (1..2, true)] {
        let (release, hold) = held(true, numbers);
        let ends = soon(circuit_held(faithful, hold)).await.unwrap();
        let (mut send, mut recv) = ends.a.open().await.unwrap();
        send.write(body(1_000)).await.unwrap();
        left(&ends.a).await;
        send.write(body(30_000)).await.unwrap();
        send.finish().unwrap();
        // When the lane is late, all of it comes on its own stream; else that comes after what was on the lane.
        let (mut b_send, mut b_recv) = soon(ends.b.accept()).await.unwrap();
        let whole = [body(1_000), body(30_000)].concat();
        if early {
            assert_eq!(soon(read_all(&mut b_recv)).await.unwrap(), whole);
            release.send_replace(true);
        } else {
            assert_eq!(soon(b_recv.read()).await.unwrap().unwrap(), body(1_000));
            assert!(b_recv.read().now_or_never().is_none());
            release.send_replace(true);
            assert_eq!(soon(read_all(&mut b_recv)).await.unwrap(), &whole[1_000..]);
        }
        b_send.write(body(20_000)).await.unwrap();
        b_send.finish().unwrap();
        assert_eq!(soon(read_all(&mut recv)).await.unwrap(), body(20_000));
        assert_eq!((ends.a.lost(), ends.b.lost()), (None, None));
    }
}

#[tokio::test]
async fn a_reset_is_heard_though_what_moved_never_comes() {
    let (_release, hold) = held(true, 2..3);
    let ends = soon(circuit_held(faithful, hold)).await.unwrap();
    let (mut send, _recv) = ends.a.open().await.unwrap();
    send.write(body(10)).await.unwrap();
    left(&ends.a).await;
    send.write(body(30_000)).await.unwrap();
    let (_b_send, mut b_recv) = soon(ends.b.accept()).await.unwrap();
    soon(b_recv.read()).await.unwrap().unwrap();
    send.reset(StreamCode::Limit);
    assert_eq!(soon(b_recv.read()).await, Err(PathError::Reset(StreamCode::Limit as u64)));
}

#[tokio::test]
async fn what_is_urgent_waits_for_no_lane() {
    let (release, hold) = held(true, 1..2);
    let ends = soon(circuit_held(faithful, hold)).await.unwrap();
    let (mut send, _recv) = ends.a.open().await.unwrap();
    send.write(body(1)).await.unwrap();
    // Until its lane was opened, which is held.
    let (mut urgent, mut recv) = ends.a.open().await.unwrap();
    urgent.urgent();
    left(&ends.a).await;
    urgent.write(body(2)).await.unwrap();
    let (mut b_send, mut b_recv) = soon(ends.b.accept()).await.unwrap();
    assert_eq!(soon(b_recv.read()).await.unwrap().unwrap(), body(2));
    release.send_replace(true);
    b_send.urgent();
    b_send.write(body(3)).await.unwrap();
    assert_eq!(soon(recv.read()).await.unwrap().unwrap(), body(3));
}

#[tokio::test]
async fn a_reader_that_reads_nothing_stops_no_other() {
    let ends = soon(circuit(faithful)).await.unwrap();
    let mut unread = Vec::new();
    for _ in 0..2 * LANES {
        let (mut send, recv) = ends.a.open().await.unwrap();
        for _ in 0..4 {
            soon(send.write(body(LANE_FIRST_BYTES))).await.unwrap();
        }
        unread.push((send, recv, soon(ends.b.accept()).await.unwrap()));
    }
    echo(ends.b.clone());
    for length in [10, 1_000, 100_000] {
        assert_eq!(soon(call(&ends.a, body(length), false)).await, body(length));
    }
    for (_, _, (_, recv)) in &mut unread {
        let mut came = 0;
        while came < LANE_STREAM_BYTES {
            came += soon(recv.read()).await.unwrap().unwrap().len();
        }
    }
}

#[tokio::test]
async fn lanes_are_replaced_before_their_records_run_out() {
    let ends = soon(circuit(faithful)).await.unwrap();
    for link in [&ends.a, &ends.b] {
        inside(link).lanes().spare_for_test(RECORDS - 50);
    }
    echo(ends.b.clone());
    // One that lives through all of them, and moves when its lane is to end.
    let (mut send, mut recv) = ends.a.open().await.unwrap();
    for round in 0..400 {
        let length = 10 + round % 50;
        assert_eq!(soon(call(&ends.a, body(length), false)).await, body(length));
        if round % 50 == 0 {
            send.write(body(7)).await.unwrap();
            assert_eq!(soon(recv.read()).await.unwrap().unwrap(), body(7));
        }
    }
    assert!(inside(&ends.a).lanes().opened_for_test() >= 8, "they were replaced");
    assert!(inside(&ends.a).lanes().of_this_end() <= 2 * LANES);
    send.finish().unwrap();
    assert_eq!(soon(recv.read()).await.unwrap(), None);
    assert_eq!((ends.a.lost(), ends.b.lost()), (None, None));
}

#[tokio::test]
async fn a_circuit_ends_with_its_last_handle_though_it_has_lanes() {
    let ends = soon(circuit(faithful)).await.unwrap();
    echo(ends.b.clone());
    soon(call(&ends.a, body(10), false)).await;
    let Ends2 { a, b, .. } = &ends;
    let b = b.clone();
    let weak = Arc::downgrade(inside(a));
    let Ends2 { a, b: _b, _endpoints, legs } = ends;
    drop(a);
    soon(b.closed()).await;
    assert_eq!(weak.strong_count(), 0);
    drop((_endpoints, legs));
}

#[tokio::test]
async fn closing_a_busy_circuit_ends_all_that_waits_on_it() {
    let ends = soon(circuit(faithful)).await.unwrap();
    let mut waits: JoinSet<Result<(), PathError>> = JoinSet::new();
    for at in 0..200usize {
        let (a, b) = (ends.a.clone(), ends.b.clone());
        waits.spawn(async move {
            let (mut send, mut recv) = a.open().await?;
            send.write(body(at * 100)).await?;
            send.stopped().await?;
            recv.read().await.map(drop)
        });
        waits.spawn(async move {
            let (mut send, mut recv) = b.accept().await?;
            loop {
                let bytes = recv.read().await?.unwrap_or_default();
                send.write(bytes).await?;
            }
        });
    }
    left(&ends.a).await;
    ends.a.close(CloseCode::Superseded);
    while let Some(ended) = soon(waits.join_next()).await {
        assert!(matches!(ended.unwrap(), Err(PathError::Lost(_))));
    }
    assert_eq!(ends.b.lost(), Some(LostReason::Closed(CloseCode::Superseded)));
    assert!(matches!(ends.a.open().await, Err(PathError::Lost(_))));
}

#[tokio::test]
async fn whoever_says_on_a_lane_what_cannot_be_loses_the_circuit() {
    let lane = Head::Lane(0).bytes();
    let too_many = [&[16, 0x80, 0, 5, 0, 0][..]].concat();
    let cases: [(&str, Vec<Vec<u8>>); 8] = [
        ("unknown flags", vec![lane.clone(), vec![32, 0]]),
        ("a length beyond the bound", vec![lane.clone(), vec![1, 0, 0xbf, 255, 255, 255]]),
        ("a frame that is cut", vec![lane.clone(), vec![1, 0, 5, 1]]),
        ("too many streams", vec![lane.clone(), too_many]),
        ("more after an end", vec![lane.clone(), vec![2, 0, 1, 0, 1, 7]]),
        ("a kind nobody knows", vec![vec![9]]),
        ("a head that is too long", vec![vec![0, 0, 0]]),
        ("a stream of a lane of ours that we never opened", vec![Head::Part { lane: 1, stream: 0 }.bytes()]),
    ];
    for (name, records) in cases {
        let ends = soon(circuit(faithful)).await.unwrap();
        let circuit = inside(&ends.a);
        let (mut send, _recv) = circuit.relayed(circuit.leg().open().await.unwrap()).unwrap();
        for record in &records {
            send.begin(record).unwrap();
        }
        let _ = send.write(Bytes::from_static(&[2, 0])).await;
        assert!(matches!(soon(ends.b.closed()).await, LostReason::Transport(_)), "{name}");
        assert_eq!(soon(ends.a.closed()).await, LostReason::Closed(CloseCode::Protocol), "{name}");
    }
}

#[tokio::test]
async fn too_many_lanes_and_one_twice_cost_the_circuit() {
    for numbers in [vec![0, 0], (0..=2 * LANES as u64).collect()] {
        let ends = soon(circuit(faithful)).await.unwrap();
        let circuit = inside(&ends.a);
        let mut lanes = Vec::new();
        for number in numbers {
            let (mut send, recv) = circuit.relayed(circuit.leg().open().await.unwrap()).unwrap();
            send.begin(&Head::Lane(number).bytes()).unwrap();
            let _ = send.write(Bytes::from_static(&[2, 0])).await;
            lanes.push((send, recv));
        }
        assert!(matches!(soon(ends.b.closed()).await, LostReason::Transport(_)));
    }
}

#[tokio::test]
async fn opening_that_is_given_up_costs_no_room() {
    let ends = soon(circuit(faithful)).await.unwrap();
    let open: Vec<_> = soon(join_all((0..STREAMS).map(|_| ends.a.open()))).await;
    for _ in 0..10 {
        assert!(ends.a.open().now_or_never().is_none());
    }
    assert!(open.len() >= LANE_STREAMS);
    drop(open);
    echo(ends.b.clone());
    assert_eq!(soon(call(&ends.a, body(9), false)).await, body(9));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("VOLT_LONG").is_some() { 200 } else { 8 }))]
    #[test]
    fn what_a_write_that_was_given_up_has_taken_is_sent_once(
        pieces in prop::collection::vec((1usize..9_000, 0usize..3), 1..30), alone: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ends = soon(circuit(faithful)).await.unwrap();
            let (mut send, _recv) = ends.a.open().await.unwrap();
            if alone {
                send.urgent();
            }
            let b = ends.b.clone();
            let reading = tokio::spawn(async move {
                let (_send, mut recv) = b.accept().await.unwrap();
                read_all(&mut recv).await.unwrap()
            });
            let mut sent = Vec::new();
            for (length, polls) in pieces {
                let mut left = body(length);
                sent.extend_from_slice(&left);
                while !left.is_empty() {
                    let mut writing = Box::pin(send.write_some(&mut left));
                    let mut given_up = true;
                    for _ in 0..=polls {
                        if let Some(written) = (&mut writing).now_or_never() {
                            written.unwrap();
                            given_up = false;
                            break;
                        }
                    }
                    drop(writing);
                    if given_up {
                        tokio::task::yield_now().await;
                    }
                }
            }
            send.finish().unwrap();
            assert_eq!(soon(reading).await.unwrap(), sent);
        });
    }
}

/// How many echoes of 64 bytes a circuit carries in a second. Prints; asserts nothing. Run it with `--release -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measure_small_echoes_over_a_circuit() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (name, alone) in [("lanes", false), ("a stream for each direction of each call", true), ("lanes", false)] {
            let ends = circuit(faithful).await.unwrap();
            echo(ends.b.clone());
            for flights in [1usize, 64] {
                let calls = if flights == 1 { 2_000 } else { 50_000 };
                let begun = Instant::now();
                let mut all = JoinSet::new();
                for _ in 0..flights {
                    let link = ends.a.clone();
                    all.spawn(async move {
                        for _ in 0..calls / flights {
                            call(&link, Bytes::from_static(&[7; 64]), alone).await;
                        }
                    });
                }
                all.join_all().await;
                let took = begun.elapsed();
                let rate = calls as f64 / took.as_secs_f64();
                println!("{name}, {flights} in flight: {rate:.0} calls/s, {:.1} us each", took.as_micros() as f64 / calls as f64);
            }
        }
    });
}

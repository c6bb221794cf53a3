//! Calls between two nodes on real UDP: every shape, in both directions, and every way in which a call can fail.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use support::{Alive, Pair, SOON, closed, connected, echo, join, loopback, node, open_node, pair, soon, until};
use tokio::sync::{Mutex, Semaphore, mpsc};
use voltmesh::id::SecretKey;
use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
use voltmesh::proto::body::ContentType;
use voltmesh::proto::limits::{BODY_BYTES, CALLS_IN_FLIGHT};
use voltmesh::proto::status::{Code, Status};
use voltmesh::session::WaitError;
use voltmesh::{CallError, Context, Node, Outcome, Receiver, Sender, Service, Session};

async fn all_four(session: &Session) {
    let text: String = session.call("echo/one", "hello").await.unwrap();
    assert_eq!(text, "hello");
    let (mut numbers, sum) = session.request("echo/sum").client_stream::<u64, u64>().await.unwrap();
    for n in 1..=100 {
        numbers.send(&n).await.unwrap();
    }
    numbers.finish().unwrap();
    assert_eq!(sum.only().await.unwrap(), 5_050);
    let mut count = session.request("echo/count").server_stream::<_, u64>(&100u64).await.unwrap();
    for n in 1..=100 {
        assert_eq!(count.next().await.unwrap(), Some(n));
    }
    assert_eq!(count.next().await.unwrap(), None);
    let (mut numbers, mut doubled) = session.request("echo/double").bidi::<u64, u64>().await.unwrap();
    for n in 1..=100 {
        numbers.send(&n).await.unwrap();
        assert_eq!(doubled.next().await.unwrap(), Some(2 * n));
    }
    numbers.finish().unwrap();
    assert_eq!(doubled.next().await.unwrap(), None);
}

#[tokio::test]
async fn every_shape_works_in_both_directions_over_one_session() {
    let pair = pair(echo(), echo()).await;
    soon(all_four(&pair.to_b)).await;
    soon(all_four(&pair.to_a)).await;
    assert_eq!(pair.to_a.id(), pair.to_b.id());
    pair.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_on_a_multi_thread_runtime_too() {
    let pair = pair(echo(), echo()).await;
    soon(all_four(&pair.to_b)).await;
    soon(all_four(&pair.to_a)).await;
    pair.shutdown().await;
}

/// Bodies of any size, as text: it is carried in one piece by every content type.
fn bulk() -> Service {
    Service::new("bulk")
        .unary("one", |_cx, text: String| async move { Ok(text) })
        .client_stream("join", |_cx, mut texts: Receiver<String>| async move {
            let mut bytes = 0;
            while let Some(text) = texts.next().await? {
                bytes += text.len() as u64;
            }
            Ok(bytes)
        })
        .server_stream("twice", |_cx, text: String, mut out: Sender<String>| async move {
            out.send(&text).await?;
            out.send(&text).await
        })
        .bidi("each", |_cx, mut texts: Receiver<String>, mut out: Sender<String>| async move {
            while let Some(text) = texts.next().await? {
                out.send(&text).await?;
            }
            Ok(())
        })
}

async fn every_shape_carries(session: &Session, bytes: usize) {
    let text = "x".repeat(bytes);
    let raw = |method| session.request(method).content_type(ContentType::Raw);
    assert_eq!(raw("bulk/one").unary::<_, String>(&text).await.unwrap().len(), bytes);
    let mut twice = raw("bulk/twice").server_stream::<_, String>(&text).await.unwrap();
    assert_eq!(twice.next().await.unwrap().unwrap().len(), bytes);
    assert_eq!(twice.next().await.unwrap().unwrap().len(), bytes);
    assert_eq!(twice.next().await.unwrap(), None);
    let (mut texts, mut each) = raw("bulk/each").bidi::<String, String>().await.unwrap();
    for _ in 0..2 {
        texts.send(&text).await.unwrap();
        assert_eq!(each.next().await.unwrap().unwrap().len(), bytes);
    }
    texts.finish().unwrap();
    assert_eq!(each.next().await.unwrap(), None);
    // The answer is a number, which raw cannot carry.
    let (mut texts, joined) = session.request("bulk/join").client_stream::<String, u64>().await.unwrap();
    let prefix = 5;
    texts.send(&"x".repeat(bytes.saturating_sub(prefix))).await.unwrap();
    texts.finish().unwrap();
    assert_eq!(joined.only().await.unwrap() as usize, bytes.saturating_sub(prefix));
}

#[tokio::test]
async fn bodies_of_one_byte_64_kib_and_4_mib_go_through_in_every_shape_and_direction() {
    let pair = pair(bulk(), bulk()).await;
    for bytes in [1, 64 * 1024, BODY_BYTES] {
        soon(every_shape_carries(&pair.to_b, bytes)).await;
        soon(every_shape_carries(&pair.to_a, bytes)).await;
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn a_body_one_byte_too_large_is_refused_at_the_caller_and_nothing_is_sent() {
    let pair = pair(bulk(), bulk()).await;
    let text = "x".repeat(BODY_BYTES + 1);
    let raw = |method| pair.to_b.request(method).content_type(ContentType::Raw);
    let error = raw("bulk/one").unary::<_, String>(&text).await.unwrap_err();
    assert!(matches!(error, CallError::Request(_)), "{error}");
    assert_eq!(error.outcome(), Outcome::NotSent);
    let error = raw("bulk/one").unary_raw(text.clone().into_bytes()).await.unwrap_err();
    assert!(matches!(error, CallError::Request(_)), "{error}");
    let error = raw("bulk/twice").server_stream::<_, String>(&text).await.unwrap_err();
    assert!(matches!(error, CallError::Request(_)), "{error}");
    assert_eq!(pair.b.counts().calls, 0);
    // One message too many does not end a call that streams.
    let (mut texts, mut each) = raw("bulk/each").bidi::<String, String>().await.unwrap();
    assert!(matches!(texts.send(&text).await, Err(CallError::Request(_))));
    assert!(matches!(texts.send_raw(text.into_bytes()).await, Err(CallError::Request(_))));
    texts.send(&"fine".to_owned()).await.unwrap();
    assert_eq!(soon(each.next()).await.unwrap().as_deref(), Some("fine"));
    drop((texts, each));
    pair.shutdown().await;
}

#[tokio::test]
async fn an_answer_too_large_fails_its_call_with_a_status() {
    let large = Service::new("large")
        .unary("one", |_cx, ()| async { Ok("x".repeat(BODY_BYTES + 1)) })
        .server_stream("many", |_cx, (), mut out: Sender<String>| async move { out.send(&"x".repeat(BODY_BYTES + 1)).await });
    let pair = pair(echo(), large).await;
    let error = soon(pair.to_b.call::<_, String>("large/one", &())).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted, "{error}");
    let mut many = soon(pair.to_b.request("large/many").server_stream::<_, String>(&())).await.unwrap();
    assert_eq!(soon(many.next()).await.unwrap_err().code(), Code::ResourceExhausted);
    pair.shutdown().await;
}

/// A handler that waits until it is let go, and tells what is alive.
fn gate(alive: &Alive, go: &Arc<Semaphore>) -> Service {
    let (alive, go) = (alive.clone(), go.clone());
    Service::new("gate").unary("pass", move |_cx, n: u64| {
        let (alive, go) = (alive.clone(), go.clone());
        async move {
            let _life = alive.begin();
            go.acquire().await.map_err(|_| Status::new(Code::Aborted, "closed"))?.forget();
            Ok(n)
        }
    })
}

#[tokio::test]
async fn a_thousand_calls_at_once_are_a_thousand_handlers_at_once() {
    let ((alive, _ends), go) = (Alive::new(), Arc::new(Semaphore::new(0)));
    let pair = pair(echo(), gate(&alive, &go)).await;
    // Streams that were used before: QUIC gives back leave to open others only when an eighth of them is due.
    go.add_permits(100);
    for n in 0..100u64 {
        assert_eq!(soon(pair.to_b.call::<_, u64>("gate/pass", &n)).await.unwrap(), n);
    }
    let calls: Vec<_> = (0..CALLS_IN_FLIGHT as u64)
        .map(|n| {
            let to_b = pair.to_b.clone();
            tokio::spawn(async move { assert_eq!(to_b.call::<_, u64>("gate/pass", &n).await.unwrap(), n) })
        })
        .collect();
    until(|| alive.now() == CALLS_IN_FLIGHT).await;
    go.add_permits(CALLS_IN_FLIGHT);
    soon(join_all(calls)).await.into_iter().for_each(|call| call.unwrap());
    pair.shutdown().await;
}

#[tokio::test]
async fn three_thousand_calls_at_once_wait_their_turn_and_all_succeed() {
    let ((alive, _ends), go) = (Alive::new(), Arc::new(Semaphore::new(0)));
    let pair = pair(echo(), gate(&alive, &go)).await;
    let calls: Vec<_> = (0..3_000)
        .map(|n: u64| {
            let to_b = pair.to_b.clone();
            tokio::spawn(async move { assert_eq!(to_b.call::<_, u64>("gate/pass", &n).await.unwrap(), n) })
        })
        .collect();
    until(|| alive.now() == CALLS_IN_FLIGHT).await;
    go.add_permits(3_000);
    soon(join_all(calls)).await.into_iter().for_each(|call| call.unwrap());
    assert_eq!((alive.ever(), alive.now()), (3_000, 0));
    assert!(alive.most() <= CALLS_IN_FLIGHT, "{} handlers at once", alive.most());
    pair.shutdown().await;
}

#[tokio::test]
async fn large_bodies_both_ways_at_once_share_the_room_there_is_and_none_waits_for_ever() {
    let pair = pair(bulk(), bulk()).await;
    let calls = (0..24).map(|n| {
        let session = if n % 2 == 0 { &pair.to_a } else { &pair.to_b };
        async move {
            let text = "y".repeat(BODY_BYTES / 2);
            let call = session.request("bulk/one").content_type(ContentType::Raw);
            assert_eq!(call.unary::<_, String>(&text).await.unwrap().len(), text.len());
        }
    });
    soon(join_all(calls)).await;
    pair.shutdown().await;
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
struct Order {
    item: String,
    count: u32,
    gift: Option<bool>,
}

#[tokio::test]
async fn one_handler_answers_each_content_type() {
    let shop = Service::new("shop")
        .unary("order", |_cx, order: Order| async move { Ok(Order { count: order.count + 1, ..order }) })
        .unary("shout", |cx: Context, text: String| async move { Ok(format!("{} {}", text.to_uppercase(), cx.content_type())) });
    let pair = pair(echo(), shop).await;
    let order = Order { item: "tea".into(), count: 1, gift: Some(true) };
    for content in [ContentType::Bincode, ContentType::Json] {
        let call = pair.to_b.request("shop/order").content_type(content);
        assert_eq!(soon(call.unary::<_, Order>(&order)).await.unwrap(), Order { count: 2, ..order.clone() });
    }
    for content in ContentType::ALL {
        let call = pair.to_b.request("shop/shout").content_type(content);
        assert_eq!(soon(call.unary::<_, String>("hi")).await.unwrap(), format!("HI {content}"));
    }
    let json = pair.to_b.request("shop/order").content_type(ContentType::Json);
    let answer = soon(json.unary_raw(br#"{"item":"tea","count":1,"gift":null}"#.to_vec())).await.unwrap();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer).unwrap()["count"], 2);
    let raw = pair.to_b.request("shop/order").content_type(ContentType::Raw);
    let error = soon(raw.unary_raw(b"tea".to_vec())).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    pair.shutdown().await;
}

#[tokio::test]
async fn metadata_traceparent_and_idempotency_key_reach_the_handler() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let (seen, mut saw) = mpsc::unbounded_channel();
    let see = Service::new("see").unary("all", move |cx: Context, ()| {
        let seen = seen.clone();
        async move {
            let metadata: Vec<_> = cx.metadata().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
            let key = cx.idempotency_key().map(<[u8]>::to_vec);
            let first = cx.metadata_value("color").map(<[u8]>::to_vec);
            seen.send((metadata, cx.traceparent().map(str::to_owned), key, first, cx.peer(), cx.method().to_owned())).unwrap();
            Ok(())
        }
    });
    let pair = pair(echo(), see).await;
    let call = pair.to_b.request("see/all").traceparent(TRACE).idempotency_key(*b"once");
    let call = call.metadata("color", b"red").metadata("", &[0, 255]).metadata("color", b"blue");
    soon(call.unary::<_, ()>(&())).await.unwrap();
    let (metadata, trace, key, first, peer, method) = saw.recv().await.unwrap();
    let pairs = [("color", &b"red"[..]), ("", &[0, 255]), ("color", b"blue")];
    assert_eq!(metadata, pairs.map(|(name, value)| (name.to_owned(), value.to_vec())));
    assert_eq!((trace.as_deref(), key.as_deref(), first.as_deref()), (Some(TRACE), Some(&b"once"[..]), Some(&b"red"[..])));
    assert_eq!((peer, method.as_str()), (pair.a.id(), "see/all"));

    let large = [0; 4 * 1024 + 1];
    let too_many = (0..33).fold(pair.to_b.request("see/all"), |call, _| call.metadata("n", b"1"));
    let refused = [too_many, pair.to_b.request("see/all").metadata("", &large), pair.to_b.request("see/all").idempotency_key([])];
    for call in refused {
        assert!(matches!(call.unary::<_, ()>(&()).await, Err(CallError::Request(_))));
    }
    // The most that is allowed, all at once.
    let full = [7; 4 * 1024 - 1];
    let most = (0..32).fold(pair.to_b.request("see/all").idempotency_key([9; 64]), |call, _| call.metadata("n", &full));
    soon(most.unary::<_, ()>(&())).await.unwrap();
    assert_eq!(saw.recv().await.unwrap().0.len(), 32);
    pair.shutdown().await;
}

#[tokio::test]
async fn deadlines_shrink_as_they_travel_and_a_nested_call_passes_on_the_rest() {
    let node_b: Arc<Mutex<Option<Node>>> = Arc::default();
    let left = |cx: &Context| cx.time_left().map(|left| left.as_micros() as u64);
    let at_a = Service::new("left").unary("here", move |cx: Context, ()| async move { Ok(left(&cx)) });
    let at_b = {
        let node_b = node_b.clone();
        Service::new("left").unary("both", move |cx: Context, ()| {
            let node_b = node_b.clone();
            async move {
                let back =
                    node_b.lock().await.as_ref().and_then(|node| node.session(cx.peer())).expect("the caller is connected");
                let rest = cx.time_left().expect("it has a deadline");
                let there: Option<u64> = back.request("left/here").timeout(rest).unary(&()).await?;
                Ok((rest.as_micros() as u64, there))
            }
        })
    };
    let pair = pair(at_a, at_b).await;
    *node_b.lock().await = Some(pair.b.clone());
    let set = Duration::from_secs(7);
    let call = pair.to_b.request("left/both").timeout(set);
    let (here, there): (u64, Option<u64>) = soon(call.unary(&())).await.unwrap();
    let there = there.expect("the rest was passed on");
    assert!(here <= set.as_micros() as u64 && there <= here, "{set:?}, {here} us, {there} us");
    assert!(there > 1_000_000, "only {there} us left");
    // A unary call that sets none has 30 s, and the handler knows.
    let default: Option<u64> = soon(pair.to_a.call("left/here", &())).await.unwrap();
    assert!(default.is_some_and(|left| (1_000_000..=30_000_000).contains(&left)), "{default:?}");
    node_b.lock().await.take();
    pair.shutdown().await;
}

/// A method of each shape that never ends by itself.
fn stuck(alive: &Alive) -> Service {
    let [a, b, c, d] = std::array::from_fn(|_| alive.clone());
    Service::new("stuck")
        .unary("unary", move |_cx, ()| {
            let life = a.begin();
            async move {
                let _life = life;
                std::future::pending::<Result<(), Status>>().await
            }
        })
        .client_stream("client", move |_cx, mut numbers: Receiver<u64>| {
            let life = b.begin();
            async move {
                let _life = life;
                while numbers.next().await?.is_some() {}
                std::future::pending::<Result<(), Status>>().await
            }
        })
        .server_stream("server", move |_cx, (), mut out: Sender<u64>| {
            let life = c.begin();
            async move {
                let _life = life;
                out.send(&1).await?;
                std::future::pending::<Result<(), Status>>().await
            }
        })
        .bidi("bidi", move |_cx, mut numbers: Receiver<u64>, mut out: Sender<u64>| {
            let life = d.begin();
            async move {
                let _life = life;
                while let Some(n) = numbers.next().await? {
                    out.send(&n).await?;
                }
                std::future::pending::<Result<(), Status>>().await
            }
        })
}

#[tokio::test]
async fn a_deadline_that_passes_ends_the_call_at_the_caller_and_the_handler() {
    let (alive, mut ends) = Alive::new();
    let pair = pair(echo(), stuck(&alive)).await;
    let timeout = Duration::from_millis(60);
    let before = Instant::now();
    let error = soon(pair.to_b.request("stuck/unary").timeout(timeout).unary::<_, ()>(&())).await.unwrap_err();
    println!("unary: DEADLINE_EXCEEDED after {:?}", before.elapsed());
    assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
    assert!(before.elapsed() >= timeout);
    soon(ends.recv()).await.unwrap();

    let mut server = soon(pair.to_b.request("stuck/server").timeout(timeout).server_stream::<_, u64>(&())).await.unwrap();
    assert_eq!(soon(server.next()).await.unwrap(), Some(1));
    assert_eq!(soon(server.next()).await.unwrap_err().code(), Code::DeadlineExceeded);
    soon(ends.recv()).await.unwrap();

    let request = pair.to_b.request("stuck/client").timeout(timeout);
    let (mut numbers, answer) = soon(request.client_stream::<u64, ()>()).await.unwrap();
    numbers.send(&1).await.unwrap();
    assert_eq!(soon(answer.only()).await.unwrap_err().code(), Code::DeadlineExceeded);
    soon(ends.recv()).await.unwrap();
    until(|| alive.now() == 0).await;
    pair.shutdown().await;
}

#[tokio::test]
async fn a_handler_is_dropped_at_its_deadline_even_if_the_caller_would_wait() {
    use support::raw::{RawPeer, header, message, rest};
    let (alive, mut ends) = Alive::new();
    let node = open_node(stuck(&alive)).await;
    let raw = RawPeer::plain().greet(&node).await.answering();
    let mut head = header("stuck/unary", voltmesh::proto::call::Shape::Unary, ContentType::Bincode);
    head.deadline_us = Some(50_000);
    let (mut send, mut recv) = raw.open(&raw.call(2, &head)).await;
    send.write_all(&message(&[])).await.unwrap();
    soon(ends.recv()).await.unwrap();
    // Tag 1: a status. Code 4: DEADLINE_EXCEEDED.
    let answer = rest(&mut recv).await.unwrap();
    assert_eq!(answer[1..3], [1, 4], "{answer:?}");
    soon(node.shutdown()).await;
}

/// Makes calls, drops them, and measures how long each handler lives on.
async fn cancelled_in_every_shape(session: &Session, alive: &Alive, ends: &mut mpsc::UnboundedReceiver<()>) {
    for round in 0..5 {
        let call = tokio::spawn({
            let session = session.clone();
            async move { session.call::<_, ()>("stuck/unary", &()).await }
        });
        until(|| alive.now() == 1).await;
        let before = Instant::now();
        call.abort();
        soon(ends.recv()).await.unwrap();
        let unary = before.elapsed();

        let mut stream = soon(session.request("stuck/server").server_stream::<_, u64>(&())).await.unwrap();
        assert_eq!(soon(stream.next()).await.unwrap(), Some(1));
        let before = Instant::now();
        drop(stream);
        soon(ends.recv()).await.unwrap();
        let server = before.elapsed();

        let (mut numbers, answer) = soon(session.request("stuck/client").client_stream::<u64, ()>()).await.unwrap();
        numbers.send(&1).await.unwrap();
        until(|| alive.now() == 1).await;
        let before = Instant::now();
        // Either half will do: the sender unfinished, or the receiver.
        let kept = if round % 2 == 0 { (Some(numbers), drop(answer)).0 } else { (None, drop(numbers)).0 };
        soon(ends.recv()).await.unwrap();
        let client = before.elapsed();
        drop(kept);

        let (mut numbers, mut same) = soon(session.request("stuck/bidi").bidi::<u64, u64>()).await.unwrap();
        numbers.send(&7).await.unwrap();
        assert_eq!(soon(same.next()).await.unwrap(), Some(7));
        let before = Instant::now();
        numbers.finish().unwrap();
        drop(same);
        soon(ends.recv()).await.unwrap();
        println!("handlers dropped after: unary {unary:?}, server {server:?}, client {client:?}, bidi {:?}", before.elapsed());
    }
}

#[tokio::test]
async fn dropping_a_call_drops_its_handler_in_every_shape_and_direction() {
    let (alive, mut ends) = Alive::new();
    let pair = pair(stuck(&alive), stuck(&alive)).await;
    cancelled_in_every_shape(&pair.to_b, &alive, &mut ends).await;
    cancelled_in_every_shape(&pair.to_a, &alive, &mut ends).await;
    assert_eq!(alive.now(), 0);
    pair.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn and_dropped_it_leaves_nothing_in_flight_on_either_side() {
    let (alive, _ends) = Alive::new();
    let pair = pair(echo(), stuck(&alive)).await;
    for _ in 0..3 {
        let calls: Vec<_> = (0..CALLS_IN_FLIGHT)
            .map(|_| {
                let session = pair.to_b.clone();
                tokio::spawn(async move { session.call::<_, ()>("stuck/unary", &()).await })
            })
            .collect();
        until(|| alive.now() == CALLS_IN_FLIGHT).await;
        calls.iter().for_each(|call| call.abort());
        until(|| alive.now() == 0).await;
    }
    let handling = || async {
        let peers = pair.b.peers().await.unwrap();
        peers.iter().filter_map(|peer| peer.session.as_ref()).map(|session| session.handling).sum::<usize>()
    };
    soon(async {
        // One permit waits for the next stream.
        while handling().await > 1 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    pair.shutdown().await;
}

#[derive(schemars::JsonSchema, Deserialize)]
struct Unwritable;

impl Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        panic!("a bug in somebody's Serialize")
    }
}

#[tokio::test]
async fn a_handler_that_panics_fails_its_own_call_and_nothing_else() {
    let (alive, mut ends) = Alive::new();
    let explosive = Service::new("explosive")
        .unary("at_once", |_cx, ()| async { if true { panic!("at once") } else { Ok(()) } })
        .unary("before", |_cx, ()| {
            if true {
                panic!("before there is a future")
            }
            async { Ok(()) }
        })
        .unary("later", |_cx, ()| async {
            tokio::task::yield_now().await;
            if true { panic!("later") } else { Ok(()) }
        })
        .unary("spawned", |_cx, ()| async { if true { panic!("elsewhere") } else { Ok(()) } })
        .spawned()
        .unary("blocking", |_cx, ()| async { if true { panic!("elsewhere") } else { Ok(()) } })
        .blocking()
        .client_stream("client", |_cx, mut numbers: Receiver<u64>| async move {
            numbers.next().await?;
            if true { panic!("after a message") } else { Ok(()) }
        })
        .server_stream("server", |_cx, (), mut out: Sender<u64>| async move {
            out.send(&1).await?;
            if true { panic!("after a message") } else { Ok(()) }
        })
        .unary("answer", |_cx, ()| async { Ok(Unwritable) })
        .server_stream("answers", |_cx, (), mut out: Sender<Unwritable>| async move { out.send(&Unwritable).await })
        .unary("wait", {
            move |_cx, ()| {
                let life = alive.begin();
                async move {
                    let _life = life;
                    std::future::pending::<Result<(), Status>>().await
                }
            }
        });
    let pair = pair(echo(), explosive).await;
    // A call in flight meanwhile is not touched.
    let waiting = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.call::<_, ()>("explosive/wait", &()).await }
    });
    let unary = ["at_once", "before", "later", "spawned", "blocking", "answer"];
    for (count, method) in unary.into_iter().enumerate() {
        let error = soon(pair.to_b.call::<_, ()>(&format!("explosive/{method}"), &())).await.unwrap_err();
        assert_eq!(error.status().map(|status| status.code), Some(Code::Internal), "{method}: {error}");
        assert_eq!(pair.b.counts().panics, count as u64 + 1, "{method}");
    }
    let (mut numbers, answer) = soon(pair.to_b.request("explosive/client").client_stream::<u64, ()>()).await.unwrap();
    numbers.send(&1).await.unwrap();
    assert_eq!(soon(answer.only()).await.unwrap_err().code(), Code::Internal);
    let mut server = soon(pair.to_b.request("explosive/server").server_stream::<_, u64>(&())).await.unwrap();
    assert_eq!(soon(server.next()).await.unwrap(), Some(1));
    assert_eq!(soon(server.next()).await.unwrap_err().code(), Code::Internal);
    let mut answers = soon(pair.to_b.request("explosive/answers").server_stream::<_, ()>(&())).await.unwrap();
    assert_eq!(soon(answers.next()).await.unwrap_err().code(), Code::Internal);
    assert_eq!(pair.b.counts().panics, unary.len() as u64 + 3);
    assert!(!waiting.is_finished());
    waiting.abort();
    soon(ends.recv()).await.unwrap();
    pair.shutdown().await;
}

fn thread() -> (String, String) {
    let thread = std::thread::current();
    (thread.name().unwrap_or_default().to_owned(), format!("{:?}", thread.id()))
}

fn places() -> Service {
    Service::new("where")
        .unary("network", |_cx, ()| async { Ok(thread()) })
        .unary("spawned", |_cx, ()| async { Ok(thread()) })
        .spawned()
        .unary("blocking", |_cx, ()| async { Ok(thread()) })
        .blocking()
        .unary("slow", |_cx, ()| async {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(3) {
                std::hint::spin_loop();
            }
            Ok(())
        })
}

#[tokio::test]
async fn handlers_run_on_the_networks_thread_unless_they_are_moved_and_slow_polls_are_counted() {
    let pair = pair(echo(), places()).await;
    let (_, here) = thread();
    let at = async |method: &str| soon(pair.to_b.call::<_, (String, String)>(method, &())).await.unwrap();
    assert_eq!(at("where/network").await.1, here);
    let (name, id) = at("where/spawned").await;
    assert!(name.starts_with("volt-handler") && id != here, "{name} {id}");
    let (_, id) = at("where/blocking").await;
    assert_ne!(id, here);
    let before = pair.b.counts().slow_polls;
    soon(pair.to_b.call::<_, ()>("where/slow", &())).await.unwrap();
    assert_eq!(pair.b.counts().slow_polls, before + 1);
    pair.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_multi_thread_runtime_the_networks_thread_is_its_own_and_moved_handlers_run_on_the_runtime() {
    let pair = pair(echo(), places()).await;
    let at = async |method: &str| soon(pair.to_b.call::<_, (String, String)>(method, &())).await.unwrap();
    let network = at("where/network").await;
    assert_eq!(network.0, "volt-network");
    assert!(at("where/spawned").await.0.starts_with("tokio"));
    assert_ne!(at("where/blocking").await.1, network.1);
    pair.shutdown().await;
}

fn code(result: Result<impl std::fmt::Debug, CallError>) -> Code {
    let error = result.expect_err("it fails");
    error.status().unwrap_or_else(|| panic!("no status: {error}")).code
}

#[tokio::test]
async fn each_failure_has_its_own_status_in_every_shape() {
    let pair = pair(echo(), echo()).await;
    let calls = |method: &'static str| {
        let to_b = pair.to_b.clone();
        async move {
            let unary = code(to_b.call::<_, String>(method, "x").await);
            let mut server = to_b.request(method).server_stream::<_, String>("x").await.unwrap();
            let server = code(server.next().await);
            let (_send, client) = to_b.request(method).client_stream::<u64, u64>().await.unwrap();
            let client = code(client.only().await);
            let (_send, mut bidi) = to_b.request(method).bidi::<u64, u64>().await.unwrap();
            [unary, client, server, code(bidi.next().await)]
        }
    };
    assert_eq!(soon(calls("nobody/one")).await, [Code::NotFound; 4]);
    assert_eq!(soon(calls("echo/nothing")).await, [Code::Unimplemented; 4]);
    assert_eq!(soon(calls("no-slash")).await, [Code::InvalidArgument; 4]);
    // Each method has one shape; the other three are refused.
    for (right, method) in ["echo/one", "echo/sum", "echo/count", "echo/double"].into_iter().enumerate() {
        let wrong: Vec<Code> = {
            let to_b = &pair.to_b;
            let mut wrong = Vec::new();
            if right != 0 {
                wrong.push(code(soon(to_b.call::<_, u64>(method, &1u64)).await));
            }
            if right != 1 {
                let (_send, answer) = soon(to_b.request(method).client_stream::<u64, u64>()).await.unwrap();
                wrong.push(code(soon(answer.only()).await));
            }
            if right != 2 {
                let mut answer = soon(to_b.request(method).server_stream::<_, u64>(&1u64)).await.unwrap();
                wrong.push(code(soon(answer.next()).await));
            }
            if right != 3 {
                let (_send, mut answer) = soon(to_b.request(method).bidi::<u64, u64>()).await.unwrap();
                wrong.push(code(soon(answer.next()).await));
            }
            wrong
        };
        assert_eq!(wrong, [Code::Unimplemented; 3], "{method}");
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn a_body_that_cannot_be_decoded_is_an_invalid_argument_in_every_shape() {
    let pair = pair(echo(), echo()).await;
    let json = |method| pair.to_b.request(method).content_type(ContentType::Json);
    let nonsense = || b"{nonsense".to_vec();
    assert_eq!(code(soon(json("echo/one").unary_raw(nonsense())).await), Code::InvalidArgument);
    assert_eq!(code(soon(pair.to_b.request("echo/one").unary_raw(vec![200, 1])).await), Code::InvalidArgument);
    let mut count = soon(json("echo/count").server_stream::<_, u64>("not a number")).await.unwrap();
    assert_eq!(code(soon(count.next()).await), Code::InvalidArgument);
    let (mut send, sum) = soon(json("echo/sum").client_stream::<u64, u64>()).await.unwrap();
    send.send_raw(nonsense()).await.unwrap();
    assert_eq!(code(soon(sum.only()).await), Code::InvalidArgument);
    let (mut send, mut double) = soon(json("echo/double").bidi::<u64, u64>()).await.unwrap();
    send.send_raw(nonsense()).await.unwrap();
    assert_eq!(code(soon(double.next()).await), Code::InvalidArgument);
    // An answer that is not what the caller expects is the caller's to find.
    let error = soon(pair.to_b.call::<_, u128>("echo/one", "a")).await.unwrap_err();
    assert!(matches!(error, CallError::Reply(_)), "{error}");
    pair.shutdown().await;
}

#[tokio::test]
async fn who_is_not_permitted_learns_nothing_but_that() {
    let (a_key, b_key) = (SecretKey::generate(), SecretKey::generate());
    let may =
        Rule::new(Effect::Permit, Subject::Node(a_key.id()), Action::Call, "echo/o*".parse().unwrap(), Source::Config).unwrap();
    let a = closed().key(a_key).service(echo()).bind().await.unwrap();
    let b = closed().key(b_key).service(echo()).rule(may).bind().await.unwrap();
    let pair = join(a, b).await;
    assert_eq!(soon(pair.to_b.call::<_, String>("echo/one", "x")).await.unwrap(), "x");
    for method in ["echo/sum", "echo/nothing", "nobody/one", "no-slash"] {
        assert_eq!(code(soon(pair.to_b.call::<_, u64>(method, &1u64)).await), Code::PermissionDenied, "{method}");
    }
    let services = soon(pair.to_b.services()).await.unwrap();
    let methods: Vec<_> = services.iter().flat_map(|service| &service.methods).map(|method| method.name.as_str()).collect();
    assert_eq!(methods, ["one"], "it is shown what it may call, and nothing else");
    // Dialling `b` let `b` in, and permits it nothing.
    assert_eq!(code(soon(pair.to_a.call::<_, String>("echo/one", "x")).await), Code::PermissionDenied);
    assert_eq!(soon(pair.to_a.services()).await.unwrap(), []);
    pair.shutdown().await;
}

#[tokio::test]
async fn a_call_in_flight_has_an_unknown_outcome_at_once_when_the_peer_closes() {
    let (alive, mut ends) = Alive::new();
    let pair = pair(echo(), stuck(&alive)).await;
    let mut server = soon(pair.to_b.request("stuck/server").server_stream::<_, u64>(&())).await.unwrap();
    let (mut send, mut bidi) = soon(pair.to_b.request("stuck/bidi").bidi::<u64, u64>()).await.unwrap();
    let unary = tokio::spawn({
        let to_b = pair.to_b.clone();
        async move { to_b.call::<_, ()>("stuck/unary", &()).await }
    });
    assert_eq!(soon(server.next()).await.unwrap(), Some(1));
    until(|| alive.now() == 3).await;
    let before = Instant::now();
    pair.to_a.close();
    let errors = [
        soon(unary).await.unwrap().unwrap_err(),
        soon(server.next()).await.unwrap_err(),
        soon(bidi.next()).await.unwrap_err(),
        // What is sent now is lost, or seen to be.
        soon(async {
            loop {
                if let Err(error) = send.send(&1).await {
                    return error;
                }
            }
        })
        .await,
    ];
    println!("four calls failed {:?} after the peer closed", before.elapsed());
    for error in errors {
        assert!(matches!(error, CallError::OutcomeUnknown(_)), "{error}");
        assert_eq!((error.outcome(), error.code()), (Outcome::Unknown, Code::Unavailable));
    }
    for _ in 0..3 {
        soon(ends.recv()).await.unwrap();
    }
    pair.shutdown().await;
}

#[tokio::test]
async fn a_call_made_while_the_peer_is_away_waits_and_goes_through_when_it_comes() {
    let key = SecretKey::generate();
    let a = node().await;
    // A port where nobody is, yet.
    let port = std::net::UdpSocket::bind(loopback()).unwrap().local_addr().unwrap();
    let to_b = a.hold(key.id(), &[port]);
    let fast = soon(to_b.request("echo/one").fail_fast().unary::<_, String>("now")).await.unwrap_err();
    assert!(matches!(fast, CallError::NotSent(_)), "{fast}");
    let soon_over = to_b.request("echo/one").timeout(Duration::from_millis(50));
    let error = soon(soon_over.unary::<_, String>("in vain")).await.unwrap_err();
    assert!(matches!(error, CallError::DeadlineExceeded { sent: false } | CallError::NotSent(_)), "{error}");
    assert_eq!(error.outcome(), Outcome::NotSent);
    let waiting = tokio::spawn({
        let to_b = to_b.clone();
        async move { to_b.call::<_, String>("echo/one", "patience").await }
    });
    tokio::task::yield_now().await;
    let b = Node::builder().listen(port).key(key).open(true).service(echo()).bind().await.unwrap();
    assert_eq!(soon(waiting).await.unwrap().unwrap(), "patience");
    // Gone again: fail-fast says so, and nothing was sent.
    let mut events = a.events();
    soon(b.shutdown()).await;
    support::disconnected(&mut events, b.id()).await;
    let fast = soon(to_b.request("echo/one").fail_fast().unary::<_, String>("now")).await.unwrap_err();
    assert!(matches!(fast, CallError::NotSent(_)), "{fast}");
    soon(a.shutdown()).await;
    // And a node that has stopped sends nothing, at once.
    let stopped = soon(to_b.call::<_, String>("echo/one", "late")).await.unwrap_err();
    assert!(matches!(stopped, CallError::NotSent(_)), "{stopped}");
    assert_eq!(soon(to_b.connected(SOON)).await, Err(WaitError::Closed));
}

#[tokio::test]
async fn a_service_comes_and_goes_while_the_session_lives() {
    let Pair { a, b, to_b, .. } = pair(echo(), echo()).await;
    assert_eq!(code(soon(to_b.call::<_, u64>("late/one", &())).await), Code::NotFound);
    let registration = b.serve(Service::new("late").unary("one", |_cx, ()| async { Ok(1u64) })).unwrap();
    assert_eq!(soon(to_b.call::<_, u64>("late/one", &())).await.unwrap(), 1);
    drop(registration);
    assert_eq!(code(soon(to_b.call::<_, u64>("late/one", &())).await), Code::NotFound);
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn one_answer_nobody_reads_holds_up_no_other_call() {
    let sent = Arc::new(AtomicU64::new(0));
    let flood = {
        let sent = sent.clone();
        echo().server_stream("flood", move |_cx, (), mut out: Sender<String>| {
            let sent = sent.clone();
            async move {
                let chunk = "z".repeat(16 * 1024);
                loop {
                    out.send(&chunk).await?;
                    sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                }
            }
        })
    };
    let pair = pair(echo(), flood).await;
    let mut unread = soon(pair.to_b.request("echo/flood").server_stream::<_, String>(&())).await.unwrap();
    assert!(soon(unread.next()).await.unwrap().is_some());
    // Until back-pressure stops the handler.
    soon(async {
        let mut before = 0;
        while sent.load(Ordering::SeqCst) != before {
            before = sent.load(Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    println!("back-pressure after {} bytes", sent.load(Ordering::SeqCst));
    for _ in 0..10 {
        assert_eq!(soon(pair.to_b.call::<_, String>("echo/one", "still here")).await.unwrap(), "still here");
        soon(pair.to_b.ping(SOON)).await.unwrap();
    }
    drop(unread);
    pair.shutdown().await;
}

#[tokio::test]
async fn the_first_event_of_a_session_means_that_calls_go_through() {
    let (a, b) = (node().await, node().await);
    let mut events = a.events();
    let to_b = a.hold(b.id(), &b.listening());
    connected(&mut events, b.id()).await;
    let call = to_b.request("echo/one").fail_fast();
    assert_eq!(soon(call.unary::<_, String>("at once")).await.unwrap(), "at once");
    soon(async { tokio::join!(a.shutdown(), b.shutdown()) }).await;
}

#[tokio::test]
async fn regression_calls_given_up_before_they_left_do_not_wedge_the_session() {
    let pair = pair(echo(), echo()).await;
    for _ in 0..12 {
        for _ in 0..1_000 {
            // Begun and dropped in one go: its stream is reset before a byte of it has left.
            let call = tokio::task::unconstrained(pair.to_b.call::<_, String>("echo/one", "x"));
            assert!(call.now_or_never().is_none());
        }
        soon(pair.to_b.ping(SOON)).await.unwrap();
    }
    assert_eq!(soon(pair.to_b.call::<_, String>("echo/one", "x")).await.unwrap(), "x");
    pair.shutdown().await;
}

#[tokio::test]
async fn a_blocking_handler_whose_caller_gave_up_counts_until_its_thread_has_ended() {
    let (started, mut starts) = mpsc::unbounded_channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let service = Service::new("thread")
        .unary("hold", move |_cx, ()| {
            let (started, wait) = (started.clone(), wait.clone());
            async move {
                let _ = started.send(());
                let _ = wait.lock().unwrap().recv();
                Ok(())
            }
        })
        .blocking();
    let pair = pair(echo(), service).await;
    let handled_by_b = async |count: usize| {
        loop {
            let peers = pair.b.peers().await.unwrap();
            if peers.iter().filter_map(|peer| peer.session.as_ref()).map(|session| session.handling).sum::<usize>() == count {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let to_b = pair.to_b.clone();
    let call = tokio::spawn(async move { to_b.call::<_, ()>("thread/hold", &()).await });
    soon(starts.recv()).await.unwrap();
    soon(handled_by_b(2)).await; // the call, and its thread
    call.abort();
    soon(handled_by_b(1)).await;
    go_on.send(()).unwrap();
    soon(handled_by_b(0)).await;
    pair.shutdown().await;
}

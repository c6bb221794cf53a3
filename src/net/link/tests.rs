//! Circuits over real links, with somebody in the middle who splices streams and sees only that.

use std::collections::HashMap;

use super::*;
use crate::id::SecretKey;
use crate::net::ends::EndsConfig;
use crate::net::{Bounds, Endpoint, Network, RestartKeys, Transport};
use crate::proto::stream::Kind;
use crate::proto::varint;
use crate::seal::CircuitId;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::mpsc;

mod lanes;

const LEG: u64 = 7;
const ID: CircuitId = CircuitId([5; 16]);

fn endpoint(key: &SecretKey) -> Endpoint {
    let transport = Transport::Udp(vec!["127.0.0.1:0".parse().unwrap()]);
    Endpoint::bind(key, &RestartKeys::of(key), transport, &Bounds::default(), &Network::choose().unwrap(), None).unwrap()
}

/// A link between two endpoints, as both have it.
async fn linked(from: &Endpoint, to: &Endpoint, id: NodeId) -> (Link, Link) {
    let (links, mut accepted) = mpsc::channel(1);
    let accepting = to.clone();
    tokio::spawn(async move { accepting.accept(links).await });
    let (dialled, accepted) = tokio::join!(from.dial(to.local()[0], id), accepted.recv());
    let (dialled, accepted) = (dialled.unwrap(), accepted.unwrap());
    dialled.permit();
    accepted.permit();
    (dialled, accepted)
}

/// What whoever carries it does with bytes on their way.
type Meddle = fn(usize, Bytes) -> Bytes;

/// For what whoever carries it waits before it takes a stream on: of the side that began the circuit, or the other one, the stream of this number.
type Hold = Arc<dyn Fn(bool, usize) -> BoxFuture<'static, ()> + Send + Sync>;

fn at_once() -> Hold {
    Arc::new(|_, _| std::future::ready(()).boxed())
}

/// Takes every stream that one side opens on to the other, until a link ends.
fn carry(one: &Link, other: &Link, meddle: Meddle, hold: &Hold) {
    for (began, from, to) in [(true, one.clone(), other.clone()), (false, other.clone(), one.clone())] {
        let hold = hold.clone();
        tokio::spawn(async move {
            let mut number = 0;
            while let Ok((back, there_from)) = from.accept().await {
                let Ok((there, back_from)) = to.open().await else { return };
                let held = hold(began, number).shared();
                tokio::spawn(held.clone().then(move |()| splice(there_from, there, number, meddle)));
                tokio::spawn(held.then(move |()| splice(back_from, back, number, meddle)));
                number += 1;
            }
        });
    }
}

async fn splice(mut from: PathRecv, mut to: PathSend, number: usize, meddle: Meddle) {
    loop {
        match from.read().await {
            Ok(Some(bytes)) => {
                if to.write(meddle(number, bytes)).await.is_err() {
                    return from.stop(StreamCode::Cancelled);
                }
            }
            Ok(None) => return drop(to.finish()),
            Err(_) => return to.reset(StreamCode::Cancelled),
        }
    }
}

/// Gives the leg its streams: those after the control stream. None waits for the beginning of another.
fn demultiplex(link: Link, streams: LegStreams) {
    tokio::spawn(async move {
        while let Ok((send, mut recv)) = link.accept().await {
            let streams = streams.clone();
            tokio::spawn(async move {
                let Ok(Some(first)) = recv.read().await else { return };
                assert_eq!(first[0], Kind::CircuitStream as u8);
                let (leg, length) = varint::get(&first[1..]).unwrap().unwrap();
                let (stream, more) = varint::get(&first[1 + length..]).unwrap().unwrap();
                assert_eq!(leg, LEG);
                let rest = first.slice(1 + length + more..);
                let _ = streams.hand_over(stream, send, recv, rest).await;
            });
        }
    });
}

struct Ends2 {
    a: Link,
    b: Link,
    _endpoints: Vec<Endpoint>,
    legs: [Link; 2],
}

/// Nobody wants to know.
fn alone() -> Surroundings {
    Surroundings { received: Arc::new(drop), kept: Box::new(()) }
}

/// A circuit from one node over a carrier to another.
async fn circuit(meddle: Meddle) -> Result<Ends2, CircuitError> {
    circuit_held(meddle, at_once()).await
}

async fn circuit_held(meddle: Meddle, hold: Hold) -> Result<Ends2, CircuitError> {
    let keys = [SecretKey::generate(), SecretKey::generate(), SecretKey::generate()];
    let ids = keys.each_ref().map(SecretKey::id);
    let endpoints = keys.each_ref().map(endpoint);
    let (a_leg, at_carrier) = linked(&endpoints[0], &endpoints[1], ids[1]).await;
    let (from_carrier, b_leg) = linked(&endpoints[1], &endpoints[2], ids[2]).await;
    carry(&at_carrier, &from_carrier, meddle, &hold);
    let (mut send, recv) = a_leg.open().await.unwrap();
    send.write(Bytes::from_static(&[Kind::CircuitControl as u8])).await.unwrap();
    let b_control = async {
        let (send, mut recv) = b_leg.accept().await.unwrap();
        let first = recv.read().await.unwrap().unwrap();
        assert_eq!(first[..], [Kind::CircuitControl as u8], "the test reads no more than that with it");
        (send, recv)
    };
    let (b_send, b_recv) = b_control.await;
    let (a, a_streams) = Leg::new(&a_leg, LEG, (send, recv), Bytes::new(), alone()).unwrap();
    let (b, b_streams) = Leg::new(&b_leg, LEG, (b_send, b_recv), Bytes::new(), alone()).unwrap();
    demultiplex(a_leg.clone(), a_streams);
    demultiplex(b_leg.clone(), b_streams);
    let configs = [&keys[0], &keys[2]].map(|key| EndsConfig::new(key).unwrap());
    let (a, b) =
        tokio::join!(Circuit::begin(&configs[0], ID, ids[0], ids[2], a), Circuit::accept_one(&configs[1], ID, ids[2], b),);
    let (a, b) = (a?, b?);
    assert_eq!((a.peer(), b.peer()), (ids[2], ids[0]));
    Ok(Ends2 { a: Link::relayed(a), b: Link::relayed(b), _endpoints: endpoints.into(), legs: [a_leg, b_leg] })
}

fn faithful(_: usize, bytes: Bytes) -> Bytes {
    bytes
}

async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it happens soon")
}

async fn read_all(recv: &mut PathRecv) -> Result<Vec<u8>, PathError> {
    let mut all = Vec::new();
    while let Some(bytes) = recv.read().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

#[tokio::test]
async fn streams_of_a_circuit_carry_bytes_both_ways_and_end_each_by_itself() {
    let ends = soon(circuit(faithful)).await.unwrap();
    assert!(ends.a.is_relayed() && ends.a.dialled() && !ends.b.dialled());
    let bodies: Vec<Vec<u8>> = [0usize, 1, 5_000, 3_000_000].iter().map(|length| vec![*length as u8; *length]).collect();
    let mut echoes = tokio::task::JoinSet::new();
    for (from, to) in [(&ends.a, &ends.b), (&ends.b, &ends.a)] {
        for body in &bodies {
            let (from, to, body) = (from.clone(), to.clone(), body.clone());
            echoes.spawn(async move {
                let accepting = async {
                    let (mut send, mut recv) = to.accept().await.unwrap();
                    let all = read_all(&mut recv).await.unwrap();
                    send.write(all.into()).await.unwrap();
                    send.finish().unwrap();
                    send.stopped().await.unwrap();
                };
                let opening = async {
                    let (mut send, mut recv) = from.open().await.unwrap();
                    send.write(body.clone().into()).await.unwrap();
                    send.finish().unwrap();
                    read_all(&mut recv).await.unwrap()
                };
                let ((), back) = tokio::join!(accepting, opening);
                back.len()
            });
        }
    }
    let mut lengths = HashMap::new();
    while let Some(length) = soon(echoes.join_next()).await {
        *lengths.entry(length.unwrap()).or_insert(0) += 1;
    }
    assert_eq!(lengths, bodies.iter().map(|body| (body.len(), 2)).collect());
}

#[tokio::test]
async fn a_reset_and_a_stop_reach_the_other_end() {
    let ends = soon(circuit(faithful)).await.unwrap();
    let (mut send, mut recv) = ends.a.open().await.unwrap();
    send.write(Bytes::from_static(b"begun")).await.unwrap();
    let (mut b_send, mut b_recv) = soon(ends.b.accept()).await.unwrap();
    assert_eq!(soon(b_recv.read()).await.unwrap().unwrap(), &b"begun"[..]);
    send.reset(StreamCode::Limit);
    // The carrier of this test says Cancelled whatever it hears.
    assert!(matches!(soon(b_recv.read()).await, Err(PathError::Reset(_))));
    recv.stop(StreamCode::Limit);
    b_send.write(vec![0; 100_000].into()).await.unwrap();
    assert!(matches!(soon(b_send.stopped()).await, Err(PathError::Stopped(_))));
    assert_eq!((ends.a.lost(), ends.b.lost()), (None, None));
}

#[tokio::test]
async fn closing_it_is_heard_at_the_other_end_with_its_code_and_so_is_the_loss_of_a_leg() {
    let ends = soon(circuit(faithful)).await.unwrap();
    ends.a.close(CloseCode::Superseded);
    assert_eq!(soon(ends.b.closed()).await, LostReason::Closed(CloseCode::Superseded));
    assert_eq!(soon(ends.a.closed()).await, LostReason::Here);
    assert!(ends.a.open().await.is_err() && soon(ends.b.accept()).await.is_err());

    let ends = soon(circuit(faithful)).await.unwrap();
    ends.legs[0].close(CloseCode::Goodbye);
    soon(ends.a.closed()).await;
    assert!(soon(ends.a.accept()).await.is_err());
}

#[tokio::test]
async fn a_carrier_that_meddles_with_a_stream_ends_the_circuit_and_nothing_false_comes_out() {
    fn flips(number: usize, bytes: Bytes) -> Bytes {
        match number {
            0 => bytes,
            _ => {
                let mut bytes = bytes.to_vec();
                if let Some(last) = bytes.last_mut() {
                    *last ^= 1;
                }
                bytes.into()
            }
        }
    }
    let ends = soon(circuit(flips)).await.unwrap();
    let (mut send, _recv) = ends.a.open().await.unwrap();
    send.write(Bytes::from_static(b"true")).await.unwrap();
    send.finish().unwrap();
    let accepted = soon(ends.b.accept()).await;
    if let Ok((_, mut recv)) = accepted {
        // What came before the byte that was changed may be read: it is true.
        let ended = loop {
            match soon(recv.read()).await {
                Ok(Some(bytes)) => assert_eq!(bytes, &b"true"[..]),
                ended => break ended,
            }
        };
        assert!(matches!(ended, Err(PathError::Lost(_))), "{ended:?}");
    }
    assert!(matches!(soon(ends.b.closed()).await, LostReason::Transport(_)));
    assert!(matches!(soon(ends.a.closed()).await, LostReason::Closed(CloseCode::Protocol)));
}

#[tokio::test]
async fn a_carrier_that_meddles_with_the_handshake_gets_no_circuit() {
    fn flips(number: usize, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        if number == 0 && bytes.len() > 100 {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        bytes.into()
    }
    assert!(soon(circuit(flips)).await.is_err());
}

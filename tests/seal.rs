//! Sealed records: against a second implementation of the format, against vectors, and against whoever carries them.

use std::cell::RefCell;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::seal::{
    Circuit, CircuitId, Direction, ExportError, Exporter, OpenError, Opener, PLAIN_BYTES, Place, RECORDS, SealError, Sealer,
    StreamKey,
};

const PAGE: &str = include_str!("../src/guide/protocol.md");

/// Gives these bytes, and remembers for what.
struct Fixed([u8; 39], RefCell<Vec<(Vec<u8>, Vec<u8>)>>);

impl Fixed {
    fn new(bytes: [u8; 39]) -> Self {
        Self(bytes, RefCell::default())
    }
}

impl Exporter for Fixed {
    fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), ExportError> {
        self.1.borrow_mut().push((label.to_vec(), context.to_vec()));
        out.copy_from_slice(&self.0);
        Ok(())
    }
}

/// A handshake's secret, of which every label and context gives something else.
struct Handshake(u64);

impl Exporter for Handshake {
    fn export(&self, label: &[u8], context: &[u8], out: &mut [u8]) -> Result<(), ExportError> {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA512, &self.0.to_be_bytes());
        let tag = ring::hmac::sign(&key, &[label, &[0], context].concat());
        out.copy_from_slice(&tag.as_ref()[..out.len()]);
        Ok(())
    }
}

fn place(stream: u64, direction: Direction) -> Place {
    let circuit =
        Circuit { id: CircuitId([3; 16]), initiator: NodeId::from_bytes([1; 32]), responder: NodeId::from_bytes([2; 32]) };
    Place { circuit, stream, direction }
}

fn pair(exporter: &impl Exporter, place: Place) -> (Sealer, Opener) {
    let key = || StreamKey::derive(exporter, &place).unwrap();
    (Sealer::new(key()), Opener::new(key()))
}

/// The format as the protocol's page has it, with another library's AES-GCM.
fn by_the_page(material: &[u8; 39], records: &[(&[u8], bool)]) -> Vec<u8> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &material[..32]).unwrap());
    let mut out = Vec::new();
    for (number, (plain, last)) in records.iter().enumerate() {
        let head = [u8::from(*last), (plain.len() >> 8) as u8, plain.len() as u8];
        let nonce = [&material[32..], &(number as u32).to_be_bytes()[..], &head[..1]].concat();
        let mut sealed = plain.to_vec();
        let nonce = Nonce::assume_unique_for_key(nonce.try_into().unwrap());
        key.seal_in_place_append_tag(nonce, Aad::from(head), &mut sealed).unwrap();
        out.extend_from_slice(&head);
        out.extend_from_slice(&sealed);
    }
    out
}

fn sealed(sealer: &mut Sealer, pieces: &[(Vec<u8>, bool)]) -> Vec<u8> {
    let mut out = Vec::new();
    pieces.iter().for_each(|(piece, last)| sealer.seal(piece, *last, &mut out).unwrap());
    out
}

/// What an opener releases of these bytes, and how it ends.
fn opened(opener: &mut Opener, bytes: &[u8], cut: usize) -> (Vec<u8>, Result<(), OpenError>) {
    let mut released = Vec::new();
    for piece in bytes.chunks(cut.max(1)) {
        opener.push(piece);
        loop {
            match opener.next_record() {
                Ok(Some(record)) => released.extend_from_slice(&record.bytes),
                Ok(None) => break,
                Err(error) => {
                    assert_eq!((opener.next_record(), opener.end()), (Err(error), Err(error)), "it is over for good");
                    return (released, Err(error));
                }
            }
        }
    }
    (released, opener.end())
}

fn pieces() -> impl Strategy<Value = Vec<(Vec<u8>, bool)>> {
    let piece = prop_oneof![8 => 0usize..300, 1 => 60_000usize..140_000].prop_map(|length| vec![0x5a; length]);
    prop::collection::vec(piece, 1..8).prop_map(|pieces| {
        let last = pieces.len() - 1;
        pieces.into_iter().enumerate().map(|(at, piece)| (piece, at == last)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_sealed_is_opened_in_whatever_pieces_it_comes(pieces in pieces(), cut in 1usize..5_000) {
        let (mut sealer, mut opener) = pair(&Handshake(1), place(4, Direction::FromInitiator));
        let bytes = sealed(&mut sealer, &pieces);
        let all: Vec<u8> = pieces.iter().flat_map(|(piece, _)| piece.clone()).collect();
        prop_assert_eq!(opened(&mut opener, &bytes, cut), (all, Ok(())));
        prop_assert_eq!(sealer.seal(b"more", false, &mut Vec::new()), Err(SealError::Ended));
    }

    #[test]
    fn a_second_implementation_of_the_format_writes_the_same_bytes(material in any::<[u8; 32]>(), prefix in any::<[u8; 7]>(), pieces in pieces()) {
        let material: [u8; 39] = [&material[..], &prefix].concat().try_into().unwrap();
        let (mut sealer, _) = pair(&Fixed::new(material), place(0, Direction::FromInitiator));
        let mut records: Vec<(&[u8], bool)> = Vec::new();
        for (piece, last) in &pieces {
            let mut cut: Vec<&[u8]> = piece.chunks(PLAIN_BYTES).collect();
            if cut.is_empty() {
                cut.push(&[]);
            }
            let end = cut.len() - 1;
            records.extend(cut.into_iter().enumerate().map(|(at, cut)| (cut, *last && at == end)));
        }
        prop_assert_eq!(sealed(&mut sealer, &pieces), by_the_page(&material, &records));
    }
}

#[test]
fn the_exporter_is_asked_for_what_the_page_says() {
    let exporter = Fixed::new([0; 39]);
    let (one, other) = (SecretKey::generate().id(), SecretKey::generate().id());
    let circuit = Circuit { id: CircuitId([7; 16]), initiator: one, responder: other };
    StreamKey::derive(&exporter, &Place { circuit, stream: 0x0102, direction: Direction::FromResponder }).unwrap();
    let context = [&[1][..], one.as_bytes(), other.as_bytes(), &[7; 16], &[0, 0, 0, 0, 0, 0, 1, 2], &[1]].concat();
    assert_eq!(exporter.1.into_inner(), [(b"EXPORTER-volt-circuit-stream".to_vec(), context)]);
}

#[test]
fn the_example_on_the_page_is_what_is_written() {
    let (_, section) = PAGE.split_once("\"hi\" and then the end are").unwrap();
    let block = section.split("```text\n").nth(1).unwrap().split("```").next().unwrap();
    let page: Vec<u8> = block.split_whitespace().map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    let (mut sealer, _) = pair(&Fixed::new(std::array::from_fn(|at| at as u8)), place(0, Direction::FromInitiator));
    let bytes = sealed(&mut sealer, &[(b"hi".to_vec(), false), (Vec::new(), true)]);
    assert_eq!(page, bytes, "{bytes:02x?}");
}

#[test]
fn a_stream_has_only_so_many_records() {
    let (mut sealer, _) = pair(&Handshake(1), place(0, Direction::FromInitiator));
    assert_eq!(sealer.left(), RECORDS);
    sealer.seal(&vec![0; PLAIN_BYTES + 1], false, &mut Vec::new()).unwrap();
    assert_eq!(sealer.left(), RECORDS - 2);
}

/// What whoever carries a stream does with it, to have something else accepted.
const DEEDS: [&str; 15] = [
    "a record dropped",
    "bytes dropped",
    "a record repeated",
    "bytes repeated",
    "records in another order",
    "two pieces exchanged",
    "a bit flipped",
    "a head rewritten",
    "noise put in",
    "cut off between records",
    "cut off within a record",
    "more after the last record",
    "a record from elsewhere in one's place",
    "from a record on, as elsewhere",
    "all of it from elsewhere",
];

/// `elsewhere`: the records of other places, in which the same is said.
fn meddle(deed: &str, random: &mut StdRng, records: &[Vec<u8>], elsewhere: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let mut carried = records.to_vec();
    let all = records.concat();
    let (at, other) = (random.random_range(0..records.len()), elsewhere.choose(random).unwrap());
    let (start, end) = (random.random_range(0..all.len()), random.random_range(1..=all.len()));
    let (start, end) = (start.min(end), end.max(start));
    match deed {
        "a record dropped" => drop(carried.remove(at)),
        "bytes dropped" => return [&all[..start], &all[end..]].concat(),
        "a record repeated" => carried.insert(random.random_range(0..=at), records[at].clone()),
        "bytes repeated" => return [&all[..end], &all[start..]].concat(),
        "records in another order" => carried.shuffle(random),
        "two pieces exchanged" => {
            let middle = random.random_range(start..=end);
            return [&all[..start], &all[middle..end], &all[start..middle], &all[end..]].concat();
        }
        "a bit flipped" => {
            let byte = random.random_range(0..carried[at].len());
            carried[at][byte] ^= 1 << random.random_range(0..8);
        }
        "a head rewritten" => match random.random_range(0..3) {
            0 => carried[at][0] ^= 1,
            1 => carried[at][1] = random.random(),
            _ => carried[at][2] = random.random(),
        },
        "noise put in" => {
            let mut noise = vec![0; random.random_range(1..100)];
            random.fill(&mut noise[..]);
            return [&all[..start], &noise, &all[start..]].concat();
        }
        "cut off between records" => carried.truncate(at),
        "cut off within a record" => {
            carried.truncate(at + 1);
            carried[at].truncate(random.random_range(1..records[at].len()));
        }
        "more after the last record" => match random.random_range(0..3) {
            0 => carried.push(records.choose(random).unwrap().clone()),
            1 => carried.extend_from_slice(other),
            _ => carried.push(vec![random.random(); random.random_range(1..40)]),
        },
        "a record from elsewhere in one's place" => carried[at] = other.choose(random).unwrap().clone(),
        "from a record on, as elsewhere" => carried[at..].clone_from_slice(&other[at..]),
        _ => carried = other.clone(),
    }
    carried.concat()
}

/// Everything that could be passed off as this: sent back, another stream, another circuit, the ends exchanged, another handshake between the
/// same two.
fn elsewhere(here: Place) -> [(u64, Place); 6] {
    let other_circuit = Circuit { id: CircuitId([4; 16]), ..here.circuit };
    let swapped = Circuit { initiator: here.circuit.responder, responder: here.circuit.initiator, ..here.circuit };
    let back = match here.direction {
        Direction::FromInitiator => Direction::FromResponder,
        Direction::FromResponder => Direction::FromInitiator,
    };
    [
        (1, Place { direction: back, ..here }),
        (1, Place { stream: here.stream ^ 1, ..here }),
        (1, Place { stream: here.stream + 2, ..here }),
        (1, Place { circuit: other_circuit, ..here }),
        (1, Place { circuit: swapped, ..here }),
        (2, here),
    ]
}

#[test]
fn nothing_that_was_meddled_with_is_accepted() {
    let rounds = if std::env::var_os("VOLT_LONG").is_some() { 100_000 } else { 4_000 };
    let seed = std::env::var("VOLT_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random);
    println!("VOLT_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (mut reasons, mut changed) = (std::collections::BTreeMap::<(&str, String), u32>::new(), 0);
    for round in 0.. {
        if changed == rounds {
            break;
        }
        let deed = DEEDS[round as usize % DEEDS.len()];
        let here = place(round, *[Direction::FromInitiator, Direction::FromResponder].choose(&mut random).unwrap());
        let count = random.random_range(1..6);
        let longest = if random.random_range(0..200) == 0 { PLAIN_BYTES } else { 50 };
        let plain: Vec<Vec<u8>> = (0..count).map(|at| vec![at as u8; random.random_range(0..=longest)]).collect();
        let records = |(handshake, place)| -> Vec<Vec<u8>> {
            let (mut sealer, _) = pair(&Handshake(handshake), place);
            plain.iter().enumerate().map(|(at, piece)| sealed(&mut sealer, &[(piece.clone(), at + 1 == count)])).collect()
        };
        let (elsewhere, records) = (elsewhere(here).map(records), records((1, here)));
        let carried = meddle(deed, &mut random, &records, &elsewhere);
        if carried == records.concat() {
            continue;
        }
        changed += 1;
        let (_, mut opener) = pair(&Handshake(1), here);
        let (released, ended) = opened(&mut opener, &carried, random.random_range(1..=carried.len().max(1)));
        assert!(plain.concat().starts_with(&released), "{deed}: something was released that was not sealed");
        let error = ended.expect_err(deed);
        match deed {
            "cut off between records" | "cut off within a record" => assert!(matches!(error, OpenError::CutOff(_)), "{error}"),
            "more after the last record" => assert_eq!((error, released), (OpenError::AfterLast, plain.concat())),
            _ => {}
        }
        *reasons.entry((deed, format!("{error:?}").split('(').next().unwrap().to_owned())).or_default() += 1;
    }
    reasons.iter().for_each(|((deed, reason), count)| println!("{count:>7}  {deed}: {reason}"));
    assert!(DEEDS.iter().all(|deed| reasons.keys().any(|(done, _)| done == deed)), "{reasons:?}");
}

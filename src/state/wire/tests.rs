use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::proto::frame::{Frames, put_frame};
use crate::proto::wire::PublisherId;

/// Chunks that say their own number, of these lengths.
fn frames(first: u64, lengths: &[usize]) -> Bytes {
    let mut out = Vec::new();
    for (number, length) in (first..).zip(lengths) {
        let mut body = number.to_be_bytes().to_vec();
        body.resize(8 + length, 7);
        put_frame(&mut out, &body);
    }
    out.into()
}

/// The numbers in these frames.
fn numbers(pieces: &[Bytes]) -> Vec<u64> {
    let mut numbers = Vec::new();
    let mut frames = Frames::new(1 << 20);
    for piece in pieces {
        frames.push(piece.clone());
        while let Some(frame) = frames.next_frame().unwrap() {
            numbers.push(u64::from_be_bytes(std::array::from_fn(|at| frame[at])));
        }
        frames.end().unwrap();
    }
    numbers
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<usize>),
    Read(usize, usize),
    Enter(u64),
    Leave(usize),
    Shed,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let length = prop_oneof![8 => 0usize..300, 1 => 20_000usize..50_000];
    let step = prop_oneof![
        6 => prop::collection::vec(length, 1..40).prop_map(Step::Append),
        8 => (any::<usize>(), 1usize..100_000).prop_map(|(reader, bytes)| Step::Read(reader, bytes)),
        2 => (0u64..200).prop_map(Step::Enter),
        1 => any::<usize>().prop_map(Step::Leave),
        1 => Just(Step::Shed),
    ];
    prop::collection::vec(step, 1..120)
}

/// A reader of the model: who it is, and what it reads next.
type Reader = (u64, u64);

proptest! {
    /// Whatever happens, a reader gets what was appended, in order, less exactly what it is told is gone; and no more is held than
    /// may be.
    #[test]
    fn readers_get_everything_but_what_they_are_told_is_gone(
        steps in steps(), chunks_max in 1u32..60, bytes_max in 65_536u32..120_000, for_all in any::<bool>(),
    ) {
        let mut ring = Ring::new(chunks_max, bytes_max, 1);
        let mut readers: Vec<Reader> = Vec::new();
        for step in steps {
            match step {
                Step::Append(lengths) => {
                    for segment in segments(frames(ring.next(), &lengths), u64::from(chunks_max)).unwrap() {
                        let (next, count) = (ring.next(), segment.count);
                        prop_assert!(count <= u64::from(chunks_max));
                        if !for_all {
                            prop_assert_eq!(ring.append(segment), next);
                            continue;
                        }
                        match ring.append_for_all(segment) {
                            Append::Done(first) => prop_assert_eq!(first, next),
                            Append::Overruns(reader) => {
                                let slow = readers.iter().find(|(id, _)| *id == reader).copied();
                                prop_assert!(slow.is_some_and(|(_, at)| at < next));
                                // What is refused is given up here, with all that comes after it.
                                break;
                            }
                        }
                        prop_assert!(readers.iter().all(|(_, at)| *at >= ring.first() || *at < 1), "somebody was overrun");
                    }
                }
                Step::Read(reader, bytes) if !readers.is_empty() => {
                    let at = reader % readers.len();
                    let (id, position) = readers[at];
                    match ring.read(position, bytes) {
                        Read::Nothing => prop_assert!(position >= ring.next()),
                        Read::Behind(oldest) => {
                            prop_assert!(position < oldest && oldest == ring.first());
                            readers[at].1 = oldest;
                        }
                        Read::Chunks(pieces, count) => {
                            let expected: Vec<u64> = (position..position + count).collect();
                            prop_assert_eq!(numbers(&pieces), expected);
                            prop_assert!(count > 0);
                            let length: usize = pieces.iter().map(Bytes::len).sum();
                            prop_assert!(pieces.len() == 1 || length <= bytes);
                            readers[at].1 = position + count;
                        }
                    }
                    ring.reached(id, readers[at].1);
                }
                // Nobody enters where something is lost already, if nobody is to lose anything.
                Step::Enter(back) => {
                    let at = ring.next().saturating_sub(back).max(if for_all { ring.first() } else { 1 });
                    readers.push((ring.enter(at), at));
                }
                Step::Leave(reader) if !readers.is_empty() => {
                    let (id, _) = readers.swap_remove(reader % readers.len());
                    ring.leave(id);
                }
                Step::Shed if !for_all => {
                    let before = ring.bytes();
                    prop_assert_eq!(before - ring.bytes(), 0);
                    let shed = ring.shed();
                    prop_assert_eq!(before - shed, ring.bytes());
                }
                Step::Read(..) | Step::Leave(_) | Step::Shed => {}
            }
            prop_assert!(ring.next() - ring.first() <= u64::from(chunks_max));
            prop_assert!(ring.bytes() <= bytes_max as usize + 52_000, "{} bytes are held", ring.bytes());
            prop_assert_eq!(ring.readers(), readers.len());
        }
    }

    #[test]
    fn frames_are_cut_into_segments_and_nothing_is_lost(
        lengths in prop::collection::vec(prop_oneof![8 => 0usize..2_000, 1 => 20_000usize..70_000], 0..80), most in 1u64..30,
    ) {
        let whole = frames(1, &lengths);
        let mut cut = segments(whole.clone(), most).unwrap();
        let joined: Vec<u8> = cut.iter().flat_map(|segment| segment.frames.to_vec()).collect();
        prop_assert_eq!(joined, whole.to_vec());
        prop_assert!(cut.iter().all(|segment| (1..=most).contains(&segment.count)));
        prop_assert!(cut.iter().all(|segment| segment.count == 1 || segment.frames.len() <= 32 * 1024));
        prop_assert!(cut.len() < 2 || cut.iter_mut().all(|segment| segment.frames.is_unique()), "one holds the memory of others");
        prop_assert_eq!(cut.iter().map(|segment| segment.count).sum::<u64>(), lengths.len() as u64);
        if !whole.is_empty() {
            prop_assert!(segments(whole.slice(..whole.len() - 1), most).is_err());
        }
    }
}

#[test]
fn one_chunk_is_kept_whatever_its_size() {
    let mut ring = Ring::new(10, 65_536, 1);
    let large = || segments(frames(1, &[500_000]), 10).unwrap().remove(0);
    assert_eq!(ring.append(large()), 1);
    assert!(matches!(ring.read(1, 1), Read::Chunks(_, 1)));
    assert_eq!(ring.append(large()), 2);
    assert_eq!(ring.read(1, 1), Read::Behind(2));
    assert_eq!(ring.first(), 2);
}

#[test]
fn the_publisher_that_was_silent_for_longest_is_forgotten() {
    let id = |number: u8| PublisherId([number; 16]);
    let mut publishers = Publishers::new(2);
    let (before, first) = publishers.open(id(1));
    assert_eq!(before, Some(0), "nobody was forgotten yet");
    publishers.stored(id(1), 5);
    publishers.open(id(2));
    publishers.stored(id(1), 1);
    assert_eq!(publishers.open(id(3)).0, None);
    assert_eq!(publishers.get(&id(2)), None);
    assert_eq!(publishers.get(&id(1)).map(|known| known.last), Some(6));
    assert!(publishers.is_current(&id(1), first));
    let (before, second) = publishers.open(id(1));
    assert_eq!(before, Some(6));
    assert!(publishers.is_current(&id(1), second) && !publishers.is_current(&id(1), first));
}

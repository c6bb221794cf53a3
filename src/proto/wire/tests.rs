use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::proto::codec;
use crate::proto::frame::Frames;
use crate::proto::status::Code;

fn frame_of(bytes: Vec<u8>) -> Bytes {
    let mut frames = Frames::new(CHUNK_FRAME_BYTES);
    frames.push(bytes.into());
    let frame = frames.next_frame().unwrap().unwrap();
    frames.end().unwrap();
    frame
}

fn put(chunk: &Chunk) -> Vec<u8> {
    let mut out = Vec::new();
    put_chunk(&mut out, chunk).unwrap();
    out
}

#[test]
fn records_have_these_bytes() {
    let chunk = |body: &'static [u8], metadata| Chunk { body: Bytes::from_static(body), metadata };
    assert_eq!(put(&chunk(b"hi", vec![])), [3, 0, b'h', b'i']);
    let metadata = vec![("k".to_owned(), Bytes::from_static(b"\x07"))];
    assert_eq!(put(&chunk(b"hi", metadata)), [9, 1, 5, 1, 1, b'k', 1, 7, b'h', b'i']);
    let mut out = Vec::new();
    put_gap(&mut out, 3, 70);
    put_end(&mut out, &Status::new(Code::ResourceExhausted, "slow"));
    assert_eq!(out, [4, 2, 3, 0x40, 70, 8, 3, 8, 4, b's', b'l', b'o', b'w', 0]);
}

#[test]
fn questions_and_answers_have_these_bytes() {
    let name = || "a/b".to_owned();
    assert_eq!(codec::encode(&Ask::List { pattern: "*".into() }), [1, 1, b'*']);
    let from = From::After(Cursor { epoch: 1, seq: 2 });
    assert_eq!(codec::encode(&Ask::Subscribe { name: name(), from }), [3, 3, b'a', b'/', b'b', 3, 1, 2]);
    let publish = codec::encode(&Ask::Publish { name: name(), publisher: PublisherId([9; 16]), epoch: None });
    assert_eq!(publish[..5], [2, 3, b'a', b'/', b'b']);
    assert_eq!((&publish[5..21], publish[21]), (&[9; 16][..], 0));
    let options = Options { ring_chunks: 7, ring_bytes: 65_536, retain_bytes: 65_536, retain_ms: 8, ..Options::default() };
    let create = codec::encode(&Ask::Create { name: name(), options });
    assert_eq!(create, [0, 3, b'a', b'/', b'b', 0, 0, 7, 252, 0, 0, 1, 0, 252, 0, 0, 1, 0, 8]);
    assert_eq!(codec::encode(&Answer::Ack { count: 3, first: 4 }), [4, 3, 4]);
    assert_eq!(codec::encode(&Answer::Begin { epoch: 5, next: 6 }), [5, 5, 6]);
    assert_eq!(codec::encode(&Answer::Ready { epoch: 5, last: 0, known: true }), [3, 5, 0, 1]);
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |bytes: &[u8]| Record::parse(Bytes::copy_from_slice(bytes)).unwrap_err();
    assert_eq!(refused(&[]), RecordError::Length);
    assert_eq!(refused(&[4]), RecordError::Tag);
    assert_eq!(refused(&[2, 1]), RecordError::Length);
    assert_eq!(refused(&[2, 3, 2]), RecordError::Gap(3, 2));
    assert_eq!(refused(&[2, 0, 2]), RecordError::Gap(0, 2));
    assert_eq!(refused(&[2, 2, 3, 0]), RecordError::Length);
    assert_eq!(refused(&[1, 5, 1]), RecordError::Length);
    assert!(matches!(refused(&[1, 1, 0]), RecordError::Message(_)), "empty metadata");
    let large = Bytes::from(vec![0; limits::CHUNK_BYTES + 2]);
    assert_eq!(check_chunk(&large), Err(RecordError::TooLarge(limits::CHUNK_BYTES + 1)));
    assert_eq!(check_chunk(&large.slice(1..)), Ok(limits::CHUNK_BYTES));
    assert_eq!(check_chunk(&Bytes::from_static(&[2, 1, 1])), Err(RecordError::Tag));
    for name in ["", "/", "a//b", "a/", "a b", "ü", &"x".repeat(201)] {
        assert!(check_name(name).is_err(), "{name}");
    }
    assert!(check_name("sensors/kitchen-2/temp.C").is_ok());
    for bad in
        [Answer::Ack { count: 0, first: 1 }, Answer::Ack { count: u64::MAX, first: 2 }, Answer::Begin { epoch: 0, next: 1 }]
    {
        assert!(codec::decode::<Answer>(&codec::encode(&bad)).is_err(), "{bad:?}");
    }
}

#[test]
fn a_cursor_is_read_as_it_is_written_and_nothing_else_is() {
    let cursor = Cursor { epoch: 0xabc, seq: 42 };
    assert_eq!(cursor.to_string(), "0000000000000abc:42");
    assert_eq!(cursor.to_string().parse(), Ok(cursor));
    for text in ["", ":", "abc:42", "0000000000000abc:", "0000000000000ABC:1", "0000000000000abc:+1", "0000000000000abc:1 "] {
        assert!(text.parse::<Cursor>().is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn chunks_are_read_back(
        body in prop::collection::vec(any::<u8>(), 0..300),
        metadata in prop::collection::vec(("[a-z]{0,8}", prop::collection::vec(any::<u8>(), 0..40)), 0..8),
    ) {
        let metadata = metadata.into_iter().map(|(name, value)| (name, value.into())).collect();
        let chunk = Chunk { body: body.into(), metadata };
        let frame = frame_of(put(&chunk));
        prop_assert_eq!(check_chunk(&frame), Ok(chunk.body.len()));
        prop_assert_eq!(Record::parse(frame), Ok(Record::Chunk(chunk)));
    }

    #[test]
    fn any_bytes_are_one_record_or_none(bytes in prop::collection::vec(prop_oneof![0u8..5, any::<u8>()], 0..64)) {
        if let Ok(record) = Record::parse(Bytes::from(bytes.clone())) {
            let mut out = Vec::new();
            match record {
                Record::Chunk(chunk) => put_chunk(&mut out, &chunk).unwrap(),
                Record::Gap { from, to } => put_gap(&mut out, from, to),
                Record::End(status) => put_end(&mut out, &status),
            }
            prop_assert_eq!(frame_of(out), Bytes::from(bytes));
        }
    }
}

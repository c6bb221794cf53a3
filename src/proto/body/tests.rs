//! What bodies look like, and what is refused. How much memory decoding takes is in `tests/decoding_is_bounded.rs`.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use bytes::Bytes;
use proptest::prelude::*;
use serde::Deserialize;

use super::ContentType::{Bincode, Json, Raw};
use super::*;

/// One of everything serde can say without asking the bytes what they are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Everything {
    flag: bool,
    small: (u8, i8, char),
    unsigned: (u16, u32, u64, u128),
    signed: (i16, i32, i64, i128),
    float: (f32, f64),
    text: String,
    bytes: Bytes,
    list: Vec<u32>,
    map: BTreeMap<String, Option<i32>>,
    shape: Shape,
    wrapped: Wrapped,
    nothing: (),
    array: [u16; 3],
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Shape {
    Point,
    Circle(f64),
    Line(i32, i32),
    Group { name: String, shapes: Vec<Shape> },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Wrapped {
    next: Option<Box<Wrapped>>,
}

/// Holds itself and, in JSON, nothing else.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Peano(Option<Box<Peano>>);

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Endless(Box<Endless>);

#[expect(clippy::large_enum_variant, reason = "that is what it is for")]
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Large {
    Small,
    Numbers([u128; 32]),
}

fn example() -> Everything {
    Everything {
        flag: true,
        small: (250, -1, 'é'),
        unsigned: (250, 251, 1 << 40, 1 << 100),
        signed: (-1, 125, -126, i128::MIN),
        float: (1.5, -0.0),
        text: "volt".into(),
        bytes: Bytes::from_static(&[0, 255]),
        list: vec![1, 65_536],
        map: BTreeMap::from([("a".into(), None), ("b".into(), Some(-3))]),
        shape: Shape::Group { name: "g".into(), shapes: vec![Shape::Point, Shape::Circle(2.0), Shape::Line(1, -1)] },
        wrapped: Wrapped { next: Some(Box::new(Wrapped { next: None })) },
        nothing: (),
        array: [1, 2, 300],
    }
}

/// `example()` in bincode, byte by byte.
#[rustfmt::skip]
const GOLDEN: &[u8] = &[
    1,
    250, 0xff, 0xc3, 0xa9,
    250, 251, 251, 0, 253, 0, 0, 0, 0, 0, 1, 0, 0, 254, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0,
    1, 250, 251, 251, 0, 254, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    0, 0, 0xc0, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0x80,
    4, b'v', b'o', b'l', b't',
    2, 0, 255,
    2, 1, 252, 0, 0, 1, 0,
    2, 1, b'a', 0, 1, b'b', 1, 5,
    3, 1, b'g', 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0x40, 2, 2, 1,
    1, 0,
    1, 2, 251, 44, 1,
];

fn shapes() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Point),
        any::<i16>().prop_map(|x| Shape::Circle(x.into())),
        any::<(i32, i32)>().prop_map(|(a, b)| Shape::Line(a, b))
    ];
    leaf.prop_recursive(8, 32, 4, |inner| {
        (".{0,8}", prop::collection::vec(inner, 0..4)).prop_map(|(name, shapes)| Shape::Group { name, shapes })
    })
}

fn everything() -> impl Strategy<Value = Everything> {
    let integers = (any::<(u8, i8, char)>(), any::<(u16, u32, u64, u128)>(), any::<(i16, i32, i64, i128)>(), 0u32..128);
    let texts = (
        ".{0,300}",
        prop::collection::vec(any::<u8>(), 0..300),
        prop::collection::btree_map(".{0,4}", any::<Option<i32>>(), 0..4),
    );
    let rest = (any::<(bool, i32)>(), prop::collection::vec(any::<u32>(), 0..8), shapes(), 0..20, any::<[u16; 3]>());
    (integers, texts, rest).prop_map(|((small, u, i, shift), (text, bytes, map), (float, list, shape, wraps, array))| {
        Everything {
            flag: float.0,
            small,
            unsigned: (u.0 >> (shift % 16), u.1 >> (shift % 32), u.2 >> (shift % 64), u.3 >> shift),
            signed: (i.0 >> (shift % 16), i.1 >> (shift % 32), i.2 >> (shift % 64), i.3 >> shift),
            float: (float.1 as f32, float.1.into()),
            text,
            bytes: bytes.into(),
            list,
            map,
            shape,
            wrapped: (0..wraps).fold(Wrapped { next: None }, |inner, _| Wrapped { next: Some(Box::new(inner)) }),
            nothing: (),
            array,
        }
    })
}

/// What bincode itself makes of a body.
fn by_bincode<T: DeserializeOwned>(body: &[u8]) -> Option<T> {
    let config = bincode::config::standard().with_limit::<65_536>();
    bincode::serde::decode_from_slice(body, config).ok().filter(|(_, taken)| *taken == body.len()).map(|(value, _)| value)
}

fn why<T: DeserializeOwned + fmt::Debug>(content: ContentType, body: &[u8]) -> String {
    decode::<T>(content, body).unwrap_err().to_string()
}

#[test]
fn a_bincode_body_has_these_bytes() {
    assert_eq!(encode(Bincode, &example()).unwrap(), GOLDEN);
    assert_eq!(decode::<Everything>(Bincode, GOLDEN).unwrap(), example());
    assert_eq!(bincode::serde::encode_to_vec(example(), bincode::config::standard()).unwrap(), GOLDEN);
}

#[test]
fn a_json_body_has_these_bytes() {
    let body = encode(Json, &Shape::Line(1, -1)).unwrap();
    assert_eq!(body, br#"{"Line":[1,-1]}"#);
    assert_eq!(decode::<Shape>(Json, &body).unwrap(), Shape::Line(1, -1));
    assert_eq!(decode::<Everything>(Json, &encode(Json, &example()).unwrap()).unwrap(), example());
}

#[test]
fn a_raw_body_is_the_bytes_of_what_can_be_bytes() {
    fn there_and_back<T: Serialize + DeserializeOwned + PartialEq + fmt::Debug>(value: T, bytes: &[u8]) {
        assert_eq!(encode(Raw, &value).unwrap(), bytes);
        assert_eq!(decode::<T>(Raw, bytes).unwrap(), value);
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Blob(Vec<u8>);

    there_and_back(Bytes::from_static(b"\0\xff"), b"\0\xff");
    there_and_back(vec![0u8, 255], b"\0\xff");
    there_and_back(Blob(vec![0, 255]), b"\0\xff");
    there_and_back([0u8, 255], b"\0\xff");
    there_and_back((0u8, 255u8), b"\0\xff");
    there_and_back("é".to_string(), "é".as_bytes());
    there_and_back((), b"");
    there_and_back(Vec::<u8>::new(), b"");
}

#[test]
fn what_cannot_be_bytes_is_refused_as_a_raw_body() {
    assert!(matches!(encode(Raw, &7u8), Err(BodyError::Unsupported { .. })));
    assert!(matches!(encode(Raw, &vec![7u16]), Err(BodyError::Unsupported { .. })));
    assert!(matches!(encode(Raw, &vec!["a"]), Err(BodyError::Unsupported { .. })));
    assert!(matches!(encode(Raw, &example()), Err(BodyError::Unsupported { .. })));
    assert!(matches!(encode(Raw, &Some("a")), Err(BodyError::Unsupported { .. })));
    assert!(matches!(decode::<u8>(Raw, &[7]), Err(BodyError::Unsupported { .. })));
    assert!(matches!(decode::<Vec<u16>>(Raw, &[7, 7]), Err(BodyError::Unsupported { .. })));
    assert!(matches!(decode::<Everything>(Raw, GOLDEN), Err(BodyError::Unsupported { .. })));
    assert!(matches!(decode::<serde_json::Value>(Raw, b"{}"), Err(BodyError::Unsupported { .. })));
    assert!(matches!(decode::<()>(Raw, b"x"), Err(BodyError::Invalid { .. })));
    assert!(matches!(decode::<String>(Raw, b"\xff"), Err(BodyError::Invalid { .. })));
    assert!(matches!(decode::<[u8; 2]>(Raw, b"abc"), Err(BodyError::Invalid { .. })));
    assert!(matches!(decode::<[u8; 2]>(Raw, b"a"), Err(BodyError::Invalid { .. })));
}

#[test]
fn a_type_that_asks_the_bytes_what_they_are_is_told_to_use_json() {
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(untagged)]
    enum Untagged {
        Number(u8),
    }
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(tag = "kind")]
    enum Tagged {
        Number { value: u8 },
    }
    #[derive(Debug, Serialize, Deserialize)]
    struct Flat {
        #[serde(flatten)]
        more: BTreeMap<String, u8>,
    }
    for text in [
        why::<Untagged>(Bincode, &[7]),
        why::<Tagged>(Bincode, &[0, 7]),
        why::<Flat>(Bincode, &[1, 1, b'a', 7]),
        why::<serde_json::Value>(Bincode, &[0]),
    ] {
        assert!(text.starts_with("bincode cannot carry this type") && text.contains("use json"), "{text}");
    }
    let text = encode(Bincode, &Flat { more: BTreeMap::new() }).unwrap_err().to_string();
    assert!(text.starts_with("bincode cannot carry this type") && text.contains("use json"), "{text}");
}

#[test]
fn bytes_after_the_value_are_refused() {
    assert!(why::<u8>(Bincode, &[7, 0]).contains("bytes are left"));
    assert!(why::<()>(Bincode, &[0]).contains("bytes are left"));
    assert!(why::<u8>(Json, b"7 7").contains("trailing"));
}

#[test]
fn integers_written_too_long_or_out_of_range_are_refused() {
    for body in [&[251, 250, 0][..], &[252, 255, 255, 0, 0], &[253, 255, 255, 255, 255, 0, 0, 0, 0]] {
        assert!(why::<u64>(Bincode, body).contains("longer than it need be"), "{body:?}");
        assert!(why::<u128>(Bincode, body).contains("longer than it need be"), "{body:?}");
    }
    assert!(why::<u128>(Bincode, &[254, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).contains("longer than it need be"));
    assert!(why::<u16>(Bincode, &[252, 0, 0, 1, 0]).contains("out of range"));
    assert!(why::<i16>(Bincode, &[252, 0, 0, 1, 0]).contains("out of range"));
    assert!(why::<u64>(Bincode, &[255]).contains("out of range"));
    assert!(why::<bool>(Bincode, &[2]).contains("bool"));
    assert!(why::<Option<u8>>(Bincode, &[2]).contains("option"));
    assert!(why::<char>(Bincode, &[0xe0, 0, 0]).contains("UTF-8"));
    assert!(why::<String>(Bincode, &[1, 0xff]).contains("UTF-8"));
    assert!(why::<Shape>(Bincode, &[4]).contains("variant"));
}

#[test]
fn a_length_above_the_bytes_left_is_refused_before_anything_is_set_aside() {
    let lengths = [&[5u8][..], &[251, 255, 255], &[253, 0, 0, 0, 0, 0, 1, 0, 0], &[253, 255, 255, 255, 255, 255, 255, 255, 255]];
    for length in lengths {
        let body = [length, &[0; 4]].concat();
        assert!(why::<Vec<u8>>(Bincode, &body).contains("above the bytes"));
        assert!(why::<Vec<()>>(Bincode, &body).contains("above the bytes"));
        assert!(why::<String>(Bincode, &body).contains("above the bytes"));
        assert!(why::<Bytes>(Bincode, &body).contains("above the bytes"));
        assert!(why::<HashMap<u8, u8>>(Bincode, &body).contains("above the bytes"));
        assert!(why::<BTreeMap<(), ()>>(Bincode, &body).contains("above the bytes"));
    }
}

#[test]
fn lists_of_nothing_cannot_make_work_beyond_their_bytes() {
    assert_eq!(decode::<Vec<()>>(Bincode, &[0]), Ok(vec![]));
    assert_eq!(decode::<(Vec<()>, [u8; 2])>(Bincode, &[2, 8, 9]), Ok((vec![(), ()], [8, 9])));
    // 600,000 lists, each of as many nothings as there are bytes left: 10^12 of them, if nobody counted.
    let mut body = encode(Bincode, &600_000u32).unwrap();
    for _ in 0..600_000 {
        body.extend(encode(Bincode, &1_000_000u32).unwrap());
    }
    let start = Instant::now();
    assert!(why::<Vec<Vec<()>>>(Bincode, &body).contains("more items"));
    assert!(start.elapsed().as_secs() < 5);
}

#[test]
fn values_nest_as_deep_as_the_bound_and_no_deeper() {
    // Each `Wrapped` is two levels: the struct and the option.
    let nested = |structs: usize| [vec![1; structs - 1], vec![0]].concat();
    assert!(decode::<Wrapped>(Bincode, &nested(32)).is_ok());
    assert!(why::<Wrapped>(Bincode, &nested(33)).contains("too deep"));
    assert!(why::<Wrapped>(Bincode, &nested(4 << 20)).contains("too deep"));
    assert!(why::<Endless>(Bincode, &[]).contains("too deep"));
    assert!(why::<Shape>(Bincode, &[3, 0, 1].repeat(1 << 20)).contains("too deep"));
    for body in [&b"7"[..], b"[", b"{}", &b"[".repeat(1 << 20)] {
        assert!(why::<Peano>(Json, body).contains("too deep"));
        assert!(why::<Endless>(Json, body).contains("too deep"));
    }
    assert!(why::<serde_json::Value>(Json, &b"[".repeat(1 << 20)).contains("recursion"));
}

#[test]
fn large_items_that_are_next_to_nothing_in_the_body_are_bounded_by_memory() {
    let list = |count: u16| [encode(Bincode, &count).unwrap(), vec![0; count.into()]].concat();
    assert_eq!(decode::<Vec<Option<[u128; 32]>>>(Bincode, &list(300)).unwrap().len(), 300);
    assert!(why::<Vec<Option<[u128; 32]>>>(Bincode, &list(60_000)).contains("memory"));
    assert!(why::<Vec<Large>>(Bincode, &list(60_000)).contains("memory"));
    assert!(why::<Vec<Box<Large>>>(Bincode, &list(60_000)).contains("memory"));
    assert!(
        why::<Vec<Option<Box<Large>>>>(Bincode, &[encode(Bincode, &30_000u16).unwrap(), [1, 0].repeat(30_000)].concat())
            .contains("memory")
    );
    assert!(
        why::<BTreeMap<u16, Large>>(Bincode, &[encode(Bincode, &30_000u16).unwrap(), [1, 0].repeat(30_000)].concat())
            .contains("memory")
    );
    let nulls = |count: usize| format!("[null{}]", ",null".repeat(count - 1));
    assert_eq!(decode::<Vec<Option<[u128; 32]>>>(Json, nulls(300).as_bytes()).unwrap().len(), 300);
    assert!(why::<Vec<Option<[u128; 32]>>>(Json, nulls(60_000).as_bytes()).contains("memory"));
    // What people send passes: 10,000 empty texts, as many small integers.
    assert_eq!(decode::<Vec<String>>(Bincode, &list(10_000)).unwrap().len(), 10_000);
    assert_eq!(decode::<Vec<u128>>(Bincode, &list(60_000)).unwrap().len(), 60_000);
}

#[test]
fn a_body_cut_short_or_with_one_bit_flipped_is_refused_or_another_value() {
    for cut in 0..GOLDEN.len() {
        assert!(decode::<Everything>(Bincode, &GOLDEN[..cut]).is_err(), "cut after {cut}");
    }
    for bit in 0..GOLDEN.len() * 8 {
        let mut body = GOLDEN.to_vec();
        body[bit / 8] ^= 1 << (bit % 8);
        if let Ok(value) = decode::<Everything>(Bincode, &body) {
            // Compared as bytes, for the sake of NaN; with bincode's reading, for the map may come in another order.
            let other: Everything = by_bincode(&body).unwrap();
            assert_eq!(encode(Bincode, &value).unwrap(), encode(Bincode, &other).unwrap(), "bit {bit}");
        }
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back_in_every_content_type(value in everything()) {
        for content in [Bincode, Json] {
            let body = encode(content, &value).unwrap();
            prop_assert_eq!(decode::<Everything>(content, &body).unwrap(), value.clone());
        }
        let body = encode(Bincode, &value).unwrap();
        prop_assert_eq!(&body, &bincode::serde::encode_to_vec(&value, bincode::config::standard()).unwrap());
        prop_assert_eq!(by_bincode::<Everything>(&body).unwrap(), value);
    }

    #[test]
    fn any_bytes_are_read_as_bincode_reads_them_or_refused(bytes in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..200)) {
        if let Ok(value) = decode::<Shape>(Bincode, &bytes) {
            // Compared as bytes, for the sake of NaN.
            prop_assert_eq!(encode(Bincode, &value).unwrap(), bytes.clone());
            prop_assert!(by_bincode::<Shape>(&bytes).is_some());
        }
        if let Ok(value) = decode::<(Vec<(u16, String)>, i64)>(Bincode, &bytes) {
            prop_assert_eq!(by_bincode(&bytes), Some(value));
        }
        let _ = decode::<Everything>(Bincode, &bytes);
        let _ = decode::<Everything>(Json, &bytes);
        let _ = decode::<String>(Raw, &bytes);
    }
}

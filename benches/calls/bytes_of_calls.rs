//! The bytes of a call: its header, its bodies, the frames they travel in.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use serde::{Deserialize, Serialize};
use voltmesh::proto::body::{self, ContentType};
use voltmesh::proto::call::{Header, Shape};
use voltmesh::proto::codec;
use voltmesh::proto::frame::{Frames, put_frame};

/// A header as most calls have it.
pub fn header(c: &mut Criterion) {
    let header = Header {
        method: "greeter/hello",
        shape: Shape::Unary,
        content: ContentType::Bincode,
        deadline_us: Some(30_000_000),
        idempotency_key: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        metadata: vec![("tenant", b"blue")],
    };
    let encoded = codec::encode(&header);
    let mut group = c.benchmark_group("header");
    group.throughput(Throughput::Bytes(encoded.len() as u64));
    group.bench_function("encode", |b| b.iter(|| codec::encode(black_box(&header))));
    group.bench_function("decode", |b| {
        b.iter(|| codec::decode_borrowed::<Header<'_>>(black_box(&encoded)).map(|header| header.metadata.len()).unwrap());
    });
    group.finish();
}

#[derive(Clone, Serialize, Deserialize)]
struct Reading {
    sensor: String,
    at_ms: u64,
    value: f64,
    tags: Vec<(String, String)>,
    raw: Option<Vec<u8>>,
}

/// A list of 64 structs, which is about 5 KiB, through the bounded reader and through bincode as it comes.
pub fn bodies(c: &mut Criterion) {
    let reading = |n: u64| Reading {
        sensor: format!("greenhouse-{n}"),
        at_ms: 1_700_000_000_000 + n,
        value: n as f64 / 7.0,
        tags: vec![("site".into(), "north".into()), ("unit".into(), "celsius".into())],
        raw: n.is_multiple_of(4).then(|| vec![n as u8; 32]),
    };
    let readings: Vec<Reading> = (0..64).map(reading).collect();
    let config = bincode::config::standard();
    let encoded = bincode::serde::encode_to_vec(&readings, config).unwrap();
    assert_eq!(body::encode(ContentType::Bincode, &readings).unwrap(), encoded);
    let json = body::encode(ContentType::Json, &readings).unwrap();

    let mut group = c.benchmark_group("body");
    group.throughput(Throughput::Elements(readings.len() as u64));
    group.bench_function("encode/volt", |b| b.iter(|| body::encode(ContentType::Bincode, black_box(&readings)).unwrap()));
    group.bench_function("encode/plain bincode", |b| {
        b.iter(|| bincode::serde::encode_to_vec(black_box(&readings), config).unwrap());
    });
    group.bench_function("decode/volt", |b| {
        b.iter(|| body::decode::<Vec<Reading>>(ContentType::Bincode, black_box(&encoded)).unwrap());
    });
    group.bench_function("decode/plain bincode", |b| {
        b.iter(|| bincode::serde::decode_from_slice::<Vec<Reading>, _>(black_box(&encoded), config).unwrap());
    });
    group.bench_function("decode/volt json", |b| {
        b.iter(|| body::decode::<Vec<Reading>>(ContentType::Json, black_box(&json)).unwrap());
    });
    group.finish();
}

/// A hundred frames of 64 bytes, written, and cut from what arrives in packets of 1,200 bytes.
pub fn frames(c: &mut Criterion) {
    const FRAMES: u64 = 100;
    let write = || {
        let mut stream = Vec::new();
        (0..FRAMES).for_each(|_| put_frame(&mut stream, black_box(&[7; 64])));
        stream
    };
    let stream = Bytes::from(write());
    let packets: Vec<Bytes> = (0..stream.len()).step_by(1_200).map(|at| stream.slice(at..stream.len().min(at + 1_200))).collect();
    let cut = |packets: Vec<Bytes>| {
        let mut frames = Frames::new(1 << 10);
        let mut count = 0;
        for packet in packets {
            frames.push(packet);
            while frames.next_frame().unwrap().is_some() {
                count += 1;
            }
        }
        assert_eq!(count, FRAMES);
    };
    let mut group = c.benchmark_group("frames");
    group.throughput(Throughput::Elements(FRAMES));
    group.bench_function("write", |b| b.iter(write));
    group.bench_function("cut", |b| b.iter_batched(|| packets.clone(), cut, BatchSize::SmallInput));
    group.finish();
}

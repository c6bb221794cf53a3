//! How much memory decoding takes, whatever the bytes say: measured with an allocator that counts. The memory of one thread
//! is counted, so tests can run beside each other.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use serde::{Deserialize, de::DeserializeOwned};
use voltmesh::id::NodeId;
use voltmesh::proto::body::{self, ContentType};
use voltmesh::proto::call::{Header, Shape};
use voltmesh::proto::codec::{self, Decode, Message};
use voltmesh::proto::control::{Attach, BootId, Control, Hello, LiveStream, Profile, Progress, Role, Run, SessionId};
use voltmesh::proto::directory::{Answer, Ask, Found, Listing, Mode, Query, Scope, Told};
use voltmesh::proto::frame::Frames;
use voltmesh::proto::status::{Code, Status};
use voltmesh::proto::tunnel;

/// Counts what this thread holds and the most it held. A vector that grows holds its old and its new memory for a moment, and
/// both are counted.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(change: isize) {
    let held = HELD.get() + change;
    HELD.set(held);
    MOST.set(MOST.get().max(held));
}

// SAFETY: the system's allocator does the work; counting touches two cells that need no memory of their own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most memory that `work` held beyond what there was, in bytes.
fn most_held<T>(work: impl FnOnce() -> T) -> usize {
    let before = HELD.get();
    MOST.set(before);
    drop(work());
    (MOST.get() - before) as usize
}

/// Bytes from a seed, small ones often: what looks like lengths, options and variants.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let byte = |[kind, byte, ..]: [u8; 8]| if kind < 160 { byte & 3 } else { byte };
    (0..length).map(|_| byte(next())).collect()
}

/// A length as bincode writes it.
fn length(length: usize) -> Vec<u8> {
    body::encode(ContentType::Bincode, &length).unwrap()
}

/// What a peer might send to make a decoder reserve or build much: at each offset of a good message the end, lengths that
/// promise too much, and lengths that promise what is there; long runs of one byte; noise.
fn hostile(good: &[u8]) -> Vec<Vec<u8>> {
    let promises = [vec![250], length(60_000), length(1 << 24), length(1 << 40), length(usize::MAX)];
    let mut all = vec![good.to_vec()];
    for at in 0..good.len() {
        all.push(good[..at].to_vec());
        all.extend(promises.iter().map(|promise| [&good[..at], promise, &good[at..]].concat()));
        all.extend(promises.iter().map(|promise| [&good[..at], promise, &[0; 300]].concat()));
        all.push([&good[..at], &length(60_000), &vec![0; 60_000]].concat());
    }
    for filler in 0..5 {
        all.push([length(60_000), vec![filler; 60_000]].concat());
    }
    all.extend((0..2_000).map(|seed| noise(seed, seed as usize % 400)));
    all
}

// Our own messages: no list sets aside more than `codec::MEMORY_PER_BYTE` for each byte that came; text and bytes come on top.

fn messages_stay_within_bounds<M: Message>(good: &M, decode: impl Fn(&[u8])) {
    for bytes in hostile(&codec::encode(good)) {
        let most = most_held(|| decode(&bytes));
        let bound = (codec::MEMORY_PER_BYTE + 1) * bytes.len() + 64;
        assert!(most <= bound, "{}: {most} bytes held for {} ({:?}…)", M::NAME, bytes.len(), &bytes[..bytes.len().min(32)]);
    }
}

fn owned<M: Message + Decode<()>>(bytes: &[u8]) {
    let _ = codec::decode::<M>(bytes);
}

#[test]
fn a_control_message_takes_memory_for_what_arrived_only() {
    let address = "192.0.2.1:8658".parse().unwrap();
    let hello = Hello {
        versions: (1, 1),
        boot: BootId([1; 16]),
        role: Role::Node,
        session: Some(SessionId([2; 16])),
        attach: 1,
        name: "name".into(),
        profile: Profile::Active,
        resume_window_ms: 120_000,
        addresses: vec![address; 3],
        observed: address,
        extensions: vec![(1, vec![2; 3]); 3],
    };
    let stream = |stream| LiveStream { stream, received: 7, ended: true, reset: Some(9), stop: Some(1) };
    let live: Vec<_> = (0..4).map(stream).collect();
    let attach = Attach { session: SessionId([2; 16]), attach: 1, next_id: 9, live: live.clone(), more: true };
    let over = (0..4).map(|at| Run { first: 600 * at, count: 300 }).collect();
    messages_stay_within_bounds(&Control::Hello(hello), owned::<Control>);
    messages_stay_within_bounds(&Control::Attach(attach), owned::<Control>);
    messages_stay_within_bounds(&Control::Progress(Progress { over, live }), owned::<Control>);
    messages_stay_within_bounds(&Control::Addresses(vec![address; 3]), owned::<Control>);
}

#[test]
fn a_call_header_or_status_takes_memory_for_what_arrived_only() {
    let header = Header {
        method: "service/method",
        shape: Shape::Unary,
        content: ContentType::Json,
        deadline_us: Some(30_000_000),
        idempotency_key: Some(b"key"),
        traceparent: Some("00-"),
        metadata: vec![("name", b"value"), ("", b"")],
    };
    messages_stay_within_bounds(&header, |bytes| drop(codec::decode_borrowed::<Header<'_>>(bytes)));
    messages_stay_within_bounds(&Status { details: vec![1, 2], ..Status::new(Code::NotFound, "no") }, owned::<Status>);
}

#[test]
fn a_message_of_the_directory_takes_memory_for_what_arrived_only() {
    let who = NodeId::from_bytes([7; 32]);
    let metadata = vec![("key".into(), vec![1, 2]), (String::new(), vec![])];
    let mode = Mode::Private(vec![who; 2]);
    let listing = Listing { name: "camera".into(), mode, metadata: metadata.clone(), description: b"{}".to_vec() };
    let found = Found {
        name: "camera".into(),
        provider: who,
        at: Some(who),
        online: true,
        epoch: 300,
        mode: Some(Mode::Private(vec![who; 2])),
        addresses: vec!["192.0.2.1:8658".parse().unwrap(); 2],
        metadata,
        description: b"{}".to_vec(),
    };
    messages_stay_within_bounds(&listing, owned::<Listing>);
    messages_stay_within_bounds(&Ask::Register(listing.clone()), owned::<Ask>);
    messages_stay_within_bounds(&Ask::Watch(Query { pattern: "*".into(), offline: true, scope: Scope::Mirror }), owned::<Ask>);
    messages_stay_within_bounds(&Answer::Refused(Status::new(Code::NotFound, "no")), owned::<Answer>);
    messages_stay_within_bounds(&Told::Entry(found), owned::<Told>);
    let gone = Told::Withdrawn { name: "camera".into(), provider: who, at: None };
    messages_stay_within_bounds(&gone, owned::<Told>);
}

#[test]
fn a_message_of_a_tunnel_takes_memory_for_what_arrived_only() {
    messages_stay_within_bounds(&tunnel::Ask::Open { name: "a/b".into() }, owned::<tunnel::Ask>);
    messages_stay_within_bounds(&tunnel::Ask::Probe { name: "ssh".into() }, owned::<tunnel::Ask>);
    messages_stay_within_bounds(&tunnel::Answer::Ready, owned::<tunnel::Answer>);
    messages_stay_within_bounds(&tunnel::Answer::Refused(Status::new(Code::NotFound, "no")), owned::<tunnel::Answer>);
}

// Bodies: `body::MEMORY_PER_BYTE` and `body::MEMORY_BASE` count items as they lie in memory. A vector or table that grows may
// hold four times that for a moment, and text and bytes come on top.

fn bodies_stay_within_bounds<T: DeserializeOwned>(content: ContentType, bodies: &[Vec<u8>]) {
    for bytes in bodies {
        let most = most_held(|| body::decode::<T>(content, bytes));
        let bound = 4 * (body::MEMORY_BASE + body::MEMORY_PER_BYTE * bytes.len()) + bytes.len();
        let name = std::any::type_name::<T>();
        let head = &bytes[..bytes.len().min(32)];
        assert!(most <= bound, "{name} from {content}: {most} bytes held for {} ({head:?}…)", bytes.len());
    }
}

#[allow(dead_code, reason = "read by nobody, only decoded")]
#[expect(clippy::large_enum_variant, reason = "that is what it is for")]
#[derive(Deserialize)]
enum Large {
    Small,
    Numbers([u128; 32]),
    Boxed(Box<Large>),
    Two(Box<Large>, Box<Large>),
}

#[allow(dead_code, reason = "read by nobody, only decoded")]
#[derive(Deserialize)]
struct Tree {
    numbers: [u64; 4],
    children: Vec<Tree>,
    label: Option<Box<Large>>,
}

/// What may be hostile to any type.
fn hostile_bincode() -> Vec<Vec<u8>> {
    let mut all = hostile(&[2, 2, 1, 7, 2, 0, 1]);
    for count in [1_000, 60_000, 200_000] {
        all.extend((0..4).map(|filler| [length(count), vec![filler; count]].concat()));
        // Lists in lists, each promising the rest; items of two and three bytes; entries of a map.
        all.push([length(count), length(count / 2).repeat(20), vec![0; count]].concat());
        all.push([length(count / 2), [1, 0].repeat(count / 2)].concat());
        all.push([length(count / 3), [2, 1, 0].repeat(count / 3)].concat());
        let entries = (0..count).flat_map(|key| [length(key), vec![0]].concat());
        all.push([length(count), entries.collect()].concat());
    }
    // Trees, the first child of each promising as many children again.
    all.push([[0, 0, 0, 0, 251, 232, 3].repeat(30), vec![0; 40_000]].concat());
    all
}

fn hostile_json() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for count in [1_000, 60_000, 200_000] {
        for item in ["null", "0", "[]", "{}", "\"\"", "\"Small\"", "{\"Boxed\":\"Small\"}", "[[]]", "[0,null]"] {
            all.push(format!("[{item}{}]", format!(",{item}").repeat(count - 1)).into_bytes());
        }
        let entries: Vec<_> = (0..count).map(|key| format!("\"{key}\":null")).collect();
        all.push(format!("{{{}}}", entries.join(",")).into_bytes());
    }
    all
}

macro_rules! types_stay_within_bounds {
    ($content:expr, $bodies:expr, $($type:ty),* $(,)?) => {$(
        bodies_stay_within_bounds::<$type>($content, $bodies);
    )*};
}

#[test]
fn a_bincode_body_of_any_type_takes_memory_within_its_bound() {
    let bodies = hostile_bincode();
    types_stay_within_bounds!(ContentType::Bincode, &bodies, Vec<u8>, Vec<u64>, Vec<u128>, Vec<()>, Vec<Vec<()>>, Bytes, String);
    types_stay_within_bounds!(ContentType::Bincode, &bodies, Vec<String>, Vec<Option<String>>, Vec<Vec<Vec<u64>>>);
    types_stay_within_bounds!(ContentType::Bincode, &bodies, Vec<Option<[u128; 32]>>, Vec<Large>, Vec<Vec<Large>>);
    types_stay_within_bounds!(ContentType::Bincode, &bodies, Vec<Box<Large>>, Vec<Option<Box<Large>>>, Vec<(u8, Box<Large>)>);
    types_stay_within_bounds!(ContentType::Bincode, &bodies, Large, Tree, Vec<Tree>);
    types_stay_within_bounds!(ContentType::Bincode, &bodies, HashMap<u64, ()>, HashMap<u32, Option<[u128; 32]>>, HashSet<String>);
    types_stay_within_bounds!(ContentType::Bincode, &bodies, BTreeMap<u16, Large>, BTreeMap<(), ()>, Vec<HashMap<u8, Vec<u8>>>);
}

#[test]
fn a_json_body_of_any_type_takes_memory_within_its_bound() {
    let bodies = hostile_json();
    types_stay_within_bounds!(ContentType::Json, &bodies, serde_json::Value, Vec<serde_json::Value>, Vec<u8>, Vec<u128>);
    types_stay_within_bounds!(ContentType::Json, &bodies, Vec<()>, Vec<String>, Vec<Option<String>>, Vec<Vec<u64>>);
    types_stay_within_bounds!(ContentType::Json, &bodies, Vec<Option<[u128; 32]>>, Vec<Large>, Vec<Box<Large>>, Vec<Tree>);
    types_stay_within_bounds!(ContentType::Json, &bodies, HashMap<String, Option<[u128; 32]>>, BTreeMap<String, ()>);
}

#[test]
fn a_raw_body_takes_memory_for_its_bytes_only() {
    for body in [vec![], vec![7; 100], vec![7; 100_000]] {
        assert!(most_held(|| body::decode::<Vec<u8>>(ContentType::Raw, &body)) <= body.len());
        assert!(most_held(|| body::decode::<String>(ContentType::Raw, &body)) <= body.len());
        assert!(most_held(|| body::decode::<Bytes>(ContentType::Raw, &body)) <= body.len() + 64);
    }
}

#[test]
fn frames_hold_no_more_than_three_times_what_arrived() {
    // A frame of 4 MiB is announced and comes in chunks of 1,200 bytes; growing holds the old and the new memory.
    let chunk = Bytes::from(vec![7; 1_200]);
    for chunks in [0, 1, 10, 1_000, 3_000] {
        let most = most_held(|| {
            let mut frames = Frames::new(4 << 20);
            frames.push(Bytes::from_static(&[0x80, 0x40, 0, 0]));
            assert_eq!(frames.next_frame(), Ok(None));
            for _ in 0..chunks {
                frames.push(chunk.clone());
                assert_eq!(frames.next_frame(), Ok(None));
            }
            frames
        });
        assert!(most <= 3 * chunks * chunk.len() + 64, "{most} bytes held for {chunks} chunks");
    }
}

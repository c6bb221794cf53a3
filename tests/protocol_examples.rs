//! The examples of the protocol's page are what the code writes: the bytes are read out of `src/guide/protocol.md` and compared
//! with the encoding of the values beside them.

use std::net::SocketAddr;

use voltmesh::id::NodeId;
use voltmesh::proto::body::{self, ContentType};
use voltmesh::proto::call::{Header, Shape, Tag};
use voltmesh::proto::circuit::{Answer, Open, Refusal, Refused};
use voltmesh::proto::codec::{decode, encode};
use voltmesh::proto::control::{Attach, BootId, Control, Goodbye, Hello, LiveStream, Profile, Progress, Role, Run, SessionId};
use voltmesh::proto::frame::{put_frame, put_message};
use voltmesh::proto::limits;
use voltmesh::proto::status::{Code, Status};
use voltmesh::proto::stream::{Head, Kind, Purpose};
use voltmesh::proto::{directory, wire};

const PAGE: &str = include_str!("../src/guide/protocol.md");

/// The first block of bytes below this heading.
fn example(heading: &str) -> Vec<u8> {
    bytes_of(block(heading))
}

fn block(heading: &str) -> &'static str {
    let (_, section) = PAGE.split_once(heading).unwrap_or_else(|| panic!("the page has no {heading:?}"));
    let blocks = section.split("```text\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.into_iter().find(|block| !bytes_of(block).is_empty()).unwrap_or_else(|| panic!("no example below {heading:?}"))
}

/// The pairs of hexadecimal digits each line begins with; what follows them is for people.
fn bytes_of(block: &str) -> Vec<u8> {
    block.lines().flat_map(line).collect()
}

fn line(line: &str) -> Vec<u8> {
    let pair = |word: &str| (word.len() == 2).then(|| u8::from_str_radix(word, 16).ok()).flatten();
    line.split_whitespace().map_while(pair).collect()
}

fn addresses() -> [SocketAddr; 2] {
    ["192.0.2.1:8658".parse().unwrap(), "[::1]:250".parse().unwrap()]
}

#[test]
fn the_hello_on_the_page_is_the_one_written() {
    let hello = Hello {
        versions: (1, 2),
        boot: BootId([0xb0; 16]),
        role: Role::Visitor,
        session: Some(SessionId([0x5e; 16])),
        attach: 300,
        name: "ä".into(),
        profile: Profile::Battery,
        resume_window_ms: 120_000,
        addresses: addresses().to_vec(),
        observed: addresses()[0],
        extensions: vec![(7, vec![8, 9])],
    };
    let page = example("### 0: Hello");
    assert_eq!(page, encode(&Control::Hello(hello.clone())));
    assert_eq!(decode::<Control>(&page), Ok(Control::Hello(hello)));
}

fn live() -> Vec<LiveStream> {
    let live = |stream, received, ended, reset, stop| LiveStream { stream, received, ended, reset, stop };
    vec![live(0, 1 << 32, false, None, None), live(4, 250, true, Some(4), None), live(301, 1, false, None, Some(1))]
}

#[test]
fn the_attach_on_the_page_is_the_one_written() {
    let attach = Attach { session: SessionId([0x5e; 16]), attach: 3, next_id: 302, live: live(), more: true };
    assert_eq!(example("### 1: Attach"), encode(&Control::Attach(attach)));
}

#[test]
fn the_progress_on_the_page_is_the_one_written() {
    let over = vec![Run { first: 2, count: 1 }, Run { first: 6, count: 251 }];
    assert_eq!(example("### 6: Progress"), encode(&Control::Progress(Progress { over, live: live() })));
}

#[test]
fn the_heads_on_the_page_are_the_ones_written() {
    let mut heads = Vec::new();
    Head::Fresh { stream: 6 }.put(&mut heads);
    heads.push(Purpose::Call as u8);
    Head::CarriedOn { stream: 6, offset: 15_293, received: 0 }.put(&mut heads);
    assert_eq!(example("## How a path stream begins"), heads);
}

#[test]
fn the_small_messages_on_the_page_are_the_ones_written() {
    let mut written = encode(&Control::Ping { seq: 251 });
    written.extend(encode(&Control::Goodbye(Goodbye::Down)));
    assert_eq!(example("### 2 to 5: pings, addresses, goodbye"), written);
}

#[test]
fn the_header_on_the_page_is_the_one_written() {
    let header = Header {
        method: "a/b",
        shape: Shape::Bidi,
        content: ContentType::Json,
        deadline_us: Some(65_536),
        idempotency_key: Some(&[7]),
        traceparent: Some("00-"),
        metadata: vec![("k", &[1, 2]), ("k", &[])],
    };
    assert_eq!(example("### The header"), encode(&header));
}

#[test]
fn the_status_on_the_page_is_the_one_written() {
    let status = Status { code: Code::NotFound, message: "no".into(), details: vec![9] };
    let hex: Vec<String> = encode(&status).iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(PAGE.contains(&format!("`{}`", hex.join(" "))), "{}", hex.join(" "));
}

#[test]
fn the_unary_call_on_the_page_is_the_one_written() {
    let item = |tag: Tag, rest: &[u8]| {
        let mut item = Vec::new();
        put_frame(&mut item, &[&[tag as u8], rest].concat());
        item
    };
    let bincode = |text: &str| body::encode(ContentType::Bincode, text).unwrap();

    let mut call = Vec::new();
    Head::Fresh { stream: 2 }.put(&mut call);
    call.push(Purpose::Call as u8);
    let header = Header {
        method: "greeter/hello",
        shape: Shape::Unary,
        content: ContentType::Bincode,
        deadline_us: None,
        idempotency_key: None,
        traceparent: None,
        metadata: Vec::new(),
    };
    put_message(&mut call, &header);
    call.extend(item(Tag::Message, &bincode("world")));
    let answer = [item(Tag::Message, &bincode("hello world")), item(Tag::Status, &[])].concat();

    assert_eq!(example("A unary call, in full"), [call, answer].concat());
}

/// A session stream's beginning, in the direction of who opens it.
fn opened(purpose: Purpose) -> Vec<u8> {
    let mut bytes = Vec::new();
    Head::Fresh { stream: 2 }.put(&mut bytes);
    bytes.push(purpose as u8);
    bytes
}

#[test]
fn the_registration_on_the_page_is_the_one_written() {
    let listing = directory::Listing {
        name: "camera".into(),
        mode: directory::Mode::Trusted,
        metadata: vec![("room".into(), b"porch".to_vec())],
        description: b"{}".to_vec(),
    };
    let mut ask = opened(Purpose::Directory);
    put_message(&mut ask, &directory::Ask::Register(listing));
    let mut answer = Vec::new();
    put_message(&mut answer, &directory::Answer::Done);
    assert_eq!(example("A registration, in full"), [ask, answer].concat());
}

#[test]
fn the_chunks_on_the_page_are_those_written() {
    let mut publisher = opened(Purpose::Wire);
    let ask = wire::Ask::Publish { name: "log".into(), publisher: wire::PublisherId([0xab; 16]), epoch: None };
    put_message(&mut publisher, &ask);
    wire::put_chunk(&mut publisher, &wire::Chunk::new("hi")).unwrap();
    let tagged = wire::Chunk { body: "hi".into(), metadata: vec![("a".into(), "b".into())] };
    wire::put_chunk(&mut publisher, &tagged).unwrap();
    let mut host = Vec::new();
    put_message(&mut host, &wire::Answer::Ready { epoch: 7, last: 0, known: false });
    put_message(&mut host, &wire::Answer::Ack { count: 2, first: 41 });
    assert_eq!(example("Two chunks, published"), [publisher, host].concat());
    let mut subscriber = opened(Purpose::Wire);
    put_message(&mut subscriber, &wire::Ask::Subscribe { name: "log".into(), from: wire::From::Seq(9) });
    let mut host = Vec::new();
    put_message(&mut host, &wire::Answer::Begin { epoch: 7, next: 9 });
    wire::put_gap(&mut host, 9, 40);
    wire::put_chunk(&mut host, &wire::Chunk::new("hi")).unwrap();
    assert_eq!(example("A subscription to chunks that are"), [subscriber, host].concat());
}

#[test]
fn the_opening_of_a_circuit_on_the_page_is_the_one_written_and_so_is_the_refusal() {
    let mut bytes = vec![Kind::CircuitControl as u8];
    let open = Open { leg: 6, circuit: [0xc1; 16], route: vec![NodeId::from_bytes([2; 32])] };
    put_message(&mut bytes, &open);
    // Which TLS begins with.
    bytes.extend([0x16, 3, 1]);
    bytes.push(Answer::Refused as u8);
    put_message(&mut bytes, &Refused { by: NodeId::from_bytes([9; 32]), why: Refusal::TooMany });
    assert_eq!(example("## Circuits"), bytes);
}

#[test]
fn the_bounds_on_the_page_are_those_in_force() {
    let (_, bounds) = PAGE.split_once("## Bounds").unwrap();
    let row = |name: &str| {
        let line = bounds.lines().find(|line| line.starts_with(&format!("| {name} |"))).unwrap_or_else(|| panic!("no {name:?}"));
        let value = line.split('|').nth(2).unwrap().trim().replace(',', "");
        let unit = value.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(';').to_owned();
        let factor = match unit.as_str() {
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            _ => 1,
        };
        let number = value.split(|c: char| !c.is_ascii_digit()).next().unwrap();
        number.parse::<usize>().unwrap_or_else(|_| panic!("{line}")) * factor
    };
    let counts = [
        ("certificate", limits::CERTIFICATE_BYTES),
        ("control message", limits::CONTROL_MESSAGE_BYTES),
        ("call header", limits::CALL_HEADER_BYTES),
        ("status", limits::STATUS_BYTES),
        ("body", limits::BODY_BYTES),
        ("names", limits::NAME_BYTES),
        ("metadata", limits::METADATA_ENTRIES),
        ("idempotency key", limits::IDEMPOTENCY_KEY_BYTES),
        ("addresses in a hello", limits::ADDRESSES),
        ("live streams, of each side", limits::LIVE_STREAMS),
        ("streams, or runs of them, in an attach or progress", limits::PROGRESS_ENTRIES),
        ("bytes kept of one stream", limits::STREAM_KEPT_MAX_BYTES),
        ("bytes kept of one stream, whatever the node's budget says", limits::STREAM_KEPT_BYTES),
        ("depth of a bincode body", limits::BODY_DEPTH),
        ("streams of a permitted peer", limits::STREAMS as usize),
        ("streams of a stranger", limits::STRANGER_STREAMS as usize),
        ("answer remembered with a key", limits::REPLAY_ANSWER_BYTES),
        ("remembered calls of one caller", limits::REPLAY_CALLER_BYTES),
        ("remembered calls of all callers", limits::REPLAY_BYTES),
        ("calls in flight, each way", limits::CALLS_IN_FLIGHT),
        ("streams of a directory or of wires, each way", limits::FEEDS),
        ("registrations of one session", limits::REGISTRATIONS),
        ("description of a service, in a listing", limits::DESCRIPTION_BYTES),
        ("watches of one session", limits::WATCHES),
        ("chunk", limits::CHUNK_BYTES),
        ("metadata of a chunk", limits::CHUNK_METADATA_BYTES),
        ("name of a wire", limits::WIRE_NAME_BYTES),
        ("publishers a wire knows", limits::WIRE_PUBLISHERS),
        ("visitors of one identity", limits::VISITORS),
        ("relays that a circuit goes through", limits::RELAYS_IN_A_ROW),
        ("streams of a circuit, each way", limits::CIRCUIT_STREAMS as usize),
        ("circuits whose handshake is under way at their far end, from one link", limits::CIRCUITS_BEGINNING),
    ];
    let times = [
        ("the handshake", limits::HANDSHAKE),
        ("a hello, after the handshake", limits::HELLO),
        ("its answer", limits::HANDSHAKE),
        ("an attach, after the hellos", limits::HELLO),
        ("an answer of the path, while something is outstanding", limits::ANSWER_BOUND),
        ("another path, for a session that lost its last", limits::RESUME_WINDOW),
        ("an answer on a circuit that a relay opens", limits::CIRCUIT_HALF_OPEN),
        ("the end of calls in flight when a node goes down", limits::DRAIN),
        ("the answer to a unary call that names no deadline", limits::CALL_DEADLINE),
    ];
    let times = times.map(|(name, time)| (name, time.as_secs() as usize));
    for (name, constant) in counts.into_iter().chain(times) {
        assert_eq!(row(name), constant, "{name}");
    }
}

#[test]
fn what_is_for_people_is_not_taken_for_bytes() {
    assert_eq!(line("02 fb fb 00       ping 251"), [2, 0xfb, 0xfb, 0]);
    assert_eq!(line("   01 6b 00               k = nothing"), [1, 0x6b, 0]);
    assert!(line("purpose: 1 | frame: header").is_empty());
}

//! Every message of ours, byte by byte, and what becomes of it when it is cut short or a bit of it flips. Whoever changes a
//! byte here changes the protocol.

use std::fmt::Debug;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::body::{self, ContentType};
use super::call::{Header, Shape, Tag};
use super::codec::{Decode, DecodeError, Message, Reason, decode, decode_borrowed, encode};
use super::control::*;
use super::frame::{put_frame, put_message};
use super::limits;
use super::status::{Code, Status};
use super::stream::{Head, Purpose};

pub(super) const V4: &[u8] = &[0, 192, 0, 2, 1, 251, 0xd2, 0x21];
const V6: &[u8] = &[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 250];
const BOOT: BootId = BootId([0xb0; 16]);
const SESSION: SessionId = SessionId([0x5e; 16]);

pub(super) fn v4() -> SocketAddr {
    SocketAddr::new(IpAddr::from([192, 0, 2, 1]), 8658)
}

fn v6() -> SocketAddr {
    SocketAddr::new(IpAddr::from(Ipv6Addr::LOCALHOST), 250)
}

fn hello() -> Hello {
    Hello {
        versions: (1, 2),
        boot: BOOT,
        role: Role::Visitor,
        session: Some(SESSION),
        attach: 300,
        name: "ä".into(),
        profile: Profile::Battery,
        resume_window_ms: 120_000,
        addresses: vec![v4(), v6()],
        observed: v4(),
        extensions: vec![(7, vec![8, 9])],
    }
}

fn attach() -> Attach {
    Attach { session: SESSION, attach: 3, next_id: 302, live: live(), more: true }
}

fn live() -> Vec<LiveStream> {
    let open = LiveStream { stream: 0, received: 1 << 32, ended: false, reset: None, stop: None };
    let ended = LiveStream { stream: 4, received: 250, ended: true, reset: Some(4), stop: None };
    let stopped = LiveStream { stream: 301, received: 1, ended: false, reset: None, stop: Some(1) };
    vec![open, ended, stopped]
}

fn progress() -> Progress {
    Progress { over: vec![Run { first: 2, count: 1 }, Run { first: 6, count: 251 }], live: live() }
}

/// Each message of the control stream with its bytes.
#[rustfmt::skip]
fn control() -> Vec<(Control, Vec<u8>)> {
    let hello_bytes: &[&[u8]] = &[
        &[0],                // Hello
        &[1, 2],             // versions
        &BOOT.0,             // boot
        &[1],                // role: visitor
        &[1], &SESSION.0,    // session
        &[251, 44, 1],       // attach
        &[2, 0xc3, 0xa4],    // name
        &[1],                // profile: battery
        &[252, 0xc0, 0xd4, 1, 0], // resume window, milliseconds
        &[2], V4, V6,        // addresses
        V4,                  // observed
        &[1, 7, 2, 8, 9],    // extensions
    ];
    let live_bytes = &[
        &[3][..],            // live: stream, received, ended, reset, stop
        &[0, 253, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0],
        &[4, 250, 1, 1, 4, 0],
        &[251, 45, 1, 1, 0, 0, 1, 1],
    ].concat();
    let attach_bytes: &[&[u8]] = &[
        &[1],                // Attach
        &SESSION.0,          // session
        &[3],                // attach
        &[251, 46, 1],       // next id
        live_bytes,
        &[1],                // more
    ];
    let progress_bytes: &[&[u8]] = &[
        &[6],                // Progress
        &[2],                // over: first, count
        &[2, 1],
        &[6, 251, 251, 0],
        live_bytes,
    ];
    vec![
        (Control::Hello(hello()), hello_bytes.concat()),
        (Control::Attach(attach()), attach_bytes.concat()),
        (Control::Ping { seq: 251 }, vec![2, 251, 251, 0]),
        (Control::Pong { seq: 0 }, vec![3, 0]),
        (Control::Addresses(vec![v6()]), [&[4, 1], V6].concat()),
        (Control::Goodbye(Goodbye::Disconnect), vec![5, 0]),
        (Control::Goodbye(Goodbye::Down), vec![5, 1]),
        (Control::Goodbye(Goodbye::Refused), vec![5, 2]),
        (Control::Progress(progress()), progress_bytes.concat()),
        (Control::Progress(Progress::default()), vec![6, 0, 0]),
    ]
}

/// Two call headers, with all there can be and with as little, and their bytes.
#[rustfmt::skip]
fn headers() -> Vec<(Header<'static>, Vec<u8>)> {
    let full = Header {
        method: "a/b",
        shape: Shape::Bidi,
        content: ContentType::Json,
        deadline_us: Some(1 << 16),
        idempotency_key: Some(&[7]),
        traceparent: Some("00-"),
        metadata: vec![("k", &[1, 2]), ("k", &[])],
    };
    let bare = Header {
        method: "",
        shape: Shape::Unary,
        content: ContentType::Bincode,
        deadline_us: None,
        idempotency_key: None,
        traceparent: None,
        metadata: vec![],
    };
    let full_bytes = [
        &[3, b'a', b'/', b'b'][..],         // method
        &[3],                               // shape
        &[1],                               // content type
        &[1, 252, 0, 0, 1, 0],              // deadline, microseconds
        &[1, 1, 7],                         // idempotency key
        &[1, 3, b'0', b'0', b'-'],          // traceparent
        &[2, 1, b'k', 2, 1, 2, 1, b'k', 0], // metadata
    ];
    vec![(full, full_bytes.concat()), (bare, vec![0, 0, 0, 0, 0, 0, 0])]
}

fn statuses() -> Vec<(Status, Vec<u8>)> {
    let full = Status { details: vec![9], ..Status::new(Code::NotFound, "no") };
    vec![(full, vec![5, 2, b'n', b'o', 1, 9]), (Status::ok(), vec![0, 0, 0])]
}

/// The golden bytes are the message, each part of them is refused, and one flipped bit makes another message or none.
pub(super) fn holds<M: Message + PartialEq + Debug>(
    cases: Vec<(M, Vec<u8>)>,
    read: impl Fn(&[u8]) -> Result<Vec<u8>, DecodeError>,
) {
    for (message, golden) in cases {
        assert_eq!(encode(&message), golden, "{message:?}");
        assert_eq!(read(&golden).as_ref(), Ok(&golden), "{message:?}");
        for cut in 0..golden.len() {
            assert!(read(&golden[..cut]).is_err(), "{message:?} cut after {cut} bytes");
        }
        assert_eq!(read(&[&golden[..], &[0]].concat()).unwrap_err().reason, Reason::Trailing(1));
        for bit in 0..golden.len() * 8 {
            let mut flipped = golden.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(again) = read(&flipped) {
                assert_eq!(again, flipped, "{message:?} with bit {bit} flipped");
            }
        }
    }
}

pub(super) fn read<M: Message + Decode<()>>(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    decode::<M>(bytes).map(|message| encode(&message))
}

fn read_header(bytes: &[u8]) -> Result<Vec<u8>, DecodeError> {
    decode_borrowed::<Header<'_>>(bytes).map(|header| encode(&header))
}

fn refusal(message: &Control) -> Reason {
    decode::<Control>(&encode(message)).unwrap_err().reason
}

#[test]
fn each_message_of_the_control_stream_has_its_bytes_and_no_others() {
    holds(control(), read::<Control>);
}

#[test]
fn each_call_header_has_its_bytes_and_no_others() {
    holds(headers(), read_header);
}

#[test]
fn each_status_has_its_bytes_and_no_others() {
    holds(statuses(), read::<Status>);
}

#[test]
fn each_number_on_the_wire_stands_for_its_name() {
    for (number, code) in Code::ALL.iter().enumerate() {
        assert_eq!(encode(&Status::new(*code, "")), [number as u8, 0, 0]);
    }
    assert!(decode::<Status>(&[Code::ALL.len() as u8, 0, 0]).is_err());
    let shapes = [Shape::Unary, Shape::ClientStream, Shape::ServerStream, Shape::Bidi];
    for (number, shape) in shapes.into_iter().enumerate() {
        let header = Header { shape, ..headers()[1].0.clone() };
        assert_eq!(encode(&header), [0, number as u8, 0, 0, 0, 0, 0]);
    }
    for (number, content) in ContentType::ALL.into_iter().enumerate() {
        let header = Header { content, ..headers()[1].0.clone() };
        assert_eq!(encode(&header), [0, 0, number as u8, 0, 0, 0, 0]);
    }
}

#[test]
fn a_hello_out_of_bounds_is_refused() {
    let refused = |hello| refusal(&Control::Hello(hello));
    assert_eq!(refused(Hello { versions: (2, 1), ..hello() }), Reason::Invalid("versions are the wrong way round"));
    assert_eq!(refused(Hello { name: "n".repeat(limits::NAME_BYTES + 1), ..hello() }), Reason::Invalid("the name is too long"));
    assert_eq!(refused(Hello { attach: 0, ..hello() }), Reason::Invalid("attach numbers start at 1"));
    let many = vec![v4(); limits::ADDRESSES + 1];
    assert_eq!(refused(Hello { addresses: many.clone(), ..hello() }), Reason::Invalid("too many addresses"));
    assert_eq!(refusal(&Control::Addresses(many)), Reason::Invalid("too many addresses"));
    let portless = SocketAddr::new(v4().ip(), 0);
    assert_eq!(refusal(&Control::Addresses(vec![portless])), Reason::Invalid("an address has no port"));
    let extensions = vec![(1, vec![0; limits::CONTROL_MESSAGE_BYTES])];
    assert!(matches!(refused(Hello { extensions, ..hello() }), Reason::TooLong { .. }));
}

fn stands(stream: u64) -> LiveStream {
    LiveStream { stream, received: 0, ended: false, reset: None, stop: None }
}

#[test]
fn an_attach_or_progress_lists_each_stream_once_and_no_more_than_there_can_be() {
    let most = limits::PROGRESS_ENTRIES as u64;
    let attached = |live| Control::Attach(Attach { live, ..attach() });
    let told = |live| Control::Progress(Progress { live, ..progress() });
    for list in [attached as fn(_) -> _, told] {
        let list = |ids: &mut dyn Iterator<Item = u64>| list(ids.map(stands).collect());
        assert_eq!(refusal(&list(&mut [2, 1].into_iter())), Reason::Invalid("live streams are not in rising order"));
        assert_eq!(refusal(&list(&mut [1, 1].into_iter())), Reason::Invalid("live streams are not in rising order"));
        assert_eq!(refusal(&list(&mut (0..most + 1))), Reason::Invalid("too many live streams"));
        let full = list(&mut (0..most));
        assert!(decode::<Control>(&encode(&full)) == Ok(full));
    }
}

#[test]
fn a_progress_names_each_stream_that_is_over_once() {
    let over = |runs: &[(u64, u64)]| {
        let over = runs.iter().map(|&(first, count)| Run { first, count }).collect();
        Control::Progress(Progress { over, live: Vec::new() })
    };
    let crooked: [&[(u64, u64)]; 8] = [
        &[(0, 0)],
        &[(0, 1), (0, 1)],
        &[(0, 2), (2, 1)],
        &[(4, 1), (2, 1)],
        &[(0, 1 << 63)],
        &[(0, u64::MAX)],
        &[(u64::MAX, 1)],
        &[(0, 1 << 60), (1 << 60, 1)],
    ];
    for runs in crooked {
        assert_eq!(refusal(&over(runs)), Reason::Invalid("runs of streams are not rising"), "{runs:?}");
    }
    let most = limits::PROGRESS_ENTRIES as u64;
    let runs = |count| over(&(0..count).map(|at| (4 * at, 1)).collect::<Vec<_>>());
    assert_eq!(refusal(&runs(most + 1)), Reason::Invalid("too many runs of streams that are over"));
    for good in [runs(most), over(&[(0, 1 << 60)]), over(&[(0, 1 << 60), (1 << 61, 1)])] {
        assert!(decode::<Control>(&encode(&good)) == Ok(good));
    }
}

/// As many streams as may be listed, each with the longest of all values.
fn longest() -> Vec<LiveStream> {
    let most = limits::PROGRESS_ENTRIES as u64;
    let worst = |stream| LiveStream { stream, received: u64::MAX, ended: true, reset: Some(u8::MAX), stop: Some(u8::MAX) };
    (u64::MAX - most..u64::MAX).map(worst).collect()
}

#[test]
fn the_largest_attach_and_the_largest_progress_fit_a_control_message() {
    let (max, most) = (u64::MAX, limits::PROGRESS_ENTRIES);
    let attach = Control::Attach(Attach { attach: max, next_id: max, live: longest(), ..attach() });
    // Each number takes nine bytes, as long as there are.
    let run = |at: u64| Run { first: (1 << 63) + (at << 40), count: 1 << 32 };
    let over = (0..most as u64).map(run).collect();
    let progress = Control::Progress(Progress { over, live: longest() });
    for (message, bytes) in [(attach, 1 + 16 + 9 + 9 + 3 + 23 * most + 1), (progress, 1 + 3 + 18 * most + 3 + 23 * most)] {
        let encoded = encode(&message);
        assert_eq!(encoded.len(), bytes);
        assert!(bytes <= limits::CONTROL_MESSAGE_BYTES, "{bytes}");
        assert!(decode::<Control>(&encoded) == Ok(message));
    }
}

#[test]
fn a_call_header_out_of_bounds_is_refused() {
    let refused = |header: Header<'_>| match decode_borrowed::<Header<'_>>(&encode(&header)) {
        Err(DecodeError { reason: Reason::Invalid(why), .. }) => why,
        other => panic!("{other:?}"),
    };
    let bare = || headers()[1].0.clone();
    let long = "x".repeat(limits::METADATA_ENTRY_BYTES);
    assert_eq!(refused(Header { method: &long, ..bare() }), "the method's name is too long");
    assert_eq!(refused(Header { idempotency_key: Some(&[]), ..bare() }), "the idempotency key is empty or too long");
    assert_eq!(refused(Header { idempotency_key: Some(&[0; 65]), ..bare() }), "the idempotency key is empty or too long");
    assert_eq!(refused(Header { traceparent: Some(&long), ..bare() }), "the traceparent is too long");
    assert_eq!(
        refused(Header { metadata: vec![("", &[]); limits::METADATA_ENTRIES + 1], ..bare() }),
        "too many metadata entries"
    );
    assert_eq!(refused(Header { metadata: vec![(&long, &[0])], ..bare() }), "a metadata entry is too large");
}

#[test]
fn the_largest_call_header_fits_its_limit() {
    let name = "n".repeat(2 * limits::NAME_BYTES + 1);
    let text = "t".repeat(limits::NAME_BYTES);
    let value = vec![0; limits::METADATA_ENTRY_BYTES];
    let header = Header {
        method: &name,
        deadline_us: Some(u64::MAX),
        idempotency_key: Some(&value[..limits::IDEMPOTENCY_KEY_BYTES]),
        traceparent: Some(&text),
        metadata: vec![("", &value[..]); limits::METADATA_ENTRIES],
        ..headers()[1].0.clone()
    };
    assert_eq!(decode_borrowed::<Header<'_>>(&encode(&header)), Ok(header));
}

/// The example of the protocol's guide.
#[test]
#[rustfmt::skip]
fn a_unary_call_has_these_bytes() {
    let mut call = Vec::new();
    Head::Fresh { stream: 2 }.put(&mut call);
    call.push(Purpose::Call as u8);
    put_message(&mut call, &Header { method: "greeter/hello", ..headers()[1].0.clone() });
    put_frame(&mut call, &[&[Tag::Message as u8], &*body::encode(ContentType::Bincode, "world").unwrap()].concat());
    let expected: &[&[u8]] = &[
        &[2, 2],
        &[1],
        &[20, 13], b"greeter/hello", &[0; 6],
        &[7, 0, 5], b"world",
    ];
    assert_eq!(call, expected.concat());
}

//! Every bound on what a peer may send, in one place. Nothing here is negotiated: a peer that exceeds a bound is refused,
//! and the refusal is counted. What an operator may change is in the node's configuration, which starts from these.

use std::time::Duration;

mod operator;

pub use operator::Limits;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

// Messages.

/// Largest control message (hello, attach, ping, …), in bytes.
pub const CONTROL_MESSAGE_BYTES: usize = 64 * KIB;
/// Largest body of one message of a call, in bytes.
pub const BODY_BYTES: usize = 4 * MIB;
/// Largest call header (names, metadata and all), in bytes: 32 entries of 4 KiB, and the rest.
pub const CALL_HEADER_BYTES: usize = 160 * KIB;
/// Largest status with its message and details, in bytes.
pub const STATUS_BYTES: usize = 16 * KIB;
/// Longest name of anything (service, method, peer, wire), in bytes.
pub const NAME_BYTES: usize = 255;
/// Most metadata entries of a call.
pub const METADATA_ENTRIES: usize = 32;
/// Largest key and value of one metadata entry together, in bytes.
pub const METADATA_ENTRY_BYTES: usize = 4 * KIB;
/// Longest idempotency key, in bytes.
pub const IDEMPOTENCY_KEY_BYTES: usize = 64;
/// Largest description of a service in a directory, in bytes of JSON.
pub const DESCRIPTION_BYTES: usize = 64 * KIB;
/// Most peers that a service in a directory names as those who may find it.
pub const PRIVATE_PEERS: usize = 256;
/// Largest message about one service of a directory, in bytes: description, metadata, names, and the rest.
pub const LISTING_BYTES: usize = 256 * KIB;
/// Most addresses a hello or a ticket names.
pub const ADDRESSES: usize = 16;
/// Most relays a ticket names.
pub const RELAYS: usize = 8;
/// Most relays that a circuit goes through.
pub const RELAYS_IN_A_ROW: usize = 4;
/// Largest certificate a peer may present, in bytes of DER.
pub const CERTIFICATE_BYTES: usize = 2 * KIB;
/// Most live streams that one side of a session opened: those in flight, and those whose end is not acknowledged yet.
pub const LIVE_STREAMS: usize = 2_048;
/// Most streams, and most runs of them, that one attach or progress message lists. What there is more goes into the next.
pub const PROGRESS_ENTRIES: usize = 1_024;
/// Largest chunk of a wire, in bytes.
pub const CHUNK_BYTES: usize = MIB;
/// Most metadata of a chunk, in bytes.
pub const CHUNK_METADATA_BYTES: usize = 4 * KIB;
/// Longest name of a wire, in bytes.
pub const WIRE_NAME_BYTES: usize = 200;
/// Longest name of what is exposed, in bytes.
pub const TARGET_NAME_BYTES: usize = 200;
/// Most chunks that a wire may be made to keep in memory.
pub const WIRE_RING_CHUNKS: u32 = 1 << 20;
/// Least and most bytes that a wire may be made to keep in memory.
pub const WIRE_RING_LEAST_BYTES: u32 = 64 * KIB as u32;
/// See [`WIRE_RING_LEAST_BYTES`].
pub const WIRE_RING_BYTES: u32 = 64 * MIB as u32;
/// Deepest nesting of a call's body in bincode.
pub const BODY_DEPTH: usize = 64;

// Streams and windows.

/// Streams a stranger may open before permit.
pub const STRANGER_STREAMS: u32 = 3;
/// Connection window of a stranger, in bytes.
pub const STRANGER_WINDOW_BYTES: u32 = 64 * KIB as u32;
/// Streams a permitted peer may hold open at once. A quarter above the calls in flight: quinn tells the peer of streams it may
/// open again only when more than an eighth of this is due.
pub const STREAMS: u32 = 1_024 + 256;
/// Lanes of a circuit that take new streams, on each side: streams that others carry, shared by the small path streams.
pub const LANES: usize = 4;
/// Lanes of one side at once, with those that take no new streams any more.
pub const LANES_LIVE: usize = 2 * LANES;
/// Path streams that are live on one lane.
pub const LANE_STREAMS: usize = STREAMS as usize / LANES;
/// Largest first write of a path stream that goes over a lane, in bytes; with a larger one it begins on a stream of its own.
pub const LANE_FIRST_BYTES: usize = 4 * KIB;
/// Most bytes of one direction of a path stream that go over a lane.
pub const LANE_STREAM_BYTES: usize = 16 * KIB;
/// Bytes that wait for room on a lane, above which writers wait.
pub const LANE_QUEUE_BYTES: usize = 64 * KIB;
/// Receive window of one stream, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = (MIB + 256 * KIB) as u32;
/// Connection window of an idle session, in bytes.
pub const WINDOW_IDLE_BYTES: u32 = 256 * KIB as u32;
/// Largest connection window of one session, in bytes; drawn from the node's budget.
pub const WINDOW_MAX_BYTES: u32 = 12 * MIB as u32;
/// Most bytes of unacknowledged data quinn holds for one connection.
pub const SEND_WINDOW_BYTES: u64 = 64 * MIB as u64;
/// Send and receive buffers asked of the kernel, in bytes.
pub const SOCKET_BUFFER_BYTES: usize = 4 * MIB;

/// Bytes of one tunnel that may lie unread at the other end, whatever the others of its session have there.
pub const TUNNEL_UNREAD_BYTES: usize = 16 * KIB;
/// The same of all tunnels of a session together, beyond that: of what others leave each may have a fifth. With the little that each has
/// they do not fill the session's window.
pub const TUNNELS_UNREAD_BYTES: usize = 6 * MIB;

/// Bytes of one stream that are kept for resumption whatever the node's budget says.
pub const STREAM_KEPT_BYTES: usize = 16 * KIB;
/// Bytes kept of a stream that sends more than that.
pub const STREAM_KEPT_NEXT_BYTES: usize = MIB;
/// Most bytes kept of one stream: what its window lets be on the way, there and back, and room to spare.
pub const STREAM_KEPT_MAX_BYTES: usize = 4 * MIB;
/// Most bytes kept for all streams of a session, beyond the little that each may always keep.
pub const SESSION_KEPT_BYTES: usize = 64 * MIB;
/// The same for a session whose peer has acknowledged nothing yet. What it acknowledges is added.
pub const SESSION_KEPT_FIRST_BYTES: usize = 3 * MIB;

// Counts.

/// Streams of one session, in each direction, that are no calls: registrations, watches, feeds of wires.
pub const FEEDS: usize = 512;
/// Tunnels of one session, in each direction; further ones are turned away.
pub const TUNNELS: usize = 512;
/// Tunnels that a node serves for all its peers.
pub const NODE_TUNNELS: usize = 4_096;
/// Requests of one peer that administers a node, at once; further ones are turned away.
pub const ADMINISTER: usize = 16;
/// The same of all peers.
pub const NODE_ADMINISTER: usize = 64;
/// The head of such a request is here within this.
pub const ADMINISTER_HEAD: Duration = Duration::from_secs(10);
/// Targets that a node exposes.
pub const TARGETS: usize = 256;
/// Connections that one forward carries at once; further ones wait until it accepts them.
pub const FORWARD_CONNECTIONS: usize = 512;
/// Things that happen to tunnels and are kept for whoever is told of them; a reader that is behind by more is told how many it missed.
pub const TUNNEL_EVENTS: usize = 256;
/// Services that one peer registers in a directory.
pub const REGISTRATIONS: usize = 256;
/// Bytes of what one peer registers.
pub const PROVIDER_LISTING_BYTES: usize = 4 * MIB;
/// Services that are mirrored from one other directory.
pub const MIRRORED: usize = 4_096;
/// Bytes of what is mirrored from one other directory.
pub const MIRRORED_BYTES: usize = 16 * MIB;
/// Bytes of what a directory lists, of all peers together.
pub const DIRECTORY_BYTES: usize = 64 * MIB;
/// Services that are offline and still listed; beyond these the ones that have been for longest are forgotten.
pub const OFFLINE_LISTED: usize = 4_096;
/// Changes of a directory that are kept for watchers that are slow; whoever is behind by more is told everything anew.
pub const DIRECTORY_CHANGES: usize = 1_024;
/// Bytes of listings kept with those changes.
pub const DIRECTORY_CHANGES_BYTES: usize = MIB;
/// Watches of a directory that one session has.
pub const WATCHES: usize = 64;
/// Entries that all watchers of a directory were told of, each counted once for each watcher.
pub const WATCHED_ENTRIES: usize = 4_000_000;
/// Wires of a node.
pub const WIRES: usize = 4_096;
/// Bytes in memory for all wires of a node.
pub const WIRES_BYTES: usize = 256 * MIB;
/// Publishers of which a wire remembers how far they have got; those that were silent for longest are forgotten.
pub const WIRE_PUBLISHERS: usize = 4_096;
/// Free space on disk, in bytes, below which persistent wires take nothing.
pub const WIRE_DISK_FREE_BYTES: u64 = 64 * MIB as u64;
/// Calls in flight per session and direction; further ones wait at the caller.
pub const CALLS_IN_FLIGHT: usize = 1_024;
/// Bytes of bodies and answers held for one session.
pub const SESSION_BODY_BYTES: usize = 8 * MIB;
/// Bytes of buffers a node holds for all its sessions.
pub const NODE_BUFFER_BYTES: usize = 1024 * MIB;
/// Sessions of a node.
pub const SESSIONS: usize = 10_000;
/// Handshakes a node has under way.
pub const PENDING_HANDSHAKES: usize = 256;
/// Handshakes under way above which newcomers must prove their address (QUIC Retry).
pub const RETRY_ABOVE: usize = 64;
/// Handshakes per second and address (IPv6: /64).
pub const HANDSHAKES_PER_SECOND: u32 = 20;
/// Handshakes an address (IPv6: /64) may start at once.
pub const HANDSHAKE_BURST: u32 = 40;
/// Sessions from one address (IPv6: /64) of peers no rule names.
pub const SESSIONS_PER_ADDRESS: usize = 64;
/// Strangers whose hello is waited for at once.
pub const STRANGERS_HEARD: usize = 64;
/// The same, from one address (IPv6: /64).
pub const HEARD_PER_ADDRESS: usize = 8;
/// The same, of those that come through a relay at one address.
pub const RELAYED_HEARD: usize = STRANGERS_HEARD / 2;
/// Strangers who wait for the owner to decide.
pub const REQUESTS: usize = 64;
/// The same, from one address (IPv6: /64).
pub const REQUESTS_PER_ADDRESS: usize = 8;
/// The same, of those that came through a relay at one address.
pub const REQUESTS_RELAYED: usize = REQUESTS / 2;
/// Invitations that a node has issued and still remembers.
pub const INVITATIONS: u64 = 1_024;
/// Most nodes that one invitation lets in.
pub const INVITATION_USES: u32 = 1_000;
/// Most rules that an invitation, or the owner's answer to a request, makes besides leave to connect.
pub const INVITATION_RULES: usize = 64;
/// Bytes in which a node remembers calls with an idempotency key.
pub const REPLAY_BYTES: usize = 64 * MIB;
/// The same, for one caller.
pub const REPLAY_CALLER_BYTES: usize = 12 * MIB;
/// Largest answer that is remembered, in bytes. Of a larger one only that it was given.
pub const REPLAY_ANSWER_BYTES: usize = 64 * KIB;
/// What a remembered call counts for besides its key and answer, in bytes: about what it takes in our tables.
pub const REPLAY_ENTRY_BYTES: usize = 512;
/// Rates of the configuration.
pub const RATES: usize = 256;
/// Identities of which one rate remembers how often they called; those beyond share one bucket.
pub const RATED_IDENTITIES: usize = 4_096;
/// Bytes of one file of the journal.
pub const JOURNAL_BYTES: u64 = 8 * MIB as u64;
/// Files of the journal, the one that is written among them.
pub const JOURNAL_FILES: usize = 4;
/// Visitors of one identity at once.
pub const VISITORS: usize = 8;
/// Links of one identity that are on the way to a session: each may say 64 KiB before it is greeted.
pub const LINKS_ARRIVING: usize = 64;
/// The same, from one address (IPv6: /64).
pub const LINKS_ARRIVING_PER_ADDRESS: usize = 16;
/// Streams of one circuit that are open at once, in each direction.
pub const CIRCUIT_STREAMS: u32 = 256;
/// Circuits that a relay carries.
pub const RELAY_CIRCUITS: usize = 1_024;
/// Circuits that a relay carries for one neighbour.
pub const RELAY_CIRCUITS_PER_IDENTITY: usize = 16;
/// Circuits that a relay carries for guests from one address (IPv6: /64).
pub const RELAY_CIRCUITS_PER_ADDRESS: usize = 64;
/// Bytes per second that a relay carries for one guest, both ways together: 10 Mbit/s.
pub const RELAY_GUEST_BYTES_PER_SECOND: u64 = 1_250_000;
/// Circuits whose handshake is under way at the node they lead to, from one link.
pub const CIRCUITS_BEGINNING: usize = 16;

// Times.

/// A QUIC handshake, dialled or accepted, ends within this.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// Nothing has come back of a circuit that a relay opens: it is given up after this.
pub const CIRCUIT_HALF_OPEN: Duration = Duration::from_secs(10);
/// One side of a circuit has ended; the other gets so long to do the same.
pub const CIRCUIT_ENDING: Duration = Duration::from_secs(5);
/// A relayed stream that gets no credit on the next leg for this long is reset.
pub const CIRCUIT_STREAM_CREDIT: Duration = Duration::from_secs(10);
/// A session leaves a circuit that is as old as this for a fresh one, with other keys.
pub const CIRCUIT_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// First and longest time between two attempts to reach a peer directly that is reached through a relay.
pub const UPGRADE_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// A relay is tried beside an address when that has not answered for so long.
pub const RELAY_AFTER: Duration = Duration::from_millis(250);
/// A circuit of a guest ends after this; its ends make another one.
pub const RELAY_GUEST_TIME: Duration = Duration::from_secs(3_600);
/// A peer says hello within this.
pub const HELLO: Duration = Duration::from_secs(5);
/// A stranger's request is forgotten when it was not heard of for so long.
pub const REQUEST_KEPT: Duration = Duration::from_secs(600);
/// Where there is no room for a new one, one that was not heard of for so long gives way.
pub const REQUEST_SILENT: Duration = Duration::from_secs(60);
/// Invitations that are no good, from one address (IPv6: /64); beyond them none from there is looked at for the rest of the second.
pub const WRONG_INVITATIONS_PER_SECOND: u32 = 10;
/// An invitation is good for at most this long.
pub const INVITATION_LIFE: Duration = Duration::from_secs(366 * 24 * 3_600);
/// A session can be resumed for this long after its last path was lost.
pub const RESUME_WINDOW: Duration = Duration::from_secs(120);
/// What a reader has taken is acknowledged, and a stream that is over reported, within this…
pub const PROGRESS_WITHIN: Duration = Duration::from_millis(25);
/// … or as soon as so many bytes were taken…
pub const PROGRESS_BYTES: usize = 256 * KIB;
/// … or so many streams are over.
pub const PROGRESS_STREAMS: usize = 128;
/// A service that is offline stays listed for this long.
pub const OFFLINE_LISTED_FOR: Duration = Duration::from_secs(24 * 3_600);
/// First ceiling of the time between two attempts to dial.
pub const BACKOFF_FIRST: Duration = Duration::from_millis(100);
/// Largest ceiling of the time between two attempts to dial.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The same, for a peer that refused us, and for an address that answered with another key.
pub const REFUSED_BACKOFF_MAX: Duration = Duration::from_secs(300);
/// Deadline of a unary call that names none.
pub const CALL_DEADLINE: Duration = Duration::from_secs(30);
/// Longest deadline of a unary call.
pub const CALL_DEADLINE_MAX: Duration = Duration::from_secs(3_600);
/// A call with an idempotency key is remembered for this long after it ended, or until its deadline if that is later: its caller
/// makes it again by itself until then. Five times the time in which a session can be resumed.
pub const REPLAY_WINDOW: Duration = Duration::from_secs(600);
/// A publisher of a wire that blocks waits so long for one subscriber.
pub const WIRE_STALL: Duration = Duration::from_secs(30);
/// A target of a tunnel takes a connection within this.
pub const TUNNEL_CONNECT: Duration = Duration::from_secs(10);
/// A connection that came to a forward waits so long for the session, and for the far side to take it.
pub const TUNNEL_OPEN: Duration = Duration::from_secs(30);
/// A wire that nobody made on purpose goes when nobody has used it for so long.
pub const WIRE_UNUSED: Duration = Duration::from_secs(3_600);
/// A node going down waits this long for its calls in flight.
pub const DRAIN: Duration = Duration::from_secs(10);
/// A path with something outstanding is dead when nothing answered for this long.
pub const ANSWER_BOUND: Duration = Duration::from_secs(3);
/// QUIC's own idle timeout, a last resort: sessions judge liveness themselves.
pub const QUIC_IDLE: Duration = Duration::from_secs(90);

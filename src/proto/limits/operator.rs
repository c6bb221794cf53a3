//! The bounds an operator may change, where they start, and how far they go. All others are fixed in [`crate::proto::limits`].

use std::fmt::Display;
use std::time::Duration;

use serde::Deserialize;

use crate::proto::{duration, limits};

/// The bounds an operator may change. The default of each is the constant of [`crate::proto::limits`] that it names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Sessions of this node, 1 to 100,000. [`limits::SESSIONS`]
    pub sessions: usize,
    /// Sessions from one address (IPv6: /64) of peers no rule names, 1 to 100,000. [`limits::SESSIONS_PER_ADDRESS`]
    pub sessions_per_address: usize,
    /// Handshakes under way, 1 to 65,536. [`limits::PENDING_HANDSHAKES`]
    pub pending_handshakes: usize,
    /// Handshakes under way above which newcomers must prove their address, 0 to 65,536. [`limits::RETRY_ABOVE`]
    pub retry_above: usize,
    /// Handshakes per second and address (IPv6: /64), 1 to 100,000. [`limits::HANDSHAKES_PER_SECOND`]
    pub handshakes_per_second: u32,
    /// Handshakes an address (IPv6: /64) may start at once, 1 to 100,000. [`limits::HANDSHAKE_BURST`]
    pub handshake_burst: u32,
    /// How long a newcomer's handshake may take, 1 s to 60 s. [`limits::HANDSHAKE`]
    #[serde(deserialize_with = "duration::from_text")]
    pub handshake: Duration,
    /// How long a peer that was let in may take to say hello, 1 s to 60 s. [`limits::HELLO`]
    #[serde(deserialize_with = "duration::from_text")]
    pub hello: Duration,
    /// Visitors of one identity at once, 0 to 1,024. [`limits::VISITORS`]
    pub visitors: usize,
    /// Calls in flight per session and direction, 1 to 1,024. [`limits::CALLS_IN_FLIGHT`]
    pub calls_in_flight: usize,
    /// Bodies and answers held for one session, in bytes: 4 MiB (one body always fits) to 1 GiB. [`limits::SESSION_BODY_BYTES`]
    pub session_body_bytes: usize,
    /// Largest connection window of one session, in bytes: 16 MiB (peers count on it) to 1 GiB. [`limits::WINDOW_MAX_BYTES`]
    pub window_max_bytes: u32,
    /// Registrations, watches and feeds of wires of one session, 1 to 512. [`limits::FEEDS`]
    pub feeds: usize,
    /// Tunnels that one session opens here, 0 to 512. [`limits::TUNNELS`]
    pub tunnels: usize,
    /// Tunnels that the node serves for all its peers, 0 to 100,000. [`limits::NODE_TUNNELS`]
    pub node_tunnels: usize,
    /// Services that one peer registers here, 0 to 4,096. [`limits::REGISTRATIONS`]
    pub registrations: usize,
    /// Wires of the node, 0 to 4,096. Those on disk are opened whatever this says. [`limits::WIRES`]
    pub wires: usize,
    /// Free space on disk, in bytes, below which persistent wires take nothing: 0 to 1 TiB. [`limits::WIRE_DISK_FREE_BYTES`]
    pub wire_disk_free_bytes: u64,
    /// Buffers held for all sessions, in bytes: 16 MiB to 1 TiB. [`limits::NODE_BUFFER_BYTES`]
    pub node_buffer_bytes: usize,
    /// Send and receive buffers asked of the kernel, in bytes: 64 KiB to 256 MiB. [`limits::SOCKET_BUFFER_BYTES`]
    pub socket_buffer_bytes: usize,
    /// Circuits this node carries, 0 to 100,000. [`limits::RELAY_CIRCUITS`]
    pub relay_circuits: usize,
    /// Those of one neighbour, 0 to 100,000. [`limits::RELAY_CIRCUITS_PER_IDENTITY`]
    pub relay_circuits_per_identity: usize,
    /// Those of guests (whom no rule names) from one address (IPv6: /64), 0 to 100,000. [`limits::RELAY_CIRCUITS_PER_ADDRESS`]
    pub relay_circuits_per_address: usize,
    /// Bytes per second carried for one neighbour that a rule names, both ways together; 0: as many as the links take, the default.
    pub relay_bytes_per_second: u64,
    /// The same for a guest. [`limits::RELAY_GUEST_BYTES_PER_SECOND`]
    pub relay_guest_bytes_per_second: u64,
    /// Bytes per second carried for all together, of which neighbours that want more get even shares; 0: as many as the links take, the
    /// default.
    pub relay_all_bytes_per_second: u64,
    /// How long a circuit that is being opened may go without a word from its far end, 1 s to 60 s. [`limits::CIRCUIT_HALF_OPEN`]
    #[serde(deserialize_with = "duration::from_text")]
    pub relay_half_open: Duration,
    /// How long a circuit of a guest lasts, 1 s to 24 h. [`limits::RELAY_GUEST_TIME`]
    #[serde(deserialize_with = "duration::from_text")]
    pub relay_guest_time: Duration,
    /// Bytes of one file of the journal, 64 KiB to 1 GiB. [`limits::JOURNAL_BYTES`]
    pub journal_bytes: u64,
    /// Files of the journal, 2 to 100. [`limits::JOURNAL_FILES`]
    pub journal_files: usize,
    /// How long a session without a path can be resumed, up to 1 h; 0: sessions are not resumed. Of two nodes the smaller holds.
    /// [`limits::RESUME_WINDOW`]
    #[serde(deserialize_with = "duration::from_text")]
    pub resume_window: Duration,
    /// First ceiling of the time between two attempts to dial, 10 ms to `backoff_max`. [`limits::BACKOFF_FIRST`]
    #[serde(deserialize_with = "duration::from_text")]
    pub backoff_first: Duration,
    /// Largest ceiling of the time between two attempts to dial, 1 s to 1 h. [`limits::BACKOFF_MAX`]
    #[serde(deserialize_with = "duration::from_text")]
    pub backoff_max: Duration,
    /// Deadline of a unary call that names none, 1 ms to `call_deadline_max`. [`limits::CALL_DEADLINE`]
    #[serde(deserialize_with = "duration::from_text")]
    pub call_deadline: Duration,
    /// Longest deadline of a unary call, 1 s to 24 h. [`limits::CALL_DEADLINE_MAX`]
    #[serde(deserialize_with = "duration::from_text")]
    pub call_deadline_max: Duration,
    /// How long a node going down waits for its calls in flight, 0 s to 1 h. [`limits::DRAIN`]
    #[serde(deserialize_with = "duration::from_text")]
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: limits::SESSIONS,
            sessions_per_address: limits::SESSIONS_PER_ADDRESS,
            pending_handshakes: limits::PENDING_HANDSHAKES,
            retry_above: limits::RETRY_ABOVE,
            handshakes_per_second: limits::HANDSHAKES_PER_SECOND,
            handshake_burst: limits::HANDSHAKE_BURST,
            handshake: limits::HANDSHAKE,
            hello: limits::HELLO,
            visitors: limits::VISITORS,
            calls_in_flight: limits::CALLS_IN_FLIGHT,
            session_body_bytes: limits::SESSION_BODY_BYTES,
            window_max_bytes: limits::WINDOW_MAX_BYTES,
            feeds: limits::FEEDS,
            tunnels: limits::TUNNELS,
            node_tunnels: limits::NODE_TUNNELS,
            registrations: limits::REGISTRATIONS,
            wires: limits::WIRES,
            wire_disk_free_bytes: limits::WIRE_DISK_FREE_BYTES,
            node_buffer_bytes: limits::NODE_BUFFER_BYTES,
            socket_buffer_bytes: limits::SOCKET_BUFFER_BYTES,
            relay_circuits: limits::RELAY_CIRCUITS,
            relay_circuits_per_identity: limits::RELAY_CIRCUITS_PER_IDENTITY,
            relay_circuits_per_address: limits::RELAY_CIRCUITS_PER_ADDRESS,
            relay_bytes_per_second: 0,
            relay_guest_bytes_per_second: limits::RELAY_GUEST_BYTES_PER_SECOND,
            relay_all_bytes_per_second: 0,
            relay_half_open: limits::CIRCUIT_HALF_OPEN,
            relay_guest_time: limits::RELAY_GUEST_TIME,
            journal_bytes: limits::JOURNAL_BYTES,
            journal_files: limits::JOURNAL_FILES,
            resume_window: limits::RESUME_WINDOW,
            backoff_first: limits::BACKOFF_FIRST,
            backoff_max: limits::BACKOFF_MAX,
            call_deadline: limits::CALL_DEADLINE,
            call_deadline_max: limits::CALL_DEADLINE_MAX,
            drain: limits::DRAIN,
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const MIB: usize = 1 << 20;

impl Limits {
    /// The first bound that is out of its range, and what the range is.
    pub fn out_of_range(&self) -> Option<(&'static str, String)> {
        let deadlines = within("call_deadline_max", self.call_deadline_max, SECOND, 24 * HOUR)
            .or_else(|| within("call_deadline", self.call_deadline, Duration::from_millis(1), self.call_deadline_max));
        within("sessions", self.sessions, 1, 100_000)
            .or_else(|| within("sessions_per_address", self.sessions_per_address, 1, 100_000))
            .or_else(|| within("pending_handshakes", self.pending_handshakes, 1, 65_536))
            .or_else(|| within("retry_above", self.retry_above, 0, 65_536))
            .or_else(|| within("handshakes_per_second", self.handshakes_per_second, 1, 100_000))
            .or_else(|| within("handshake_burst", self.handshake_burst, 1, 100_000))
            .or_else(|| within("handshake", self.handshake, SECOND, 60 * SECOND))
            .or_else(|| within("hello", self.hello, SECOND, 60 * SECOND))
            .or_else(|| within("visitors", self.visitors, 0, 1_024))
            .or_else(|| within("calls_in_flight", self.calls_in_flight, 1, limits::CALLS_IN_FLIGHT))
            .or_else(|| within("session_body_bytes", self.session_body_bytes, limits::BODY_BYTES, 1_024 * MIB))
            .or_else(|| within("window_max_bytes", self.window_max_bytes, 1 << 20, 1 << 30))
            .or_else(|| within("feeds", self.feeds, 1, limits::FEEDS))
            .or_else(|| within("tunnels", self.tunnels, 0, limits::TUNNELS))
            .or_else(|| within("node_tunnels", self.node_tunnels, 0, 100_000))
            .or_else(|| within("registrations", self.registrations, 0, 4_096))
            .or_else(|| within("wires", self.wires, 0, limits::WIRES))
            .or_else(|| within("wire_disk_free_bytes", self.wire_disk_free_bytes, 0, 1 << 40))
            .or_else(|| within("node_buffer_bytes", self.node_buffer_bytes, 16 * MIB, MIB.saturating_mul(MIB)))
            .or_else(|| within("socket_buffer_bytes", self.socket_buffer_bytes, MIB / 16, 256 * MIB))
            .or_else(|| within("relay_circuits", self.relay_circuits, 0, 100_000))
            .or_else(|| within("relay_circuits_per_identity", self.relay_circuits_per_identity, 0, 100_000))
            .or_else(|| within("relay_circuits_per_address", self.relay_circuits_per_address, 0, 100_000))
            .or_else(|| within("relay_half_open", self.relay_half_open, SECOND, 60 * SECOND))
            .or_else(|| within("relay_guest_time", self.relay_guest_time, SECOND, 24 * HOUR))
            .or_else(|| within("journal_bytes", self.journal_bytes, 64 << 10, 1 << 30))
            .or_else(|| within("journal_files", self.journal_files, 2, 100))
            .or_else(|| within("resume_window", self.resume_window, Duration::ZERO, HOUR))
            .or_else(|| within("backoff_max", self.backoff_max, SECOND, HOUR))
            .or_else(|| within("backoff_first", self.backoff_first, Duration::from_millis(10), self.backoff_max))
            .or(deadlines)
            .or_else(|| within("drain", self.drain, Duration::ZERO, HOUR))
    }
}

/// A bound in the text of errors: a number as it is, a time in words.
trait Bound: PartialOrd {
    fn text(&self) -> impl Display;
}

impl Bound for usize {
    fn text(&self) -> impl Display {
        *self
    }
}

impl Bound for u32 {
    fn text(&self) -> impl Display {
        *self
    }
}

impl Bound for u64 {
    fn text(&self) -> impl Display {
        *self
    }
}

impl Bound for Duration {
    fn text(&self) -> impl Display {
        match self.as_millis() {
            millis if millis % 1_000 == 0 => format!("{}s", millis / 1_000),
            millis => format!("{millis}ms"),
        }
    }
}

fn within<B: Bound>(name: &'static str, value: B, least: B, most: B) -> Option<(&'static str, String)> {
    let fits = value >= least && value <= most;
    (!fits).then(|| (name, format!("{name} is {}, and may be {} to {}", value.text(), least.text(), most.text())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_start_from_is_within_its_own_ranges() {
        assert_eq!(Limits::default().out_of_range(), None);
    }

    #[test]
    fn a_bound_out_of_its_range_is_named_with_the_range() {
        let limits = Limits { sessions: 0, ..Limits::default() };
        assert_eq!(limits.out_of_range().unwrap().1, "sessions is 0, and may be 1 to 100000");
        let limits = Limits { resume_window: 2 * HOUR, ..Limits::default() };
        assert_eq!(limits.out_of_range().unwrap().1, "resume_window is 7200s, and may be 0s to 3600s");
        assert_eq!(Limits { resume_window: Duration::ZERO, ..Limits::default() }.out_of_range(), None);
        let limits = Limits { call_deadline: 2 * HOUR, ..Limits::default() };
        assert_eq!(limits.out_of_range().unwrap().0, "call_deadline");
        let limits = Limits { backoff_first: 2 * HOUR, ..Limits::default() };
        assert_eq!(limits.out_of_range().unwrap().1, "backoff_first is 7200s, and may be 10ms to 30s");
    }
}

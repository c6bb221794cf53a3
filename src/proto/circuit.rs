//! How a circuit is opened, leg by leg, and how its streams begin. On each leg the circuit has a number; a relay changes that and
//! nothing else.

use bincode::{Decode, Encode};

use super::codec::Message;
use super::limits;
use super::stream::Kind;
use super::varint::{self, VarintError};
use crate::id::NodeId;

/// The first frame of a circuit's control stream on a leg, after the kind byte. What follows it is for the far end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Open {
    /// The circuit's number on this link: even from the side that dialled the link, odd from the other; never used twice there.
    pub leg: u64,
    /// Names the circuit at its two ends.
    pub circuit: [u8; 16],
    /// The nodes that come after the receiver; the last one is the far end. Empty: the receiver is.
    pub route: Vec<NodeId>,
}

/// The first byte that comes back on the control stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// The far end has answered; what follows is from it.
    Open = 0,
    /// There is no circuit: a frame with a [`Refused`] follows, and nothing after it.
    Refused = 1,
}

impl Answer {
    /// The answer of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Answer::Open),
            1 => Some(Answer::Refused),
            _ => None,
        }
    }
}

/// Who did not open a circuit, and why. Whoever is on the way may have said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
#[error("{by} says: {why}")]
pub struct Refused {
    /// A node on the way, by its own word.
    pub by: NodeId,
    /// Its reason.
    pub why: Refusal,
}

/// Why a node on the way does not open a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// It has no link of its own to the next node.
    #[error("the next node is not attached here")]
    NotHere,
    /// It relays for others, but not this.
    #[error("it does not relay this")]
    NotAllowed,
    /// It carries as many circuits as it may, for this neighbour or in all.
    #[error("too many circuits")]
    TooMany,
    /// The route is longer than it may be, or leads back to a node that it has passed.
    #[error("the route is too long, or goes in a circle")]
    Route,
    /// The next node gave no answer in time.
    #[error("the next node gave no answer in time")]
    NoAnswer,
}

impl Message for Open {
    const NAME: &'static str = "open";
    const LIMIT: usize = 512;

    fn check(&self) -> Result<(), &'static str> {
        match self.route.len() > limits::RELAYS_IN_A_ROW || repeats(&self.route) {
            true => Err("the route is too long, or names a node twice"),
            false => Ok(()),
        }
    }
}

impl Message for Refused {
    const NAME: &'static str = "refused";
    const LIMIT: usize = 64;
}

/// Whether a node is named twice.
pub fn repeats(route: &[NodeId]) -> bool {
    route.iter().zip(1..).any(|(node, after)| route[after..].contains(node))
}

/// How a relayed stream begins on a leg: the kind byte, the circuit's number there, and the stream's number on the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHead {
    /// The circuit's number on the link.
    pub leg: u64,
    /// The stream's number on the circuit, the same on all legs.
    pub stream: u64,
}

impl StreamHead {
    /// Appends the kind byte and the head.
    pub fn put(&self, buf: &mut Vec<u8>) {
        buf.push(Kind::CircuitStream as u8);
        varint::put(buf, self.leg);
        varint::put(buf, self.stream);
    }

    /// Reads a head from the bytes after the kind byte; `None` while it is not whole. Also says how long it was.
    ///
    /// # Errors
    /// [`VarintError`]: it is none.
    pub fn get(bytes: &[u8]) -> Result<Option<(Self, usize)>, VarintError> {
        let Some((leg, first)) = varint::get(bytes)? else { return Ok(None) };
        let Some((stream, second)) = varint::get(&bytes[first..])? else { return Ok(None) };
        Ok(Some((Self { leg, stream }, first + second)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::codec;

    fn id(byte: u8) -> NodeId {
        NodeId::from_bytes([byte; 32])
    }

    #[test]
    fn an_open_has_its_bytes() {
        let open = Open { leg: 6, circuit: [0xc1; 16], route: vec![id(2), id(3)] };
        let bytes = [vec![6], vec![0xc1; 16], vec![2], vec![2; 32], vec![3; 32]].concat();
        assert_eq!(codec::encode(&open), bytes);
        assert_eq!(codec::decode::<Open>(&bytes), Ok(open));
    }

    #[test]
    fn the_longest_route_fits_and_one_node_more_does_not() {
        let route = |nodes: u8| Open { leg: u64::MAX, circuit: [0; 16], route: (0..nodes).map(id).collect() };
        assert!(codec::decode::<Open>(&codec::encode(&route(limits::RELAYS_IN_A_ROW as u8))).is_ok());
        assert!(codec::decode::<Open>(&codec::encode(&route(limits::RELAYS_IN_A_ROW as u8 + 1))).is_err());
    }

    #[test]
    fn a_route_that_names_a_node_twice_is_none() {
        let open = Open { leg: 0, circuit: [0; 16], route: vec![id(1), id(2), id(1)] };
        assert!(codec::decode::<Open>(&codec::encode(&open)).is_err());
    }

    #[test]
    fn a_refusal_has_its_bytes() {
        let refused = Refused { by: id(9), why: Refusal::TooMany };
        let bytes = [vec![9; 32], vec![2]].concat();
        assert_eq!(codec::encode(&refused), bytes);
        assert_eq!(codec::decode::<Refused>(&bytes), Ok(refused));
    }

    #[test]
    fn a_streams_head_is_read_back_only_when_it_is_whole() {
        let head = StreamHead { leg: 70, stream: 1 << 40 };
        let mut buf = Vec::new();
        head.put(&mut buf);
        assert_eq!(buf[0], Kind::CircuitStream as u8);
        for cut in 0..buf.len() - 1 {
            assert_eq!(StreamHead::get(&buf[1..1 + cut]), Ok(None));
        }
        assert_eq!(StreamHead::get(&buf[1..]), Ok(Some((head, buf.len() - 1))));
    }
}

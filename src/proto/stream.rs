//! How a path stream begins: a kind, and for the streams of a session a head that says which stream it carries and from
//! which byte on. After the head come the stream's raw bytes.

use super::varint::{self, VarintError};

/// The first byte of every path stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The path's control stream.
    Control = 1,
    /// A new stream of the session, on a path stream of its own.
    Session = 2,
    /// The control stream of a circuit.
    CircuitControl = 3,
    /// A stream of a circuit.
    CircuitStream = 4,
    /// A stream of the session that was on another path before.
    CarriedOn = 5,
}

impl Kind {
    /// The kind of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Kind::Control),
            2 => Some(Kind::Session),
            3 => Some(Kind::CircuitControl),
            4 => Some(Kind::CircuitStream),
            5 => Some(Kind::CarriedOn),
            _ => None,
        }
    }
}

/// What a session's stream is for: its first byte, from the opener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Purpose {
    /// Stream 0: what concerns the session as a whole.
    Session = 0,
    /// A call.
    Call = 1,
    /// Something asked of the directory: a registration, a search, a watch.
    Directory = 2,
    /// Something asked of the wires: one of them made, listed, published to or subscribed to.
    Wire = 3,
    /// A TCP connection to something the peer exposes.
    Tunnel = 4,
}

impl Purpose {
    /// The purpose of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Purpose::Session),
            1 => Some(Purpose::Call),
            2 => Some(Purpose::Directory),
            3 => Some(Purpose::Wire),
            4 => Some(Purpose::Tunnel),
            _ => None,
        }
    }
}

/// Which part of which stream a path stream carries. Which attachment it belongs to is the path's to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A new stream, from its beginning in both directions.
    Fresh {
        /// The session stream.
        stream: u64,
    },
    /// A stream that was on another path before.
    CarriedOn {
        /// The session stream.
        stream: u64,
        /// The offset, in the opener's direction, of the first byte after the head.
        offset: u64,
        /// The offset, in the other direction, of the first byte: so many the opener has.
        received: u64,
    },
}

/// Longest kind and head, in bytes.
pub const HEAD_BYTES_MAX: usize = 1 + 3 * 8;

impl Head {
    /// The session stream.
    pub fn stream(&self) -> u64 {
        let (Head::Fresh { stream } | Head::CarriedOn { stream, .. }) = *self;
        stream
    }

    /// Appends the kind byte and the head.
    pub fn put(&self, buf: &mut Vec<u8>) {
        match *self {
            Head::Fresh { stream } => {
                buf.push(Kind::Session as u8);
                varint::put(buf, stream);
            }
            Head::CarriedOn { stream, offset, received } => {
                buf.push(Kind::CarriedOn as u8);
                [stream, offset, received].into_iter().for_each(|value| varint::put(buf, value));
            }
        }
    }

    /// Reads a head of this kind from the bytes after the kind byte; `None` while it is not whole. Also says how long it was.
    pub fn get(carried_on: bool, bytes: &[u8]) -> Result<Option<(Self, usize)>, VarintError> {
        let mut at = 0;
        let mut next = || -> Result<Option<u64>, VarintError> {
            let found = varint::get(&bytes[at..])?;
            Ok(found.map(|(value, len)| {
                at += len;
                value
            }))
        };
        let Some(stream) = next()? else { return Ok(None) };
        if !carried_on {
            return Ok(Some((Head::Fresh { stream }, at)));
        }
        let (Some(offset), Some(received)) = (next()?, next()?) else { return Ok(None) };
        Ok(Some((Head::CarriedOn { stream, offset, received }, at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_only_when_it_is_whole() {
        for head in [Head::Fresh { stream: 70 }, Head::CarriedOn { stream: 70, offset: 1 << 40, received: 3 }] {
            let carried_on = matches!(head, Head::CarriedOn { .. });
            let mut buf = Vec::new();
            head.put(&mut buf);
            assert_eq!(Kind::from_byte(buf[0]), Some(if carried_on { Kind::CarriedOn } else { Kind::Session }));
            for cut in 0..buf.len() - 1 {
                assert_eq!(Head::get(carried_on, &buf[1..1 + cut]), Ok(None), "cut after {cut}");
            }
            assert_eq!(Head::get(carried_on, &buf[1..]), Ok(Some((head, buf.len() - 1))));
        }
    }
}

//! How a path stream begins: a kind, and for the streams of a session a head that says which stream it carries and from
//! which byte on. After the head come the stream's raw bytes.

use super::varint::{self, VarintError};

/// The first byte of every path stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// The path's control stream.
    Control = 1,
    /// A stream of the session, on a path stream of its own.
    Session = 2,
    /// The control stream of a circuit.
    CircuitControl = 3,
    /// A stream of a circuit.
    CircuitStream = 4,
}

impl Kind {
    /// The kind of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Kind::Control),
            2 => Some(Kind::Session),
            3 => Some(Kind::CircuitControl),
            4 => Some(Kind::CircuitStream),
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
}

impl Purpose {
    /// The purpose of this byte, if there is one.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Purpose::Session),
            1 => Some(Purpose::Call),
            _ => None,
        }
    }
}

/// Which part of which stream a path stream carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The session stream.
    pub stream: u64,
    /// The attachment under which it is sent.
    pub attach: u64,
    /// The offset, in the session stream, of the first byte after the head.
    pub offset: u64,
}

/// Longest kind and head, in bytes.
pub const HEAD_BYTES_MAX: usize = 1 + 3 * 8;

impl Head {
    /// Appends the kind byte and the head.
    pub fn put(&self, buf: &mut Vec<u8>) {
        buf.push(Kind::Session as u8);
        varint::put(buf, self.stream);
        varint::put(buf, self.attach);
        varint::put(buf, self.offset);
    }

    /// Reads a head from the bytes after the kind byte; `None` while it is not whole. Also says how long it was.
    pub fn get(bytes: &[u8]) -> Result<Option<(Self, usize)>, VarintError> {
        let mut at = 0;
        let mut next = || -> Result<Option<u64>, VarintError> {
            let found = varint::get(&bytes[at..])?;
            Ok(found.map(|(value, len)| {
                at += len;
                value
            }))
        };
        let (Some(stream), Some(attach), Some(offset)) = (next()?, next()?, next()?) else { return Ok(None) };
        Ok(Some((Self { stream, attach, offset }, at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_back_only_when_it_is_whole() {
        let head = Head { stream: 70, attach: 3, offset: 1 << 40 };
        let mut buf = Vec::new();
        head.put(&mut buf);
        assert_eq!(buf[0], Kind::Session as u8);
        for cut in 0..buf.len() - 1 {
            assert_eq!(Head::get(&buf[1..1 + cut]), Ok(None), "cut after {cut}");
        }
        assert_eq!(Head::get(&buf[1..]), Ok(Some((head, buf.len() - 1))));
    }
}

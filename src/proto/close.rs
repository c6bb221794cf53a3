//! The numbers with which connections and streams end. They are all a peer learns: texts stay at home.

/// Why a link was closed (QUIC application error code of CONNECTION_CLOSE).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum CloseCode {
    /// The session ended as its owner wished, or the node went down in good order.
    Goodbye = 0,
    /// Policy or a limit kept this peer out. It is not told why.
    Refused = 1,
    /// A newer link between the same two nodes took over.
    Superseded = 2,
    /// Two dials crossed; the other one won.
    Crossed = 3,
    /// The hello proposed an attach number that is already past.
    Stale = 4,
    /// The peer broke the protocol.
    Protocol = 5,
    /// Something due (a hello, an answer) did not come in time.
    Timeout = 6,
    /// The two nodes have no protocol version in common.
    Version = 7,
    /// The node that answered does not hold the key that was dialled.
    WrongKey = 8,
    /// The path is of no more use. Says nothing of the session, which goes on over another one.
    Lost = 9,
    /// The owner of the node is asked whether this peer may connect: come again in a while.
    Asked = 10,
    /// Another process has taken the place of this one: it has the same key and came later.
    Replaced = 11,
}

impl CloseCode {
    const ALL: [CloseCode; 12] = [
        CloseCode::Goodbye,
        CloseCode::Refused,
        CloseCode::Superseded,
        CloseCode::Crossed,
        CloseCode::Stale,
        CloseCode::Protocol,
        CloseCode::Timeout,
        CloseCode::Version,
        CloseCode::WrongKey,
        CloseCode::Lost,
        CloseCode::Asked,
        CloseCode::Replaced,
    ];

    /// The code of this number, if we know it.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u64 == number)
    }
}

/// Why one half of a stream was reset or stopped (QUIC application error code of RESET_STREAM and STOP_SENDING).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum StreamCode {
    /// Nobody waits for the rest any more.
    Cancelled = 0,
    /// The bytes move to another path: says nothing about the session's stream.
    PathLeft = 1,
    /// The peer broke the protocol on this stream.
    Protocol = 2,
    /// A limit was reached.
    Limit = 3,
    /// The stream's id was used before and is finished.
    Closed = 4,
    /// The kind of stream is not known or not allowed here.
    Kind = 5,
    /// A relay could not carry the stream on: the next leg takes no more.
    Busy = 6,
}

impl StreamCode {
    const ALL: [StreamCode; 7] = [
        StreamCode::Cancelled,
        StreamCode::PathLeft,
        StreamCode::Protocol,
        StreamCode::Limit,
        StreamCode::Closed,
        StreamCode::Kind,
        StreamCode::Busy,
    ];

    /// The code of this number, if we know it.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u64 == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_codes_are_one_to_one() {
        for number in 0..20 {
            assert!(CloseCode::from_number(number).is_none_or(|code| code as u64 == number));
            assert!(StreamCode::from_number(number).is_none_or(|code| code as u64 == number));
        }
        assert_eq!(CloseCode::from_number(8), Some(CloseCode::WrongKey));
        assert_eq!(StreamCode::from_number(5), Some(StreamCode::Kind));
    }
}

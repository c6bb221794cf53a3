//! What is asked at the beginning of a tunnel, and the answer: the messages of a stream with that purpose.
//!
//! The opener's first frame is an [`Ask`], the host's an [`Answer`]. After [`Answer::Ready`] no more frames follow, but the bytes of a
//! TCP connection as they are, in each direction until its end. This file decides nothing about who may have what.

use bincode::{Decode, Encode};

use super::codec::Message;
use super::limits;
use super::status::Status;

/// What a stream with this purpose begins with.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Ask {
    /// A connection to what is exposed under this name.
    Open {
        /// The name.
        name: String,
    },
    /// Whether that would be taken, as far as is known without a connection. Nothing follows the answer.
    Probe {
        /// The name.
        name: String,
    },
}

impl Message for Ask {
    const NAME: &'static str = "ask for a tunnel";
    const LIMIT: usize = 256;

    fn check(&self) -> Result<(), &'static str> {
        let (Ask::Open { name } | Ask::Probe { name }) = self;
        check_name(name)
    }
}

/// What the host answers.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// The target has taken the connection: its bytes follow.
    Ready,
    /// No. Nothing follows.
    Refused(Status),
}

impl Message for Answer {
    const NAME: &'static str = "answer about a tunnel";
    const LIMIT: usize = limits::STATUS_BYTES + 1;
}

/// Whether something may be exposed under this name: segments of letters, digits, `.`, `_` and `-`, joined by `/`; 200 bytes at most.
///
/// # Errors
/// What is wrong.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() || name.len() > limits::TARGET_NAME_BYTES {
        return Err("the name of what is exposed has 1 to 200 bytes");
    }
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if !name.split('/').all(|segment| !segment.is_empty() && segment.bytes().all(fine)) {
        return Err("the name of what is exposed is letters, digits, '.', '_' and '-', in segments joined by '/'");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::codec;
    use crate::proto::status::Code;

    #[test]
    fn asks_and_answers_have_these_bytes() {
        assert_eq!(codec::encode(&Ask::Open { name: "a/b".into() }), [0, 3, b'a', b'/', b'b']);
        assert_eq!(codec::encode(&Ask::Probe { name: "ssh".into() }), [1, 3, b's', b's', b'h']);
        assert_eq!(codec::encode(&Answer::Ready), [0]);
        let refused = Answer::Refused(Status::new(Code::NotFound, "no"));
        assert_eq!(codec::encode(&refused), [1, 5, 2, b'n', b'o', 0]);
    }

    #[test]
    fn what_cannot_be_a_name_is_refused() {
        for name in ["", "/", "a//b", "a/", "a b", "ü", "127.0.0.1:22", &"x".repeat(201)] {
            assert!(check_name(name).is_err(), "{name}");
            let ask = codec::encode(&Ask::Open { name: name.into() });
            assert!(codec::decode::<Ask>(&ask).is_err(), "{name}");
        }
        let longest = Ask::Probe { name: "x".repeat(200) };
        assert_eq!(codec::decode::<Ask>(&codec::encode(&longest)), Ok(longest));
        assert!(codec::decode::<Ask>(&[2, 1, b'a']).is_err());
        assert!(codec::decode::<Answer>(&[0, 0]).is_err(), "nothing follows in the same frame");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_message_with_one_encoding_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(ask) = codec::decode::<Ask>(&bytes) {
                prop_assert_eq!(codec::encode(&ask), bytes.clone());
            }
            if let Ok(answer) = codec::decode::<Answer>(&bytes) {
                prop_assert_eq!(codec::encode(&answer), bytes);
            }
        }
    }
}

//! Variable-length integers as QUIC writes them (RFC 9000, section 16): one, two, four or eight bytes, the first two bits
//! saying which. QUIC lets a value be written longer than it need be; we refuse that, so each value has one encoding.
//! Never reads a stream and never allocates.

use thiserror::Error;

/// The largest value that can be written: 2^62 - 1.
pub const MAX: u64 = (1 << 62) - 1;
/// The longest encoding, in bytes.
pub const MAX_LEN: usize = 8;

/// Why bytes are not a variable-length integer of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum VarintError {
    /// The value fits a shorter encoding, and only the shortest is accepted.
    #[error("an integer of {len} bytes for a value that fits in fewer ({value})")]
    NotShortest {
        /// The value that was written.
        value: u64,
        /// The bytes it was written in.
        len: usize,
    },
}

/// How many bytes [`put`] writes for `value`: 1, 2, 4 or 8.
pub const fn len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends the shortest encoding of `value`.
///
/// # Panics
/// If `value` is above [`MAX`]: lengths, ids and offsets of ours never are.
pub fn put(out: &mut Vec<u8>, value: u64) {
    assert!(value <= MAX, "a variable-length integer holds at most 62 bits");
    match len(value) {
        1 => out.push(value as u8),
        2 => out.extend_from_slice(&(value as u16 | 1 << 14).to_be_bytes()),
        4 => out.extend_from_slice(&(value as u32 | 2 << 30).to_be_bytes()),
        _ => out.extend_from_slice(&(value | 3 << 62).to_be_bytes()),
    }
}

/// Reads one integer from the start of `bytes`: its value and how many bytes it took. `None`: more bytes are needed.
///
/// # Errors
/// [`VarintError::NotShortest`] if the value fits a shorter encoding.
///
/// ```
/// use voltmesh::proto::varint;
/// // The examples of RFC 9000, appendix A.1.
/// assert_eq!(varint::get(&[0x7b, 0xbd]), Ok(Some((15_293, 2))));
/// assert_eq!(varint::get(&[0x7b]), Ok(None));
/// assert!(varint::get(&[0x40, 0x25]).is_err()); // 37 in two bytes
/// ```
pub fn get(bytes: &[u8]) -> Result<Option<(u64, usize)>, VarintError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first < 0x40 {
        return Ok(Some((u64::from(first), 1)));
    }
    let taken = 1 << (first >> 6);
    let Some(rest) = bytes.get(1..taken) else { return Ok(None) };
    let value = rest.iter().fold(u64::from(first & 0x3f), |value, &byte| value << 8 | u64::from(byte));
    if len(value) == taken { Ok(Some((value, taken))) } else { Err(VarintError::NotShortest { value, len: taken }) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(value: u64) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, value);
        out
    }

    #[test]
    fn the_examples_of_rfc_9000_are_written_and_read() {
        let examples: [(&[u8], u64); 4] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ];
        for (bytes, value) in examples {
            assert_eq!(encoded(value), bytes);
            assert_eq!(get(bytes), Ok(Some((value, bytes.len()))));
        }
    }

    #[test]
    fn both_sides_of_each_length_have_the_shortest_encoding() {
        for (value, length) in [(0, 1), (63, 1), (64, 2), (16_383, 2), (16_384, 4), ((1 << 30) - 1, 4), (1 << 30, 8), (MAX, 8)] {
            assert_eq!((len(value), encoded(value).len()), (length, length), "{value}");
            assert_eq!(get(&encoded(value)), Ok(Some((value, length))));
        }
    }

    #[test]
    fn an_integer_written_too_long_is_refused() {
        for bytes in [&[0x40, 37][..], &[0x40, 63], &[0x80, 0, 0x3f, 0xff], &[0xc0, 0, 0, 0, 0x3f, 0xff, 0xff, 0xff]] {
            assert!(matches!(get(bytes), Err(VarintError::NotShortest { .. })), "{bytes:?}");
        }
    }

    #[test]
    #[should_panic(expected = "62 bits")]
    fn a_value_above_62_bits_is_a_bug_of_ours() {
        put(&mut Vec::new(), MAX + 1);
    }

    proptest! {
        #[test]
        fn every_value_is_read_back_and_each_prefix_asks_for_more(value in 0..=MAX, shift in 0u32..62) {
            let value = value >> shift;
            let bytes = encoded(value);
            prop_assert_eq!(get(&bytes), Ok(Some((value, bytes.len()))));
            for cut in 0..bytes.len() {
                prop_assert_eq!(get(&bytes[..cut]), Ok(None));
            }
        }

        #[test]
        fn what_is_read_is_what_would_be_written(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            if let Ok(Some((value, taken))) = get(&bytes) {
                prop_assert_eq!(encoded(value), &bytes[..taken]);
            }
        }
    }
}

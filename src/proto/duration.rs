//! Spans of time as people write them in `volt.toml`: `500ms`, `30s`, `1h30m`.

use std::time::Duration;

use serde::{Deserializer, de};

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Not a span of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a span of time is written like \"500ms\", \"30s\", \"5m\", \"2h\", \"1d\" or \"1h30m\"")]
pub struct DurationError;

/// Reads one or more whole numbers, each with its unit: `ms`, `s`, `m`, `h` or `d`. A number without a unit is refused.
///
/// ```
/// # use voltmesh::node::config::parse_duration;
/// assert_eq!(parse_duration("1h30m")?.as_secs(), 5_400);
/// # Ok::<(), voltmesh::node::config::DurationError>(())
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let mut rest = text;
    let mut millis: u64 = 0;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let letters = rest[digits..].len() - rest[digits..].trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
        let (number, unit) = (&rest[..digits], &rest[digits..digits + letters]);
        let number: u64 = number.parse().map_err(|_| DurationError)?;
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or(DurationError)?;
        millis = number.checked_mul(*factor).and_then(|part| millis.checked_add(part)).ok_or(DurationError)?;
        rest = &rest[digits + letters..];
    }
    Ok(Duration::from_millis(millis))
}

/// For `#[serde(deserialize_with)]`.
pub(super) fn from_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;
    impl de::Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "text: {DurationError}")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            parse_duration(text).map_err(E::custom)
        }
    }
    deserializer.deserialize_str(Text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_with_units_are_read() {
        for (text, millis) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("1h30m", 5_400_000), ("1d2h3m4s5ms", 93_784_005)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in
            ["", "30", "s", "30 s", "-1s", "1.5s", "30sec", "30S", "1h30", "99999999999999999999s", "18446744073709551615d", "1ü"]
        {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_panic(text in "\\PC{0,12}") {
            let _ = parse_duration(&text);
        }
    }
}

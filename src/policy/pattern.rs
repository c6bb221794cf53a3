//! Patterns over the names of resources. Parsed once, matched often and against text a peer chose: in linear time, always.
//!
//! ```text
//! pattern = "*" / segment *( "/" segment )        at most 511 bytes
//! segment = 1*( character / "*" )                 never "**"; no control characters
//! ```
//! `*` inside a segment stands for any characters but `/`, also for none. A pattern matches names with just as many segments:
//! `greeter/*` matches `greeter/hello`, not `greeter` nor `greeter/a/b`. The pattern `*` alone matches every name.
//! Letters match themselves only, capital or small. `**` is refused so that it can be given a meaning later.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::proto::limits::NAME_BYTES;

/// Longest resource or pattern, in bytes: two names and the `/` between them. A longer resource is permitted to nobody.
pub const RESOURCE_BYTES: usize = 2 * NAME_BYTES + 1;

/// Which resources a rule is about. The grammar is in the room's guide, [`crate::policy`].
///
/// ```
/// # use voltmesh::policy::Pattern;
/// let pattern: Pattern = "greeter/he*".parse()?;
/// assert!(pattern.matches("greeter/hello"));
/// assert!(!pattern.matches("greeter/bye"));
/// assert!(Pattern::everything().matches("anything/at/all"));
/// # Ok::<(), voltmesh::policy::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(String);

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatternError {
    /// Nothing, or nothing between two slashes.
    #[error("a resource has no empty part: write it like `greeter/hello`, `greeter/*` or `*`")]
    Empty,
    /// Over [`RESOURCE_BYTES`].
    #[error("a resource has at most {RESOURCE_BYTES} bytes, this has {0}")]
    TooLong(usize),
    /// A control character.
    #[error("a resource has no control characters, this has {0:?}")]
    Control(char),
    /// `**`.
    #[error("`**` means nothing yet: `*` stands for any text between two slashes, and alone for everything")]
    DoubleStar,
}

impl Pattern {
    /// `*`: every resource.
    pub fn everything() -> Self {
        Self("*".to_owned())
    }

    /// Whether this is `*`.
    pub fn is_everything(&self) -> bool {
        self.0 == "*"
    }

    /// Whether the resource of this name is meant. Takes time linear in both lengths.
    pub fn matches(&self, resource: &str) -> bool {
        if self.is_everything() {
            return true;
        }
        let mut names = resource.split('/');
        self.0.split('/').all(|pattern| names.next().is_some_and(|name| segment_matches(pattern, name))) && names.next().is_none()
    }

    /// The text of the pattern.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// How many segments it has; `*` alone counts as one.
    pub fn segments(&self) -> usize {
        self.0.split('/').count()
    }
}

/// Each piece between stars is searched once, in what the piece before it left over: never back, so linear.
fn segment_matches(pattern: &str, name: &str) -> bool {
    let mut pieces = pattern.split('*');
    let Some(rest) = pieces.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    let Some(mut rest) = rest.strip_suffix(last) else { return false };
    pieces.all(|piece| match rest.find(piece) {
        Some(at) => {
            rest = &rest[at + piece.len()..];
            true
        }
        None => false,
    })
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.len() > RESOURCE_BYTES {
            return Err(PatternError::TooLong(text.len()));
        }
        if let Some(control) = text.chars().find(|c| c.is_control()) {
            return Err(PatternError::Control(control));
        }
        if text.split('/').any(str::is_empty) {
            return Err(PatternError::Empty);
        }
        if text.contains("**") {
            return Err(PatternError::DoubleStar);
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.0
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    /// What the grammar says, tried in every way there is.
    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', after)), None) => naive(after, name),
            (Some((b'*', after)), Some((letter, rest))) => naive(after, name) || (*letter != b'/' && naive(pattern, rest)),
            (Some((wanted, after)), Some((letter, rest))) => wanted == letter && naive(after, rest),
            _ => false,
        }
    }

    #[test]
    fn a_star_stays_within_its_segment() {
        assert!(pattern("greeter/*").matches("greeter/hello"));
        assert!(!pattern("greeter/*").matches("greeter"));
        assert!(!pattern("greeter/*").matches("greeter/a/b"));
        assert!(pattern("*/hello").matches("greeter/hello"));
        assert!(pattern("g*r/h*o").matches("greeter/ho"));
        assert!(!pattern("a*a").matches("a"));
    }

    #[test]
    fn a_star_alone_matches_everything() {
        for name in ["", "a", "a/b", "a/b/c", "*", "/"] {
            assert!(pattern("*").matches(name), "{name}");
        }
    }

    #[test]
    fn text_that_is_no_pattern_is_refused_and_told_why() {
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Empty));
        for text in ["/", "a/", "/a", "a//b"] {
            assert_eq!(text.parse::<Pattern>(), Err(PatternError::Empty), "{text}");
        }
        assert_eq!("a/**".parse::<Pattern>(), Err(PatternError::DoubleStar));
        assert_eq!("a\u{1b}b".parse::<Pattern>(), Err(PatternError::Control('\u{1b}')));
        assert!("x".repeat(RESOURCE_BYTES).parse::<Pattern>().is_ok());
        assert_eq!("x".repeat(RESOURCE_BYTES + 1).parse::<Pattern>(), Err(PatternError::TooLong(RESOURCE_BYTES + 1)));
    }

    #[test]
    fn the_worst_pattern_is_matched_at_once() {
        // A matcher that goes back would need longer than the universe has.
        let worst = pattern(&"a*".repeat(RESOURCE_BYTES / 2));
        assert!(!worst.matches(&"a".repeat(200)));
        assert!(!pattern(&format!("{}b", "*a".repeat(200))).matches(&"a".repeat(RESOURCE_BYTES)));
    }

    proptest! {
        #[test]
        fn the_matcher_agrees_with_trying_every_way(text in "[ab*/]{1,8}", name in "[ab/]{0,8}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                let expected = text == "*" || naive(text.as_bytes(), name.as_bytes());
                prop_assert_eq!(pattern.matches(&name), expected);
            }
        }

        #[test]
        fn any_text_is_parsed_or_refused_without_panic(text in "\\PC{0,40}", name in "\\PC{0,40}") {
            if let Ok(pattern) = text.parse::<Pattern>() {
                pattern.matches(&name);
                prop_assert!(text.contains('*') || pattern.matches(&text));
            }
        }
    }
}

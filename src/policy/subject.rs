//! Who a rule is about: one node, a group, or everyone. It knows no members; the policy does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, NodeIdError};

/// Longest name of a group, in bytes.
pub const GROUP_NAME_BYTES: usize = 64;

/// Who a rule is about. As text: `did:key:…`, `@group` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[non_exhaustive]
pub enum Subject {
    /// The node with this id.
    Node(NodeId),
    /// Every member of the group of this name.
    Group(GroupName),
    /// Everyone, strangers too.
    Anyone,
}

/// The name of a group: 1 to 64 ASCII letters, digits, `-`, `_` and `.`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GroupName(String);

/// Why a text is no subject or no name of a group.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// The subject is no id.
    #[error("who a rule is about is `*`, `@group` or a `did:key:…`: {0}")]
    Id(#[from] NodeIdError),
    /// The name of a group is malformed.
    #[error("a group's name has 1 to {GROUP_NAME_BYTES} letters, digits, `-`, `_` or `.`; `{0}` has not")]
    Group(String),
}

impl GroupName {
    /// The name, without `@`.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for GroupName {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let fits = (1..=GROUP_NAME_BYTES).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            Ok(Self(text.to_owned()))
        } else {
            Err(SubjectError::Group(text.chars().take(GROUP_NAME_BYTES).flat_map(char::escape_debug).collect()))
        }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        match text.strip_prefix('@') {
            Some(group) => Ok(Self::Group(group.parse()?)),
            None if text == "*" => Ok(Self::Anyone),
            None => Ok(Self::Node(text.parse()?)),
        }
    }
}

impl fmt::Display for GroupName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => id.fmt(f),
            Self::Group(name) => write!(f, "@{name}"),
            Self::Anyone => f.write_str("*"),
        }
    }
}

impl TryFrom<String> for GroupName {
    type Error = SubjectError;

    fn try_from(text: String) -> Result<Self, SubjectError> {
        text.parse()
    }
}

impl From<GroupName> for String {
    fn from(name: GroupName) -> Self {
        name.0
    }
}

impl TryFrom<String> for Subject {
    type Error = SubjectError;

    fn try_from(text: String) -> Result<Self, SubjectError> {
        text.parse()
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> Self {
        subject.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_it_is_about_is_read_as_it_is_written() {
        let id = NodeId::from_bytes([7; 32]);
        for subject in [Subject::Node(id), Subject::Group("friends".parse().unwrap()), Subject::Anyone] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        for bad in ["", "@", "@a b", "@ä", "bob", "**", &format!("@{}", "x".repeat(65)), &format!("{id}#{id}")] {
            assert!(bad.parse::<Subject>().is_err(), "{bad}");
        }
    }
}

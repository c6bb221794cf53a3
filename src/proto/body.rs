//! Users' payloads: any type with serde's derives, as bincode, JSON or bare bytes. Everything a peer can put into a body is
//! refused or decoded within bounds; what our own messages look like is [`codec`]'s business.

mod binary;
mod bounds;
mod json;
mod raw;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Serialize, de, ser};
use thiserror::Error;

pub use self::bounds::{MEMORY_BASE, MEMORY_PER_BYTE};
use super::codec::{self, Decode, Encode};

/// How a body is written. The caller of a function chooses; the same handler serves all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
#[repr(u8)]
pub enum ContentType {
    /// bincode 2, standard configuration: smallest and fastest, for two ends that share the types.
    #[default]
    Bincode = 0,
    /// JSON: for other languages, the command line, and types that describe themselves.
    Json = 1,
    /// The bytes themselves.
    Raw = 2,
}

impl ContentType {
    /// Every content type, in order of its number.
    pub const ALL: [Self; 3] = [Self::Bincode, Self::Json, Self::Raw];

    /// Its name: `bincode`, `json` or `raw`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bincode => "bincode",
            Self::Json => "json",
            Self::Raw => "raw",
        }
    }
}

impl fmt::Display for ContentType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a value cannot be a body, or a body is not the value that was expected.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BodyError {
    /// The type cannot be written or read this way, whatever its value: choose another content type, or another type.
    #[error("{content} cannot carry this type: {why}")]
    Unsupported {
        /// The content type that was asked for.
        content: ContentType,
        /// What it cannot carry, and what can.
        why: Cow<'static, str>,
    },
    /// The body is not a value of the type, or one that would take too much to read.
    #[error("the body is not {content} of the type expected: {why}")]
    Invalid {
        /// The content type the body came as.
        content: ContentType,
        /// What is wrong with it.
        why: Cow<'static, str>,
    },
}

/// The body for `value`.
///
/// # Errors
/// [`BodyError::Unsupported`] if this content type cannot carry the value.
///
/// ```
/// use voltmesh::proto::body::{self, ContentType};
///
/// let body = body::encode(ContentType::Bincode, &("Ada", Some(36u8)))?;
/// assert_eq!(body, [3, b'A', b'd', b'a', 1, 36]);
/// assert_eq!(body::decode::<(String, Option<u8>)>(ContentType::Bincode, &body)?, ("Ada".into(), Some(36)));
/// # Ok::<(), body::BodyError>(())
/// ```
pub fn encode<T: Serialize + ?Sized>(content: ContentType, value: &T) -> Result<Vec<u8>, BodyError> {
    let mut out = Vec::with_capacity(64);
    encode_into(content, value, &mut out)?;
    Ok(out)
}

/// Appends the body for `value`. After an error `out` may hold a part of it.
///
/// # Errors
/// [`BodyError::Unsupported`] if this content type cannot carry the value.
pub fn encode_into<T: Serialize + ?Sized>(content: ContentType, value: &T, out: &mut Vec<u8>) -> Result<(), BodyError> {
    let written = match content {
        ContentType::Bincode => codec::encode_with_serde(value, out),
        ContentType::Json => serde_json::to_writer(out, value).map_err(|error| error.to_string()),
        ContentType::Raw => raw::encode(value, out).map_err(|why| why.to_string()),
    };
    written.map_err(|why| BodyError::Unsupported { content, why: why.into() })
}

/// The value that `body` holds, all of it.
///
/// Values nest at most [`limits::BODY_DEPTH`](super::limits::BODY_DEPTH) deep in bincode and 128 deep in JSON; every struct,
/// list, map, enum, option and newtype is a level. What items take in memory is bounded by [`MEMORY_PER_BYTE`] and
/// [`MEMORY_BASE`]. In bincode a list or map is never longer than the bytes after its length, so a list of `()` is read as
/// empty, or not at all.
///
/// # Errors
/// [`BodyError::Unsupported`] if this content type cannot carry the type; [`BodyError::Invalid`] if the body is not exactly one
/// value of the type, or would take too much to read.
pub fn decode<T: DeserializeOwned>(content: ContentType, body: &[u8]) -> Result<T, BodyError> {
    match content {
        ContentType::Bincode => binary::decode(body),
        ContentType::Json => json::decode(body).map_err(|error| Why::Invalid(error.to_string().into())),
        ContentType::Raw => raw::decode(body),
    }
    .map_err(|why| why.of(content))
}

/// What went wrong, before the content type is added.
#[derive(Debug)]
enum Why {
    Unsupported(&'static str),
    Invalid(Cow<'static, str>),
}

impl Why {
    #[cold]
    fn of(self, content: ContentType) -> BodyError {
        match self {
            Why::Unsupported(why) => BodyError::Unsupported { content, why: why.into() },
            Why::Invalid(why) => BodyError::Invalid { content, why },
        }
    }
}

impl From<bounds::Exceeded> for Why {
    #[cold]
    fn from(exceeded: bounds::Exceeded) -> Self {
        Why::Invalid(exceeded.text().into())
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Unsupported(why) => f.write_str(why),
            Why::Invalid(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Why {}

impl de::Error for Why {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Why::Invalid(why.to_string().into())
    }
}

impl ser::Error for Why {
    fn custom<T: fmt::Display>(why: T) -> Self {
        Why::Invalid(why.to_string().into())
    }
}

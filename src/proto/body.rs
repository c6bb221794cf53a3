//! Users' payloads: any type with serde's derives, as bincode, JSON or bare bytes. Everything a peer can put into a body is
//! refused or decoded within bounds; what our own messages look like is [`codec`](super::codec)'s business.

use std::fmt;

use bincode::{Decode, Encode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

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
    /// The type cannot be written this way, whatever its value: choose another content type.
    #[error("{content} cannot carry this type: {why}")]
    Unsupported {
        /// The content type that was asked for.
        content: ContentType,
        /// What it cannot carry, and what can.
        why: &'static str,
    },
    /// The body is not a value of the type.
    #[error("not a {content} body of the type expected: {why}")]
    Invalid {
        /// The content type the body came as.
        content: ContentType,
        /// What is wrong with it.
        why: String,
    },
}

/// The body for `value`.
///
/// # Errors
/// [`BodyError`] if this content type cannot carry the type.
pub fn encode<T: Serialize + ?Sized>(content: ContentType, value: &T) -> Result<Vec<u8>, BodyError> {
    let mut out = Vec::new();
    encode_into(content, value, &mut out)?;
    Ok(out)
}

/// Appends the body for `value`. After an error, `out` may hold a part of it.
///
/// # Errors
/// [`BodyError`] if this content type cannot carry the type.
pub fn encode_into<T: Serialize + ?Sized>(content: ContentType, value: &T, out: &mut Vec<u8>) -> Result<(), BodyError> {
    let invalid = |why: String| BodyError::Invalid { content, why };
    match content {
        ContentType::Bincode => bincode::serde::encode_into_std_write(value, out, bincode::config::standard())
            .map(drop)
            .map_err(|error| invalid(error.to_string())),
        ContentType::Json => serde_json::to_writer(out, value).map_err(|error| invalid(error.to_string())),
        ContentType::Raw => Err(BodyError::Unsupported { content, why: "not written yet" }),
    }
}

/// The value a body holds, all of it.
///
/// # Errors
/// [`BodyError`] if the body is not one value of this type, or is one that would take too much to decode.
pub fn decode<T: DeserializeOwned>(content: ContentType, body: &[u8]) -> Result<T, BodyError> {
    let invalid = |why: String| BodyError::Invalid { content, why };
    match content {
        ContentType::Bincode => bincode::serde::decode_from_slice(body, bincode::config::standard())
            .map(|(value, _)| value)
            .map_err(|error| invalid(error.to_string())),
        ContentType::Json => serde_json::from_slice(body).map_err(|error| invalid(error.to_string())),
        ContentType::Raw => Err(BodyError::Unsupported { content, why: "not written yet" }),
    }
}

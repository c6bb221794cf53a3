//! What a chunk is made from.

use bytes::Bytes;

use crate::proto::wire::Chunk;

impl Chunk {
    /// A chunk with nothing said about it.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), metadata: Vec::new() }
    }

    /// Says something about it. A name may occur again; at most 32 entries, 4 KiB in all.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.metadata.push((name.into(), value.into()));
        self
    }

    /// The first value of this name.
    pub fn metadata(&self, name: &str) -> Option<&[u8]> {
        self.metadata.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..])
    }
}

macro_rules! from {
    ($($type:ty),*) => {$(
        impl From<$type> for Chunk {
            fn from(body: $type) -> Self {
                Chunk::new(body)
            }
        }
    )*};
}

from!(Bytes, Vec<u8>, String, &'static [u8], &'static str);

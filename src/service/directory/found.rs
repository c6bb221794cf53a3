//! What is found in a directory, and how it changes.

use crate::proto::body::{self, ContentType};
pub use crate::proto::directory::Found;
use crate::service::ServiceDescription;

/// Something happened to a service that is watched. Of each service `Online` and `Offline` alternate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Presence {
    /// It can be called.
    Online(Found),
    /// It cannot be called now.
    Offline(Found),
    /// What is said of it is different: its methods, metadata or addresses.
    Changed(Found),
    /// It is not listed any more, or not for us. It is offline: told before, if it was not.
    Withdrawn(Found),
    /// Some of what happened was not told: we were too slow, or the peer. What follows is right again.
    Missed,
}

impl Found {
    /// How the service describes itself: version, methods, schemas. `None` if it does not, or not in a way that can be read.
    pub fn service(&self) -> Option<ServiceDescription> {
        let mut described: ServiceDescription = body::decode(ContentType::Json, &self.description).ok()?;
        described.name.clone_from(&self.name);
        Some(described)
    }

    /// The first value of this name among its metadata.
    pub fn value(&self, name: &str) -> Option<&[u8]> {
        self.metadata.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_slice())
    }

    pub(super) fn offline(self) -> Self {
        Self { online: false, ..self }
    }
}

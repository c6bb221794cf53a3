//! What this node serves itself, as a directory lists it.

use crate::proto::directory::{Listing, Mode};
use crate::proto::limits;
use crate::service::ServiceDescription;

/// How a service of this node is listed here: for those whom the policy lets see it.
pub(super) fn listing(description: &ServiceDescription) -> Listing {
    let (name, metadata) = (description.name.clone(), Vec::new());
    Listing { name, mode: Mode::Public, metadata, description: json(description) }
}

/// The description as a directory takes it: without the schemas if it is too long with them, or nothing if that is too long too.
pub(super) fn json(description: &ServiceDescription) -> Vec<u8> {
    let fits = |json: &Vec<u8>| json.len() <= limits::DESCRIPTION_BYTES;
    if let Some(json) = serde_json::to_vec(description).ok().filter(fits) {
        return json;
    }
    let mut bare = description.clone();
    for method in &mut bare.methods {
        (method.request, method.reply) = Default::default();
    }
    serde_json::to_vec(&bare).ok().filter(fits).unwrap_or_default()
}

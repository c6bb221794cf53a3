//! What a service says of itself: its methods, their shapes, the JSON Schemas of what they take and give. Every node answers
//! [`DESCRIBE`] to every peer it lets connect, and shows it what it may call, and nothing else.

use schemars::{JsonSchema, Schema};
use serde::{Deserialize, Serialize};

use super::method::{Incoming, Method, Service};
use super::registry::Registry;
use crate::proto::body;
use crate::proto::call::Shape;
use crate::proto::limits;
use crate::proto::status::{Code, Status};

/// The method that lists what the caller may call here: unary, takes nothing (`null`), gives JSON whatever the content type
/// of the call: a list of [`ServiceDescription`].
pub const DESCRIBE: &str = "volt/describe";

/// The name of the node's own service, which nobody else may take.
pub(super) const OWN_SERVICE: &str = "volt";

/// A service, as it describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceDescription {
    /// Its name.
    pub name: String,
    /// Its version; any text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// What it is for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Its methods, by name.
    pub methods: Vec<MethodDescription>,
}

/// A method, as it describes itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MethodDescription {
    /// Its name.
    pub name: String,
    /// How many messages go each way.
    #[schemars(with = "String")]
    pub shape: Shape,
    /// What it does.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// JSON Schema of each message of the caller.
    pub request: Schema,
    /// JSON Schema of each message of the answer.
    pub reply: Schema,
}

impl ServiceDescription {
    pub(super) fn new<'a>(service: &Service, methods: impl Iterator<Item = &'a Method>) -> Self {
        let methods = methods.map(|method| MethodDescription {
            name: method.name.clone(),
            shape: method.shape,
            description: method.description.clone(),
            request: method.request.clone(),
            reply: method.reply.clone(),
        });
        Self {
            name: service.name.clone(),
            version: service.version.clone(),
            description: service.description.clone(),
            methods: methods.collect(),
        }
    }
}

/// Answers [`DESCRIBE`].
pub(super) async fn serve(registry: Registry, call: Incoming) {
    let Incoming { items, mut send, .. } = call;
    let core = items.core().clone();
    let described = registry.describe(|path| core.may_call(path));
    let answer = body::encode(body::ContentType::Json, &described)
        .map_err(|error| Status::new(Code::Internal, error.to_string()))
        .and_then(|body| match body.len() <= limits::BODY_BYTES {
            true => Ok(body),
            false => Err(Status::new(Code::ResourceExhausted, "the description is too long for one answer")),
        });
    send.answer(answer).await;
}

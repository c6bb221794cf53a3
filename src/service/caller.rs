//! The calls of a [`Session`]: the short way in.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::Call;
use super::describe::{DESCRIBE, ServiceDescription};
use super::error::CallError;
use crate::proto::body::{BodyError, ContentType};
use crate::session::Session;

impl Session {
    /// Calls a unary method (`service/method`) and waits for its answer, at most 30 s; see [`Session::request`] for everything
    /// that can be chosen. Dropping the future cancels the call: the handler's future is dropped too.
    ///
    /// # Errors
    /// [`CallError`], which says whether the callee may have acted on the call.
    ///
    /// ```no_run
    /// # async fn example(session: voltmesh::Session) -> Result<(), voltmesh::CallError> {
    /// let greeting: String = session.call("greeter/hello", &"world").await?;
    /// # Ok(()) }
    /// ```
    pub async fn call<Req, Res>(&self, method: &str, request: &Req) -> Result<Res, CallError>
    where
        Req: Serialize + ?Sized,
        Res: DeserializeOwned,
    {
        self.request(method).unary(request).await
    }

    /// Begins a call of any shape, with its deadline, metadata and content type to be chosen.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(session: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut numbers = session.request("math/count").timeout(Duration::from_secs(5)).server_stream::<_, u64>(&10u64).await?;
    /// while let Some(n) = numbers.next().await? {
    ///     println!("{n}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn request<'a>(&'a self, method: &'a str) -> Call<'a> {
        Call::new(self, method)
    }

    /// What the peer offers to this node: its services, their methods and schemas.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::Reply`] if the peer's description is nonsense.
    pub async fn services(&self) -> Result<Vec<ServiceDescription>, CallError> {
        let json = self.request(DESCRIBE).content_type(ContentType::Json).unary_raw(b"null".to_vec()).await?;
        serde_json::from_slice(&json)
            .map_err(|error| CallError::Reply(BodyError::Invalid { content: ContentType::Json, why: error.to_string().into() }))
    }
}

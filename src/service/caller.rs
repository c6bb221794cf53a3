//! The calls of a [`Session`]: the short way in.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::call::Call;
use super::describe::{DESCRIBE, ServiceDescription};
use super::directory::{Announce, DiscoverError, Found, RegisterError, Registered, Search, Watch};
use super::error::CallError;
use super::method::Service;
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

    /// Serves the service on this node and lists it at the peer, for as long as what is returned is kept: it is registered again on
    /// each new session, before [`Event::Connected`](crate::Event::Connected) tells of that. Waits for the peer's answer, at most
    /// as long as a call (30 s). Cancel-safe.
    ///
    /// # Errors
    /// [`RegisterError`]. Nothing is kept then.
    ///
    /// ```no_run
    /// # use voltmesh::Service;
    /// # async fn example(volt: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
    /// let camera = Service::new("camera").unary("snap", |_cx, _: ()| async move { Ok(vec![0u8; 16]) });
    /// let registered = volt.register(camera).await?;
    /// # Ok(()) }
    /// ```
    pub async fn register(&self, service: Service) -> Result<Registered, RegisterError> {
        Announce::new(self, service.name().to_owned(), Some(service)).start().await
    }

    /// Lists a service at the peer that this node serves already under this name, or is [given](Announce::service); with who may
    /// find it and what is said of it to be chosen.
    pub fn announce(&self, name: impl Into<String>) -> Announce {
        Announce::new(self, name.into(), None)
    }

    /// The services that are online at the peer and that it shows to this node, by name. In the pattern `*` stands for any text.
    /// At most as long as a call (30 s). Cancel-safe.
    ///
    /// # Errors
    /// [`DiscoverError`].
    pub async fn discover(&self, pattern: &str) -> Result<Vec<Found>, DiscoverError> {
        self.query(pattern).discover().await
    }

    /// Watches the services at the peer that it shows to this node; see [`Watch`]. Cancel-safe.
    ///
    /// # Errors
    /// [`DiscoverError`].
    ///
    /// ```no_run
    /// # use voltmesh::service::Presence;
    /// # async fn example(volt: voltmesh::Session) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut cameras = volt.watch("camera*").await?;
    /// while let Some(presence) = cameras.next().await {
    ///     match presence {
    ///         Presence::Online(found) => println!("{} is online at {}", found.name, found.provider),
    ///         Presence::Offline(found) => println!("{} is offline", found.name),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn watch(&self, pattern: &str) -> Result<Watch, DiscoverError> {
        self.query(pattern).watch().await
    }

    /// Looks for services at the peer, with what is looked for to be chosen.
    pub fn query(&self, pattern: &str) -> Search {
        Search::at(self, pattern)
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

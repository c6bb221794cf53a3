//! [`Service`]: a name and its methods, each of one of four shapes. Types are erased here, once, so that the rest handles
//! calls without knowing what they carry.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use schemars::{JsonSchema, Schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::context::Context;
use super::item::{Charge, Items};
use super::message::{Receiver, Sender, encode_answer};
use super::rate::{Limiter, Rate, TokioClock};
use super::reply::Reply;
use super::run::{Place, run, run_off};
use super::serve::{Shared, count_failed};
use crate::proto::call::Shape;
use crate::proto::status::{Code, Status};
use crate::session::Serving;

/// A named set of functions that peers may call.
///
/// A handler gets the [`Context`] of the call and what the caller sent, and gives the answer or a [`Status`]. Dropping its
/// future is how it is cancelled, so it should hold nothing that must not be dropped half-way. It is polled on the network's
/// thread; see [`Service::spawned`] and [`Service::blocking`] for what computes or blocks.
///
/// ```
/// use voltmesh::{Receiver, Sender, Service};
///
/// let math = Service::new("math")
///     .unary("double", |_cx, n: u64| async move { Ok(n * 2) })
///     .client_stream("sum", |_cx, mut numbers: Receiver<u64>| async move {
///         let mut sum = 0;
///         while let Some(n) = numbers.next().await? {
///             sum += n;
///         }
///         Ok(sum)
///     })
///     .server_stream("count", |_cx, to: u64, mut out: Sender<u64>| async move {
///         for n in 1..=to {
///             out.send(&n).await?;
///         }
///         Ok(())
///     })
///     .bidi("double_all", |_cx, mut numbers: Receiver<u64>, mut out: Sender<u64>| async move {
///         while let Some(n) = numbers.next().await? {
///             out.send(&(n * 2)).await?;
///         }
///         Ok(())
///     });
/// assert_eq!(math.name(), "math");
/// ```
#[derive(Debug)]
pub struct Service {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) description: String,
    pub(super) methods: Vec<Method>,
}

/// One function of a service.
#[derive(Clone)]
pub(super) struct Method {
    pub name: String,
    pub description: String,
    pub shape: Shape,
    pub request: Schema,
    pub reply: Schema,
    pub place: Place,
    pub handler: Arc<dyn Handler>,
    pub rate: Option<Arc<Limiter>>,
}

impl std::fmt::Debug for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Method").field("name", &self.name).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// A call that has come in, as far as it is the same for all types.
pub(super) struct Incoming {
    pub cx: Context,
    /// Boxed: it is handed on several times.
    pub items: Box<Items>,
    pub send: Reply,
    pub place: Place,
    pub shared: Arc<Shared>,
}

/// Serves the calls of one method.
pub(super) trait Handler: Send + Sync {
    fn serve(&self, call: Incoming) -> Serving;
}

impl Service {
    /// A service of this name, with no methods yet. See [`Registry::add`](super::Registry::add) for what a name may be.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), version: String::new(), description: String::new(), methods: Vec::new() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn named(self, name: &str) -> Self {
        Self { name: name.to_owned(), ..self }
    }

    /// The version it describes itself with; any text.
    pub fn version(mut self, version: impl Into<String>) -> Self {
        self.version = version.into();
        self
    }

    /// What it is for. Follows a method: what that method does.
    pub fn describe(mut self, description: impl Into<String>) -> Self {
        match self.methods.last_mut() {
            Some(method) => method.description = description.into(),
            None => self.description = description.into(),
        }
        self
    }

    /// Adds a method: one message there, one back.
    pub fn unary<F, Fut, Req, Res>(self, name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Context, Req) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Res, Status>> + Send + 'static,
        Req: DeserializeOwned + JsonSchema + Send + 'static,
        Res: Serialize + JsonSchema + Send + 'static,
    {
        self.method::<Req, Res>(
            name,
            Shape::Unary,
            Typed::new(handler, |handler: &Arc<F>, call| {
                let handler = handler.clone();
                Box::pin(one_answer(call, move |cx, mut request: Request<Req>| async move {
                    let (message, _charge) = request.only().await?;
                    drop(request);
                    handler(cx, message).await
                }))
            }),
        )
    }

    /// Adds a method: any number of messages there, one back.
    pub fn client_stream<F, Fut, Req, Res>(self, name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Context, Receiver<Req>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Res, Status>> + Send + 'static,
        Req: DeserializeOwned + JsonSchema + Send + 'static,
        Res: Serialize + JsonSchema + Send + 'static,
    {
        self.method::<Req, Res>(
            name,
            Shape::ClientStream,
            Typed::new(handler, |handler: &Arc<F>, call| {
                let handler = handler.clone();
                Box::pin(one_answer(call, move |cx, request: Request<Req>| async move { handler(cx, request.receiver).await }))
            }),
        )
    }

    /// Adds a method: one message there, any number back.
    pub fn server_stream<F, Fut, Req, Res>(self, name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Context, Req, Sender<Res>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
        Req: DeserializeOwned + JsonSchema + Send + 'static,
        Res: Serialize + JsonSchema + Send + 'static,
    {
        self.method::<Req, Res>(
            name,
            Shape::ServerStream,
            Typed::new(handler, |handler: &Arc<F>, call| {
                let handler = handler.clone();
                Box::pin(many_answers(call, move |cx, mut request: Request<Req>, send| async move {
                    let (message, _charge) = request.only().await?;
                    drop(request);
                    handler(cx, message, send).await
                }))
            }),
        )
    }

    /// Adds a method: any number of messages each way, at the same time.
    pub fn bidi<F, Fut, Req, Res>(self, name: impl Into<String>, handler: F) -> Self
    where
        F: Fn(Context, Receiver<Req>, Sender<Res>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
        Req: DeserializeOwned + JsonSchema + Send + 'static,
        Res: Serialize + JsonSchema + Send + 'static,
    {
        self.method::<Req, Res>(
            name,
            Shape::Bidi,
            Typed::new(handler, |handler: &Arc<F>, call| {
                let handler = handler.clone();
                Box::pin(many_answers(call, move |cx, request: Request<Req>, send| async move {
                    handler(cx, request.receiver, send).await
                }))
            }),
        )
    }

    /// Adds a method whose messages are bytes nobody looks into: for what passes calls on to where their types are known. The
    /// handler reads with [`Receiver::next_raw`] and writes with [`Sender::send_raw`], in the content type the
    /// [`Context`] names. A shape with one answer needs exactly one message sent; callers refuse anything else.
    pub fn raw<F, Fut>(self, name: impl Into<String>, shape: Shape, handler: F) -> Self
    where
        F: Fn(Context, Receiver<Bytes>, Sender<Bytes>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Status>> + Send + 'static,
    {
        self.method::<serde_json::Value, serde_json::Value>(
            name,
            shape,
            Typed::new(handler, |handler: &Arc<F>, call| {
                let handler = handler.clone();
                Box::pin(many_answers(call, move |cx, request: Request<Bytes>, send| async move {
                    handler(cx, request.receiver, send).await
                }))
            }),
        )
    }

    /// Runs the handler of the method added last as a task of the runtime the node was started on, not on the network's
    /// thread: for handlers that compute for more than some hundred microseconds at a stretch.
    pub fn spawned(self) -> Self {
        self.placed(Place::Spawned)
    }

    /// Runs the handler of the method added last on a thread where it may block. Its future is not dropped when the call is
    /// cancelled: it has to ask [`Context::is_cancelled`].
    pub fn blocking(self) -> Self {
        self.placed(Place::Blocking)
    }

    /// Bounds how often each caller may call the method added last, besides what the configuration says. A call beyond that is
    /// answered with RESOURCE_EXHAUSTED, which says when to try again, and is not executed. A rate out of its bounds is the nearest one
    /// within.
    pub fn rate(mut self, rate: Rate) -> Self {
        if let Some(method) = self.methods.last_mut() {
            method.rate = Some(Arc::new(Limiter::new(rate, TokioClock)));
        }
        self
    }

    fn placed(mut self, place: Place) -> Self {
        if let Some(method) = self.methods.last_mut() {
            method.place = place;
        }
        self
    }

    fn method<Req: JsonSchema, Res: JsonSchema>(
        mut self,
        name: impl Into<String>,
        shape: Shape,
        handler: impl Handler + 'static,
    ) -> Self {
        self.methods.push(Method {
            name: name.into(),
            description: String::new(),
            shape,
            request: schemars::schema_for!(Req),
            reply: schemars::schema_for!(Res),
            place: Place::default(),
            handler: Arc::new(handler),
            rate: None,
        });
        self
    }
}

/// A handler and the function that knows its types.
struct Typed<F, S> {
    handler: Arc<F>,
    serve: S,
}

impl<F, S: Fn(&Arc<F>, Incoming) -> Serving> Typed<F, S> {
    fn new(handler: F, serve: S) -> Self {
        Self { handler: Arc::new(handler), serve }
    }
}

impl<F: Send + Sync, S: Fn(&Arc<F>, Incoming) -> Serving + Send + Sync> Handler for Typed<F, S> {
    fn serve(&self, call: Incoming) -> Serving {
        (self.serve)(&self.handler, call)
    }
}

/// What the caller sends, one message or many.
struct Request<Req> {
    receiver: Receiver<Req>,
}

impl<Req: DeserializeOwned> Request<Req> {
    /// The one message of a call that has one, and the room its body holds: until the handler has ended.
    async fn only(&mut self) -> Result<(Req, Charge), Status> {
        let missing = || Status::new(Code::InvalidArgument, "the call ended without its message");
        self.receiver.next_charged().await?.ok_or_else(missing)
    }
}

async fn one_answer<Req, Res, Fut>(call: Incoming, handler: impl FnOnce(Context, Request<Req>) -> Fut)
where
    Req: DeserializeOwned,
    Res: Serialize,
    Fut: Future<Output = Result<Res, Status>> + Send + 'static,
{
    let Incoming { cx, items, mut send, place, shared } = call;
    let content = cx.content_type();
    // Writing the answer is the handler's work too: it may take long, and it may panic.
    let encode = move |answer: Res| encode_answer(content, &answer);
    let answer = if place == Place::Network {
        let mut handling = pin!(handler(cx.clone(), Request { receiver: Receiver::new(items, content) }));
        let handled = pin!(async { handling.as_mut().await.and_then(encode) });
        run(&shared, &cx, || send.unwanted(), handled).await
    } else {
        let core = items.core().clone();
        let handling = handler(cx.clone(), Request { receiver: Receiver::new(items, content) });
        let handled = Box::pin(async move { handling.await.and_then(encode) });
        Box::pin(run_off(&shared, &cx, place, &core, || send.unwanted(), handled)).await
    };
    let Some(answer) = answer else { return };
    if answer.is_err() {
        send.core().into_iter().for_each(|core| count_failed(core, cx.method()));
    }
    send.answer(answer).await;
}

async fn many_answers<Req, Res, Fut>(call: Incoming, handler: impl FnOnce(Context, Request<Req>, Sender<Res>) -> Fut)
where
    Req: DeserializeOwned,
    Res: Serialize,
    Fut: Future<Output = Result<(), Status>> + Send + 'static,
{
    let Incoming { cx, items, send, place, shared } = call;
    let content = cx.content_type();
    let (stopped, core) = (send.unwanted(), items.core().clone());
    let request = Request { receiver: Receiver::new(items, content) };
    let (sender, given_back): (_, oneshot::Receiver<Reply>) = Sender::new(send, content);
    let ended = if place == Place::Network {
        run(&shared, &cx, || stopped, pin!(handler(cx.clone(), request, sender))).await
    } else {
        let handled = Box::pin(handler(cx.clone(), request, sender));
        Box::pin(run_off(&shared, &cx, place, &core, || stopped, handled)).await
    };
    let Some(ended) = ended else { return };
    if ended.is_err() {
        count_failed(&core, cx.method());
    }
    if let Ok(mut send) = given_back.await {
        send.end(&ended.err().unwrap_or_else(Status::ok)).await;
    }
}

//! The client of the local API: HTTP/1.1 on the node's socket, or on a call to another node, one connection per request, JSON or lines of it.

use std::convert::Infallible;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use voltmesh::local::{Failure, Lines, parse};
use voltmesh::node::home::Home;

use crate::far::{Far, Why};

/// Largest answer that is no stream, in bytes.
const ANSWER_BYTES: usize = 16 << 20;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The lines of an answer that streams.
pub struct Answers {
    lines: Lines<BodyDataStream<Incoming>>,
    why: Why,
}

impl Answers {
    /// The next line; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        self.lines.next().await.map_err(|failure| self.why.take().unwrap_or(failure))
    }

    /// The next line as a value; `None` at the end.
    pub async fn parse<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Failure> {
        self.next().await?.map(|line| parse(&line)).transpose()
    }
}

/// A node that runs: on this home, or elsewhere.
#[derive(Clone, Debug)]
pub struct Client {
    way: Way,
}

#[derive(Clone, Debug)]
enum Way {
    Socket(PathBuf),
    Far(Arc<Far>),
}

#[derive(Deserialize)]
struct Refusal {
    error: Failure,
}

impl Client {
    /// The node that runs on this home; `None` if none answers.
    pub async fn find(home: &Home) -> Result<Option<Self>, Failure> {
        let socket = home.socket_path()?;
        match UnixStream::connect(&socket).await {
            Ok(_) => Ok(Some(Self { way: Way::Socket(socket) })),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => Ok(None),
            Err(error) => Err(broken(&error)),
        }
    }

    /// The node that `--on` names.
    pub fn of(far: Arc<Far>) -> Self {
        Self { way: Way::Far(far) }
    }

    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(Method::GET, path, empty()).await
    }

    /// Has something done.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, request: &impl Serialize) -> Result<T, Failure> {
        let body = voltmesh::local::line(request);
        self.answer(Method::POST, path, Full::new(body).boxed_unsync()).await
    }

    /// Has something removed.
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        self.answer(Method::DELETE, path, empty()).await
    }

    /// Streams lines there and back. Dropping the answer ends it all.
    pub async fn stream(&self, path: &str, requests: mpsc::Receiver<Bytes>) -> Result<Answers, Failure> {
        self.lines(Method::POST, path, streamed(requests)).await
    }

    /// Asks for lines, for as long as they come. Dropping the answer ends it.
    pub async fn follow(&self, path: &str) -> Result<Answers, Failure> {
        self.lines(Method::GET, path, empty()).await
    }

    async fn lines(&self, method: Method, path: &str, body: Body) -> Result<Answers, Failure> {
        let why = Why::default();
        let response = self.request_and(method, path, body, &why).await?;
        Ok(Answers { lines: Lines::new(response.into_body().into_data_stream()), why })
    }

    /// Asks for something that comes as bytes, for as long as it does. Dropping the answer ends it.
    pub async fn pieces(&self, path: &str, request: &impl Serialize) -> Result<BodyDataStream<Incoming>, Failure> {
        let body = Full::new(voltmesh::local::line(request)).boxed_unsync();
        Ok(self.request(Method::POST, path, body).await?.into_body().into_data_stream())
    }

    async fn answer<T: DeserializeOwned>(&self, method: Method, path: &str, body: Body) -> Result<T, Failure> {
        parse(&read(self.request(method, path, body).await?).await?)
    }

    async fn request(&self, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, Failure> {
        self.request_and(method, path, body, &Why::default()).await
    }

    async fn request_and(&self, method: Method, path: &str, body: Body, why: &Why) -> Result<Response<Incoming>, Failure> {
        let exchanged = match &self.way {
            Way::Socket(socket) => exchange(connect(socket).await?, method, path, body).await,
            Way::Far(far) => exchange(far.connect(why), method, path, body).await,
        };
        // What broke the way off says more than that it broke.
        exchanged.map_err(|failure| why.take().unwrap_or(failure))
    }
}

/// A connection to the node that runs here.
pub async fn connect(socket: &PathBuf) -> Result<UnixStream, Failure> {
    UnixStream::connect(socket).await.map_err(|error| broken(&error))
}

/// Sends a request to a node, and waits for what its answer begins with.
async fn exchange<S>(stream: S, method: Method, path: &str, body: Body) -> Result<Response<Incoming>, Failure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| broken(&error))?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to the node ended");
        }
    });
    let request = Request::builder().method(method).uri(path).header("host", "localhost").body(body);
    let request = request.map_err(|error| Failure::usage(format!("{path:?} cannot be asked for: {error}")))?;
    let response = sender.send_request(request).await.map_err(|error| broken(&error))?;
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    let body = read(response).await?;
    Err(serde_json::from_slice::<Refusal>(&body)
        .map_or_else(|_| Failure::local(format!("the node answered {status}")), |refusal| refusal.error))
}

/// Streams lines to the node that runs here, and what it answers.
pub async fn stream_to(socket: &PathBuf, path: &str, lines: mpsc::Receiver<Bytes>) -> Result<Answers, Failure> {
    let response = exchange(connect(socket).await?, Method::POST, path, streamed(lines)).await?;
    Ok(Answers { lines: Lines::new(response.into_body().into_data_stream()), why: Why::default() })
}

fn streamed(lines: mpsc::Receiver<Bytes>) -> Body {
    let frames = stream::unfold(lines, |mut lines| async { lines.recv().await.map(|line| (line, lines)) });
    StreamBody::new(frames.map(|line| Ok(Frame::data(line)))).boxed_unsync()
}

async fn read(response: Response<Incoming>) -> Result<Bytes, Failure> {
    let body = http_body_util::Limited::new(response.into_body(), ANSWER_BYTES);
    Ok(body.collect().await.map_err(|error| Failure::local(format!("the node broke off its answer: {error}")))?.to_bytes())
}

fn empty() -> Body {
    Full::new(Bytes::new()).boxed_unsync()
}

fn broken(error: &dyn std::error::Error) -> Failure {
    Failure::local(format!("cannot talk to the node: {error}")).hint("is it still up? `volt status` says")
}

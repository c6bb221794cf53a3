//! The routes of the local API that stream: events, calls, what is served, and the end of the node. What a stream stands for
//! ends when its client goes away.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path as UrlPath, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::afar::Asker;
use super::call::call;
use super::failure::{Cause, Failure};
use super::http::{Api, Sent, read};
use super::lines::{CallLine, Lines, line};
use super::peers::search;
use super::serve;
use super::types::{CallHead, EventLine, Offer, ServeLine, ServicesRequest, WatchLine};
use crate::proto::status::Code;

/// Lines on their way to a client.
pub(super) const LINES: usize = 16;

pub async fn get_events(State(api): State<Arc<Api>>) -> Response {
    lines(events(&api), line)
}

/// Events of the node and of what other processes serve through it, from now on.
pub fn events(api: &Api) -> mpsc::Receiver<EventLine> {
    let (send, receive) = mpsc::channel(1_024);
    let (mut of_node, mut of_offers, mut reloads) = (api.node.events(), api.offers.events(), api.node.reloads());
    let mut ended = api.ended.subscribe();
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                biased;
                () = send.closed() => return,
                Some(event) = of_node.next() => EventLine::of(&event),
                Ok(event) = of_offers.recv() => Some(event),
                Some(outcome) = reloads.next() => Some(outcome.into()),
                _ = ended.wait_for(|ended| *ended) => return,
            };
            if let Some(event) = event
                && send.send(event).await.is_err()
            {
                return;
            }
        }
    });
    receive
}

pub async fn post_call(State(api): State<Arc<Api>>, body: Body) -> Response {
    let mut from_client = Lines::new(body.into_data_stream());
    let (replies, to_client) = mpsc::channel(LINES);
    let (send, requests) = mpsc::channel(LINES);
    let work = async move {
        let head = match from_client.parse::<CallHead>().await {
            Ok(Some(head)) => Ok(head),
            Ok(None) => Err(Failure::usage("a call begins with a line that names its peer and method")),
            Err(failure) => Err(failure),
        };
        let ended = match head {
            Err(failure) => Err(failure),
            Ok(head) => {
                let reading = async {
                    loop {
                        let next = from_client.parse::<CallLine>().await;
                        let next = match next {
                            Ok(None) => break,
                            Ok(Some(line)) => line.into_body(),
                            Err(failure) => Err(failure),
                        };
                        if send.send(next).await.is_err() {
                            break;
                        }
                    }
                    drop(send);
                    std::future::pending::<()>().await;
                };
                tokio::select! {
                    biased;
                    ended = call(&api.node, &api.guests, &head, requests, &replies) => ended,
                    () = reading => Ok(()),
                }
            }
        };
        let last = ended.map_or_else(CallLine::Error, |()| CallLine::ok());
        let _ = replies.send(last).await;
    };
    owned_lines(to_client, line, work)
}

pub async fn post_watch(State(api): State<Arc<Api>>, body: Sent) -> Response {
    let (told, to_client) = mpsc::channel(LINES);
    let work = async move {
        let watched: Result<(), Failure> = async {
            let request: ServicesRequest = read(body)?;
            let (search, _guest) = search(&api.node, &api.guests, &request).await?;
            let mut watch = search.watch().await?;
            let mut ended = api.ended.subscribe();
            loop {
                let presence = tokio::select! {
                    biased;
                    presence = watch.next() => presence,
                    _ = ended.wait_for(|ended| *ended) => None,
                };
                let gone = || Failure::new(Cause::Local, Code::Unavailable, "the node has gone down");
                let line = WatchLine::of(&presence.ok_or_else(gone)?);
                if told.send(line).await.is_err() {
                    return Ok(());
                }
            }
        }
        .await;
        if let Err(failure) = watched {
            let _ = told.send(WatchLine::Error(failure)).await;
        }
    };
    owned_lines(to_client, line, work)
}

pub async fn post_serve(State(api): State<Arc<Api>>, asker: Asker, body: Body) -> Response {
    let mut from_client = Lines::new(body.into_data_stream());
    let (told, to_client) = mpsc::channel(LINES);
    let work = async move {
        let offer = match from_client.parse::<Offer>().await {
            Ok(Some(offer)) => offer,
            Ok(None) => return drop(told.send(ServeLine::Error(Failure::usage("the first line names the method"))).await),
            Err(failure) => return drop(told.send(ServeLine::Error(failure)).await),
        };
        let mut ended = api.ended.subscribe();
        let result = tokio::select! {
            biased;
            result = serve::serve(&api.offers, &api.pending, &api.guests, offer, &told, asker) => result,
            // Whatever the client says, or its silence at the end, means that it serves no longer.
            _ = from_client.next() => Ok(()),
            _ = ended.wait_for(|ended| *ended) => {
                let gone = Failure::new(Cause::Local, Code::Unavailable, "the node has gone down");
                Err(gone)
            }
        };
        if let Err(failure) = result {
            let _ = told.send(ServeLine::Error(failure)).await;
        }
    };
    owned_lines(to_client, line, work)
}

pub async fn post_serve_call(State(api): State<Arc<Api>>, asker: Asker, UrlPath(id): UrlPath<String>, body: Body) -> Response {
    let call = match id.parse().map_err(Failure::usage).and_then(|id| api.pending.claim(id, asker)) {
        Ok(call) => call,
        Err(failure) => return failure.into_response(),
    };
    let mut from_client = Lines::new(body.into_data_stream());
    let (requests, to_client) = mpsc::channel(LINES);
    let (send, answers) = mpsc::channel(LINES);
    let work = async move {
        let reading = async {
            while let Some(next) = from_client.parse::<CallLine>().await.transpose() {
                let broken = next.is_err();
                if send.send(next).await.is_err() || broken {
                    break;
                }
            }
            drop(send);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            () = serve::carry(call, requests, answers) => {}
            () = reading => {}
        }
    };
    owned_lines(to_client, line, work)
}

pub async fn post_down(State(api): State<Arc<Api>>, asker: Asker) -> Response {
    let (send, receive) = mpsc::channel(1);
    let mut ended = api.ended.subscribe();
    let _ = send.try_send(serde_json::json!({ "draining": true, "pid": std::process::id() }));
    api.down.send_replace(true);
    let work = async move {
        if asker != Asker::Owner {
            // What a peer asks for is a call, and the node waits for those to end.
            return;
        }
        let _ = ended.wait_for(|ended| *ended).await;
        drop(send);
    };
    owned_lines(receive, line, work)
}

/// A body of lines, as they come.
fn lines<T: Send + 'static>(receive: mpsc::Receiver<T>, write: impl Fn(&T) -> Bytes + Clone + Send + 'static) -> Response {
    let stream = stream::unfold((receive, write), |(mut receive, write)| async {
        let next = receive.recv().await?;
        Some((Ok::<_, Infallible>(write(&next)), (receive, write)))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(stream)).into_response()
}

/// The same, made by work that ends when the client has gone.
pub(super) fn owned_lines<T: Send + 'static>(
    receive: mpsc::Receiver<T>,
    write: impl Fn(&T) -> Bytes + Clone + Send + 'static,
    work: impl Future<Output = ()> + Send + 'static,
) -> Response {
    owned(receive, "application/x-ndjson", write, work)
}

/// A body of that type, made by work that ends when the client has gone.
pub(super) fn owned<T: Send + 'static>(
    receive: mpsc::Receiver<T>,
    content_type: &'static str,
    write: impl Fn(&T) -> Bytes + Clone + Send + 'static,
    work: impl Future<Output = ()> + Send + 'static,
) -> Response {
    struct Owned<T>(mpsc::Receiver<T>, JoinHandle<()>);
    impl<T> Drop for Owned<T> {
        fn drop(&mut self) {
            self.1.abort();
        }
    }
    let owned = Owned(receive, tokio::spawn(work));
    let stream = stream::unfold((owned, write), |(mut owned, write)| async {
        let next = owned.0.recv().await?;
        Some((Ok::<_, Infallible>(write(&next)), (owned, write)))
    });
    ([(header::CONTENT_TYPE, content_type)], Body::from_stream(stream)).into_response()
}

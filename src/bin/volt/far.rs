//! `--on PEER`: the local API of another node, as far as its policy permits this one to administer it. The bytes of each request go over a
//! call of `volt/administer`: through the node that runs here, or from a visit.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use voltmesh::Node;
use voltmesh::local::{self, CallHead, CallLine, Cause, Failure, Guests, Replies, Requests};
use voltmesh::proto::status::{Code, Status};

use crate::client::stream_to;

/// Bytes on their way between a request and its call.
const BUFFER_BYTES: usize = 32 * 1024;

/// Another node, to be administered from here.
#[derive(Debug)]
pub struct Far {
    peer: String,
    near: Near,
}

/// What makes the calls.
#[derive(Clone, Debug)]
pub enum Near {
    /// The node that runs on the home, by its socket.
    Node(PathBuf),
    /// A short-lived node of our own.
    Visitor(Node, Guests),
}

/// Why the way to the other node broke off, once it is known.
#[derive(Clone, Debug, Default)]
pub struct Why(Arc<Mutex<Option<Failure>>>);

impl Why {
    /// What is known of it.
    pub fn take(&self) -> Option<Failure> {
        self.0.lock().expect("nothing panics while it is held").take()
    }

    fn set(&self, failure: Failure) {
        *self.0.lock().expect("nothing panics while it is held") = Some(failure);
    }
}

impl Far {
    /// The node of this peer.
    pub fn new(peer: String, near: Near) -> Self {
        Self { peer, near }
    }

    /// A connection to that node's local API, for one request. What breaks it off is told there.
    pub fn connect(&self, why: &Why) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(BUFFER_BYTES);
        let head = CallHead {
            peer: self.peer.clone(),
            method: "volt/administer".to_owned(),
            stream: true,
            raw: true,
            ..CallHead::default()
        };
        let (near, why) = (self.near.clone(), why.clone());
        tokio::spawn(carry(near, head, theirs, why));
        ours
    }

    /// Says goodbye, if it was a visit.
    pub async fn close(&self) {
        if let Near::Visitor(node, _) = &self.near {
            node.shutdown().await;
        }
    }
}

/// Carries one request over a call. Ends with either of them.
async fn carry(near: Near, head: CallHead, io: DuplexStream, why: Why) {
    let (mut from_request, mut to_request) = tokio::io::split(io);
    let (send, requests) = mpsc::channel(16);
    let (replies, mut come) = mpsc::channel(16);
    let reading = async {
        let mut buffer = vec![0; BUFFER_BYTES];
        while let Ok(read @ 1..) = from_request.read(&mut buffer).await {
            if send.send(Ok(buffer[..read].to_vec())).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let calling = async {
        let ended = match &near {
            Near::Node(socket) => through_node(socket, &head, requests, &replies).await,
            Near::Visitor(node, guests) => local::call(node, guests, &head, requests, &replies).await,
        };
        drop(replies);
        ended
    };
    let writing = async {
        while let Some(reply) = come.recv().await {
            to_request
                .write_all(&reply.into_body()?)
                .await
                .map_err(|error| Failure::local(format!("the request is over: {error}")))?;
        }
        Ok::<_, Failure>(())
    };
    let working = async {
        let (called, written) = tokio::join!(calling, writing);
        called.and(written)
    };
    tokio::select! {
        biased;
        ended = working => if let Err(failure) = ended {
            why.set(failure);
        },
        // Nobody waits for the answer any more.
        () = reading => {}
    }
}

/// Has the node that runs here make the call.
async fn through_node(socket: &PathBuf, head: &CallHead, mut requests: Requests, replies: &Replies) -> Result<(), Failure> {
    let (send, lines) = mpsc::channel(16);
    let _ = send.try_send(local::line(head));
    let forwarding = async move {
        while let Some(Ok(bytes)) = requests.recv().await {
            if send.send(local::line(&CallLine::raw(&bytes))).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let answering = async {
        let gone = || Failure::new(Cause::Unreached, Code::Unavailable, "the node that made the call here is gone");
        let mut answers = stream_to(socket, "/v1/call", lines).await?;
        loop {
            match answers.parse::<CallLine>().await.ok().flatten().ok_or_else(gone)? {
                CallLine::Error(failure) => return Err(failure),
                CallLine::Status(status) => {
                    let status = Status::try_from(status)?;
                    return if status.is_ok() { Ok(()) } else { Err(status.into()) };
                }
                reply => drop(replies.send(reply).await),
            }
        }
    };
    tokio::select! {
        biased;
        answered = answering => answered,
        () = forwarding => Ok(()),
    }
}

//! Who plays: the nodes, the service they offer, and what the steps leave for each other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::policy::{Action, Effect, Pattern, Rule, Source, Subject};
use voltmesh::proto::status::Status;
use voltmesh::{CallError, Event, Node, Receiver, Sender, Service, Session};

use super::Failure;
use super::hard::HardNode;
use super::outage::{NOISE_EVERY, Outage, noise};

/// Any port of loopback.
pub const ANYWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Everything that is on stage; filled by the first steps.
#[derive(Default)]
pub struct Stage {
    /// Calls and is called.
    pub a: Option<Player>,
    /// In the middle.
    pub b: Option<Player>,
    /// Lives in a runtime of its own, so that it can be stopped like a machine that loses power.
    pub c: Option<HardNode>,
    /// Knocks uninvited.
    pub d: Option<Player>,
    /// e, whose network to b is cut.
    pub outage: Option<Outage>,
    /// b's call to c, in flight as c loses power.
    pub in_flight: Option<JoinHandle<Result<u64, CallError>>>,
}

/// A node that lives in the demo's own runtime.
pub struct Player {
    /// The node.
    pub node: Node,
    /// What its handlers let us know.
    pub seen: mpsc::UnboundedReceiver<Seen>,
    /// What its sessions went through.
    pub events: voltmesh::node::Events,
}

/// What a handler lets the demo know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It was entered.
    Begun,
    /// Its future was dropped before it was done.
    Dropped(Instant),
}

impl Stage {
    /// The nodes a and b.
    pub fn both(&mut self) -> Result<(&mut Player, &mut Player), Failure> {
        match (&mut self.a, &mut self.b) {
            (Some(a), Some(b)) => Ok((a, b)),
            _ => Err("the nodes are not there".into()),
        }
    }
}

impl Player {
    /// Starts a node that listens there, with the demo's service, with these rules and no others.
    pub async fn start(name: &str, key: SecretKey, at: SocketAddr, rules: Vec<Rule>) -> Result<Self, Failure> {
        let (tell, seen) = mpsc::unbounded_channel();
        let builder = Node::builder().name(name).key(key).listen(at).service(service(tell));
        let node = rules.into_iter().fold(builder, voltmesh::node::Builder::rule).bind().await?;
        let events = node.events();
        Ok(Self { node, seen, events })
    }

    /// The session with another node.
    pub fn session(&self, with: NodeId) -> Result<Session, Failure> {
        self.node.session(with).ok_or_else(|| format!("{} has no session with {}", self.node.name(), with.short()).into())
    }

    /// Waits for an event of the session with that node.
    pub async fn event_of(&mut self, with: NodeId) -> Result<Event, Failure> {
        loop {
            match self.events.next().await {
                Some(event @ (Event::Connected { peer, .. } | Event::Disconnected { peer, .. })) if peer == with => {
                    return Ok(event);
                }
                Some(_) => {}
                None => return Err("the node has ended".into()),
            }
        }
    }

    /// Waits for what a handler has to say.
    pub async fn saw(&mut self) -> Result<Seen, Failure> {
        self.seen.recv().await.ok_or_else(|| "the node has ended".into())
    }
}

/// `allow WHO call WHAT`, which implies that they may connect.
pub fn allow(who: NodeId, what: &str) -> Result<Rule, Failure> {
    Ok(Rule::new(Effect::Permit, Subject::Node(who), Action::Call, what.parse::<Pattern>()?, Source::Config)?)
}

/// What every node of the demo offers.
pub fn service(tell: mpsc::UnboundedSender<Seen>) -> Service {
    let tell = Arc::new(tell);
    Service::new("demo")
        .unary("echo", |_cx, text: String| async move { Ok(text) })
        .client_stream("sum", |_cx, mut numbers: Receiver<u64>| async move {
            let mut sum = 0;
            while let Some(n) = numbers.next().await? {
                sum += n;
            }
            Ok(sum)
        })
        .server_stream("count", |_cx, to: u64, mut out: Sender<u64>| async move {
            for n in 1..=to {
                out.send(&n).await?;
            }
            Ok(())
        })
        .server_stream("noise", |_cx, messages: u64, mut out: Sender<Bytes>| async move {
            for number in 0..messages {
                out.send(&noise(number)).await?;
                sleep(NOISE_EVERY).await;
            }
            Ok(())
        })
        .bidi("double", |_cx, mut numbers: Receiver<u64>, mut out: Sender<u64>| async move {
            while let Some(n) = numbers.next().await? {
                out.send(&(n * 2)).await?;
            }
            Ok(())
        })
        .unary("wait", move |_cx, ms: u64| wait(tell.clone(), ms))
        .unary("time_left", |cx, ()| async move { Ok(cx.time_left()) })
        .unary("panic", |_cx, ()| panics())
}

/// Unwinds as `panic!` does, without the report on stderr in the midst of the story.
async fn panics() -> Result<(), Status> {
    std::panic::resume_unwind(Box::new("on purpose"))
}

/// Answers after so many milliseconds; lets the demo know when it begins, and when it is dropped before its end.
async fn wait(tell: Arc<mpsc::UnboundedSender<Seen>>, ms: u64) -> Result<u64, Status> {
    struct Unfinished(Option<Arc<mpsc::UnboundedSender<Seen>>>);
    impl Drop for Unfinished {
        fn drop(&mut self) {
            if let Some(tell) = &self.0 {
                let _ = tell.send(Seen::Dropped(Instant::now()));
            }
        }
    }
    let _ = tell.send(Seen::Begun);
    let mut unfinished = Unfinished(Some(tell));
    sleep(Duration::from_millis(ms)).await;
    unfinished.0 = None;
    Ok(ms)
}

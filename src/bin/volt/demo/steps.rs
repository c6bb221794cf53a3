//! The steps, in order. Each does one thing, checks that it went as it claims, and says in a few words what it saw.

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use voltmesh::id::{NodeId, SecretKey};
use voltmesh::node::ConnectError;
use voltmesh::policy::Action;
use voltmesh::proto::status::Code;
use voltmesh::session::DisconnectReason;
use voltmesh::{CallError, Event, Outcome, Service, Session};

use super::hard::HardNode;
use super::outage;
use super::shapes::all_four;
use super::stage::{ANYWHERE, Player, Seen, Stage, allow};
use super::{Failure, Told, ensure, ms};

/// One step of the demo.
pub struct Step {
    /// What `--json` calls it.
    pub name: &'static str,
    /// What people read.
    pub title: &'static str,
    /// Does it.
    pub run: fn(&mut Stage) -> Telling<'_>,
}

type Telling<'a> = Pin<Box<dyn Future<Output = Told> + 'a>>;

/// All of them. Each builds on those before it.
pub const ALL: &[Step] = &[
    Step { name: "start", title: "three nodes start", run: |stage| Box::pin(start(stage)) },
    Step { name: "connect", title: "two sessions come up", run: |stage| Box::pin(connect(stage)) },
    Step { name: "a-calls-b", title: "a calls b, in all four shapes", run: |stage| Box::pin(a_calls_b(stage)) },
    Step { name: "b-calls-a", title: "b calls a, over the same session", run: |stage| Box::pin(b_calls_a(stage)) },
    Step { name: "thousand", title: "a thousand calls at once", run: |stage| Box::pin(thousand(stage)) },
    Step { name: "cancel", title: "a call is cancelled", run: |stage| Box::pin(cancel(stage)) },
    Step { name: "deadline", title: "a deadline shrinks on its way", run: |stage| Box::pin(deadline(stage)) },
    Step { name: "panic", title: "a handler panics", run: |stage| Box::pin(panic(stage)) },
    Step { name: "refuse", title: "a stranger is refused", run: |stage| Box::pin(refuse(stage)) },
    Step { name: "allow", title: "it is allowed one function", run: |stage| Box::pin(permit(stage)) },
    Step { name: "cut", title: "the network is cut in mid-call", run: |stage| Box::pin(outage::cut(stage)) },
    Step { name: "resume", title: "it is back, and all goes on", run: |stage| Box::pin(outage::back(stage)) },
    Step { name: "lose", title: "c loses power in mid-call", run: |stage| Box::pin(lose(stage)) },
    Step { name: "return", title: "c is back, same key, same port", run: |stage| Box::pin(come_back(stage)) },
    Step { name: "shutdown", title: "all shut down in good order", run: |stage| Box::pin(shutdown(stage)) },
];

async fn start(stage: &mut Stage) -> Told {
    let (a, b) = (SecretKey::generate(), SecretKey::generate());
    let (may_a, may_b) = (allow(a.id(), "demo/*")?, allow(b.id(), "demo/*")?);
    let c = HardNode::start(b.id()).await?;
    let (a, b) = (Player::start("a", a, ANYWHERE, vec![may_b]).await?, Player::start("b", b, ANYWHERE, vec![may_a]).await?);
    let tickets = [a.node.ticket(), b.node.ticket(), c.ticket.clone()];
    (stage.a, stage.b, stage.c) = (Some(a), Some(b), Some(c));
    let said = ["a", "b", "c"].iter().zip(&tickets).map(|(name, ticket)| {
        let port = ticket.addresses.first().map(ToString::to_string).unwrap_or_default();
        let port = port.rsplit(':').next().unwrap_or_default();
        format!("{name} {} :{port}", ticket.id.short())
    });
    Ok(said.collect::<Vec<_>>().join(", "))
}

async fn connect(stage: &mut Stage) -> Told {
    let c = stage.c()?.ticket.clone();
    let (a, b) = stage.both()?;
    let to_b = a.node.connect(b.node.ticket()).await?;
    let to_c = b.node.connect(c).await?;
    for event in [a.event_of(b.node.id()).await?, b.event_of(a.node.id()).await?, b.event_of(to_c.peer()).await?] {
        ensure(matches!(event, Event::Connected { .. }), || format!("{event:?} is not that a session is up"))?;
    }
    let (ab, bc) = (to_b.ping(PATIENCE).await?, to_c.ping(PATIENCE).await?);
    Ok(format!("round trips: a–b {}, b–c {}", ms(ab), ms(bc)))
}

async fn a_calls_b(stage: &mut Stage) -> Told {
    let (a, b) = stage.both()?;
    let messages = all_four(&a.session(b.node.id())?).await?;
    Ok(format!("unary, client stream, server stream, both ways: {messages} messages"))
}

async fn b_calls_a(stage: &mut Stage) -> Told {
    let (a, b) = stage.both()?;
    let (from_a, from_b) = (a.session(b.node.id())?, b.session(a.node.id())?);
    let messages = all_four(&from_b).await?;
    ensure(from_a.id().is_some() && from_a.id() == from_b.id(), || "it was another session".into())?;
    Ok(format!("b never dialled a; {messages} messages"))
}

async fn thousand(stage: &mut Stage) -> Told {
    let (a, b) = stage.both()?;
    let session = a.session(b.node.id())?;
    let began = Instant::now();
    let calls = (0..1_000).map(|n| {
        let session = &session;
        async move {
            let sent = format!("call {n}");
            let echoed: String = session.call("demo/echo", &sent).await?;
            ensure(echoed == sent, || format!("{sent:?} came back as {echoed:?}"))
        }
    });
    join_all(calls).await.into_iter().collect::<Result<(), Failure>>()?;
    let rate = 1_000.0 / began.elapsed().as_secs_f64();
    Ok(format!("each answered with its own text; {rate:.0} calls/s"))
}

async fn cancel(stage: &mut Stage) -> Told {
    let (a, b) = stage.both()?;
    let session = a.session(b.node.id())?;
    let cancelled = {
        let mut call = std::pin::pin!(session.call::<_, u64>("demo/wait", &LONG_MS));
        tokio::select! {
            answer = &mut call => return Err(format!("it was answered: {answer:?}").into()),
            seen = b.saw() => ensure(seen? == Seen::Begun, || "the handler was dropped before its call".into())?,
        }
        Instant::now()
    };
    match b.saw().await? {
        Seen::Dropped(at) => Ok(format!("a drops its future; b's handler is dropped {} later", ms(at - cancelled))),
        Seen::Begun => Err("the handler was entered twice".into()),
    }
}

/// b passes what is left of the time it was given on to c, after some work of its own.
async fn deadline(stage: &mut Stage) -> Told {
    const GIVEN: Duration = Duration::from_millis(1_000);
    const WORK: Duration = Duration::from_millis(50);
    let c = stage.c()?.ticket.id;
    let (a, b) = stage.both()?;
    // Served from here on, and no longer than this step.
    let _served = b.node.serve(passing_on(b.session(c)?, WORK))?;
    b.node.add_rule(allow(a.node.id(), "passing/on")?).await?;
    let session = a.session(b.node.id())?;
    let (at_b, at_c): (Duration, Duration) = session.request("passing/on").timeout(GIVEN).unary(&()).await?;
    ensure(at_b < GIVEN && at_c + WORK <= at_b, || format!("b had {}, c had {}", ms(at_b), ms(at_c)))?;
    let overdue = session.request("demo/wait").timeout(WORK).unary::<_, u64>(&LONG_MS).await;
    ensure(overdue.as_ref().is_err_and(|error| error.code() == Code::DeadlineExceeded), || format!("past it: {overdue:?}"))?;
    let (begun, dropped) = (b.saw().await?, b.saw().await?);
    ensure(matches!((begun, dropped), (Seen::Begun, Seen::Dropped(_))), || "b's handler outlived its deadline".into())?;
    let [a, b, c] = [GIVEN, at_b, at_c].map(|left| left.as_secs_f64() * 1e3);
    Ok(format!("{a:.1} ms at a, {b:.1} at b, {c:.1} at c; past it the handler is dropped"))
}

fn passing_on(to: Session, work: Duration) -> Service {
    Service::new("passing").unary("on", move |cx, ()| {
        let to = to.clone();
        async move {
            let here = cx.time_left().unwrap_or_default();
            tokio::time::sleep(work).await;
            let left = cx.time_left().unwrap_or_default();
            let there: Option<Duration> = to.request("demo/time_left").timeout(left).unary(&()).await?;
            Ok((here, there.unwrap_or_default()))
        }
    })
}

async fn panic(stage: &mut Stage) -> Told {
    let (a, b) = stage.both()?;
    let session = a.session(b.node.id())?;
    let beside = session.call::<_, u64>("demo/wait", &SHORT_MS);
    let panicking = async {
        // Once the other handler is under way, so that it is there to be harmed.
        b.saw().await?;
        Ok::<_, Failure>(session.call::<_, ()>("demo/panic", &()).await)
    };
    let (beside, panicked) = join(beside, panicking).await;
    let panicked = panicked?;
    ensure(panicked.as_ref().is_err_and(|error| error.code() == Code::Internal), || format!("its call: {panicked:?}"))?;
    ensure(beside == Ok(SHORT_MS), || format!("the call beside it: {beside:?}"))?;
    ensure(b.node.counts().panics == 1, || "the panic was not counted".into())?;
    Ok("its call fails with INTERNAL; the one beside it is answered".into())
}

async fn refuse(stage: &mut Stage) -> Told {
    let d = Player::start("d", SecretKey::generate(), ANYWHERE, Vec::new()).await?;
    let (_, b) = stage.both()?;
    let refused_before = b.node.counts().refused_sessions;
    let connected = d.node.connect(b.node.ticket()).await;
    let Err(error @ ConnectError::Refused) = connected else { return Err(format!("it was told {connected:?}").into()) };
    let policy = b.node.policy().current();
    let decision = policy.decide(&d.node.id(), Action::Connect, "");
    let why = policy.explain(&d.node.id(), Action::Connect, "");
    let counted = b.node.counts().refused_sessions - refused_before;
    ensure(!decision.is_permit() && counted == 1, || format!("{counted} refusals were counted, and policy says {why}"))?;
    let (here, there) = (shorten(&why, d.node.id()), error.to_string());
    stage.d = Some(d);
    Ok(format!("b: \"{here}\"; d: \"{}\"", there.split(':').next().unwrap_or_default()))
}

async fn permit(stage: &mut Stage) -> Told {
    let d = stage.d.take().ok_or("the stranger is not there")?;
    let (_, b) = stage.both()?;
    let began = Instant::now();
    let rule = allow(d.node.id(), "demo/echo")?;
    b.node.add_rule(rule.clone()).await?;
    let session = d.node.connect(b.node.ticket()).await?;
    let echoed: String = session.call("demo/echo", "me too").await?;
    let took = began.elapsed();
    ensure(echoed == "me too", || format!("\"me too\" came back as {echoed:?}"))?;
    let other = session.call::<_, u64>("demo/sum", &()).await;
    let denied = other.as_ref().is_err_and(|error| error.code() == Code::PermissionDenied);
    ensure(denied, || format!("another function answered {other:?}"))?;
    let said = shorten(&rule.to_string(), d.node.id());
    d.node.shutdown().await;
    Ok(format!("\"{said}\" lets it in within {}; the rest stays denied", ms(took)))
}

async fn lose(stage: &mut Stage) -> Told {
    let Stage { b: Some(b), c: Some(c), .. } = stage else { return Err("the nodes are not there".into()) };
    let session = b.session(c.ticket.id)?;
    let call = tokio::spawn(async move { session.call::<_, u64>("demo/wait", &LONG_MS).await });
    ensure(c.seen.recv().await == Some(Seen::Begun), || "the call did not arrive".into())?;
    c.stop_hard();
    let stopped = Instant::now();
    let event = b.event_of(c.ticket.id).await?;
    let after = stopped.elapsed();
    let unanswered = matches!(event, Event::Disconnected { reason: DisconnectReason::NoAnswer, .. });
    ensure(unanswered, || format!("b was told {event:?}"))?;
    ensure(!call.is_finished(), || "the call in flight did not wait for c".into())?;
    stage.in_flight = Some(call);
    Ok(format!("disconnected after {}, no answer; its call waits, c may know the answer", ms(after)))
}

async fn come_back(stage: &mut Stage) -> Told {
    let in_flight = stage.in_flight.take().ok_or("no call is in flight")?;
    let Stage { b: Some(b), c: Some(c), .. } = stage else { return Err("the nodes are not there".into()) };
    let session = b.session(c.ticket.id)?;
    let call = session.call::<_, String>("demo/echo", "while you were out");
    let returning = async {
        let away = session.id().is_none();
        ensure(away, || "the session was up before c was".into())?;
        c.start_again().await?;
        let back = Instant::now();
        match b.event_of(c.ticket.id).await? {
            Event::Connected { resumed: false, .. } => Ok(back.elapsed()),
            other => Err(Failure::from(format!("b was told {other:?}"))),
        }
    };
    let (answer, connected) = join(call, returning).await;
    let after = connected?;
    ensure(answer.as_deref() == Ok("while you were out"), || format!("the call made meanwhile: {answer:?}"))?;
    let ended = tokio::time::timeout(Duration::from_secs(1), in_flight).await;
    let ended = ended.map_err(|_| "the call to the old process still waits")??;
    let outcome = ended.as_ref().err().map(CallError::outcome);
    ensure(outcome == Some(Outcome::Unknown), || format!("the call to the old process: {ended:?}"))?;
    Ok(format!("connected after {}; the old call: outcome unknown; one made meanwhile is answered", ms(after)))
}

async fn shutdown(stage: &mut Stage) -> Told {
    stage.c()?.shutdown().await?;
    let (a, b) = stage.both()?;
    let session = a.session(b.node.id())?;
    let last = session.call::<_, u64>("demo/wait", &SHORT_MS);
    let ending = async {
        b.saw().await?;
        b.node.shutdown().await;
        a.event_of(b.node.id()).await
    };
    let (last, event) = join(last, ending).await;
    ensure(last == Ok(SHORT_MS), || format!("the call in flight: {last:?}"))?;
    let event = event?;
    let told = matches!(event, Event::Disconnected { reason: DisconnectReason::PeerDown, .. });
    ensure(told, || format!("a was told {event:?}"))?;
    a.node.shutdown().await;
    Ok("the call in flight is answered first; a learns that \"the peer goes down\"".into())
}

/// For what takes microseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a handler waits that nobody waits for.
const LONG_MS: u64 = 60_000;
/// How long a handler waits that others are to overtake.
const SHORT_MS: u64 = 50;

/// What policy says of d, with its name for its id, so that it fits a line.
fn shorten(text: &str, d: NodeId) -> String {
    text.replace(&d.to_string(), "d")
}

impl Stage {
    fn c(&mut self) -> Result<&mut HardNode, Failure> {
        self.c.as_mut().ok_or_else(|| "c is not there".into())
    }
}

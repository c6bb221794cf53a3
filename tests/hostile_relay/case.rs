//! One circuit, from its handshake to its end, and what became of it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use voltmesh::net::{Circuit, CircuitError, Leg, LostReason, PathError};
use voltmesh::proto::close::CloseCode;

use crate::app::End;
use crate::bench::{A, Arrival, B, Bench, C, Halves, Head, alone, circuit_id};
use crate::carrier::{Case, Relayed};
use crate::plan::{Deed, Plan};
use crate::table::Outcome;

type Begun = Result<Arc<Circuit>, CircuitError>;

/// An end's half of a handshake.
async fn shaken(case: &Case, half: impl Future<Output = Begun>) -> Begun {
    let begun = half.await;
    if begun.is_err() {
        case.seen();
    }
    begun
}

/// A circuit between A and B that is carried as planned.
pub async fn carried(bench: &Arc<Bench>, plan: Plan) -> Option<Outcome> {
    let other_id = plan.deed == Deed::OtherId;
    let leg = bench.leg_number();
    let legs = [leg, if other_id { bench.leg_number() } else { leg }];
    let case = Case::new(bench, plan, legs);
    let begun = both_begin(&case).await;
    let outcome = match begun {
        Some(begun) => Some(after_handshake(&case, begun).await),
        None => None,
    };
    case.stop();
    if outcome.as_ref().is_some_and(|outcome| outcome.whole) && !other_id {
        bench.remember(leg, case.relayed());
    }
    outcome
}

/// The control stream goes through the carrier; then the two ends shake hands.
async fn both_begin(case: &Arc<Case>) -> Option<[Begun; 2]> {
    let (bench, [at_a, at_b]) = (&case.bench, case.legs);
    let (told, mut arrived) = mpsc::unbounded_channel();
    bench.carries(A, at_a, &told);
    let a = bench.begin(A, at_a).await?;
    let Arrival { halves, .. } = arrived.recv().await?;
    let (far, b) = bench.lead(B, at_b).await?;
    case.carry();
    case.note_control();
    case.splice(0, halves, far, None, Bytes::new());
    if case.plan.deed == Deed::OtherId {
        case.change();
    }
    let (a_site, b_site) = (&bench.sites[A], &bench.sites[B]);
    let begin = Circuit::begin(&a_site.config, circuit_id(at_a), a_site.id, b_site.id, a);
    let accept = Circuit::accept_one(&b_site.config, circuit_id(at_b), b_site.id, b);
    let (a, b) = case.watched(async { tokio::join!(shaken(case, begin), shaken(case, accept)) }).await;
    Some([a, b])
}

async fn after_handshake(case: &Arc<Case>, begun: [Begun; 2]) -> Outcome {
    let ids = [B, A].map(|site| case.bench.sites[site].id);
    let mut accepted = Vec::new();
    for (end, begun) in begun.iter().enumerate() {
        if begun.as_ref().is_ok_and(|circuit| circuit.peer() != ids[end]) {
            accepted.push(format!("end {end} has taken another for its peer"));
        }
    }
    let mut reasons: Vec<(u8, String)> = begun.iter().filter_map(|begun| begun.as_ref().err()).map(handshake_reason).collect();
    let came_about = reasons.is_empty();
    let ends: Vec<End> =
        begun.into_iter().enumerate().filter_map(|(end, begun)| begun.ok().map(|circuit| End::new(circuit, case, end))).collect();
    see_it_end(case, &ends, came_about).await;
    let whole = came_about && ends.iter().all(End::is_whole) && closed_well(&ends);
    for end in &ends {
        accepted.extend(end.accepted());
        reasons.extend(end.failed().as_ref().map(stream_reason));
        reasons.extend(end.link.lost().as_ref().map(lost_reason));
    }
    reasons.sort();
    let (_, reason) = reasons.into_iter().next().expect("both ends know how it ended");
    Outcome { changed: case.is_changed(), whole, waited: case.has_waited(), reason, accepted }
}

fn closed_well(ends: &[End]) -> bool {
    ends.iter().map(|end| end.link.lost()).eq([Some(LostReason::Here), Some(LostReason::Closed(CloseCode::Superseded))])
}

/// Waits until the circuit is over at both ends.
async fn see_it_end(case: &Arc<Case>, ends: &[End], came_about: bool) {
    let lost = || futures_util::future::select_all(ends.iter().map(|end| Box::pin(end.link.closed())));
    if came_about {
        case.watched(async {
            tokio::select! {
                biased;
                _ = lost() => {}
                _ = async { tokio::join!(ends[0].whole(), ends[1].whole()) } => {}
            }
        })
        .await;
        if case.plan.deed.adds() {
            case.watched(async {
                tokio::select! {
                    biased;
                    _ = lost() => {}
                    () = case.say_again() => {}
                }
            })
            .await;
        }
        // What is carried beside the streams' own bytes may be looked at later than those.
        if case.is_changed() {
            tokio::select! {
                biased;
                _ = lost() => {}
                () = case.quiet() => {}
            }
        }
        if ends.iter().any(|end| end.link.lost().is_some()) {
            case.seen();
        } else {
            case.over();
            ends[0].link.close(CloseCode::Superseded);
        }
    }
    let all = futures_util::future::join_all(ends.iter().map(|end| end.link.closed()));
    case.watched(all).await;
}

/// With how near it is to what was done: the lowest says most.
fn handshake_reason(error: &CircuitError) -> (u8, String) {
    match error {
        CircuitError::Path(error) => (3, format!("handshake: {error}")),
        error => (u8::from(error.to_string().contains("cut off")) * 3 + 1, without_digits(&format!("handshake: {error}"))),
    }
}

fn stream_reason(error: &PathError) -> (u8, String) {
    match error {
        PathError::Lost(reason) => lost_reason(reason),
        PathError::Reset(_) => (2, "a stream was reset".into()),
        PathError::Stopped(_) => (2, "a stream was stopped".into()),
        error => (6, error.to_string()),
    }
}

fn lost_reason(reason: &LostReason) -> (u8, String) {
    let text = without_digits(&reason.to_string());
    match reason {
        LostReason::Transport(_) if text.contains("meddled") => (0, text),
        LostReason::Transport(_) if text.contains("cut off") => (5, text),
        LostReason::Transport(_) => (1, text),
        LostReason::Here => (8, text),
        _ => (7, text),
    }
}

fn without_digits(text: &str) -> String {
    let words = text.split(' ').map(|word| match word {
        word if word.starts_with("did:") => "ID",
        word if word.starts_with(|first: char| first.is_ascii_digit()) => "N",
        word => word,
    });
    words.collect::<Vec<_>>().join(" ")
}

/// A carrier that has the handshake go elsewhere than it should, or answers it with what it has.
pub async fn misled(bench: &Arc<Bench>, plan: Plan) -> Option<Outcome> {
    let old = match plan.deed {
        Deed::OldHandshake | Deed::OldAnswers => Some(bench.old(plan.length)?),
        Deed::Reopen => Some(bench.oldest()?),
        _ => None,
    };
    let leg = match (&old, plan.deed) {
        (Some(old), Deed::Reopen) => old.0,
        _ => bench.leg_number(),
    };
    let case = Case::new(bench, plan, [leg, leg]);
    case.change();
    let ended = Misled { case: &case, leg, old: old.as_ref().map_or(&[], |old| &old.1[..]) }.run().await;
    case.stop();
    let (accepted, reason) = ended?;
    Some(Outcome { changed: true, whole: false, waited: case.has_waited(), reason, accepted })
}

struct Misled<'a> {
    case: &'a Arc<Case>,
    leg: u64,
    old: &'a [Relayed],
}

impl Misled<'_> {
    async fn run(&self) -> Option<(Vec<String>, String)> {
        let bench = &self.case.bench;
        let ids = [A, B, C].map(|site| bench.sites[site].id);
        match self.case.plan.deed {
            Deed::OldHandshake | Deed::Reopen => {
                let accepted = self.case.watched(self.replay_to_acceptor()).await?;
                Some(self.judge([("B took a recording for A", accepted, None)]))
            }
            Deed::OldAnswers => {
                let (near, a) = self.beginner().await?;
                let begun = self.case.watched(self.replay_to_beginner(near, a)).await?;
                Some(self.judge([("A took a recording for B", begun, None)]))
            }
            Deed::OwnKey | Deed::OneSide => {
                let (near, a) = self.beginner().await?;
                let own = Leg::new(&bench.sites[A].carrier, self.leg, near, Bytes::new(), alone())?.0;
                let (begin, accept) = (self.begin(a, ids[B]), self.accept_as_carrier(own));
                let (a, carrier) = self.case.watched(async { tokio::join!(begin, accept) }).await;
                let a = [("A took the carrier for B", a, None), ("the carrier has A's circuit", carrier, None)];
                if self.case.plan.deed == Deed::OwnKey {
                    return Some(self.judge(a));
                }
                let (far, b) = bench.lead(B, self.leg).await?;
                let own = Leg::new(&bench.sites[B].carrier, self.leg, far, Bytes::new(), alone())?.0;
                let (begin, accept) = (self.begin_as_carrier(own, ids[B]), self.accept(B, b));
                let (own, b) = self.case.watched(async { tokio::join!(begin, accept) }).await;
                drop(own);
                let [first, second] = a;
                Some(self.judge([first, second, ("B took the carrier for another", b, Some(bench.carrier_id))]))
            }
            deed => {
                let (site, wanted, who) = match deed {
                    Deed::OtherNode => (C, ids[B], "C for B"),
                    Deed::OwnAcceptor => (A, ids[B], "A for B"),
                    _ => (B, bench.carrier_id, "B for the carrier"),
                };
                let (near, a) = self.beginner().await?;
                let (far, other) = bench.lead(site, self.leg).await?;
                self.case.note_control();
                self.case.splice(0, near, far, None, Bytes::new());
                let (begin, accept) = (self.begin(a, wanted), self.accept(site, other));
                let (a, other) = self.case.watched(async { tokio::join!(begin, accept) }).await;
                Some(self.judge([(&*format!("A took {who}"), a, None), ("who was led to has a circuit", other, None)]))
            }
        }
    }

    /// Who may be at the other end, if anybody.
    fn judge<const N: usize>(&self, ends: [(&str, Begun, Option<voltmesh::id::NodeId>); N]) -> (Vec<String>, String) {
        let (mut accepted, mut reasons) = (Vec::new(), Vec::new());
        for (what, begun, fine) in ends {
            match begun {
                Ok(circuit) if Some(circuit.peer()) != fine => accepted.push(what.to_owned()),
                Ok(_) => {}
                Err(error) => reasons.push(handshake_reason(&error)),
            }
        }
        reasons.sort();
        (accepted, reasons.into_iter().next().map_or_else(|| "none".into(), |(_, reason)| reason))
    }

    async fn beginner(&self) -> Option<(Halves, Leg)> {
        let (told, mut arrived) = mpsc::unbounded_channel();
        self.case.bench.carries(A, self.leg, &told);
        let leg = self.case.bench.begin(A, self.leg).await?;
        Some((arrived.recv().await?.halves, leg))
    }

    async fn begin(&self, leg: Leg, wanted: voltmesh::id::NodeId) -> Begun {
        let a = &self.case.bench.sites[A];
        shaken(self.case, Circuit::begin(&a.config, circuit_id(self.leg), a.id, wanted, leg)).await
    }

    async fn accept(&self, site: usize, leg: Leg) -> Begun {
        let site = &self.case.bench.sites[site];
        shaken(self.case, Circuit::accept_one(&site.config, circuit_id(self.leg), site.id, leg)).await
    }

    async fn begin_as_carrier(&self, leg: Leg, wanted: voltmesh::id::NodeId) -> Begun {
        let bench = &self.case.bench;
        Circuit::begin(&bench.carrier_config, circuit_id(self.leg), bench.carrier_id, wanted, leg).await
    }

    async fn accept_as_carrier(&self, leg: Leg) -> Begun {
        let bench = &self.case.bench;
        Circuit::accept_one(&bench.carrier_config, circuit_id(self.leg), bench.carrier_id, leg).await
    }

    /// What the beginner of an older circuit has said; of a circuit that is opened again, its streams too.
    async fn replay_to_acceptor(&self) -> Option<Begun> {
        let (mut control, b) = self.case.bench.lead(B, self.leg).await?;
        let accept = self.accept(B, b);
        let replay = async {
            control.0.write(self.old.first()?.bytes[0].clone().into()).await.ok()?;
            let mut streams = Vec::new();
            for stream in self.old[1..].iter().filter(|_| self.case.plan.deed == Deed::Reopen) {
                let head = Head::stream(self.leg, stream.number?);
                let mut halves = self.case.bench.open(B, head).await?;
                let said = stream.bytes[usize::from(stream.from == B)].clone();
                halves.0.write(said.into()).await.ok()?;
                halves.0.finish().ok()?;
                streams.push(halves);
            }
            self.case.cut().await;
            control.0.finish().ok()?;
            std::future::pending::<Option<()>>().await
        };
        tokio::select! {
            biased;
            accepted = accept => Some(accepted),
            _ = replay => None,
        }
    }

    /// What the acceptor of an older circuit has answered.
    async fn replay_to_beginner(&self, (mut send, _recv): Halves, leg: Leg) -> Option<Begun> {
        let replay = async {
            send.write(self.old.first()?.bytes[1].clone().into()).await.ok()?;
            self.case.cut().await;
            send.finish().ok()?;
            std::future::pending::<Option<()>>().await
        };
        tokio::select! {
            biased;
            begun = self.begin(leg, self.case.bench.sites[B].id) => Some(begun),
            _ = replay => None,
        }
    }
}

//! From a link to an agreement: hello both ways, the roster's word on which link stays, attach both ways. Plain steps in
//! order; on any error the link is closed with the code that fits, and nothing of it stays behind.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::control::{self, ControlError, ControlRecv, ControlSend};
use super::core::Core;
use super::hub::Hub;
use super::ledger::Limit;
use super::porter::Stranger;
use crate::id::NodeId;
use crate::net::{Link, LostReason, PathError};
use crate::policy::{self, Action};
use crate::proto::close::CloseCode;
use crate::proto::control::{Attach, BootId, Control, Hello, Invited, LiveStream, Relays, Role, SessionId, VERSION};
use crate::proto::limits;
use crate::state::ids::{Allocator, Side};
use crate::state::roster::{LinkNumber, Parked, Verdict};

/// Where the other end of a circuit is seen.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Why no session came of a link.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GreetError {
    /// The peer let us know that it does not want us.
    #[error("the peer refused us")]
    Refused,
    /// The peer's owner is asked whether to let us in.
    #[error("the peer's owner is asked whether to let this node in")]
    Asked,
    /// Our own owner is asked whether to let the peer in.
    #[error("the owner is asked")]
    AskedHere,
    /// Another process has our key, and came later: the peer holds its session with that one.
    #[error("another process with this node's key has taken its place")]
    Replaced,
    /// The peer's process has the key of another one, that came later.
    #[error("a later process with the same key is there")]
    ReplacedHere(BootId),
    /// Our policy, or a limit of ours, keeps the peer out.
    #[error("refused here: {0}")]
    RefusedHere(String),
    /// Another link between the same nodes stays instead.
    #[error("another link is used instead")]
    Unneeded,
    /// Our attach number was past; the next attempt has the right one.
    #[error("the peer knows a newer attachment")]
    Stale,
    /// No version of the protocol in common.
    #[error("the peer speaks protocol versions {0} to {1}, this node speaks {VERSION}")]
    Version(u16, u16),
    /// The path was lost, or the peer broke the protocol.
    #[error(transparent)]
    Control(#[from] ControlError),
}

/// What came of a hello both ways: enough to attach a session.
#[derive(Debug)]
pub(super) struct Agreement {
    pub link: Link,
    /// The peer's hello.
    pub hello: Hello,
    pub session: SessionId,
    /// The number of this attachment.
    pub attach: u64,
    /// The session from before that goes on, if one does.
    pub resumed: Option<Arc<Core>>,
    /// Where ours stood when we said so.
    pub said: Listed,
    /// Where the peer's streams stand.
    pub theirs: Listed,
}

/// What an attach says.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub next_id: u64,
    pub live: Vec<LiveStream>,
}

/// A session agreed on, and the control stream it came with.
#[derive(Debug)]
pub struct Greeted {
    pub(super) agreement: Agreement,
    pub(super) send: ControlSend,
    pub(super) recv: ControlRecv,
}

impl Hub {
    /// Greets the peer on a link we dialled. Cancelled, it closes the link.
    pub(super) async fn greet_dialled(&self, link: Link) -> Result<Greeted, GreetError> {
        let guard = Greeting::new(self, &link);
        let better = self.is_better(&link);
        let Some(attach) = self.roster().propose(link.peer(), link.number(), better) else {
            return guard.fail(GreetError::Unneeded);
        };
        match self.dialled(&link, attach).await {
            Ok(greeted) => Ok(guard.done(greeted)),
            Err(error) => guard.fail(error),
        }
    }

    /// Whether this link is to replace the one the session is on although that lives: a link of its own is better than a circuit, and a
    /// fresh circuit than an old one.
    fn is_better(&self, link: &Link) -> bool {
        let now = self.known_peer(link.peer()).and_then(|peer| peer.attached()).filter(|now| now.link().is_relayed());
        now.is_some_and(|now| !link.is_relayed() || now.age() >= limits::CIRCUIT_LIFE)
    }

    async fn dialled(&self, link: &Link, attach: u64) -> Result<Greeted, GreetError> {
        let (mut send, mut recv) = control::open(link).await?;
        let known = self.known_peer(link.peer()).and_then(|peer| peer.core()).filter(|core| core.is_resumable());
        let session = known.as_ref().map(|core| core.id());
        let (mut attach, mut hello) = (attach, self.propose(&mut send, &mut recv, link, session, attach).await?);
        if hello.session.is_none() {
            // We have forgotten what the peer still knows: once more, with the right number.
            attach = self.roster().outpaced(link.peer(), link.number(), hello.attach).ok_or(GreetError::Stale)?;
            hello = self.propose(&mut send, &mut recv, link, session, attach).await?;
        }
        let Some(session) = hello.session else {
            self.roster().outpaced(link.peer(), link.number(), hello.attach);
            return Err(GreetError::Stale);
        };
        if hello.attach != attach || hello.role != Role::Node {
            return Err(ControlError::Order("its hello agrees to something we did not propose").into());
        }
        self.check_process(link.peer(), &hello)?;
        let (verdict, parked) = self.roster().answered(link.peer(), link.number(), hello.boot, attach);
        self.tell_parked(parked);
        if !matches!(verdict, Verdict::Accept { .. }) {
            return Err(GreetError::Unneeded);
        }
        link.permit();
        let resumed = known.filter(|core| core.id() == session && core.boot() == hello.boot);
        let theirs = expect_attach(&mut recv, session, attach).await?;
        let said = send_attach(&mut send, Vec::new(), session, attach, (Side::Initiator, resumed.as_ref())).await?;
        Ok(Greeted { agreement: Agreement { link: link.clone(), hello, session, attach, resumed, said, theirs }, send, recv })
    }

    /// Says hello with this attach number, and gives the peer's.
    async fn propose(
        &self,
        send: &mut ControlSend,
        recv: &mut ControlRecv,
        link: &Link,
        session: Option<SessionId>,
        attach: u64,
    ) -> Result<Hello, GreetError> {
        send.send(&[Control::Hello(self.hello(link, session, attach))]).await?;
        // The peer may keep us aside while its own dial is under way, so this takes as long as a dial may.
        let Control::Hello(hello) = recv.next_within(limits::HANDSHAKE, "answer our hello").await? else {
            return Err(ControlError::Order("its first message is no hello").into());
        };
        check_version(&hello)?;
        Ok(hello)
    }

    /// Greets the peer on a link it dialled. Cancelled, it closes the link.
    pub(super) async fn greet_accepted(&self, link: Link) -> Result<Greeted, GreetError> {
        let guard = Greeting::new(self, &link);
        match self.accepted(&link).await {
            Ok(greeted) => Ok(guard.done(greeted)),
            Err(error) => guard.fail(error),
        }
    }

    async fn accepted(&self, link: &Link) -> Result<Greeted, GreetError> {
        let decision = self.policy().decide(&link.peer(), Action::Connect, "");
        let stranger = match (decision.is_permit(), decision.rule.is_some()) {
            (true, _) => None,
            // No rule is about it: it may have something to say that helps, if it is not one of too many.
            (false, false) if self.porter().hears(decision.verdict == policy::Verdict::Prompt) => {
                Some(self.hear(link).ok_or_else(|| refused("too many strangers"))?)
            }
            (false, _) => return Err(refused("policy")),
        };
        let within = self.own().limits.hello;
        let first = tokio::time::timeout(within, async {
            let (send, mut recv) = control::accept(link).await?;
            Ok::<_, GreetError>((next_hello(&mut recv, within).await?, send, recv))
        });
        let heard = first.await.unwrap_or_else(|_| Err(ControlError::TimedOut("say hello").into()));
        // A stranger is told that it is refused, and not what was wrong with what it said: that would tell that it was heard.
        let is_stranger = stranger.is_some();
        let quietly = |error| match error {
            lost @ GreetError::Control(ControlError::Path(_)) => lost,
            GreetError::Control(_) | GreetError::Version(..) if is_stranger => refused(&error.to_string()),
            other => other,
        };
        let (mut hello, mut send, mut recv) = heard.map_err(quietly)?;
        match stranger {
            Some(_) => self.judge_stranger(link, &hello).await.map_err(quietly)?,
            // An invitation may give leave for more than it has; if not, it is no worse off.
            None => _ = self.is_invited(link, &hello).await?,
        }
        let attach = match self.verdict(link, &hello).await? {
            Ok(attach) => attach,
            Err(known) => {
                // It has forgotten what we still know: it proposes once more.
                send.send(&[Control::Hello(self.hello(link, None, known))]).await?;
                hello = next_hello(&mut recv, within).await?;
                self.verdict(link, &hello).await?.map_err(|_| GreetError::Stale)?
            }
        };
        let known = self.peer_of(link.peer(), hello.role, hello.boot).and_then(|peer| peer.core());
        let resumed = known.filter(|core| Some(core.id()) == hello.session && core.boot() == hello.boot && core.is_resumable());
        let session = resumed.as_ref().map_or_else(SessionId::random, |core| core.id());
        link.permit();
        let own = Control::Hello(self.hello(link, Some(session), attach));
        let said = send_attach(&mut send, vec![own], session, attach, (Side::Acceptor, resumed.as_ref())).await?;
        let theirs = expect_attach(&mut recv, session, attach).await?;
        Ok(Greeted { agreement: Agreement { link: link.clone(), hello, session, attach, resumed, said, theirs }, send, recv })
    }

    /// Of two processes with one key the one whose session began later stays, as long as that does. Else the two would take each other's
    /// place again and again.
    fn check_process(&self, peer: NodeId, hello: &Hello) -> Result<(), GreetError> {
        let there = self.known_peer(peer).and_then(|peer| peer.core()).map(|core| core.boot());
        match hello.role == Role::Node && self.is_replaced(peer, hello.boot, there) {
            true => Err(GreetError::ReplacedHere(hello.boot)),
            false => Ok(()),
        }
    }

    /// Whether that process of the peer came before the one that is there.
    pub(super) fn is_replaced(&self, peer: NodeId, boot: BootId, there: Option<BootId>) -> bool {
        there.is_some_and(|there| there != boot) && self.roster().has_been_replaced(peer, boot)
    }

    /// A process is turned away whose place another one with the same key has taken: counts it, writes it down, and the first time says it.
    pub(super) fn replaced_here(&self, link: &Link, boot: BootId) {
        if self.roster().is_news(link.peer(), boot) {
            tracing::warn!(peer = %link.peer(), from = %link.remote(), "two processes have the key of this peer; the one that came later stays");
        }
        self.refused_here(link, &"another process with this key came later");
    }

    /// Whether the peer proves to have an invitation, and that is good; `None` if it has none. Then the rules it gives are in force.
    async fn is_invited(&self, link: &Link, hello: &Hello) -> Result<Option<bool>, GreetError> {
        match hello.invited().map_err(ControlError::from)? {
            Some(vouch) => Ok(Some(self.porter().invited(self.stranger(link, hello), vouch).await)),
            None => Ok(None),
        }
    }

    fn stranger(&self, link: &Link, hello: &Hello) -> Stranger {
        let seen = (!link.is_relayed()).then(|| link.remote());
        Stranger {
            id: link.peer(),
            name: hello.name.clone(),
            from: link.remote().ip(),
            relayed: link.is_relayed(),
            addresses: seen.into_iter().chain(hello.addresses.iter().copied()).take(limits::ADDRESSES).collect(),
        }
    }

    /// What becomes of a peer that no rule is about, by what it says.
    async fn judge_stranger(&self, link: &Link, hello: &Hello) -> Result<(), GreetError> {
        if let Some(good) = self.is_invited(link, hello).await? {
            // It may be in by the same invitation on another link of its own.
            if !good && !self.policy().decide(&link.peer(), Action::Connect, "").is_permit() {
                return Err(refused("its invitation is not good"));
            }
        } else if self.is_open(link) {
            let asked = self.porter().ask(self.stranger(link, hello));
            // The owner may answer at this very moment.
            if self.is_open(link) {
                return Err(if asked { GreetError::AskedHere } else { refused("nobody is asked") });
            }
        }
        // By now there may be a rule, of the invitation or of the owner.
        let decision = self.policy().decide(&link.peer(), Action::Connect, "");
        if decision.is_permit() { Ok(()) } else { Err(refused("policy")) }
    }

    fn is_open(&self, link: &Link) -> bool {
        self.policy().decide(&link.peer(), Action::Connect, "").verdict == policy::Verdict::Prompt
    }

    /// The roster's word on a link whose hello came in; waits while it is kept aside. The attach number agreed, or, if the one
    /// proposed is past, the highest known.
    async fn verdict(&self, link: &Link, hello: &Hello) -> Result<Result<u64, u64>, GreetError> {
        self.check_process(link.peer(), hello)?;
        let (verdict, waits) = {
            let mut roster = self.roster();
            let verdict = roster.greeted(link.peer(), link.number(), hello.role, hello.boot, hello.attach);
            let waits = (verdict == Verdict::Park).then(|| self.park(link.number()));
            (verdict, waits)
        };
        match verdict {
            Verdict::Accept { attach, .. } => Ok(Ok(attach)),
            Verdict::TooMany => Err(refused("too many visitors of this identity")),
            Verdict::Stale(known) => Ok(Err(known)),
            Verdict::Park => tokio::select! {
                biased;
                told = waits.expect("made when the verdict was park") => match told {
                    Ok(Parked::Accept(_, attach)) => Ok(Ok(attach)),
                    Ok(Parked::Close(_)) | Err(_) => Err(GreetError::Unneeded),
                },
                reason = link.closed() => Err(ControlError::Path(PathError::Lost(reason)).into()),
            },
        }
    }

    fn hello(&self, link: &Link, session: Option<SessionId>, attach: u64) -> Hello {
        let own = self.own();
        // Who is to be reached through a relay only is not told where this node is.
        let hidden = link.is_relayed() && self.known_peer(link.peer()).is_some_and(|peer| peer.is_only_via());
        let (addresses, relays) = if hidden { Default::default() } else { (self.addresses(), self.relays()) };
        // Only whom we dial is one whose invitation we may have.
        let vouch = self.known_peer(link.peer()).filter(|_| link.dialled()).and_then(|peer| peer.vouch(&own.id));
        let invited = vouch.as_ref().map(Invited::extension);
        Hello {
            versions: (VERSION, VERSION),
            boot: own.boot,
            role: own.role,
            session,
            attach,
            name: own.name.clone(),
            profile: own.profile,
            resume_window_ms: u32::try_from(own.limits.resume_window.as_millis()).unwrap_or(u32::MAX),
            addresses,
            observed: if link.is_relayed() { NOWHERE } else { link.remote() },
            extensions: Relays::extension(&relays).into_iter().chain(invited).collect(),
        }
    }

    fn park(&self, link: LinkNumber) -> oneshot::Receiver<Parked> {
        let (tell, told) = oneshot::channel();
        self.parked().insert(link, tell);
        told
    }

    pub(super) fn tell_parked(&self, outcome: Option<Parked>) {
        let Some(outcome) = outcome else { return };
        let (Parked::Close(link) | Parked::Accept(link, _)) = outcome;
        if let Some(tell) = self.parked().remove(&link) {
            let _ = tell.send(outcome);
        }
    }
}

/// Sees to it that a greeting that fails, or is dropped, leaves no trace in the roster.
struct Greeting<'a> {
    hub: &'a Hub,
    link: Link,
    open: bool,
}

impl<'a> Greeting<'a> {
    fn new(hub: &'a Hub, link: &Link) -> Self {
        Self { hub, link: link.clone(), open: true }
    }

    fn done(mut self, greeted: Greeted) -> Greeted {
        self.open = false;
        greeted
    }

    fn fail<T>(self, error: GreetError) -> Result<T, GreetError> {
        let error = match (error, self.link.lost()) {
            (GreetError::Control(ControlError::Path(PathError::Lost(reason))), _) => told(reason),
            (GreetError::Control(ControlError::Path(_) | ControlError::Ended), Some(reason)) => told(reason),
            (other, _) => other,
        };
        match &error {
            GreetError::RefusedHere(why) => self.hub.refused_here(&self.link, why),
            GreetError::ReplacedHere(boot) => self.hub.replaced_here(&self.link, *boot),
            _ => {}
        }
        if matches!(error, GreetError::Control(ControlError::TimedOut(_))) && !self.link.dialled() {
            self.hub.ledger().count_limit(Limit::Hello);
        }
        tracing::debug!(peer = %self.link.peer().short(), %error, "no session came of a link");
        self.link.close(error.close_code());
        Err(error)
    }
}

impl Drop for Greeting<'_> {
    fn drop(&mut self) {
        if self.open {
            self.link.close(CloseCode::Timeout);
            self.hub.parked().remove(&self.link.number());
            self.hub.ended(self.link.peer(), self.link.number());
        }
    }
}

/// What the code the peer closed the link with tells us.
fn told(reason: LostReason) -> GreetError {
    match reason {
        LostReason::Closed(CloseCode::Refused) => GreetError::Refused,
        LostReason::Closed(CloseCode::Crossed | CloseCode::Superseded) => GreetError::Unneeded,
        LostReason::Closed(CloseCode::Stale) => GreetError::Stale,
        LostReason::Closed(CloseCode::Asked) => GreetError::Asked,
        LostReason::Closed(CloseCode::Replaced) => GreetError::Replaced,
        other => GreetError::Control(ControlError::Path(PathError::Lost(other))),
    }
}

impl GreetError {
    fn close_code(&self) -> CloseCode {
        match self {
            GreetError::Refused | GreetError::RefusedHere(_) => CloseCode::Refused,
            GreetError::Asked | GreetError::AskedHere => CloseCode::Asked,
            GreetError::Replaced | GreetError::ReplacedHere(_) => CloseCode::Replaced,
            GreetError::Unneeded => CloseCode::Crossed,
            GreetError::Stale => CloseCode::Stale,
            GreetError::Version(..) => CloseCode::Version,
            GreetError::Control(ControlError::TimedOut(_)) => CloseCode::Timeout,
            GreetError::Control(_) => CloseCode::Protocol,
        }
    }
}

fn refused(why: &str) -> GreetError {
    GreetError::RefusedHere(why.to_owned())
}

/// The hello of a peer that dialled us.
async fn next_hello(recv: &mut ControlRecv, within: Duration) -> Result<Hello, GreetError> {
    let Control::Hello(hello) = recv.next_within(within, "say hello").await? else {
        return Err(ControlError::Order("its first message is no hello").into());
    };
    check_version(&hello)?;
    Ok(hello)
}

fn check_version(hello: &Hello) -> Result<(), GreetError> {
    let (low, high) = hello.versions;
    if (low..=high).contains(&VERSION) { Ok(()) } else { Err(GreetError::Version(low, high)) }
}

/// Attaches, and says where our streams stand if the session is one from before; gives what was said. The side is that of a new
/// session.
async fn send_attach(
    send: &mut ControlSend,
    mut before: Vec<Control>,
    session: SessionId,
    attach: u64,
    (side, resumed): (Side, Option<&Arc<Core>>),
) -> Result<Listed, ControlError> {
    let fresh = || (Allocator::new(side).next_id(), Vec::new());
    let (next_id, live) = resumed.map_or_else(fresh, |core| core.table().streams.standing());
    let mut parts = live.chunks(limits::PROGRESS_ENTRIES).map(<[LiveStream]>::to_vec).peekable();
    loop {
        let part = parts.next().unwrap_or_default();
        let more = parts.peek().is_some();
        before.push(Control::Attach(Attach { session, attach, next_id, live: part, more }));
        send.send(&std::mem::take(&mut before)).await?;
        if !more {
            return Ok(Listed { next_id, live });
        }
    }
}

/// The peer's attach, all parts of which are due together.
async fn expect_attach(recv: &mut ControlRecv, session: SessionId, attach: u64) -> Result<Listed, GreetError> {
    let parts = tokio::time::timeout(limits::HELLO, attach_parts(recv, session, attach));
    parts.await.map_err(|_| ControlError::TimedOut("attach"))?
}

async fn attach_parts(recv: &mut ControlRecv, session: SessionId, attach: u64) -> Result<Listed, GreetError> {
    let mut theirs = Listed::default();
    loop {
        let Control::Attach(part) = recv.next().await? else {
            return Err(ControlError::Order("a message before attach").into());
        };
        if part.session != session || part.attach != attach {
            return Err(ControlError::Order("it attaches another session").into());
        }
        let rising = theirs.live.last().zip(part.live.first()).is_none_or(|(last, first)| last.stream < first.stream);
        if !rising || theirs.live.len() + part.live.len() > 2 * limits::LIVE_STREAMS || (part.more && part.live.is_empty()) {
            return Err(ControlError::Order("it attaches more streams than there can be, or in no order").into());
        }
        theirs.next_id = part.next_id;
        theirs.live.extend(part.live);
        if !part.more {
            return Ok(theirs);
        }
    }
}

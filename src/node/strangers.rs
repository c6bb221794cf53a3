//! Who is let in although no rule says so yet: those whom the owner permits when asked, and those who have an invitation. Both leave
//! rules behind, and after that this room has no part in it.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};

use super::error::{DecideError, InviteError, RuleError};
use super::invitations::Invitations;
use super::rules::Rules;
use super::store::{Invitation, Revoked, Store};
use super::{Node, unix_ms};
use crate::id::{InviteHash, InviteSecret, NodeId, Ticket, Vouch};
use crate::journal::{Change, Entry};
use crate::policy::{Action, Grant, Rule, Verdict};
use crate::proto::limits;
use crate::session::{Event, Porter, Stranger, WeakHub};
use crate::state::admission::scope;
use crate::state::requests::{Asked, Bounds, Requests};

/// A stranger who waits for the owner to decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its key.
    pub peer: NodeId,
    /// What it calls itself: for display, escaped. Anybody can call themselves anything.
    pub name: String,
    /// Where it was seen: of one that came through a relay, where that is.
    pub from: IpAddr,
    /// Whether it came through a relay.
    pub relayed: bool,
    /// For how long it has been waiting.
    pub waiting: Duration,
}

/// An invitation that was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invited {
    /// How to reach this node, and the secret that lets in. Whoever has it can use it.
    pub ticket: Ticket,
    /// Names it, for [`Node::withdraw`].
    pub name: String,
    /// Until when it is good.
    pub expires: SystemTime,
}

/// As long as one is there, the owner listens: strangers are asked about, and not turned away at once.
#[derive(Debug)]
#[must_use = "nobody listens any more as soon as this is dropped"]
pub struct Listening(Arc<Inner>);

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.listening.fetch_sub(1, SeqCst);
    }
}

/// Keeps the requests and knows the invitations of a node. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Strangers(Arc<Inner>);

struct Inner {
    own: NodeId,
    rules: Rules,
    /// Not kept for this: sessions that are still held when the node is gone keep no file open.
    store: Weak<Store>,
    hub: OnceLock<WeakHub>,
    listening: AtomicUsize,
    requests: Mutex<Requests<Said>>,
    invitations: Invitations,
    refused_invitations: AtomicU64,
}

/// What a stranger said when it last came.
#[derive(Clone, Debug)]
struct Said {
    name: String,
    from: IpAddr,
    relayed: bool,
    addresses: Vec<SocketAddr>,
}

impl Strangers {
    /// Nobody listens yet. These invitations are good for something.
    pub fn new(own: NodeId, rules: Rules, store: Option<&Arc<Store>>, good: &[Invitation]) -> Self {
        let requests = Requests::new(Bounds {
            most: limits::REQUESTS,
            from_one: limits::REQUESTS_PER_ADDRESS,
            relayed: limits::REQUESTS_RELAYED,
            kept: limits::REQUEST_KEPT,
            silent: limits::REQUEST_SILENT,
        });
        Self(Arc::new(Inner {
            own,
            rules,
            store: store.map_or_else(Weak::new, Arc::downgrade),
            hub: OnceLock::new(),
            listening: AtomicUsize::new(0),
            requests: Mutex::new(requests),
            invitations: Invitations::new(good, now()),
            refused_invitations: AtomicU64::new(0),
        }))
    }

    /// Whose events tell of requests. Once.
    pub fn join(&self, hub: WeakHub) {
        let _ = self.0.hub.set(hub);
    }

    /// Requests that found no room, and invitations that were no good.
    pub fn refused(&self) -> (u64, u64) {
        (self.0.requests().refused(), self.0.refused_invitations.load(Relaxed))
    }
}

impl Inner {
    fn requests(&self) -> MutexGuard<'_, Requests<Said>> {
        self.requests.lock().expect("nothing panics while it is held")
    }

    /// What who waits has said.
    fn waits(&self, who: &NodeId) -> Option<Said> {
        self.requests().waiting(now()).find(|(id, _)| *id == who).map(|(_, request)| request.said.clone())
    }

    fn note(&self, entries: impl IntoIterator<Item = Entry>) {
        let Some(hub) = self.hub.get().and_then(WeakHub::upgrade) else { return };
        entries.into_iter().for_each(|entry| hub.ledger().note(entry));
    }

    fn is_open(&self, who: &NodeId) -> bool {
        self.rules.handle().decide(who, Action::Connect, "").verdict == Verdict::Prompt
    }

    fn was_wrong(&self, from: IpAddr) {
        self.invitations.was_wrong(from, now());
        self.refused_invitations.fetch_add(1, Relaxed);
    }

    async fn invited(self: Arc<Self>, stranger: NodeId, from: IpAddr, vouch: Vouch) -> bool {
        if !self.invitations.is_patient(from, now()) {
            self.refused_invitations.fetch_add(1, Relaxed);
            return false;
        }
        let hash = vouch.verify(&stranger, &self.own).filter(|hash| self.invitations.has(hash, unix_ms()));
        let (Some(hash), Some(store)) = (hash, self.store.upgrade()) else {
            self.was_wrong(from);
            return false;
        };
        // Whoever waits for it may be gone before it is done: it is done, all of it, nevertheless.
        let used = tokio::task::spawn_blocking(move || self.used(&store, &hash, stranger, from));
        used.await.unwrap_or(false)
    }

    /// A stranger uses an invitation that seems to be good: what it gives is on disk, and in force, when this returns. Blocks.
    fn used(&self, store: &Store, hash: &InviteHash, stranger: NodeId, from: IpAddr) -> bool {
        let _turn = self.rules.turn().blocking_lock_owned();
        let used = match store.use_invitation(hash, &stranger, unix_ms()) {
            Ok(Some(used)) => used,
            Ok(None) => {
                self.was_wrong(from);
                return false;
            }
            Err(error) => {
                tracing::warn!(%error, "an invitation could not be used");
                return false;
            }
        };
        if !used.good {
            self.invitations.remove(|other| other == hash);
        }
        // They are in the store already, so that they hold from the next start at the latest.
        let added = match self.rules.add_all(used.rules) {
            Ok(added) => added,
            Err(error) => {
                tracing::error!(%error, peer = %stranger, "what an invitation gives cannot be in force");
                return false;
            }
        };
        if used.new {
            tracing::info!(peer = %stranger, "an invitation was used");
            self.note([Entry::Invited { peer: stranger }]);
        }
        self.note(added.iter().map(|rule| Entry::rule(Change::Added, rule)));
        self.requests().decided(&stranger);
        true
    }
}

impl Porter for Strangers {
    fn hears(&self, asks: bool) -> bool {
        (asks && self.0.listening.load(SeqCst) > 0) || self.0.invitations.any(unix_ms())
    }

    fn invited(&self, stranger: Stranger, vouch: Vouch) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        Box::pin(self.0.clone().invited(stranger.id, stranger.from, vouch))
    }

    fn ask(&self, stranger: Stranger) -> bool {
        if self.0.listening.load(SeqCst) == 0 {
            return false;
        }
        let Stranger { id, name, from, relayed, addresses } = stranger;
        let said = Said { name: name.clone(), from, relayed, addresses };
        let asked = self.0.requests().ask(id, (scope(from), relayed), said, now(), |who| self.0.is_open(who));
        // The owner, or a rule, may have decided meanwhile: then nobody waits.
        if !self.0.is_open(&id) {
            self.0.requests().decided(&id);
            return false;
        }
        if asked == Asked::New {
            tracing::info!(peer = %id, %from, "a stranger wants to connect: `volt requests` shows it");
            let called = Some(name.as_str()).filter(|name| !name.is_empty()).map(Into::into);
            self.0.note([Entry::Asked { peer: id, name: called, from, relayed }]);
            let hub = self.0.hub.get().and_then(WeakHub::upgrade);
            hub.into_iter().for_each(|hub| hub.emit(Event::Asked { peer: id, name: name.clone(), from, relayed }));
        }
        asked != Asked::Full
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Strangers").field("listening", &self.listening).finish_non_exhaustive()
    }
}

impl Node {
    /// From now on somebody listens: of strangers whom no rule is about the owner is asked, if the node is
    /// [configured](super::config::Strangers) so, by [`Event::Asked`] and [`Node::requests`]. As long as nobody listens they are
    /// refused at once. Each waits until [`Node::admit`] or [`Node::turn_away`], and is forgotten when it was not heard of for ten
    /// minutes; there are at most 64, and 8 from one address.
    ///
    /// ```no_run
    /// # async fn example(node: voltmesh::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// let _listening = node.listen();
    /// let mut events = node.events();
    /// while let Some(event) = events.next().await {
    ///     if let voltmesh::Event::Asked { peer, name, .. } = event {
    ///         println!("{peer} wants to connect, and calls itself {name:?}");
    ///         node.admit(peer, &["call greeter/*".parse()?]).await?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn listen(&self) -> Listening {
        self.0.strangers.0.listening.fetch_add(1, SeqCst);
        Listening(self.0.strangers.0.clone())
    }

    /// Who waits for the owner to decide, in the order of their ids.
    pub fn requests(&self) -> Vec<Request> {
        let (strangers, now) = (&self.0.strangers.0, now());
        let mut requests = strangers.requests();
        // A rule may have decided meanwhile.
        let waiting = requests.waiting(now).filter(|(who, _)| strangers.is_open(who));
        let request = |(peer, waits): (&NodeId, &crate::state::requests::Request<Said>)| Request {
            peer: *peer,
            name: waits.said.name.clone(),
            from: waits.said.from,
            relayed: waits.said.relayed,
            waiting: now - waits.since,
        };
        waiting.map(request).collect()
    }

    /// Lets a stranger in that waits: it may connect, and do this besides, by rules that stay. This node dials it if it can, so that
    /// it need not wait until it comes again.
    ///
    /// # Errors
    /// [`DecideError`]: nobody of that id waits, or the rules cannot be kept.
    pub async fn admit(&self, who: NodeId, may: &[Grant]) -> Result<Vec<Rule>, DecideError> {
        let said = self.0.strangers.0.waits(&who).ok_or(DecideError::NotWaiting(who))?;
        let rules: Vec<Rule> = std::iter::once(&Grant::connect()).chain(may).map(|grant| grant.to(who)).collect();
        self.give(rules.clone()).await?;
        self.0.strangers.0.requests().decided(&who);
        let hub = self.0.hub.clone();
        self.run(async move { hub.tell(who, &said.addresses).await });
        Ok(rules)
    }

    /// Turns a stranger away that waits, by a rule that stays: it is refused from now on.
    ///
    /// # Errors
    /// As [`Node::admit`].
    pub async fn turn_away(&self, who: NodeId) -> Result<Rule, DecideError> {
        self.0.strangers.0.waits(&who).ok_or(DecideError::NotWaiting(who))?;
        let rule = Rule::denies(who);
        self.add_rule(rule.clone()).await?;
        self.0.strangers.0.requests().decided(&who);
        Ok(rule)
    }

    /// Puts a peer out: a rule that denies it to connect, which is returned, takes the place of those by command that permit just this peer
    /// something, and invitations that it had made from afar are taken back. The rule is in force at once, whatever becomes of the
    /// disk. What the peer has here ends by that; whether it is dialled is another matter.
    ///
    /// # Errors
    /// If it cannot be in force, or not be kept: then it is in force until the node ends.
    pub async fn revoke(&self, who: NodeId) -> Result<(Rule, Revoked), RuleError> {
        let strangers = self.0.strangers.0.clone();
        self.change_rules(move |rules, store, ledger| {
            let denial = Rule::denies(who);
            let (new, removed) = rules.put_out(&who, &denial)?;
            strangers.requests().decided(&who);
            new.then(|| ledger.note(Entry::rule(Change::Added, &denial)));
            removed.iter().for_each(|rule| ledger.note(Entry::rule(Change::Removed, rule)));
            let stored = store.map(|store| store.revoke(&who, &denial)).transpose()?;
            let withdrawn = stored.map(|revoked| revoked.withdrawn).unwrap_or_default();
            strangers.invitations.remove(|hash| withdrawn.contains(hash));
            Ok((denial, Revoked { removed, withdrawn }))
        })
        .await
    }

    /// Adds rules that give somebody leave: all of them or none, in force at once and, with a home, for good.
    async fn give(&self, given: Vec<Rule>) -> Result<(), RuleError> {
        self.change_rules(move |rules, store, ledger| {
            let new = rules.add_all(given.clone())?;
            if let Some(Err(error)) = store.map(|store| store.add_rules(&given)) {
                new.iter().for_each(|rule| _ = rules.remove(rule.id()));
                return Err(error.into());
            }
            new.iter().for_each(|rule| ledger.note(Entry::rule(Change::Added, rule)));
            Ok(())
        })
        .await
    }

    /// Issues an invitation: a ticket that lets so many nodes in, each of which may then do this besides connecting. Only a hash of it
    /// is kept. It is on disk when this returns.
    ///
    /// # Errors
    /// [`InviteError`].
    pub async fn invite(&self, uses: u32, life: Duration, may: &[Grant]) -> Result<Invited, InviteError> {
        self.invite_by(None, uses, life, may).await
    }

    /// The same, for a peer that has it made from afar.
    pub(crate) async fn invite_by(
        &self,
        by: Option<NodeId>,
        uses: u32,
        life: Duration,
        may: &[Grant],
    ) -> Result<Invited, InviteError> {
        let secret = InviteSecret::generate();
        let invitation = Invitation { by, ..new_invitation(&secret, uses, life, may, unix_ms())? };
        let (name, expires) =
            (invitation.hash.short(), SystemTime::UNIX_EPOCH + Duration::from_millis(invitation.expires_unix_ms));
        let kept = invitation.clone();
        self.with_store(move |store| store.add_invitation(&kept)).await?.ok_or(InviteError::NoHome)?;
        self.0.strangers.0.invitations.add(&invitation);
        Ok(Invited { ticket: Ticket { secret: Some(secret), ..self.ticket() }, name, expires })
    }

    /// The invitations that are still good for something, the oldest first.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn invitations(&self) -> Result<Vec<Invitation>, super::store::StoreError> {
        Ok(self.with_store(|store| store.invitations(unix_ms())).await?.unwrap_or_default())
    }

    /// Takes an invitation back. Whom it has let in stays. Says whether there was one of this name.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub async fn withdraw(&self, name: &str) -> Result<bool, super::store::StoreError> {
        // First here, so that nobody uses it while it is taken back.
        self.0.strangers.0.invitations.remove(|hash| hash.short() == name);
        let name = name.to_owned();
        let done = self.with_store(move |store| withdraw(store, &name)).await?;
        Ok(done.unwrap_or(false))
    }
}

/// In simulations this is their time.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// An invitation made now, checked.
///
/// # Errors
/// [`InviteError`]: it would be good for nothing, or for too much.
pub fn new_invitation(
    secret: &InviteSecret,
    uses: u32,
    life: Duration,
    may: &[Grant],
    now_unix_ms: u64,
) -> Result<Invitation, InviteError> {
    if !(1..=limits::INVITATION_USES).contains(&uses) {
        return Err(InviteError::Uses(uses));
    }
    if life < Duration::from_secs(1) || life > limits::INVITATION_LIFE {
        return Err(InviteError::Life(life));
    }
    if may.len() > limits::INVITATION_RULES {
        return Err(InviteError::Rules(may.len()));
    }
    let expires_unix_ms = now_unix_ms + life.as_millis() as u64;
    let (hash, may) = (secret.hash(), may.to_vec());
    Ok(Invitation { hash, uses, used: Vec::new(), made_unix_ms: now_unix_ms, expires_unix_ms, may, by: None })
}

/// Takes the invitation of this name back.
///
/// # Errors
/// If the store cannot be written.
pub fn withdraw(store: &Store, name: &str) -> Result<bool, super::store::StoreError> {
    store.remove_invitation(name)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::id::SecretKey;
    use crate::node::rules::Configured;

    /// A node with one invitation, for one node.
    fn inviting() -> (tempfile::TempDir, Arc<Store>, Rules, Strangers, InviteSecret) {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path().join("volt.redb")).unwrap());
        let rules = Rules::new(Configured::default(), std::iter::empty()).unwrap();
        let secret = InviteSecret::from_bytes([7; 16]);
        let invitation = new_invitation(&secret, 1, Duration::from_secs(600), &[], unix_ms()).unwrap();
        store.add_invitation(&invitation).unwrap();
        let strangers = Strangers::new(id(1), rules.clone(), Some(&store), &[invitation]);
        (dir, store, rules, strangers, secret)
    }

    fn id(seed: u8) -> NodeId {
        SecretKey::from_seed(&[seed; 32]).id()
    }

    fn stranger(seed: u8, from: [u8; 4]) -> Stranger {
        Stranger { id: id(seed), name: String::new(), from: from.into(), relayed: false, addresses: Vec::new() }
    }

    #[tokio::test]
    async fn a_use_that_nobody_waits_for_any_more_is_done_all_the_same() {
        let (_dir, store, rules, strangers, secret) = inviting();
        let mut changed = rules.handle().watch();
        let using = strangers.invited(stranger(2, [192, 0, 2, 1]), secret.vouch(&id(2), &id(1)));
        assert_eq!(using.now_or_never(), None, "it was cut off");
        let changed = tokio::time::timeout(Duration::from_secs(30), changed.changed()).await.unwrap();
        assert!(changed.decide(&id(2), Action::Connect, "").is_permit());
        assert_eq!(store.rules().unwrap().len(), 1);
        assert!(!strangers.hears(true), "nobody listens, and it is used up");
    }

    #[tokio::test]
    async fn wrong_ones_reach_no_store_and_close_no_door_to_those_elsewhere() {
        let (_dir, store, _rules, strangers, secret) = inviting();
        let wrong = InviteSecret::from_bytes([8; 16]);
        for seed in 10..40 {
            // Each is answered at once: nothing was asked of the disk.
            let answer = strangers.invited(stranger(seed, [192, 0, 2, 1]), wrong.vouch(&id(seed), &id(1))).now_or_never();
            assert_eq!(answer, Some(false));
        }
        assert_eq!(strangers.refused().1, 30);
        assert!(strangers.invited(stranger(2, [192, 0, 2, 2]), secret.vouch(&id(2), &id(1))).await);
        assert_eq!(store.rules().unwrap().len(), 1);
    }
}

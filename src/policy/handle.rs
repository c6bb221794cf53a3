//! The policy in force, shared and replaced while sessions live. It makes no policy and reads no file.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Action, Decision, Policy};
use crate::id::NodeId;

/// The policy in force: read by everyone, replaced by the node's owner. Clones share it.
///
/// What a [`decide`](Self::decide) saw stays true for that one question only; whoever acts for longer keeps a
/// [`watch`](Self::watch) and asks again when it [changes](PolicyWatch::changed).
#[derive(Clone, Debug)]
pub struct PolicyHandle(Arc<watch::Sender<InForce>>);

/// One reader's view of the policy in force, which knows what that reader has seen.
#[derive(Clone, Debug)]
pub struct PolicyWatch(watch::Receiver<InForce>);

#[derive(Clone, Debug)]
struct InForce {
    policy: Arc<Policy>,
    generation: u64,
}

impl PolicyHandle {
    /// Puts a policy in force; its generation is 0.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(watch::Sender::new(InForce { policy: Arc::new(policy), generation: 0 })))
    }

    /// The policy in force now. It never changes; later ones replace it.
    pub fn current(&self) -> Arc<Policy> {
        self.0.borrow().policy.clone()
    }

    /// How often the policy was replaced. Whoever keeps an answer can see by this that it is still good.
    pub fn generation(&self) -> u64 {
        self.0.borrow().generation
    }

    /// Asks the policy in force. See [`Policy::decide`].
    pub fn decide(&self, who: &NodeId, action: Action, resource: &str) -> Decision {
        self.current().decide(who, action, resource)
    }

    /// Puts another policy in force, wakes every watch, and returns the new generation.
    pub fn replace(&self, policy: Policy) -> u64 {
        let policy = Arc::new(policy);
        let mut generation = 0;
        self.0.send_modify(|now| {
            generation = now.generation + 1;
            *now = InForce { policy, generation };
        });
        generation
    }

    /// A watch that has seen the policy in force now.
    pub fn watch(&self) -> PolicyWatch {
        PolicyWatch(self.0.subscribe())
    }
}

impl PolicyWatch {
    /// The policy in force now.
    pub fn current(&self) -> Arc<Policy> {
        self.0.borrow().policy.clone()
    }

    /// The generation of the policy in force now.
    pub fn generation(&self) -> u64 {
        self.0.borrow().generation
    }

    /// Waits until a policy is in force that this watch has not seen yet, and returns it. Several replacements may be seen as
    /// one. When every handle is gone nothing can change any more, and it waits for ever.
    ///
    /// Cancel-safe: a change that was not returned is returned by the next call.
    pub async fn changed(&mut self) -> Arc<Policy> {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().policy.clone()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::policy::{PolicyInput, Verdict};

    const WHO: NodeId = NodeId::from_bytes([9; 32]);

    fn open() -> Policy {
        Policy::new(PolicyInput { open: true, ..Default::default() }).unwrap()
    }

    #[tokio::test]
    async fn a_replaced_policy_wakes_every_watch_and_acts_at_once() {
        let handle = PolicyHandle::new(Policy::default());
        let (mut one, mut other) = (handle.watch(), handle.clone().watch());
        assert_eq!(handle.decide(&WHO, Action::Connect, "").verdict, Verdict::Deny);
        assert!(one.changed().now_or_never().is_none());
        assert_eq!(handle.replace(open()), 1);
        for watch in [&mut one, &mut other] {
            assert!(watch.changed().await.decide(&WHO, Action::Connect, "").is_permit());
            assert!(watch.changed().now_or_never().is_none());
        }
        assert_eq!((handle.generation(), one.generation()), (1, 1));
    }

    #[tokio::test]
    async fn a_snapshot_taken_before_a_change_stays_what_it_was() {
        let handle = PolicyHandle::new(open());
        let before = handle.current();
        handle.replace(Policy::default());
        assert!(before.decide(&WHO, Action::Call, "a/b").is_permit());
        assert!(!handle.current().decide(&WHO, Action::Call, "a/b").is_permit());
    }

    #[tokio::test]
    async fn a_watch_without_a_handle_waits_instead_of_spinning() {
        let mut watch = PolicyHandle::new(Policy::default()).watch();
        assert!(watch.changed().now_or_never().is_none());
    }
}

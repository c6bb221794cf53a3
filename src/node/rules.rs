//! The policy of a running node, kept in step with what it is made of: the rules of the configuration and of the store, the
//! peers it dials, and whether it is open to all.

use std::sync::{Arc, Mutex};

use crate::id::NodeId;
use crate::policy::{Policy, PolicyError, PolicyHandle, PolicyInput, Rule, Source};

/// Makes the policy anew whenever something it is made of changes. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    input: Arc<Mutex<PolicyInput>>,
    handle: PolicyHandle,
}

impl Rules {
    /// Puts the first policy in force.
    pub fn new(input: PolicyInput) -> Result<Self, PolicyError> {
        let handle = PolicyHandle::new(Policy::new(input.clone())?);
        Ok(Self { input: Arc::new(Mutex::new(input)), handle })
    }

    /// The policy in force.
    pub fn handle(&self) -> &PolicyHandle {
        &self.handle
    }

    /// We dial this node, so it may connect.
    pub fn dial(&self, id: NodeId) {
        // Cannot fail: who is dialled is bounded by what the store and the configuration may name.
        let _ = self.change(|input| {
            input.dialled.insert(id);
        });
    }

    /// We dial this node no longer.
    pub fn release(&self, id: NodeId) {
        let _ = self.change(|input| {
            input.dialled.remove(&id);
        });
    }

    /// Adds a rule made by command. Says whether it is new among those.
    pub fn add(&self, rule: Rule) -> Result<bool, PolicyError> {
        let rule = rule.with_source(Source::Store);
        let mut new = false;
        self.change(|input| {
            new = !input.rules.contains(&rule);
            if new {
                input.rules.push(rule);
            }
        })?;
        Ok(new)
    }

    /// Removes a rule made by command. Says whether it was there.
    pub fn remove(&self, id: &str) -> bool {
        let mut found = false;
        let removed = self.change(|input| {
            let before = input.rules.len();
            input.rules.retain(|rule| rule.source() != Source::Store || rule.id() != id);
            found = input.rules.len() < before;
        });
        removed.is_ok() && found
    }

    fn change(&self, change: impl FnOnce(&mut PolicyInput)) -> Result<(), PolicyError> {
        let mut input = self.input.lock().expect("nothing panics while it is held");
        let mut changed = input.clone();
        change(&mut changed);
        self.handle.replace(Policy::new(changed.clone())?);
        *input = changed;
        Ok(())
    }
}

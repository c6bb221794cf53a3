//! The policy of a running node, kept in step with what it is made of: the rules of the configuration and of the store, the
//! peers it dials, and whether it is open to all.

use std::sync::{Arc, Mutex};

use super::config::{Config, Strangers};
use crate::id::NodeId;
use crate::policy::{Groups, Policy, PolicyError, PolicyHandle, PolicyInput, RelayMode, Rule, Source};

/// What the configuration says of policy: the file's part and the program's, one over the other. Its rules are all of
/// [`Source::Config`].
#[derive(Clone, Debug, Default)]
pub(super) struct Configured {
    pub rules: Vec<Rule>,
    pub groups: Groups,
    pub open: bool,
    pub strangers: Strangers,
    pub relay: Option<RelayMode>,
}

impl Configured {
    /// Takes it out of a configuration.
    pub fn take(config: &mut Config) -> Self {
        let rules = std::mem::take(&mut config.rules).into_iter().map(|rule| rule.with_source(Source::Config)).collect();
        let groups = std::mem::take(&mut config.groups);
        Self { rules, groups, open: config.open, strangers: config.strangers, relay: config.relay }
    }
}

/// Makes the policy anew whenever something it is made of changes. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    input: Arc<Mutex<PolicyInput>>,
    handle: PolicyHandle,
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Rules {
    /// Puts the first policy in force: what is configured, and the rules made by command.
    pub fn new(configured: Configured, stored: impl Iterator<Item = Rule>) -> Result<Self, PolicyError> {
        let Configured { rules, groups, open, strangers, relay } = configured;
        let (rules, ask) = (rules.into_iter().chain(stored).collect(), strangers == Strangers::Ask);
        let input = PolicyInput { rules, groups, open, ask, relay, ..PolicyInput::default() };
        let handle = PolicyHandle::new(Policy::new(input.clone())?);
        Ok(Self { input: Arc::new(Mutex::new(input)), handle, turn: Arc::default() })
    }

    /// The policy in force.
    pub fn handle(&self) -> &PolicyHandle {
        &self.handle
    }

    /// Whoever changes rules here and in the store has this meanwhile: one change after the other.
    pub fn turn(&self) -> Arc<tokio::sync::Mutex<()>> {
        self.turn.clone()
    }

    /// We dial this node, so it may connect.
    pub fn dial(&self, id: NodeId) {
        // Cannot fail: who is dialled is bounded by what the store and the configuration may name.
        let _ = self.change_if(|input| !input.dialled.contains(&id), |input| _ = input.dialled.insert(id));
    }

    /// We dial this node no longer.
    pub fn release(&self, id: NodeId) {
        let _ = self.change_if(|input| input.dialled.contains(&id), |input| _ = input.dialled.remove(&id));
    }

    /// The configuration is another one. Rules made by command stay, and so does who is dialled.
    ///
    /// # Errors
    /// [`PolicyError`]; then nothing has changed.
    pub fn configure(&self, configured: Configured) -> Result<(), PolicyError> {
        self.change(|input| {
            let stored = input.rules.drain(..).filter(|rule| rule.source() == Source::Store);
            input.rules = configured.rules.into_iter().chain(stored.collect::<Vec<_>>()).collect();
            (input.groups, input.open, input.relay) = (configured.groups, configured.open, configured.relay);
            input.ask = configured.strangers == Strangers::Ask;
        })
    }

    /// Adds a rule made by command. Says whether it is new among those.
    pub fn add(&self, rule: Rule) -> Result<bool, PolicyError> {
        Ok(!self.add_all(vec![rule])?.is_empty())
    }

    /// Adds rules made by command: all of them or, if there would be no policy, none. Gives those that are new.
    pub fn add_all(&self, rules: Vec<Rule>) -> Result<Vec<Rule>, PolicyError> {
        let mut new = Vec::new();
        self.change(|input| {
            for rule in rules.into_iter().map(|rule| rule.with_source(Source::Store)) {
                if !input.rules.contains(&rule) {
                    input.rules.push(rule.clone());
                    new.push(rule);
                }
            }
        })?;
        Ok(new)
    }

    /// Adds a rule that denies in place of those by command that permit just this node something, and gives those; and whether it is new.
    pub fn put_out(&self, who: &NodeId, denial: &Rule) -> Result<(bool, Vec<Rule>), PolicyError> {
        let denial = denial.clone().with_source(Source::Store);
        let (mut new, mut removed) = (false, Vec::new());
        self.change(|input| {
            removed = input.rules.extract_if(.., |rule| rule.permits_just(who)).collect();
            new = !input.rules.contains(&denial);
            if new {
                input.rules.push(denial);
            }
        })?;
        Ok((new, removed))
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
        self.change_if(|_| true, change)
    }

    /// Making a policy takes time linear in its rules and groups, and wakes everyone who watches: not for nothing.
    fn change_if(
        &self,
        needed: impl FnOnce(&PolicyInput) -> bool,
        change: impl FnOnce(&mut PolicyInput),
    ) -> Result<(), PolicyError> {
        let mut input = self.input.lock().expect("nothing panics while it is held");
        if !needed(&input) {
            return Ok(());
        }
        let mut changed = input.clone();
        change(&mut changed);
        self.handle.replace(Policy::new(changed.clone())?);
        *input = changed;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::policy::{Action, Effect, Pattern, Subject};

    const WHO: NodeId = NodeId::from_bytes([7; 32]);
    const DIALLED: NodeId = NodeId::from_bytes([8; 32]);

    fn rule(subject: &str, action: Action, resource: &str, source: Source) -> Rule {
        let resource: Pattern = resource.parse().unwrap();
        Rule::new(Effect::Permit, subject.parse().unwrap(), action, resource, source).unwrap()
    }

    fn friends() -> Groups {
        Groups::from([("friends".parse().unwrap(), BTreeSet::from([WHO]))])
    }

    #[test]
    fn another_configuration_leaves_what_commands_and_dialling_made() {
        let before = rule("*", Action::Call, "before/*", Source::Config);
        let stored = rule("@friends", Action::Call, "stored/*", Source::Store);
        let configured = Configured { rules: vec![before], groups: friends(), open: true, ..Configured::default() };
        let rules = Rules::new(configured, [stored].into_iter()).unwrap();
        rules.dial(DIALLED);
        assert!(rules.add(rule(&WHO.to_string(), Action::Publish, "w", Source::Config)).unwrap());

        let after = rule("*", Action::Call, "after/*", Source::Config);
        rules.configure(Configured { rules: vec![after], groups: friends(), ..Configured::default() }).unwrap();
        let may = |who: &NodeId, action, resource| rules.handle().decide(who, action, resource).is_permit();
        assert!(may(&WHO, Action::Call, "after/x") && !may(&WHO, Action::Call, "before/x"));
        assert!(may(&WHO, Action::Call, "stored/x") && may(&WHO, Action::Publish, "w") && !may(&WHO, Action::Call, "any/x"));
        assert!(rules.handle().current().is_trusted(&DIALLED));
    }

    #[test]
    fn a_configuration_that_makes_no_policy_changes_nothing() {
        let stored = rule("@friends", Action::Call, "stored/*", Source::Store);
        let rules = Rules::new(Configured { groups: friends(), ..Configured::default() }, [stored].into_iter()).unwrap();
        let generation = rules.handle().generation();
        let error = rules.configure(Configured { open: true, ..Configured::default() }).unwrap_err();
        assert!(matches!(error, PolicyError::UnknownGroup { .. }), "{error}");
        assert_eq!(rules.handle().generation(), generation);
        assert!(rules.handle().decide(&WHO, Action::Call, "stored/x").is_permit());
        // Nor is it remembered for the next change.
        rules.dial(DIALLED);
        assert!(!rules.handle().decide(&DIALLED, Action::Call, "any/x").is_permit());
    }

    #[test]
    fn rules_that_belong_together_make_one_policy_or_none() {
        let rules = Rules::new(Configured::default(), std::iter::empty()).unwrap();
        let own = |resource: &str| rule(&WHO.to_string(), Action::Call, resource, Source::Store);
        assert_eq!(rules.add_all(vec![own("a/*"), own("b/*"), own("a/*")]).unwrap(), [own("a/*"), own("b/*")]);
        assert_eq!(rules.handle().generation(), 1);
        let of_nobody = rule("@nobody", Action::Call, "c/*", Source::Store);
        rules.add_all(vec![own("c/*"), of_nobody]).unwrap_err();
        assert!(!rules.handle().decide(&WHO, Action::Call, "c/x").is_permit());
        assert_eq!(rules.add_all(vec![own("b/*"), own("c/*")]).unwrap(), [own("c/*")]);
    }

    #[test]
    fn who_is_dialled_already_makes_no_new_policy() {
        let rules = Rules::new(Configured::default(), std::iter::empty()).unwrap();
        rules.release(WHO);
        assert_eq!(rules.handle().generation(), 0);
        rules.dial(WHO);
        rules.dial(WHO);
        assert_eq!(rules.handle().generation(), 1);
        rules.release(WHO);
        rules.release(WHO);
        assert_eq!(rules.handle().generation(), 2);
        assert!(!rules.handle().current().is_trusted(&WHO));
        assert_eq!(Subject::Node(WHO).to_string().parse(), Ok(Subject::Node(WHO)));
    }
}

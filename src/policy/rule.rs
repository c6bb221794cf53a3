//! One rule: who may, or may not, do what, to which resource. Text and JSON, both directions. It decides nothing.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};

use super::{Action, Pattern, RelayMode, Subject};
use crate::id::NodeId;

/// Characters of a rule's id: 50 bits. Two rules that share an id by chance are refused by the store, never mixed up.
const ID_CHARS: usize = 10;

/// What a rule does for those it is about. As text: `allow` or `deny`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Effect {
    /// They may, unless another rule denies it.
    #[serde(rename = "allow")]
    Permit,
    /// They may not, whatever other rules say.
    #[serde(rename = "deny")]
    Deny,
}

/// Where a rule was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Source {
    /// In `volt.toml`: to change it, edit the file.
    Config,
    /// In the store, by a command.
    Store,
    /// Implied by `--open`.
    Open,
    /// Implied by dialling that node.
    Dialled,
    /// Implied by `--relay`.
    Relay,
}

/// A rule. Made by [`Rule::new`], which refuses rules that could never apply.
///
/// Its id is made from its text, so the same rule has the same id everywhere and for ever.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written")]
pub struct Rule {
    id: String,
    effect: Effect,
    subject: Subject,
    action: Action,
    resource: Pattern,
    source: Source,
}

/// Why a rule is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// `connect` with a resource.
    #[error("`connect` has no resource: leave `{0}` out, or write `*`")]
    ConnectResource(Pattern),
    /// `call` with a resource that no function's name can match.
    #[error("a function is named `service/method`, so this rule would never apply: write `{0}/*` for the whole service")]
    CallResource(Pattern),
}

impl Rule {
    /// A rule. `resource` is [`Pattern::everything`] for [`Action::Connect`] and has two segments, or is `*`, for [`Action::Call`].
    ///
    /// ```
    /// # use voltmesh::policy::{Action, Effect, Rule, Source, Subject};
    /// let rule = Rule::new(Effect::Permit, Subject::Anyone, Action::Call, "greeter/*".parse()?, Source::Config)?;
    /// assert_eq!(rule.to_string(), "allow * call greeter/*");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn new(effect: Effect, subject: Subject, action: Action, resource: Pattern, source: Source) -> Result<Self, RuleError> {
        match action {
            Action::Connect if !resource.is_everything() => return Err(RuleError::ConnectResource(resource)),
            Action::Call if !resource.is_everything() && resource.segments() < 2 => {
                return Err(RuleError::CallResource(resource));
            }
            _ => {}
        }
        let mut rule = Self { id: String::new(), effect, subject, action, resource, source };
        rule.id = id_of(&rule.to_string());
        Ok(rule)
    }

    /// What `--open` adds: anyone may connect, and call everything this node serves. Nothing else.
    pub fn open() -> [Self; 2] {
        [
            Self::implied("open-connect", Subject::Anyone, Action::Connect, Source::Open),
            Self::implied("open-call", Subject::Anyone, Action::Call, Source::Open),
        ]
    }

    /// What dialling a node adds: it may connect. Nothing else.
    pub fn dialled(node: NodeId) -> Self {
        Self::implied("dialled", Subject::Node(node), Action::Connect, Source::Dialled)
    }

    /// What being a relay adds: circuits are carried for anyone, or, of a closed one, from each node that its owner knows to each other.
    pub fn relay(mode: RelayMode) -> Self {
        match mode {
            RelayMode::Open => Self::implied("relay-open", Subject::Anyone, Action::Relay, Source::Relay),
            // Whom it is about is more than a subject can say: it is in no index, and only named where it decides.
            RelayMode::Closed => Self::implied("relay-known", Subject::Anyone, Action::Relay, Source::Relay),
        }
    }

    fn implied(id: &str, subject: Subject, action: Action, source: Source) -> Self {
        Self { id: id.to_owned(), effect: Effect::Permit, subject, action, resource: Pattern::everything(), source }
    }

    /// Short text that names it in commands: the same for the same effect, subject, action and resource.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether it permits or denies.
    pub fn effect(&self) -> Effect {
        self.effect
    }

    /// Who it is about.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// What it is about.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Which resources it is about.
    pub fn resource(&self) -> &Pattern {
        &self.resource
    }

    /// The rule by command that shuts a node out.
    pub fn denies(who: NodeId) -> Self {
        let rule = Self::new(Effect::Deny, Subject::Node(who), Action::Connect, Pattern::everything(), Source::Store);
        rule.expect("a rule about `connect` and everything")
    }

    /// Whether a command made it, and it permits just this node something.
    pub fn permits_just(&self, who: &NodeId) -> bool {
        self.source == Source::Store && self.effect == Effect::Permit && self.subject == Subject::Node(*who)
    }

    /// Where it was written.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The same rule, written elsewhere.
    pub fn with_source(self, source: Source) -> Self {
        let mut rule = Self { source, ..self };
        rule.id = id_of(&rule.to_string());
        rule
    }

    /// The order in which rules are looked at and shown: the closest fit first, and the same whatever order they came in.
    pub(super) fn rank(&self) -> impl Ord + '_ {
        let length = std::cmp::Reverse(self.resource.as_str().len());
        (&self.subject, self.action, self.effect, length, &self.resource, self.source)
    }
}

/// `allow did:key:… call greeter/*`; a resource of `*` is left out for `connect`, which has none.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.effect, self.subject, self.action)?;
        if self.action == Action::Connect { Ok(()) } else { write!(f, " {}", self.resource) }
    }
}

fn id_of(text: &str) -> String {
    let mut id = data_encoding::BASE32_NOPAD.encode(digest(&SHA256, text.as_bytes()).as_ref()).to_lowercase();
    id.truncate(ID_CHARS);
    id
}

/// The JSON of a rule. A field this version does not know might narrow the rule, so it is refused, not skipped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    effect: Effect,
    subject: Subject,
    action: Action,
    resource: Pattern,
    source: Source,
    #[serde(default)]
    id: String,
}

impl TryFrom<Written> for Rule {
    type Error = RuleError;

    fn try_from(rule: Written) -> Result<Self, RuleError> {
        let mut made = Self::new(rule.effect, rule.subject, rule.action, rule.resource, rule.source)?;
        // Rules that nobody wrote have an id that says why they are there; all others have theirs from their text.
        if matches!(rule.source, Source::Open | Source::Dialled | Source::Relay) {
            made.id = rule.id;
        }
        Ok(made)
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Permit => "allow",
            Self::Deny => "deny",
        })
    }
}

/// Where to look for it: `volt.toml`, `the store`, `--open`, `dialled`.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Config => "volt.toml",
            Self::Store => "the store",
            Self::Open => "--open",
            Self::Dialled => "dialled",
            Self::Relay => "--relay",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(subject: &str, action: Action, resource: &str) -> Result<Rule, RuleError> {
        Rule::new(Effect::Permit, subject.parse().unwrap(), action, resource.parse().unwrap(), Source::Store)
    }

    #[test]
    fn the_same_rule_has_the_same_id_wherever_it_is_written() {
        let one = rule("*", Action::Call, "a/b").unwrap();
        let other = Rule::new(Effect::Permit, Subject::Anyone, Action::Call, "a/b".parse().unwrap(), Source::Config).unwrap();
        assert_eq!(one.id(), other.id());
        assert_ne!(one.id(), rule("*", Action::Call, "a/c").unwrap().id());
        // Written down so that it never changes: people keep ids in scripts.
        assert_eq!(one.id(), "x6shnj5mir");
    }

    #[test]
    fn a_rule_that_could_never_apply_is_refused() {
        assert!(matches!(rule("*", Action::Call, "greeter"), Err(RuleError::CallResource(_))));
        assert!(matches!(rule("*", Action::Connect, "greeter/*"), Err(RuleError::ConnectResource(_))));
        assert!(rule("*", Action::Call, "*").is_ok() && rule("*", Action::Connect, "*").is_ok());
        assert!(rule("*", Action::Subscribe, "weather").is_ok());
    }

    #[test]
    fn json_carries_a_rule_there_and_back() {
        let [connect, call] = Rule::open();
        let rules = [rule("@friends", Action::Call, "a/*").unwrap(), connect, call, Rule::dialled(NodeId::from_bytes([1; 32]))];
        for rule in rules {
            let json = serde_json::to_string(&rule).unwrap();
            assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule, "{json}");
        }
    }

    #[test]
    fn json_with_a_field_this_version_does_not_know_is_refused() {
        let json = r#"{"effect":"allow","subject":"*","action":"call","resource":"*","source":"store","until":5}"#;
        assert!(serde_json::from_str::<Rule>(json).unwrap_err().to_string().contains("until"));
    }
}

//! What somebody is given leave for, before it is said who: the part of a rule that an invitation carries, and an answer to a request.
//! Text both ways.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Action, ActionError, Effect, Pattern, PatternError, Rule, RuleError, Source, Subject};
use crate::id::NodeId;

/// Leave to do something: as text an action and a resource, `call greeter/*`; without a resource, every one.
///
/// ```
/// # use voltmesh::policy::Grant;
/// let grant: Grant = "call greeter/*".parse()?;
/// assert_eq!(grant.to_string(), "call greeter/*");
/// assert_eq!("subscribe".parse::<Grant>()?.to_string(), "subscribe *");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Grant {
    action: Action,
    resource: Pattern,
}

/// Why a text gives leave for nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// Not an action, or an action and a resource.
    #[error("leave is an action and a resource, like `call greeter/*`; this is {0:?}")]
    Words(String),
    /// The first word is no action.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The second is no resource.
    #[error(transparent)]
    Pattern(#[from] PatternError),
    /// They do not fit together.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

impl Grant {
    /// Leave to connect, and nothing else.
    pub fn connect() -> Self {
        Self { action: Action::Connect, resource: Pattern::everything() }
    }

    /// Leave for this. As with [`Rule::new`], not every resource fits every action.
    ///
    /// # Errors
    /// [`RuleError`].
    pub fn new(action: Action, resource: Pattern) -> Result<Self, RuleError> {
        Rule::new(Effect::Permit, Subject::Anyone, action, resource.clone(), Source::Store)?;
        Ok(Self { action, resource })
    }

    /// What it gives leave for.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The rule that gives it to this node.
    pub fn to(&self, node: NodeId) -> Rule {
        let rule = Rule::new(Effect::Permit, Subject::Node(node), self.action, self.resource.clone(), Source::Store);
        rule.expect("it was made a rule of before")
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.action {
            Action::Connect => self.action.fmt(f),
            _ => write!(f, "{} {}", self.action, self.resource),
        }
    }
}

impl FromStr for Grant {
    type Err = GrantError;

    fn from_str(text: &str) -> Result<Self, GrantError> {
        let mut words = text.split_whitespace();
        let (action, resource, more) = (words.next(), words.next(), words.next());
        let (Some(action), None) = (action, more) else {
            return Err(GrantError::Words(text.chars().take(64).collect()));
        };
        let resource = resource.map_or_else(|| Ok(Pattern::everything()), str::parse)?;
        Ok(Self::new(action.parse()?, resource)?)
    }
}

impl TryFrom<String> for Grant {
    type Error = GrantError;

    fn try_from(text: String) -> Result<Self, GrantError> {
        text.parse()
    }
}

impl From<Grant> for String {
    fn from(grant: Grant) -> Self {
        grant.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leave_is_read_as_it_is_written() {
        for text in ["connect", "call greeter/*", "call *", "subscribe sensors/*", "administer status"] {
            let grant: Grant = text.parse().unwrap();
            assert_eq!(grant.to_string(), text);
            let who = NodeId::from_bytes([7; 32]);
            assert_eq!(grant.to(who).to_string(), format!("allow {who} {text}"));
        }
    }

    #[test]
    fn what_could_never_apply_is_refused() {
        for text in ["", "call a/b c", "cal a/b", "call greeter", "connect somewhere", "call a**b"] {
            assert!(text.parse::<Grant>().is_err(), "{text}");
        }
    }
}

//! The things a rule can be about. All names are read from the start, so that rule files stay valid as more of them are used.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What somebody wants to do, and what the resource of a rule about it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "&'static str")]
#[non_exhaustive]
pub enum Action {
    /// Hold a session with this node. It has no resource; whoever is denied this is denied everything.
    Connect,
    /// Call a function this node serves. Resource: `service/method`.
    Call,
    /// Register a service in this node's directory. Resource: the service's name.
    Register,
    /// See which services are here. Resource: the service's name.
    Discover,
    /// Publish to a wire. Resource: the wire's name.
    Publish,
    /// Subscribe to a wire. Resource: the wire's name.
    Subscribe,
    /// Make a wire. Resource: the wire's name.
    Create,
    /// Have circuits carried by this node. Resource: the id at the far end.
    Relay,
    /// Reach a TCP target this node exposes. Resource: the target's name.
    Forward,
    /// Run commands on this node, as its owner does. Resource: the command, like `status` or `policy/ls`; the guide of the local API lists them.
    Administer,
}

/// Not the name of an action.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no action; the actions are {names}", names = names())]
pub struct ActionError(String);

impl Action {
    /// Every action.
    pub const ALL: &[Action] = &[
        Action::Connect,
        Action::Call,
        Action::Register,
        Action::Discover,
        Action::Publish,
        Action::Subscribe,
        Action::Create,
        Action::Relay,
        Action::Forward,
        Action::Administer,
    ];

    /// Its name in rules: `call`.
    pub fn name(self) -> &'static str {
        match self {
            Action::Connect => "connect",
            Action::Call => "call",
            Action::Register => "register",
            Action::Discover => "discover",
            Action::Publish => "publish",
            Action::Subscribe => "subscribe",
            Action::Create => "create",
            Action::Relay => "relay",
            Action::Forward => "forward",
            Action::Administer => "administer",
        }
    }
}

fn names() -> String {
    Action::ALL.iter().map(|action| action.name()).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Action {
    type Err = ActionError;

    fn from_str(text: &str) -> Result<Self, ActionError> {
        let found = Action::ALL.iter().find(|action| action.name() == text);
        found.copied().ok_or_else(|| ActionError(text.chars().take(32).collect()))
    }
}

impl TryFrom<String> for Action {
    type Error = ActionError;

    fn try_from(text: String) -> Result<Self, ActionError> {
        text.parse()
    }
}

impl From<Action> for &'static str {
    fn from(action: Action) -> Self {
        action.name()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_read_by_the_name_it_writes() {
        for action in Action::ALL {
            assert_eq!(action.to_string().parse(), Ok(*action));
        }
    }

    #[test]
    fn an_unknown_action_is_refused_with_the_list_of_them() {
        let error = "cal".parse::<Action>().unwrap_err().to_string();
        assert!(error.starts_with("`cal` is no action") && error.contains("connect, call, register"), "{error}");
    }
}

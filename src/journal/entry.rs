//! What is written down. An [`Entry`] has no room for what was said: no body, no header, no metadata, no key.

use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use serde::Serialize;

use super::time::rfc3339;
use crate::id::NodeId;
use crate::policy::{Action, Decision, Rule, Source};
use crate::proto::escape::escape_name;

/// Longest text of an entry, in bytes: a name of a method fits, with nothing in it to be spelt out.
const TEXT_BYTES: usize = 600;

/// Text that others chose, or that quotes what they said: escaped and bounded, so that an entry is one line, whatever they call themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Text(String);

impl<T: AsRef<str>> From<T> for Text {
    fn from(text: T) -> Self {
        Self(escape_name(text.as_ref(), TEXT_BYTES))
    }
}

/// The rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct By {
    /// The rule's id, as `volt policy ls` shows it.
    pub rule: Text,
    /// Where it was written.
    pub source: Source,
}

impl By {
    /// The rule that a decision rests on, if any does.
    pub fn of(decision: &Decision) -> Option<Self> {
        decision.rule.as_deref().map(Self::from)
    }
}

impl From<&Rule> for By {
    fn from(rule: &Rule) -> Self {
        Self { rule: rule.id().into(), source: rule.source() }
    }
}

/// What was decided about something that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ruling {
    /// It went on.
    Permit,
    /// Policy refused it.
    Deny,
    /// A rate was used up.
    Rate,
}

impl Ruling {
    /// What a decision comes to.
    pub fn of(decision: &Decision) -> Self {
        if decision.is_permit() { Self::Permit } else { Self::Deny }
    }
}

/// Calls of one method by one peer, since the last entry about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Called {
    /// Who called.
    pub peer: NodeId,
    /// `service/method`; none for methods beyond those that are counted one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<Text>,
    /// What was decided.
    pub decision: Ruling,
    /// By which rule.
    #[serde(flatten)]
    pub by: Option<By>,
    /// How many calls.
    pub count: u64,
    /// How many calls were answered with an error, of those that are over.
    #[serde(skip_serializing_if = "is_zero")]
    pub errors: u64,
}

/// Something other than a call that one peer asked for, since the last entry about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Who asked.
    pub peer: NodeId,
    /// What the action is about; none for those beyond the ones that are counted one by one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<Text>,
    /// What was decided.
    pub decision: Ruling,
    /// By which rule.
    #[serde(flatten)]
    pub by: Option<By>,
    /// How often.
    pub count: u64,
}

/// What became of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// It is in force from now on.
    Added,
    /// It is in force no longer.
    Removed,
}

/// Something that happened, or was decided.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Entry {
    /// The node has started; everything before was written by another process.
    Started {
        /// Its version.
        version: &'static str,
        /// Rules in force.
        rules: usize,
    },
    /// The node has ended in good order.
    Stopped,
    /// A session began.
    Admitted {
        /// With whom.
        peer: NodeId,
        /// What it calls itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<Text>,
        /// The rule that permits it.
        #[serde(flatten)]
        by: Option<By>,
        /// Where the peer is seen; none if others carry the session.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<SocketAddr>,
        /// The first relay on this side, if others carry it.
        #[serde(skip_serializing_if = "Option::is_none")]
        via: Option<NodeId>,
        /// A short-lived command with the key of a node.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        visitor: bool,
    },
    /// A peer was turned away.
    Refused {
        /// Who proved to hold this key.
        peer: NodeId,
        /// Why.
        reason: Text,
        /// The rule that denies it; none if no rule permits it, or the reason is another one.
        #[serde(flatten)]
        by: Option<By>,
        /// Where it is seen; none if others carried the circuit.
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<SocketAddr>,
    },
    /// A stranger waits for the owner to decide.
    Asked {
        /// Who proved to hold this key.
        peer: NodeId,
        /// What it calls itself.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<Text>,
        /// Where it is seen: of one that came through a relay, where that is.
        from: IpAddr,
        /// Whether it came through a relay.
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        relayed: bool,
    },
    /// A peer used an invitation. The rules it gave follow.
    Invited {
        /// Who.
        peer: NodeId,
    },
    /// `volt.toml` was read again.
    Config {
        /// Why it is not in force, if it is not.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Text>,
        /// How many rules are in force.
        rules: usize,
    },
    /// A session is over.
    Ended {
        /// With whom.
        peer: NodeId,
        /// Why.
        reason: Text,
    },
    /// Calls.
    Call(Called),
    /// Registrations of services.
    Register(Used),
    /// Lists of services.
    Discover(Used),
    /// Publishers of wires.
    Publish(Used),
    /// Subscribers of wires.
    Subscribe(Used),
    /// Wires to be made.
    Create(Used),
    /// Circuits to be carried.
    Relay(Used),
    /// Tunnels.
    Forward(Used),
    /// Commands to this node.
    Administer(Used),
    /// Leave to connect, asked for otherwise than by a session.
    Connect(Used),
    /// A limit turned something away.
    Limit {
        /// Whose.
        peer: NodeId,
        /// Which limit.
        limit: &'static str,
        /// How often since the last entry about it.
        count: u64,
    },
    /// The rules have changed.
    Policy {
        /// How.
        change: Change,
        /// The rule's id.
        rule: Text,
        /// What it says.
        says: Text,
    },
    /// Entries about one peer that were left out, so that it does not push out what is about others.
    Omitted {
        /// About whom; none: about all who were refused, or whom no rule names, together.
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<NodeId>,
        /// How many.
        count: u64,
    },
    /// Entries that could not be written: the queue was full, or the disk.
    Missed {
        /// How many.
        count: u64,
    },
}

impl Entry {
    /// A rule has changed.
    pub fn rule(change: Change, rule: &Rule) -> Self {
        Self::Policy { change, rule: rule.id().into(), says: rule.to_string().into() }
    }

    /// Something that a peer asked for.
    pub fn used(action: Action, used: Used) -> Self {
        match action {
            Action::Call => Self::Call(Called {
                peer: used.peer,
                method: used.resource,
                decision: used.decision,
                by: used.by,
                count: used.count,
                errors: 0,
            }),
            Action::Register => Self::Register(used),
            Action::Discover => Self::Discover(used),
            Action::Publish => Self::Publish(used),
            Action::Subscribe => Self::Subscribe(used),
            Action::Create => Self::Create(used),
            Action::Relay => Self::Relay(used),
            Action::Forward => Self::Forward(used),
            Action::Administer => Self::Administer(used),
            Action::Connect => Self::Connect(used),
        }
    }

    /// Whose room in the journal it takes: of those who are refused nobody has room of his own. `None`: this node's. So is what was done
    /// here by command, which nobody must be able to hide behind what else he does; it is few, because it is counted by command.
    pub(super) fn payer(&self) -> Option<Payer> {
        match self {
            Self::Refused { .. } | Self::Asked { .. } => Some(Payer::Strangers),
            Self::Admitted { peer, .. } | Self::Invited { peer } | Self::Ended { peer, .. } | Self::Limit { peer, .. } => {
                Some(Payer::Peer(*peer))
            }
            Self::Administer(Used { decision: Ruling::Permit, resource: Some(_), .. }) => None,
            Self::Call(called) => Some(Payer::Peer(called.peer)),
            Self::Register(used)
            | Self::Discover(used)
            | Self::Publish(used)
            | Self::Subscribe(used)
            | Self::Create(used)
            | Self::Relay(used)
            | Self::Forward(used)
            | Self::Administer(used)
            | Self::Connect(used) => Some(Payer::Peer(used.peer)),
            Self::Started { .. }
            | Self::Stopped
            | Self::Config { .. }
            | Self::Policy { .. }
            | Self::Omitted { .. }
            | Self::Missed { .. } => None,
        }
    }

    /// The line it is written as, with its end.
    pub(super) fn line(&self, at: SystemTime) -> Vec<u8> {
        #[derive(Serialize)]
        struct Line<'a> {
            at: String,
            #[serde(flatten)]
            entry: &'a Entry,
        }
        let mut line = serde_json::to_vec(&Line { at: rfc3339(at), entry: self }).expect("an entry is plain data");
        line.push(b'\n');
        line
    }
}

/// Whose room an entry takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Payer {
    Peer(NodeId),
    /// All who are let in though no rule is about them, together.
    Guests,
    /// All who are refused, together: keys cost nothing.
    Strangers,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    const WHO: NodeId = NodeId::from_bytes([7; 32]);

    fn text(entry: &Entry) -> String {
        String::from_utf8(entry.line(UNIX_EPOCH)).unwrap()
    }

    #[test]
    fn a_call_says_who_what_and_by_which_rule() {
        let by = Some(By { rule: "x6shnj5mir".into(), source: Source::Store });
        let method = Some("greeter/hello".into());
        let call = Entry::Call(Called { peer: WHO, method, decision: Ruling::Permit, by, count: 3, errors: 1 });
        let expected = format!(
            "{{\"at\":\"1970-01-01T00:00:00.000Z\",\"event\":\"call\",\"peer\":\"{WHO}\",\"method\":\"greeter/hello\",\
             \"decision\":\"permit\",\"rule\":\"x6shnj5mir\",\"source\":\"store\",\"count\":3,\"errors\":1}}\n"
        );
        assert_eq!(text(&call), expected);
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let refused = Entry::Refused { peer: WHO, reason: "policy".into(), by: None, from: None };
        let expected =
            format!("{{\"at\":\"1970-01-01T00:00:00.000Z\",\"event\":\"refused\",\"peer\":\"{WHO}\",\"reason\":\"policy\"}}\n");
        assert_eq!(text(&refused), expected);
        let expected = "{\"at\":\"1970-01-01T00:00:00.000Z\",\"event\":\"missed\",\"count\":2}\n";
        assert_eq!(text(&Entry::Missed { count: 2 }), expected);
    }

    #[test]
    fn whatever_a_peer_calls_itself_is_one_bounded_line() {
        for name in ["a\nb\r\u{2028}c", "\u{202e}evil\u{1b}[2J", "\"}\n{\"event\":\"admitted\"", &"\0".repeat(9_000)] {
            let (by, from, via) = Default::default();
            let line = text(&Entry::Admitted { peer: WHO, name: Some(name.into()), by, from, via, visitor: false });
            assert_eq!(line.trim_end().lines().count(), 1, "{line}");
            assert!(line.len() < 2_000, "{}", line.len());
            let harmless = |c: char| !c.is_control() && !('\u{2028}'..='\u{202e}').contains(&c);
            assert!(line.trim_end_matches('\n').chars().all(harmless), "{line:?}");
            let read: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert_eq!(read["event"], "admitted");
        }
    }
}

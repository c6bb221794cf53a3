//! Rules as commands name them: read, looked up, added, removed, asked. It decides nothing: that is the policy's.

use super::failure::{Cause, Failure};
use super::peers::unknown_name;
use super::types::{Answer, RuleRequest, verdict_text};
use crate::id::NodeId;
use crate::node::config::PeerRef;
use crate::node::store::Peer;
use crate::policy::{Action, Pattern, Policy, Rule, Source, Subject};
use crate::proto::status::Code;

/// Who a text means in a rule: a `did:key:…`, `@group`, `*`, or a name among these peers.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn subject(text: &str, peers: &[Peer]) -> Result<Subject, Failure> {
    if text.starts_with('@') || text == "*" {
        return text.parse().map_err(Failure::usage);
    }
    match super::peers::parse(text)? {
        PeerRef::Id(id) => Ok(Subject::Node(id)),
        PeerRef::Ticket(ticket) => Ok(Subject::Node(ticket.id)),
        PeerRef::Name(name) => {
            let peer = peers.iter().find(|peer| peer.name.as_ref() == Some(&name));
            peer.map(|peer| Subject::Node(peer.id)).ok_or_else(|| unknown_name(&name))
        }
    }
}

/// The rule that a request describes, of the store.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn rule(request: &RuleRequest, peers: &[Peer]) -> Result<Rule, Failure> {
    let effect = request.effect.ok_or_else(|| Failure::usage("a rule allows or denies: say which"))?;
    let action: Action = request.action.parse().map_err(Failure::usage)?;
    let resource = match &request.resource {
        Some(text) => text.parse().map_err(Failure::usage)?,
        None => Pattern::everything(),
    };
    Rule::new(effect, subject(&request.who, peers)?, action, resource, Source::Store).map_err(Failure::usage)
}

/// What the policy says to a question, and why. Only single nodes can be asked about.
///
/// # Errors
/// [`Failure`] of the cause [`Cause::Usage`].
pub fn check(policy: &Policy, request: &RuleRequest, peers: &[Peer]) -> Result<Answer, Failure> {
    let who: NodeId = match subject(&request.who, peers)? {
        Subject::Node(id) => id,
        other => {
            return Err(Failure::usage(format!("`{other}` is many; a decision is about one peer"))
                .hint("name one: its id, its ticket, or the name you gave it"));
        }
    };
    let action: Action = request.action.parse().map_err(Failure::usage)?;
    let resource = match (&request.resource, action) {
        (Some(resource), _) => resource.as_str(),
        (None, Action::Connect) => "",
        (None, _) => {
            return Err(Failure::usage(format!("which resource is it to {action}?"))
                .hint("name it, for example: `volt policy check bob call greeter/hello`"));
        }
    };
    let decision = policy.decide(&who, action, resource);
    Ok(Answer {
        decision: verdict_text(decision.verdict).to_owned(),
        rule: decision.rule.as_deref().cloned(),
        explanation: policy.explain(&who, action, resource),
    })
}

/// Whether a command may remove this rule; if not, where it is to be changed.
///
/// # Errors
/// [`Failure`]: it was not made by a command, or there is none of that id.
pub fn removable(policy: &Policy, id: &str) -> Result<(), Failure> {
    let mut rules = policy.rules().filter(|rule| rule.id() == id).peekable();
    if rules.peek().is_none() && id == "dialled" {
        return Err(Failure::usage("this rule is there because the node dials that peer: `volt disconnect PEER` ends it"));
    }
    let Some(first) = rules.peek().copied() else {
        return Err(Failure::new(Cause::Usage, Code::NotFound, format!("there is no rule {id}"))
            .hint("`volt policy ls` lists the rules with their ids"));
    };
    let source = first.source();
    if rules.any(|rule| rule.source() == Source::Store) {
        return Ok(());
    }
    let failure =
        Failure::new(Cause::Usage, Code::FailedPrecondition, format!("rule {id} is not from a command but from {source}"));
    Err(match source {
        Source::Config => failure.hint("remove it from volt.toml in the home: the node reads the file when it changes"),
        Source::Open => {
            failure.hint("take `open` out of volt.toml, or restart the node without --open; a deny rule wins over it at once")
        }
        _ => failure,
    })
}

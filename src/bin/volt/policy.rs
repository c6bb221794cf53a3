//! `policy`: the rules of this node. In force at once through the node that runs here; without one, written into its store.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use voltmesh::local::{Answer, Failure, RuleAdded, RuleRequest, peers, rules};
use voltmesh::node::config::{Config, PeerRef, Strangers};
use voltmesh::node::home::{Home, files};
use voltmesh::node::store::{Peer, Store};
use voltmesh::policy::{Effect, PolicyInput, Rule, Subject};

use crate::context::Context;
use crate::door::Place;
use crate::output;

/// Who may do what at this node, and why
///
/// A deny always wins; what no rule allows is denied; whoever may call something may connect. WHO is an id (`did:key:…`), a name
/// you gave, `@group` (of volt.toml) or `*`. ACTION is connect, call, register, discover, publish, subscribe, create, relay,
/// forward or administer. RESOURCE is `service/method` for call, a service for register and discover, a wire for publish, subscribe and
/// create, an id for relay, what is exposed for forward, a command for administer (`status`, `policy/ls`), with `*` for any text between
/// slashes, and alone for everything.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  volt policy allow bob call 'greeter/*'\n  volt policy deny '*' call admin/stop\n  volt policy allow bob publish 'sensors/*'\n  volt policy check bob call greeter/hello\n  volt policy allow bob administer status\n  volt policy ls"
)]
pub enum Policy {
    /// List the rules, with their ids and where they were written
    #[command(after_help = "Example:\n  volt policy ls --json")]
    Ls,
    /// Add a rule that allows
    #[command(after_help = "Examples:\n  volt policy allow bob call 'greeter/*'\n  volt policy allow '*' connect")]
    Allow(RuleArgs),
    /// Add a rule that denies
    #[command(after_help = "Example:\n  volt policy deny bob connect")]
    Deny(RuleArgs),
    /// Remove a rule that was added by a command, by its id or by what it says
    #[command(after_help = "Examples:\n  volt policy rm x6shnj5mir\n  volt policy rm bob call 'greeter/*'")]
    Rm {
        /// The rule's id, or WHO it is about
        id_or_who: String,
        /// The action it is about
        action: Option<String>,
        /// The resource it is about
        resource: Option<String>,
    },
    /// Ask what the policy says to something, and why
    #[command(after_help = "Example:\n  volt policy check bob call greeter/hello")]
    Check(RuleArgs),
}

#[derive(Debug, Args)]
pub struct RuleArgs {
    /// An id, a name, `@group` or `*`
    who: String,
    /// `connect`, `call`, …
    action: String,
    /// `service/method`; left out in a rule: everything
    resource: Option<String>,
}

impl RuleArgs {
    fn request(self, effect: Option<Effect>) -> RuleRequest {
        RuleRequest { effect, who: self.who, action: self.action, resource: self.resource }
    }
}

impl Policy {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let place = Place::find(context).await?;
        match self {
            Self::Ls => ls(context, place.rules().await?),
            Self::Allow(arguments) => added(context, place.add(arguments.request(Some(Effect::Permit))).await?),
            Self::Deny(arguments) => added(context, place.add(arguments.request(Some(Effect::Deny))).await?),
            Self::Rm { id_or_who, action: None, .. } => removed(context, vec![place.remove(&id_or_who).await?]),
            Self::Rm { id_or_who, action: Some(action), resource } => {
                removed(context, place.remove_said(RuleArgs { who: id_or_who, action, resource }).await?);
            }
            Self::Check(arguments) => checked(context, &place.check(arguments.request(None)).await?),
        }
        Ok(())
    }
}

impl Place {
    async fn rules(&self) -> Result<Vec<Rule>, Failure> {
        match self {
            Self::Node(client) => client.get("/v1/policy").await,
            Self::Files(home) => Ok(policy(home)?.0.rules().cloned().collect()),
        }
    }

    async fn add(&self, request: RuleRequest) -> Result<RuleAdded, Failure> {
        match self {
            Self::Node(client) => {
                let path = if request.effect == Some(Effect::Deny) { "/v1/policy/deny" } else { "/v1/policy/allow" };
                client.post(path, &request).await
            }
            Self::Files(home) => {
                let _lock = home.lock()?;
                let store = Store::open(home.file(files::STORE))?;
                let rule = rules::rule(&request, &store.peers()?)?;
                // Refused here, not when the node is next started.
                let config = Config::read(home).map_err(Failure::local)?;
                let input = PolicyInput { rules: vec![rule.clone()], groups: config.groups, ..PolicyInput::default() };
                voltmesh::policy::Policy::new(input).map_err(Failure::usage)?;
                let (rule, new) = store.add_rule(&rule)?;
                Ok(RuleAdded { rule, new })
            }
        }
    }

    async fn remove(&self, id: &str) -> Result<String, Failure> {
        match self {
            Self::Node(client) => {
                let fine = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
                let path = if fine { format!("/v1/policy/{id}") } else { "/v1/policy/-".to_owned() };
                let done: Value = client.delete(&path).await?;
                Ok(done["id"].as_str().unwrap_or(id).to_owned())
            }
            Self::Files(home) => {
                let _lock = home.lock()?;
                rules::removable(&policy(home)?.0, id)?;
                Store::open(home.file(files::STORE))?.remove_rule(id)?;
                Ok(id.to_owned())
            }
        }
    }

    /// Removes what says this, whether it allows or denies.
    async fn remove_said(&self, arguments: RuleArgs) -> Result<Vec<String>, Failure> {
        let there = self.rules().await?;
        // They are asked for only where a name is to be looked up.
        let by_name = matches!(peers::parse(&arguments.who), Ok(PeerRef::Name(_)));
        let peers = if by_name { self.peers().await? } else { Vec::new() };
        let request = arguments.request(None);
        let mut gone = Vec::new();
        for effect in [Effect::Permit, Effect::Deny] {
            let rule = rules::rule(&RuleRequest { effect: Some(effect), ..request.clone() }, &peers)?;
            if there.iter().any(|other| other.id() == rule.id()) {
                gone.push(self.remove(rule.id()).await?);
            }
        }
        if gone.is_empty() {
            return Err(Failure::usage("no rule says that").hint("`volt policy ls` lists the rules with their ids"));
        }
        Ok(gone)
    }

    async fn check(&self, request: RuleRequest) -> Result<Answer, Failure> {
        match self {
            Self::Node(client) => client.post("/v1/policy/check", &request).await,
            Self::Files(home) => {
                let (policy, peers) = policy(home)?;
                rules::check(&policy, &request, &peers)
            }
        }
    }

    /// Peers with names.
    async fn peers(&self) -> Result<Vec<Peer>, Failure> {
        match self {
            Self::Node(client) => {
                let lines: Vec<voltmesh::local::PeerLine> = client.get("/v1/peers").await?;
                let named = |line: voltmesh::local::PeerLine| Peer {
                    name: line.name.and_then(|name| name.parse().ok()),
                    ..Peer::new(line.peer)
                };
                Ok(lines.into_iter().map(named).collect())
            }
            Self::Files(home) => Ok(Store::open_read_only(home.file(files::STORE))?.peers()?),
        }
    }
}

/// The policy a node would have that were started now, and the peers it remembers.
fn policy(home: &Home) -> Result<(voltmesh::policy::Policy, Vec<Peer>), Failure> {
    let config = Config::read(home).map_err(Failure::local)?;
    let store = Store::open_read_only(home.file(files::STORE))?;
    let peers = store.peers()?;
    let wanted = peers.iter().filter(|peer| peer.wanted).map(|peer| peer.id);
    let named =
        config.connect.iter().chain(&config.mirror).chain(&config.homes).chain(&config.relays).filter_map(|peer| match peer {
            PeerRef::Id(id) => Some(*id),
            PeerRef::Ticket(ticket) => Some(ticket.id),
            PeerRef::Name(name) => peers.iter().find(|peer| peer.name.as_ref() == Some(name)).map(|peer| peer.id),
            _ => None,
        });
    let input = PolicyInput {
        dialled: wanted.chain(named).collect(),
        rules: config.rules.into_iter().chain(store.rules()?).collect(),
        groups: config.groups,
        open: config.open,
        ask: config.strangers == Strangers::Ask,
        relay: config.relay,
    };
    Ok((voltmesh::policy::Policy::new(input).map_err(Failure::local)?, peers))
}

fn ls(context: &Context, rules: Vec<Rule>) {
    if context.json {
        return rules.iter().for_each(output::json);
    }
    if rules.is_empty() {
        context.say("No rules: nobody may connect, except whom this node dials.");
    }
    let row = |rule: &Rule| {
        let who = match rule.subject() {
            Subject::Node(id) => id.to_string(),
            other => other.to_string(),
        };
        let cells = [rule.effect().to_string(), who, rule.action().to_string(), rule.resource().as_str().to_owned()];
        std::iter::once(rule.id().to_owned()).chain(cells).chain([rule.source().to_string()]).collect()
    };
    output::table(&["ID", "DOES", "WHO", "ACTION", "RESOURCE", "FROM"], rules.iter().map(row).collect());
}

fn added(context: &Context, added: RuleAdded) {
    if context.json {
        return output::json(&added);
    }
    let what = if added.new { "Added" } else { "There already" };
    output::line(&format!("{what}: {} ({})", added.rule, added.rule.id()));
}

fn removed(context: &Context, ids: Vec<String>) {
    for id in ids {
        if context.json {
            output::json(&json!({ "id": id, "removed": true }));
        } else {
            output::line(&format!("Removed: {}", output::escape_line(&id)));
        }
    }
}

fn checked(context: &Context, answer: &Answer) {
    if context.json {
        output::json(&json!({ "decision": answer.decision, "rule": answer.rule }));
    } else {
        output::line(&output::escape_line(&answer.explanation));
    }
}

//! `revoke`: putting a peer out, now and for good.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use voltmesh::local::trust::{Revoked, one_is_meant};
use voltmesh::local::{Failure, PeerRequest, rules};
use voltmesh::node::home::{Home, files};
use voltmesh::node::store::Store;
use voltmesh::policy::{Rule, Subject};

use crate::context::Context;
use crate::door::Place;
use crate::output;

/// Refuse a peer from now on, and end what it has here
///
/// Adds a rule that denies it to connect, removes those that commands have made to permit it something, takes back the invitations that it had made from afar,
/// and holds no session with it any more. Its session, its circuits and its registrations end within a second. `volt policy rm WHO connect` takes the denial back.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  volt revoke bob")]
pub struct Revoke {
    /// An id (`did:key:…`), a ticket, or a name
    who: String,
}

impl Revoke {
    pub async fn run(self, context: &Context) -> Result<(), Failure> {
        let revoked = match Place::find(context).await? {
            Place::Node(client) => {
                client.post("/v1/revoke", &PeerRequest { peer: self.who, timeout_ms: 0, via: Vec::new() }).await?
            }
            Place::Files(home) => in_files(&home, &self.who)?,
        };
        if context.json {
            output::json(&revoked);
            return Ok(());
        }
        output::line(&format!("Revoked: {} ({} {})", revoked.peer, revoked.rule, revoked.rule.id()));
        revoked.removed.iter().for_each(|rule| output::line(&format!("  removed: {rule} ({})", rule.id())));
        revoked
            .withdrawn
            .iter()
            .for_each(|name| output::line(&format!("  taken back: the invitation {name}, which it had made")));
        if !revoked.open.is_empty() {
            let open = revoked.open.join(", ");
            context.say(&format!(
                "Invitations that are still good: {open}. Who has one of their tickets gets in, also with another key; `volt invite --withdraw NAME` takes one back."
            ));
        }
        Ok(())
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn in_files(home: &Home, who: &str) -> Result<Revoked, Failure> {
    let _lock = home.lock()?;
    let store = Store::open(home.file(files::STORE))?;
    let Subject::Node(peer) = rules::subject(who, &store.peers()?)? else {
        return Err(one_is_meant(who));
    };
    let rule = Rule::denies(peer);
    let revoked = store.revoke(&peer, &rule);
    // Whatever came of that.
    if store.peer(&peer)?.is_some() {
        store.change_peer(&peer, |peer| peer.wanted = false)?;
    }
    let revoked = revoked?;
    let withdrawn = revoked.withdrawn.iter().map(|hash| hash.short()).collect();
    let open = store.invitations(unix_ms())?.iter().map(|invitation| invitation.hash.short()).collect();
    Ok(Revoked { peer, rule, removed: revoked.removed, withdrawn, open })
}
